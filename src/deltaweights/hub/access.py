"""The way to a Hub: where it is, who asks, and what its refusals mean.

Enters: options and the environment that the ``hf`` command reads, too (HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE).
Leaves: an ``Access``; the files of a repository at one commit; refusals in one line. Never: a token in a message, or sent to
another origin than the Hub's.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import HubId
from deltaweights.hub.patience import RETRIED, TRIES, Patience, Remarks
from deltaweights.util.interruption import run_in_side_thread
from deltaweights.util.text import Json, strict_json

if TYPE_CHECKING:
    from hashlib import _Hash

COMMIT = re.compile(r"[0-9a-f]{40}")

MOST_BYTES = 1 << 40
"""A file that is stated to be larger is none: the Hub takes files of at most 500 GB."""

MOST_ANSWER = 32 * 1024 * 1024
"""Bytes of a listing: enough for a hundred thousand files."""

MOST_REDIRECTS = 8

REDIRECTS = frozenset({301, 302, 303, 307, 308})

FEW_TRIES = 2

NO_HUB = "is HF_ENDPOINT that of a Hub?"

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

    def new_hash(self) -> _Hash:
        """Return the running hash that gives the key: sha256, or git's sha1 of a header and the content."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit, those in folders left out."""

    repo: str
    commit: str
    files: dict[str, HubFile]


@dataclass(frozen=True)
class Access:
    """A Hub, and the cache beside it.

    ``token`` is None where nobody is logged in; ``stop`` ends all waiting, and ``remarks`` says what is waited for.
    """

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    offline: bool
    timeout: float = TIMEOUT
    stop: threading.Event = field(default_factory=threading.Event)
    remarks: Remarks = field(default_factory=lambda: Remarks(lambda _: None))

    @cached_property
    def client(self) -> Any:
        """The HTTP client of huggingface_hub, with the proxies and certificates that it was told of; safe in threads."""
        hub = importlib.import_module("huggingface_hub")
        get: Callable[[], Any] = hub.get_session
        try:
            return get()
        except ImportError:
            problem, remedy = "a SOCKS proxy needs the package socksio", "pip install socksio, or use another proxy"
            raise UsageError(problem, remedy=remedy) from None
        except ValueError as error:  # its message may show a proxy's password
            problem, remedy = "the proxy's address cannot be used", "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            raise UsageError(problem, found=type(error).__name__, remedy=remedy) from None

    @cached_property
    def broken(self) -> tuple[type[Exception], ...]:
        """The exceptions of the client that say that a connection could not be made, broke, or brought what cannot be read."""
        library = importlib.import_module(type(self.client).__module__.partition(".")[0])
        return (library.RequestError, library.InvalidURL, UnicodeError)

    def tries(self, error: Exception) -> int:
        """Return how often it is worth trying again after a connection that broke so: less when there was none."""
        library = importlib.import_module(type(self.client).__module__.partition(".")[0])
        return FEW_TRIES if isinstance(error, (library.ConnectError, library.InvalidURL, UnicodeError)) else TRIES

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

    @contextmanager
    def get(self, url: str, wanted: object, **headers: str) -> Iterator[Any]:
        """Ask for ``url``, and where it redirects to; the token goes to the Hub's origin alone. Raises what ``broken`` names."""
        for _ in range(MOST_REDIRECTS):
            sent = {**self.headers, **headers}
            if self.token is not None and origin_of(url) == self.origin:
                sent["authorization"] = f"Bearer {self.token}"
            with self.client.stream("GET", url, headers=sent, follow_redirects=False, timeout=self.timeout) as response:
                if response.status_code not in REDIRECTS:
                    yield response
                    return
                location = response.headers.get("location", "")
            following = _following(url, location)
            if following is None:
                remedy = "try again later"
                raise InputOutputError("redirected to no address", where=str(wanted), found=location, remedy=remedy)
            url = following
        raise InputOutputError("too many redirects", where=str(wanted), remedy="try again later")

    def list_files(self, wanted: HubId) -> Listing:
        """Ask the Hub for the commit of ``wanted`` and its files. Raises ``InputOutputError``."""
        revision = quote(wanted.revision or "main", safe="")
        address = f"{self.endpoint}/api/models/{wanted.repo}/revision/{revision}?blobs=true"
        answer = run_in_side_thread(lambda: self._ask(address, wanted))
        try:
            commit, siblings = answer["sha"], answer["siblings"]
            files = [file for entry in siblings if (file := _file(entry)) is not None]
        except (LookupError, TypeError, AttributeError) as error:
            raise InputOutputError("no answer of a Hub", where=self.endpoint, remedy=NO_HUB) from error
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise InputOutputError("the Hub names no commit", where=str(wanted), found=commit, remedy="try again")
        return Listing(wanted.repo, commit, {file.name: file for file in files})

    def _ask(self, url: str, wanted: HubId) -> Json:
        """Return what the Hub answers, tried again where that helps."""
        patience = Patience(self.stop)
        while True:
            try:
                with self.get(url, wanted) as response:
                    data = read_at_most(response, MOST_ANSWER)
                if response.status_code == 200:
                    return strict_json(data)
                if response.status_code in RETRIED:
                    self.remarks.say(f"{self.endpoint}: the Hub answered {response.status_code}: trying again")
                if response.status_code not in RETRIED or not patience.wait(response.headers):
                    raise self.refusal(response, wanted)
            except self.broken as error:
                self.remarks.say(f"{self.endpoint}: {error or type(error).__name__}: trying again")
                if not patience.wait(tries=self.tries(error)):
                    raise self.unreachable(error) from error
            except ValueError as error:
                raise InputOutputError("no answer of a Hub", where=self.endpoint, remedy=NO_HUB) from error

    def unreachable(self, error: Exception) -> InputOutputError:
        """Return in one line that there is no way to the Hub."""
        remedy = "check the network, or use what is in the cache with --offline"
        return InputOutputError(
            f"cannot be reached: {error or type(error).__name__}", where=self.endpoint, remedy=remedy
        )

    def refusal(self, response: Any, wanted: HubId, name: str = "") -> InputOutputError:
        """Return in one line what an answer says that is none; ``name`` is the file that was asked for."""
        status, code = response.status_code, response.headers.get("x-error-code")
        where, log_in = str(wanted), "log in with: hf auth login, or set HF_TOKEN"
        if code == "GatedRepo":
            page = f"{self.endpoint}/{wanted.repo}"
            remedy = f"ask for access at {page}, then {log_in}" if self.token is None else f"ask for access at {page}"
            return InputOutputError("access to this model must be asked for", where=where, remedy=remedy)
        if code == "RevisionNotFound":
            return InputOutputError("no such revision", where=where, remedy="check the part after the @")
        if code == "RepoNotFound" or (status == 401 and self.token is None):
            remedy = (
                f"check the name; if it is private, {log_in}" if self.token is None else "check the name, and the token"
            )
            return InputOutputError("no such model, or a private one", where=where, remedy=remedy)
        if status == 401:
            return InputOutputError("the Hub does not know the token", where=where, remedy=f"{log_in} again")
        if status == 403:
            return InputOutputError("the token does not give access", where=where, remedy="check what it may read")
        file = f"{wanted}/{name}" if name else where
        return InputOutputError(f"the Hub answered {status}", where=file, remedy="try again later")


def _following(url: str, location: str) -> str | None:
    """Return the address that ``url`` redirects to; None when it is none that may be asked."""
    try:
        found = urljoin(url, location)
        return found if origin_of(found)[0] in {"http", "https"} else None
    except ValueError:
        return None


def read_at_most(response: Any, most: int) -> bytes:
    """Return the body of an answer. Raises ``InputOutputError`` when it is longer."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > most:
            raise InputOutputError(
                "too long an answer", where=str(response.url), expected=f"at most {most} bytes", remedy=NO_HUB
            )
    return bytes(data)


def _file(entry: dict[str, Json]) -> HubFile | None:
    """Return the file of a listing's entry; None when it is no part of a checkpoint: in a folder, or of no plain name."""
    name, lfs = entry["rfilename"], entry.get("lfs")
    size, git_sha1 = lfs["size"] if lfs else entry.get("size"), entry.get("blobId")
    sha256 = lfs["sha256"] if lfs else None
    if not isinstance(name, str) or not _is_plain(name) or type(size) is not int or size not in range(MOST_BYTES):
        return None
    if not _is_hash(git_sha1, 40) or (sha256 is not None and not _is_hash(sha256, 64)):
        return None
    return HubFile(name, size, sha256, str(git_sha1))


def origin_of(url: str) -> tuple[str, str]:
    """Return scheme and host with port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def access(
    *,
    token: str | None = None,
    cache: Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Access:
    """Return the way to the Hub that the environment names, where the options do not name another.

    Raises ``UsageError`` when the token is none; that of an error of the client would show it.
    """
    try:
        hub, constants = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".constants"))
    except ValueError as error:
        raise UsageError(
            "a variable of huggingface_hub is not usable", found=error, remedy="check those that begin with HF_"
        ) from None
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = hub.get_token()
    where = (endpoint or constants.ENDPOINT).rstrip("/")
    if not _is_address(where):
        raise UsageError("not the address of a Hub", found=where, remedy="check HF_ENDPOINT")
    if token and not re.fullmatch("[!-~]+", token):
        raise UsageError("the token of the Hub has characters that none has", remedy="check --token and HF_TOKEN")
    return Access(
        where,
        token or None,
        cache or Path(constants.HF_HUB_CACHE),
        offline or bool(constants.HF_HUB_OFFLINE),
        float(constants.HF_HUB_DOWNLOAD_TIMEOUT),
        remarks=Remarks(note),
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[\w.+ ()-]{1,200}", name) is not None and name not in {".", ".."} and name.isprintable()


def _is_hash(text: object, digits: int) -> bool:
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None
