"""Requests to a Hub: its address, the token, and what its error responses mean.

Settings come from the options, else from the environment that the ``hf`` command reads (HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE,
HF_HUB_OFFLINE). The token appears in no message and is sent to the Hub's own origin only.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import HubId
from deltaweights.hub.retry import MAX_RETRIES, RETRIED_STATUSES, RetryPolicy, ThrottledNotes
from deltaweights.util.text import Json, strict_json

MAX_RESPONSE_BYTES = 32 * 1024 * 1024  # of a listing: enough for a hundred thousand files

MAX_REDIRECTS, REDIRECTS = 8, frozenset({301, 302, 303, 307, 308})

MISSING = frozenset({404, 405, 501})
"""What servers answer that do not have a part of the Hub's interface."""

CHECK_ENDPOINT = "check HF_ENDPOINT"

T = TypeVar("T")


class NoSuchPage(InputOutputError):
    """The server does not have a part of the Hub's interface, as mirrors may not."""


@dataclass(frozen=True)
class Access:
    """A Hub and the local cache. ``stop`` ends all waiting; ``retry_notes`` reports retries."""

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    offline: bool
    timeout: float = 10.0  # seconds without a byte after which a connection is dropped
    stop: threading.Event = field(default_factory=threading.Event)
    retry_notes: ThrottledNotes = field(default_factory=lambda: ThrottledNotes(lambda _: None))

    @cached_property
    def client(self) -> Any:
        """The thread-safe HTTP client of huggingface_hub, with its proxies and certificates."""
        hub = importlib.import_module("huggingface_hub")
        get: Callable[[], Any] = hub.get_session
        try:
            return get()
        except ImportError:
            problem, remedy = "a SOCKS proxy needs the package socksio", "pip install socksio, or use another proxy"
            raise UsageError(problem, remedy=remedy, code=ErrorCode.MISSING_PACKAGE) from None
        except ValueError as error:  # its message may show a proxy's password
            problem, remedy = "unusable proxy address", "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            raise UsageError(problem, found=type(error).__name__, remedy=remedy) from None

    @cached_property
    def _http_library(self) -> Any:
        return importlib.import_module(type(self.client).__module__.partition(".")[0])

    @cached_property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        """The client's exceptions for connections that failed, broke, or delivered something unreadable."""
        return (self._http_library.RequestError, self._http_library.InvalidURL, UnicodeError)

    def retries_after(self, error: Exception) -> int:
        """Return how often to retry after a connection error: less often when no connection was made."""
        library = self._http_library
        unconnected = isinstance(error, (library.ConnectError, library.InvalidURL, UnicodeError))
        return 2 if unconnected else MAX_RETRIES

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers of every request, without the token."""
        utils = importlib.import_module("huggingface_hub.utils")
        built: dict[str, str] = utils.build_hf_headers(token=False, library_name="deltaweights")
        return {**built, "accept-encoding": "identity"}

    @contextmanager
    def get(self, url: str, wanted: object, *, method: str = "GET", within: str = "", **headers: str) -> Iterator[Any]:
        """Send a request and follow redirects; ``wanted`` is for messages. Raises ``connection_errors``.

        A redirect that leaves the origin ``within`` is not followed, but returned.
        """
        for _ in range(MAX_REDIRECTS):
            sent = {**self.headers, **headers}
            if self.token is not None and origin_of(url) == origin_of(self.endpoint):
                sent["authorization"] = f"Bearer {self.token}"
            with (
                self._telling_of_proxies(url),
                self.client.stream(method, url, headers=sent, follow_redirects=False, timeout=self.timeout) as response,
            ):
                location = response.headers.get("location", "")
                target = _redirect_target(url, location) if response.status_code in REDIRECTS else url
                leaves = target is not None and bool(within) and origin_of(target) != origin_of(within)
                if response.status_code not in REDIRECTS or leaves:
                    self._refuse_encoded(response, wanted)
                    yield response
                    return
            if target is None:
                problem, remedy = "redirected to an invalid address", "try again later"
                raise InputOutputError(problem, where=str(wanted), found=location, remedy=remedy)
            url = target
        raise InputOutputError("too many redirects", where=str(wanted), remedy="try again later")

    @contextmanager
    def _telling_of_proxies(self, url: str) -> Iterator[None]:
        """Raise ``InputOutputError`` where a proxy answers that it makes no connection to the host of ``url``."""
        try:
            yield
        except self._http_library.ProxyError as error:
            refused = re.match(r"(40[137])\b", str(error))  # what it says to CONNECT; others may pass
            if refused is None:
                raise
            raise _refusal_of_proxy(refused[1], origin_of(url)[1]) from None

    def _refuse_encoded(self, response: Any, wanted: object) -> None:
        """Refuse a success whose content is compressed, which was not asked for: its bytes are not those of the file."""
        encoding = response.headers.get("content-encoding", "identity").strip()
        if response.status_code in {200, 206} and encoding.lower() not in {"", "identity"}:
            problem, remedy = "what comes is compressed on the way", "bypass the proxy or mirror that compresses it"
            raise InputOutputError(problem, where=str(wanted), found=f"Content-Encoding: {encoding}", remedy=remedy)

    def get_json(self, url: str, wanted: HubId) -> tuple[Json, Mapping[str, str]]:
        """Return the JSON at ``url``, and the answer's headers. Raises ``NoSuchPage`` and ``InputOutputError``."""

        def read(response: Any) -> tuple[Json, Mapping[str, str]]:
            try:
                return strict_json(_body(response)), response.headers
            except ValueError as error:
                raise self.not_a_hub() from error

        return self._persist(url, wanted, read)

    def headers_of(self, url: str, wanted: HubId) -> Mapping[str, str]:
        """Return the headers that the Hub itself, not a file host, sends for ``url``. Raises like ``get_json``."""

        def read(response: Any) -> Mapping[str, str]:
            not_of_file = {"content-length"} if response.status_code in REDIRECTS else set[str]()
            return {name: value for name, value in response.headers.items() if name.lower() not in not_of_file}

        return self._persist(url, wanted, read, method="HEAD")

    def _persist(self, url: str, wanted: HubId, read: Callable[[Any], T], method: str = "GET") -> T:
        """Return what ``read`` makes of the answer to a request, which is sent again as long as that may help."""
        retry = RetryPolicy(self.stop)
        within = self.endpoint if method == "HEAD" else ""
        while True:
            try:
                with self.get(url, wanted, method=method, within=within) as response:
                    status = response.status_code
                    if status == 200 or (within and status in REDIRECTS):
                        return read(response)
                if status in MISSING and not response.headers.get("x-error-code"):
                    raise NoSuchPage(f"the Hub answered {status}", where=str(wanted), code=ErrorCode.NETWORK)
                if status not in RETRIED_STATUSES:
                    raise self.refusal(response, wanted)
                self.retry_notes.note(f"{self.endpoint}: the Hub answered {status}: trying again")
                if not retry.wait(response.headers):
                    raise self.refusal(response, wanted)
            except self.connection_errors as error:
                reason = error or type(error).__name__
                self.retry_notes.note(f"{self.endpoint}: {reason}: trying again")
                if not retry.wait(retries=self.retries_after(error)):
                    problem = f"cannot be reached: {reason}"
                    remedy = "check the network, or use the cache with --offline"
                    raise InputOutputError(
                        problem, where=self.endpoint, remedy=remedy, code=ErrorCode.NETWORK
                    ) from error

    def not_a_hub(self) -> InputOutputError:
        """Return the error for an answer that no Hub gives."""
        return InputOutputError("not a valid Hub response", where=self.endpoint, remedy=CHECK_ENDPOINT)

    def refusal(self, response: Any, wanted: HubId, name: str = "") -> InputOutputError:
        """Return the error for a response that is neither a success nor worth a retry; ``name`` is the file, if any."""
        status, code = response.status_code, response.headers.get("x-error-code")
        sent_token = self.token is not None and origin_of(str(response.url)) == origin_of(self.endpoint)
        where, kind, log_in = str(wanted), ErrorCode.NO_ACCESS, "log in with: hf auth login, or set HF_TOKEN"
        if code == "GatedRepo":
            problem, remedy = (
                "gated model: access must be requested",
                f"request access at {self.endpoint}/{wanted.repo}",
            )
            remedy = f"{remedy}, then {log_in}" if self.token is None else remedy
            kind = ErrorCode.GATED
        elif code == "RevisionNotFound":
            problem, remedy = "no such revision", "check the part after the @"
            kind = ErrorCode.NOT_FOUND
        elif code == "RepoNotFound" or (status == 401 and self.token is None):
            problem, check = "no such model, or a private one", "check the name"
            remedy = f"{check}; if it is private, {log_in}" if self.token is None else f"{check}, and the token"
        elif status == 401 and sent_token:
            problem, remedy = (
                "the Hub rejected the token",
                "correct or unset HF_TOKEN, or --token, if given; else log in again with: hf auth login",
            )
        elif status in {401, 403} and not sent_token:
            problem, remedy = f"access is refused ({status})", "check whether a proxy or firewall is in between"
        elif status == 407:
            return _refusal_of_proxy(str(status), where)
        elif status == 511:
            problem, remedy = "the network wants you to log in first", "open any page in a browser, and run again"
            kind = ErrorCode.NETWORK
        elif status == 451:
            problem, remedy = "not available here, for legal reasons", "ask the publisher of the model"
        elif status == 403:
            problem, remedy = "the token does not give access", "check the token's permissions"
        else:
            problem, remedy = f"the Hub answered {status}", "try again later"
            kind = ErrorCode.NETWORK
            where = f"{wanted}/{name}" if name else where
        return InputOutputError(problem, where=where, remedy=remedy, code=kind)


def _refusal_of_proxy(status: str, where: str) -> InputOutputError:
    """Return the error for what a proxy answered, be it to a request or to a tunnel that was asked for."""
    problem, remedy = "the proxy wants a password", "put user and password into HTTPS_PROXY or HTTP_PROXY"
    if status != "407":
        problem = f"the proxy lets nobody connect to this host ({status})"
        remedy = "ask who runs the proxy, or leave the host out of it with NO_PROXY"
    return InputOutputError(problem, where=where, remedy=remedy, code=ErrorCode.NETWORK)


def _redirect_target(url: str, location: str) -> str | None:
    try:
        target = urljoin(url, location)
        return target if origin_of(target)[0] in {"http", "https"} else None
    except ValueError:
        return None


def _body(response: Any) -> bytes:
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > MAX_RESPONSE_BYTES:
            where, expected = str(response.url), f"at most {MAX_RESPONSE_BYTES} bytes"
            raise InputOutputError("response too long", where=where, expected=expected, remedy=CHECK_ENDPOINT)
    return bytes(data)


def origin_of(url: str) -> tuple[str, str]:
    """Return the scheme, and the host with its port, of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def configured_access(
    *,
    token: str | None = None,
    cache: Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Access:
    """Return the access that the arguments, and else the environment, ask for. Raises ``UsageError``, without the token."""
    for given in (endpoint, os.environ.get("HF_ENDPOINT")):  # huggingface_hub cannot even be imported with some
        if given and not _is_http_url(given):
            found = re.sub("//.*@", "//...@", given)  # without a password
            raise UsageError("not a valid Hub address", found=found, remedy=CHECK_ENDPOINT)
    try:
        hub, constants = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".constants"))
        if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            token = hub.get_token()
    except ValueError as error:
        problem, remedy = "unusable environment variable of huggingface_hub", "check those that begin with HF_"
        raise UsageError(problem, found=error, remedy=remedy) from None
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if not _is_http_url(endpoint):
        raise UsageError("not a valid Hub address", found=endpoint, remedy=CHECK_ENDPOINT)
    if token and not re.fullmatch("[!-~]+", token):
        raise UsageError("the Hub token contains invalid characters", remedy="check --token and HF_TOKEN")
    cache, offline = cache or Path(constants.HF_HUB_CACHE), offline or bool(constants.HF_HUB_OFFLINE)
    timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    return Access(endpoint, token or None, cache, offline, timeout, retry_notes=ThrottledNotes(note))


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        if re.search(r"[\s\x00-\x1f\x7f]", url.strip()):
            return False
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
