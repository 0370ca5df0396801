"""Reads byte ranges of one Hub file over connections that may break."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, origin_of
from deltaweights.hub.connections import Connections, TooManyConnections
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_listing import HubFile, RepoListing
from deltaweights.hub.retry import RETRIED_STATUSES, RetryPolicy

CROWDED = frozenset({429, 503})
"""What servers answer that want fewer requests."""

FRESH_ADDRESSES = 2
"""Signed addresses that are refused one after the other before ranges are taken for what is refused."""

PROGRESS = 16 * 1024
"""Bytes that have to arrive before a server is trusted again: one that lets them trickle could go on for ever."""

SLOWEST, LONG_ENOUGH = 1024, 30.0
"""Bytes per second, and the seconds over which they are counted."""

CONTENT_RANGE = re.compile(
    r"bytes\s+(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})/(?P<size>[0-9]{1,18}|\*)", re.IGNORECASE
)
"""A server need not know the size of the file (RFC 9110, 14.4), and may send less than is asked for."""


class RangesIgnored(Exception):
    """The server sends whole files whatever range is requested, or refuses ranges."""


class DamagedFile(InputOutputError):
    """A file does not have the hash that the Hub states."""

    default_code = ErrorCode.HASH_MISMATCH


class _Attempt:
    """One range that is being read: where it is, and how much patience is left."""

    def __init__(self, at: int, stop: int, retry: RetryPolicy, connections: Connections) -> None:
        self.at, self.stop, self.problem, self.expired = at, stop, "", 0
        self._retry, self._connections = retry, connections
        self._mark, self._unacknowledged = connections.received, 0

    def received(self, nbytes: int) -> None:
        """Count bytes; enough of them are progress, after which all retries are there again."""
        self.at += nbytes
        self._connections.progressed(nbytes)
        self._unacknowledged += nbytes
        if self._unacknowledged >= PROGRESS:
            self._unacknowledged, self.expired = 0, 0
            self._retry.reset()

    def wait(self, headers: Mapping[str, str] | None, retries: int | None) -> bool:
        """Wait for the next try; False when there should be none, since nothing arrives, of no file, either."""
        if self._retry.wait(headers, retries):
            return True
        arrived, self._mark = self._connections.received - self._mark, self._connections.received
        if arrived < PROGRESS:
            return False
        self._retry.reset()
        return self._retry.wait(headers, retries)


class _Pace:
    """How fast an answer comes."""

    def __init__(self) -> None:
        self._since, self._nbytes = time.monotonic(), 0

    def is_too_slow(self, nbytes: int) -> bool:
        """Count bytes; return whether fewer than ``SLOWEST`` a second came in the last ``LONG_ENOUGH`` seconds."""
        self._nbytes += nbytes
        seconds = time.monotonic() - self._since
        if seconds < LONG_ENOUGH:
            return False
        slow = self._nbytes < SLOWEST * seconds
        self._since, self._nbytes = time.monotonic(), 0
        return slow


class DownloadStopped(InputOutputError):
    """The download was told to stop."""


class Transfer:
    """One file, read from the address that the Hub redirects to. Thread-safe."""

    def __init__(self, access: Access, listing: RepoListing, file: HubFile, connections: Connections) -> None:
        self._access, self._file, self._connections = access, file, connections
        self._id = HubId(listing.repo, listing.commit)
        self._url = f"{access.endpoint}/{listing.repo}/resolve/{listing.commit}/{quote(file.name)}"
        self._where = f"{self._id}/{file.name}"
        self._location: str | None = None
        self._ranges_refused = False

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``, each once; a broken connection is resumed while there is progress.

        Raises ``RangesIgnored``, ``TooManyConnections``, ``DownloadStopped``, and ``InputOutputError`` when the server refuses or
        sends nothing more, and nothing arrives of any other file either.
        """
        attempt = _Attempt(start, stop, RetryPolicy(self._access.stop), self._connections)
        while attempt.at < stop:
            headers, retries = None, None
            try:
                with self._access.get(self._location or self._url, self._where, **self._range(attempt)) as response:
                    self._location = str(response.url)
                    problem = self._problem_of(response, attempt)
                    if problem is None:
                        yield from self._receive(response, attempt)
                        problem = attempt.problem
                    else:
                        headers = response.headers
            except self._access.connection_errors as error:
                problem = f"the connection broke at byte {attempt.at}: {error or type(error).__name__}"
                retries = self._access.retries_after(error)
            self._check_stop()
            if attempt.at == stop:
                return
            if not problem:  # the address had expired
                continue
            self._access.retry_notes.note(f"{self._where}: {problem}: trying again")
            if not attempt.wait(headers, retries):
                self._check_stop()
                remedy = "run again: what has arrived is kept"
                raise InputOutputError(problem, where=self._where, remedy=remedy, code=ErrorCode.NETWORK)

    def _range(self, attempt: _Attempt) -> dict[str, str]:
        whole = attempt.at == 0 and attempt.stop == self._file.size
        return {} if self._ranges_refused and whole else {"range": f"bytes={attempt.at}-{attempt.stop - 1}"}

    def _problem_of(self, response: Any, attempt: _Attempt) -> str | None:
        """Return why an answer is of no use, None where it is; empty where another is to be asked for at once."""
        status = response.status_code
        if status in RETRIED_STATUSES:
            if status in CROWDED and self._connections.refused():
                raise TooManyConnections
            return f"the server answered {status}"
        if self._expired(response):
            attempt.expired += 1
            if attempt.expired == 1:
                return ""
            if attempt.expired > FRESH_ADDRESSES and not self._ranges_refused:
                self._ranges_refused = True
                if attempt.at > 0 or attempt.stop < self._file.size:
                    raise RangesIgnored
            return f"the server answered {status}"
        other = self._other_range(response, attempt.at, attempt.stop)
        if other is not None:
            requested = f"bytes {attempt.at}-{attempt.stop - 1}/{self._file.size}"
            return f"the server sends another range, {other}, than {requested}"
        self._check(response, attempt.at)
        return None

    def _receive(self, response: Any, attempt: _Attempt) -> Iterator[bytes]:
        """Yield what an answer brings. It ends early when less than ``SLOWEST`` comes for a while."""
        pace = _Pace()
        for chunk in response.iter_raw():  # as it comes: gathered pieces would hide a trickle
            self._check_stop()
            piece = chunk[: attempt.stop - attempt.at]
            attempt.received(len(piece))
            yield piece
            # A range is read to its end even when nothing follows: only then is the connection reused.
            if attempt.at == attempt.stop and response.status_code == 200:
                return
            if attempt.at < attempt.stop and pace.is_too_slow(len(piece)):
                attempt.problem = f"the server sends less than {SLOWEST} bytes a second"
                return
        attempt.problem = f"the connection ended at byte {attempt.at}"

    def _expired(self, response: Any) -> bool:
        """Drop a redirect's address that is refused, and return True: such addresses are signed for an hour."""
        redirected = origin_of(str(response.url)) != origin_of(self._access.endpoint)
        if expired := redirected and response.status_code in {401, 403, 404, 410}:
            self._location = None
        return expired

    def _other_range(self, response: Any, start: int, stop: int) -> str | None:
        """Return the range that a partial response states, unless it begins at ``start`` and ends by ``stop``."""
        found, size = str(response.headers.get("content-range", "none")), self._file.size
        if response.status_code != 206:
            return None
        stated = CONTENT_RANGE.fullmatch(found)
        total = stated["size"] if stated else "*"
        if total not in {"*", str(size)}:
            raise self._other_size(total)
        if stated and int(stated["first"]) == start <= int(stated["last"]) < stop:
            return None
        self._location = None
        return found

    def _check(self, response: Any, start: int) -> None:
        if response.status_code == 200:
            if start:
                raise RangesIgnored
            length = response.headers.get("content-length")
            if length is not None and length != str(self._file.size):
                raise self._other_size(length)
        elif response.status_code == 416:
            raise self._other_size(None)
        elif response.status_code != 206:
            raise self._access.refusal(response, self._id, self._file.name)

    def _other_size(self, found: str | None) -> InputOutputError:
        problem, size = "has another size than the Hub states", self._file.size
        remedy = "try again; if it stays so, something between here and the Hub changes what comes"
        return InputOutputError(problem, where=self._where, found=found, expected=size, remedy=remedy)

    def _check_stop(self) -> None:
        if self._access.stop.is_set():
            raise DownloadStopped("the download was stopped", where=self._where)
