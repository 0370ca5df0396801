"""The bytes of one file of the Hub, by ranges, over connections that may break.

Enters: where the Hub resolves a file, and its size. Leaves: ranges of its bytes, in order, each byte once. Never: bytes of another
place than asked for, or the token at another origin than the Hub's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, HubFile, RepoListing, origin_of
from deltaweights.hub.ids import HubId
from deltaweights.hub.retry import RETRIED, RetryPolicy

CHUNK = 256 * 1024

_CHANGED = "try again; if it stays so, something between here and the Hub changes what comes"


class RangesIgnored(Exception):
    """The server sends whole files whatever is asked for."""


class DamagedFile(InputOutputError):
    """A file that arrived has not the hash that the Hub states."""


class DownloadStopped(InputOutputError):
    """The transfer was told to end."""


class Transfer:
    """One file, from the place that the Hub redirects to; safe in threads."""

    def __init__(self, access: Access, listing: RepoListing, file: HubFile) -> None:
        self._access, self._file = access, file
        self._id = HubId(listing.repo, listing.commit)
        self._url = access.url(listing, file.name)
        self._where = f"{self._id}/{file.name}"
        self._location: str | None = None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``; what breaks off goes on where it was, as long as something comes.

        Raises ``RangesIgnored``, ``DownloadStopped``, and ``InputOutputError`` when the server refuses, or nothing comes any more.
        """
        at, patience = start, RetryPolicy(self._access.stop)
        while at < stop:
            problem, headers, tries = "", None, None
            try:
                url = self._location or self._url
                with self._access.get(url, self._where, range=f"bytes={at}-{stop - 1}") as response:
                    self._location = str(response.url)
                    if response.status_code in RETRIED:
                        problem, headers = f"the server answered {response.status_code}", response.headers
                    elif self._expired(response):
                        problem = f"the server answered {response.status_code}"
                    elif (other := self._other_range(response, at, stop)) is not None:
                        problem = (
                            f"the server sends another range, {other}, than bytes {at}-{stop - 1}/{self._file.size}"
                        )
                    else:
                        self._check(response, at)
                        for chunk in response.iter_raw(CHUNK):
                            self._check_stop()
                            piece = chunk[: stop - at]
                            at += len(piece)
                            patience.renew()
                            yield piece
                            # A range is read to its end, also when nothing follows: only then is the connection used again.
                            if at == stop and response.status_code == 200:
                                return
                        problem = f"the connection ended at byte {at}"
            except self._access.broken as error:
                problem = f"the connection broke at byte {at}: {error or type(error).__name__}"
                tries = self._access.tries(error)
            self._check_stop()
            if at == stop:
                return
            self._access.remarks.say(f"{self._where}: {problem}: trying again")
            if not patience.wait(headers, tries):
                self._check_stop()
                remedy = "run again: what has arrived is kept"
                raise InputOutputError(problem, where=self._where, remedy=remedy)

    def _expired(self, response: Any) -> bool:
        """Tell whether the place that the Hub once redirected to is to be asked for anew: such addresses are signed for an hour."""
        if response.status_code in {401, 403, 404, 410} and origin_of(str(response.url)) != self._access.origin:
            self._location = None
            return True
        return False

    def _other_range(self, response: Any, start: int, stop: int) -> str | None:
        """Return which range an answer has, when it has a range and not the one that was asked for."""
        found, size = str(response.headers.get("content-range", "none")), self._file.size
        if response.status_code != 206 or found == f"bytes {start}-{stop - 1}/{size}":
            return None
        total = found.rpartition("/")[2]
        if total not in {"none", str(size)}:
            raise InputOutputError(
                "has another size than the Hub states", where=self._where, found=total, expected=size, remedy=_CHANGED
            )
        self._location = None
        return found

    def _check(self, response: Any, start: int) -> None:
        """Raise unless the answer is the range that was asked for."""
        where, size = self._where, self._file.size
        if response.status_code == 200:
            if start:
                raise RangesIgnored
            length = response.headers.get("content-length")
            if length is not None and length != str(size):
                raise InputOutputError(
                    "has another size than the Hub states", where=where, found=length, expected=size, remedy=_CHANGED
                )
        elif response.status_code == 416:
            raise InputOutputError("has another size than the Hub states", where=where, expected=size, remedy=_CHANGED)
        elif response.status_code != 206:
            raise self._access.refusal(response, self._id, self._file.name)

    def _check_stop(self) -> None:
        if self._access.stop.is_set():
            raise DownloadStopped("the download was stopped", where=self._where)
