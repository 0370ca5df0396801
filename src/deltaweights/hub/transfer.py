"""Reads byte ranges of one Hub file over connections that may break."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, origin_of
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_listing import HubFile, RepoListing
from deltaweights.hub.retry import RETRIED_STATUSES, RetryPolicy

CONTENT_RANGE = re.compile(
    r"bytes\s+(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})/(?P<size>[0-9]{1,18}|\*)", re.IGNORECASE
)
"""A server need not know the size of the file (RFC 9110, 14.4), and may send less than is asked for."""


class RangesIgnored(Exception):
    """The server sends whole files whatever range is requested."""


class DamagedFile(InputOutputError):
    """A file does not have the hash that the Hub states."""

    default_code = ErrorCode.HASH_MISMATCH


class DownloadStopped(InputOutputError):
    """The download was told to stop."""


class Transfer:
    """One file, read from the address that the Hub redirects to. Thread-safe."""

    def __init__(self, access: Access, listing: RepoListing, file: HubFile) -> None:
        self._access, self._file = access, file
        self._id = HubId(listing.repo, listing.commit)
        self._url = f"{access.endpoint}/{listing.repo}/resolve/{listing.commit}/{quote(file.name)}"
        self._where = f"{self._id}/{file.name}"
        self._location: str | None = None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``, each once; a broken connection is resumed while there is progress.

        Raises ``RangesIgnored``, ``DownloadStopped``, and ``InputOutputError`` when the server refuses or sends nothing more.
        """
        at, retry = start, RetryPolicy(self._access.stop)
        while at < stop:
            problem, headers, retries = "", None, None
            try:
                url = self._location or self._url
                with self._access.get(url, self._where, range=f"bytes={at}-{stop - 1}") as response:
                    self._location = str(response.url)
                    if response.status_code in RETRIED_STATUSES:
                        problem, headers = f"the server answered {response.status_code}", response.headers
                    elif self._expired(response):
                        problem = f"the server answered {response.status_code}"
                    elif (other := self._other_range(response, at, stop)) is not None:
                        requested = f"bytes {at}-{stop - 1}/{self._file.size}"
                        problem = f"the server sends another range, {other}, than {requested}"
                    else:
                        self._check(response, at)
                        for chunk in response.iter_raw(256 * 1024):
                            self._check_stop()
                            piece = chunk[: stop - at]
                            at += len(piece)
                            retry.reset()
                            yield piece
                            # A range is read to its end even when nothing follows: only then is the connection reused.
                            if at == stop and response.status_code == 200:
                                return
                        problem = f"the connection ended at byte {at}"
            except self._access.connection_errors as error:
                problem = f"the connection broke at byte {at}: {error or type(error).__name__}"
                retries = self._access.retries_after(error)
            self._check_stop()
            if at == stop:
                return
            self._access.retry_notes.note(f"{self._where}: {problem}: trying again")
            if not retry.wait(headers, retries):
                self._check_stop()
                remedy = "run again: what has arrived is kept"
                raise InputOutputError(problem, where=self._where, remedy=remedy, code=ErrorCode.NETWORK)

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
