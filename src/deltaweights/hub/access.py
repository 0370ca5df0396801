"""The way to a Hub: where it is, who asks, and what its refusals mean.

Enters: options and the environment that the ``hf`` command reads, too (HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE).
Leaves: an ``Access``; the files of a repository at one commit; refusals in one line. Never: a token in a message, or sent to
another origin than the Hub's.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import HubId
from deltaweights.hub.patience import RETRIED, Patience

T = TypeVar("T")

COMMIT = re.compile(r"[0-9a-f]{40}")

MOST_BYTES = 1 << 40
"""A file that is stated to be larger is none: the Hub takes files of at most 500 GB."""

TIMEOUT = 10.0
"""Seconds without a byte after which a connection is given up; HF_HUB_DOWNLOAD_TIMEOUT says otherwise."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository as the Hub states it: ``sha256`` where it is stored apart (LFS), else git's sha1 alone."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def key(self) -> str:
        """The name of its blob in the cache."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit, those in folders left out."""

    repo: str
    commit: str
    files: dict[str, HubFile]


@dataclass(frozen=True)
class Access:
    """A Hub, and the cache beside it. ``token`` is None where nobody is logged in; ``stop`` ends all waiting."""

    endpoint: str
    token: str | None
    cache: Path
    offline: bool
    timeout: float = TIMEOUT
    stop: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def client(self) -> Any:
        """The HTTP client of huggingface_hub, with the proxies and certificates that it was told of; safe in threads."""
        hub = importlib.import_module("huggingface_hub")
        get: Callable[[], Any] = hub.get_session
        return get()

    @cached_property
    def broken(self) -> tuple[type[Exception], ...]:
        """The exceptions of the client that say that a connection could not be made, or broke."""
        library = importlib.import_module(type(self.client).__module__.partition(".")[0])
        return (library.TransportError,)

    @cached_property
    def origin(self) -> tuple[str, str]:
        """Scheme and host of the Hub, to which alone the token may go."""
        return origin_of(self.endpoint)

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers of every request, the token's left out."""
        utils = importlib.import_module("huggingface_hub.utils")
        built: dict[str, str] = utils.build_hf_headers(token=False, library_name="deltaweights")
        return {**built, "accept-encoding": "identity"}

    def url(self, listing: Listing, name: str) -> str:
        """Return where the Hub resolves a file of a listing."""
        return f"{self.endpoint}/{listing.repo}/resolve/{listing.commit}/{quote(name)}"

    def list_files(self, wanted: HubId) -> Listing:
        """Ask the Hub for the commit of ``wanted`` and its files. Raises ``InputOutputError``."""
        return self._patiently(wanted, lambda: self._listing(wanted))

    def _listing(self, wanted: HubId) -> Listing:
        hub = importlib.import_module("huggingface_hub")
        api = hub.HfApi(endpoint=self.endpoint, token=self.token or False)
        info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=self.timeout)
        files = {}
        for entry in info.siblings or ():
            # What lies in a folder is no part of a checkpoint, and what is no plain name has no business on this disk.
            if entry.size is not None and entry.blob_id and _is_plain(entry.rfilename):
                sha256 = entry.lfs.sha256 if entry.lfs else None
                size = entry.lfs.size if entry.lfs else entry.size
                if _is_hash(sha256, 64) and _is_hash(entry.blob_id, 40) and 0 <= size < MOST_BYTES:
                    files[entry.rfilename] = HubFile(entry.rfilename, size, sha256, entry.blob_id)
        if not COMMIT.fullmatch(info.sha or ""):
            raise InputOutputError("the Hub names no commit", where=str(wanted), found=info.sha, remedy="try again")
        return Listing(wanted.repo, info.sha, files)

    def _patiently(self, wanted: HubId, ask: Callable[[], T]) -> T:
        patience = Patience(self.stop)
        while True:
            try:
                return ask()
            except self.broken as error:
                if not patience.wait():
                    raise self.unreachable(error) from error
            except OSError as error:  # all of huggingface_hub's are
                response: Any = getattr(error, "response", None)
                status = response.status_code if response is not None else None
                if status not in RETRIED or not patience.wait(response.headers):
                    raise self.refusal(error, wanted) from error
            except (
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                RecursionError,
            ) as error:  # no answer, but what?
                remedy = "is HF_ENDPOINT that of a Hub?"
                raise InputOutputError("no answer of a Hub", where=self.endpoint, remedy=remedy) from error

    def unreachable(self, error: Exception) -> InputOutputError:
        """Return in one line that there is no way to the Hub."""
        remedy = "check the network, or use what is in the cache with --offline"
        return InputOutputError(
            f"cannot be reached: {error or type(error).__name__}", where=self.endpoint, remedy=remedy
        )

    def refusal(self, error: Exception, wanted: HubId) -> InputOutputError:
        """Return in one line what an exception of huggingface_hub says of ``wanted``."""
        errors = importlib.import_module("huggingface_hub.errors")
        status = getattr(getattr(error, "response", None), "status_code", None)
        log_in = "log in with: hf auth login, or set HF_TOKEN"
        if isinstance(error, errors.GatedRepoError):
            page = f"{self.endpoint}/{wanted.repo}"
            remedy = f"ask for access at {page}, then {log_in}" if self.token is None else f"ask for access at {page}"
            return InputOutputError("access to this model must be asked for", where=str(wanted), remedy=remedy)
        if isinstance(error, errors.RevisionNotFoundError):
            return InputOutputError("no such revision", where=str(wanted), remedy="check the part after the @")
        if isinstance(error, errors.RepositoryNotFoundError):
            remedy = (
                f"check the name; if it is private, {log_in}" if self.token is None else "check the name, and the token"
            )
            return InputOutputError("no such model, or a private one", where=str(wanted), remedy=remedy)
        if status == 401:
            return InputOutputError("the Hub does not know the token", where=str(wanted), remedy=f"{log_in} again")
        if status == 403:
            return InputOutputError(
                "the token does not give access", where=str(wanted), remedy="check what it may read"
            )
        said = f"the Hub answered {status}" if status else f"the Hub cannot be asked: {error}"
        return InputOutputError(said, where=str(wanted), remedy="try again later")


def origin_of(url: str) -> tuple[str, str]:
    """Return scheme and host with port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def access(
    *, token: str | None = None, cache: Path | None = None, offline: bool = False, endpoint: str | None = None
) -> Access:
    """Return the way to the Hub that the environment names, where the options do not name another.

    Raises ``UsageError`` when the token is none; that of an error of the client would show it.
    """
    hub, constants = importlib.import_module("huggingface_hub"), importlib.import_module("huggingface_hub.constants")
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = hub.get_token()
    if token and not re.fullmatch("[!-~]+", token):
        raise UsageError("the token of the Hub has characters that none has", remedy="check --token and HF_TOKEN")
    return Access(
        (endpoint or constants.ENDPOINT).rstrip("/"),
        token or None,
        cache or Path(constants.HF_HUB_CACHE),
        offline or bool(constants.HF_HUB_OFFLINE),
        float(constants.HF_HUB_DOWNLOAD_TIMEOUT),
    )


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[\w.+ ()-]{1,200}", name) is not None and name not in {".", ".."} and name.isprintable()


def _is_hash(text: str | None, digits: int) -> bool:
    return text is None or re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None
