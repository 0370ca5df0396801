"""The bytes of one file of the Hub, by ranges, over connections that may break.

Enters: where the Hub resolves a file, and its size. Leaves: ranges of its bytes, in order, each byte once. Never: bytes of another
place than asked for, or the token at another origin than the Hub's.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, HubFile, Listing, origin_of
from deltaweights.hub.ids import HubId
from deltaweights.hub.patience import RETRIED, Patience

MOST_REDIRECTS = 8

CHUNK = 256 * 1024


class RangesIgnored(Exception):
    """The server sends whole files whatever is asked for."""


class Stopped(InputOutputError):
    """The transfer was told to end."""


class Transfer:
    """One file, from the place that the Hub redirects to; safe in threads."""

    def __init__(self, access: Access, listing: Listing, file: HubFile) -> None:
        self._access, self._file = access, file
        self._id = HubId(listing.repo, listing.commit)
        self._url = access.url(listing, file.name)
        self._location: str | None = None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``; what breaks off goes on where it was, as long as something comes.

        Raises ``RangesIgnored``, ``Stopped``, and ``InputOutputError`` when the server refuses, or nothing comes any more.
        """
        at, patience = start, Patience(self._access.stop)
        while at < stop:
            problem, headers = "", None
            try:
                with self._get(at, stop) as response:
                    if response.status_code in RETRIED:
                        problem, headers = f"the server answered {response.status_code}", response.headers
                    elif self._expired(response):
                        problem = f"the server answered {response.status_code}"
                    else:
                        self._check(response, at, stop)
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
            self._check_stop()
            if at == stop:
                return
            if not patience.wait(headers):
                self._check_stop()
                remedy = "run again: what has arrived is kept"
                raise InputOutputError(problem, where=f"{self._id}/{self._file.name}", remedy=remedy)

    @contextmanager
    def _get(self, start: int, stop: int) -> Iterator[Any]:
        """Ask for a range at the place that the Hub redirects to."""
        url = self._location or self._url
        for _ in range(MOST_REDIRECTS):
            headers = {**self._access.headers, "range": f"bytes={start}-{stop - 1}"}
            if self._access.token is not None and origin_of(url) == self._access.origin:
                headers["authorization"] = f"Bearer {self._access.token}"
            with contextlib.ExitStack() as stack:
                response = stack.enter_context(
                    self._access.client.stream(
                        "GET", url, headers=headers, follow_redirects=False, timeout=self._access.timeout
                    )
                )
                if response.status_code not in {301, 302, 303, 307, 308}:
                    self._location = url
                    yield response
                    return
                url = self._next(url, response.headers.get("location", ""))
        raise InputOutputError("too many redirects", where=f"{self._id}/{self._file.name}", remedy="try again later")

    def _next(self, url: str, location: str) -> str:
        try:
            found = urljoin(url, location)
            if origin_of(found)[0] in {"http", "https"}:
                return found
        except ValueError:
            pass
        raise InputOutputError(
            "redirected to no address", where=f"{self._id}/{self._file.name}", found=location, remedy="try again later"
        )

    def _expired(self, response: Any) -> bool:
        """Tell whether the place that the Hub once redirected to is to be asked for anew: such addresses are signed for an hour."""
        if response.status_code in {401, 403, 404, 410} and origin_of(str(response.url)) != self._access.origin:
            self._location = None
            return True
        return False

    def _check(self, response: Any, start: int, stop: int) -> None:
        """Raise unless the answer is the range that was asked for."""
        where, size = f"{self._id}/{self._file.name}", self._file.size
        if response.status_code == 200:
            if start:
                raise RangesIgnored
            length = response.headers.get("content-length")
            if length is not None and length != str(size):
                raise InputOutputError("has another size than the Hub states", where=where, found=length, expected=size)
        elif response.status_code == 206:
            found, expected = response.headers.get("content-range"), f"bytes {start}-{stop - 1}/{size}"
            if found != expected:
                raise InputOutputError("the server sends another range", where=where, found=found, expected=expected)
        elif response.status_code == 416:
            raise InputOutputError("has another size than the Hub states", where=where, expected=size)
        else:
            response.read()
            utils = importlib.import_module("huggingface_hub.utils")
            try:
                utils.hf_raise_for_status(response)
            except OSError as error:
                raise self._access.refusal(error, self._id) from error
            raise InputOutputError(f"the server answered {response.status_code}", where=where, remedy="try again later")

    def _check_stop(self) -> None:
        if self._access.stop.is_set():
            raise Stopped("the download was stopped", where=f"{self._id}/{self._file.name}")
