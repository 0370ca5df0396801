"""Downloads several files at once over several connections, in the order in which readers want them, and hashes them on the way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access
from deltaweights.hub.connections import CONNECTIONS, Connections, TooManyConnections
from deltaweights.hub.file_download import FileDownload
from deltaweights.hub.memory_pool import MemoryPool
from deltaweights.hub.piece_map import NEAR, PieceMap
from deltaweights.hub.piece_storage import MISSING, PRESENT, REQUESTED
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.repo_listing import RepoListing
from deltaweights.hub.transfer import DownloadStopped, RangesIgnored, Transfer
from deltaweights.hub.verified import VerificationRecords
from deltaweights.util.interruption import POLL, check, signalled

RESERVED = 4
"""One of how many threads serves only what a reader is waiting for."""

MAX_RESTARTS = 6  # of a file, from a server that does not serve ranges


class Downloads:
    """Downloads until it is closed. Every method is thread-safe."""

    def __init__(self, access: Access, warn: Callable[[str], None], connections: int = CONNECTIONS) -> None:
        self._access, self._warn, self._connections = access, warn, Connections(connections)
        # The lock itself is entered: ``with`` on a condition calls a Python function, and a Ctrl-C that is raised as that
        # returns, in a program that uses this package, would leave the lock taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._downloads: list[FileDownload] = []
        self._urgent: dict[tuple[FileDownload, int], int] = {}
        self._running: Counter[FileDownload] = Counter()
        self._threads: list[threading.Thread] = []
        self._reads = 0
        self.pool = MemoryPool()
        self.tick: Callable[[], None] = lambda: None  # called while a piece is waited for

    def add(
        self, listing: RepoListing, pieces: PieceMap, cache: RepoCache | None, records: VerificationRecords | None
    ) -> FileDownload:
        """Start to download a file. One that is kept, in ``cache``, must have ``DiskPieces``; ``records`` get its hash."""
        transfer = Transfer(self._access, listing, pieces.file, self._connections)
        download = FileDownload(pieces, transfer, cache, records, listing.commit)
        with self._lock:
            self._downloads.append(download)
            if not self._threads:
                self._start()
            self._changed.notify_all()
        return download

    def drop(self, download: FileDownload) -> None:
        """Forget a file that is not kept, and was read: its pieces take memory."""
        with self._lock:
            if download in self._downloads:
                self._downloads.remove(download)
            if not self._running[download]:
                del self._running[download]
            download.pieces.storage.clear()  # threads may hold the download until they get another one
            self._urgent = {key: last for key, last in self._urgent.items() if key[0] is not download}

    def find(self, blob: Path) -> FileDownload | None:
        """Return the download that will publish ``blob``, if any: base and delta may share a file."""
        with self._lock:
            return next((d for d in self._downloads if d.cache and d.cache.place(d.pieces.file) == blob), None)

    @property
    def bytes_present(self) -> int:
        """Bytes that are there of files that are kept."""
        with self._lock:
            return sum(download.pieces.bytes_present for download in self._downloads if download.cache is not None)

    def raise_failed(self) -> None:
        """Raise the error of a download that failed, if there is one."""
        with self._lock:
            for download in self._downloads:
                if download.pieces.failed is not None:
                    raise download.pieces.failed

    def _start(self) -> None:
        for number in range(self._connections.most):
            reserved = {"reserved": number < self._connections.most // RESERVED}
            self._threads.append(threading.Thread(target=self._fetch_all, kwargs=reserved, daemon=True))
        self._threads.append(threading.Thread(target=self._verify_all, daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all waiting and downloading, and close all files; what has arrived is kept."""
        self._access.stop.set()
        with self._lock:
            self._changed.notify_all()
        deadline = time.monotonic() + 1.0  # a stalled connection ends with the process
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        in_use = any(thread.is_alive() for thread in self._threads)
        for download in self._downloads:
            if download.disk is not None:
                download.disk.close(in_use=in_use)

    def read(self, download: FileDownload, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes of a file from ``offset`` on, once they are present. Raises ``InputOutputError``."""
        pieces = download.pieces
        step = NEAR * pieces.storage.piece_size  # what is read at once must fit into the storage
        for begin in range(0, len(out), step):
            part, at = out[begin : begin + step], offset + begin
            wanted, present = pieces.covering(at, len(part)), False
            with self._lock:
                pieces.storage.pin(wanted)
            try:
                while not present:  # a file that arrived damaged is emptied meanwhile
                    with self._lock:
                        self._wait_for(download, wanted)
                    present = pieces.storage.get(part, at)
            finally:
                with self._lock:
                    pieces.storage.unpin(wanted)

    def state_of(self, download: FileDownload) -> tuple[int, str | None]:
        """Return the generation of the file, and the id of the download as it is now."""
        with self._lock:
            return download.pieces.generation, None if download.disk is None else download.disk.download_id

    def expect(self, download: FileDownload, places: Iterable[tuple[int, int]]) -> None:
        """Give priority to the pieces that hold (offset, length): a reader will soon want them one after the other."""
        with self._lock:
            for offset, length in places:
                wanted = download.pieces.covering(offset, length)
                absent = download.pieces.first_absent(wanted)
                if absent is not None and download.pieces.state[absent] == MISSING:
                    self._urgent.setdefault((download, absent), wanted.stop)
            self._changed.notify_all()

    def _wait_for(self, download: FileDownload, wanted: range) -> None:
        pieces = download.pieces
        pieces.note_read(wanted)
        self._reads += 1
        pieces.last_read = self._reads
        while (absent := pieces.first_absent(wanted)) is not None:
            self._raise_if_over(download)
            if pieces.state[absent] == MISSING:
                self._urgent[download, absent] = wanted.stop
                self._changed.notify_all()
            self._changed.wait(timeout=POLL)
            self.tick()
        if pieces.read_ahead is not None:
            self._changed.notify_all()  # the cursor moved on, and more may be requested

    def wait_until_verified(self, downloads: Collection[FileDownload], tick: Callable[[], None] = lambda: None) -> None:
        """Return when all ``downloads`` are complete and have their hash; raise ``InputOutputError`` as soon as one cannot."""
        with self._lock:
            while not all(download.verified for download in downloads):
                for download in downloads:
                    self._raise_if_over(download)
                self._changed.wait(timeout=POLL)
                tick()

    def forget_unverified(self) -> None:
        """Forget the pieces that were read of files without a verified hash, after ``close``."""
        for download in self._downloads:
            if download.disk is not None and not download.verified:
                download.disk.mark_missing(download.pieces.read)

    @property
    def any_unverified(self) -> bool:
        """Whether a file that is kept has no verified hash yet."""
        with self._lock:
            return any(download.cache is not None and not download.verified for download in self._downloads)

    def first_damaged(self) -> FileDownload | None:
        """Wait for the hashes of all files that are kept; return the first that arrived damaged. Raises ``InputOutputError``."""
        with self._lock:
            for download in tuple(self._downloads):
                while download.cache is not None and not download.verified and not download.damaged:
                    self._raise_if_over(download)
                    self._changed.wait(timeout=POLL)
                if download.damaged:
                    return download
        return None

    def _raise_if_over(self, download: FileDownload) -> None:
        check()
        if download.pieces.failed is not None:
            raise download.pieces.failed
        if self._access.stop.is_set() or signalled():
            raise DownloadStopped("the download was stopped", where=download.pieces.file.name)

    def _fetch_all(self, *, reserved: bool) -> None:
        while True:
            with self._lock:
                while (request := self._next_request(reserved=reserved)) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
                if self._access.stop.is_set():
                    return
                download, first, last = request
                download.pieces.change(first, last, MISSING, REQUESTED)
                self._running[download] += 1
                self._connections.begin()
                generation, in_order = download.pieces.generation, download.pieces.in_order
            well = False
            try:
                download.receive(first, last, partial(self._arrived, download))
                well = True
            except TooManyConnections:
                pass  # the pieces are missing again, and wait for a connection
            except RangesIgnored:
                self._fetch_in_order(download, again=in_order)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._lock:
                    download.pieces.failed = download.pieces.failed or error
            finally:
                with self._lock:
                    self._running[download] -= 1
                    self._connections.end(well=well)
                    if download.pieces.generation == generation:  # otherwise they belong to another request by now
                        download.pieces.change(first, last, REQUESTED, MISSING)
                    self._changed.notify_all()

    def _next_request(self, *, reserved: bool) -> tuple[FileDownload, int, int] | None:
        """Return what to request next: what a reader waits for, else what follows the latest reads."""
        if not self._connections.free:
            return None
        while self._urgent:
            download, first = next(iter(self._urgent))
            last, pieces = self._urgent.pop((download, first)), download.pieces
            if pieces.failed is None and not pieces.in_order and pieces.state[first] == MISSING:
                end = first + 1
                while end < last and pieces.state[end] == MISSING:
                    end += 1
                return download, first, end
        if reserved:
            return None
        unfailed = [download for download in self._downloads if download.pieces.failed is None]
        for download in sorted(unfailed, key=lambda each: (self._running[each], -each.pieces.last_read)):
            request = download.pieces.next_request()
            if request is not None:
                return download, *request
        return None

    def _arrived(self, download: FileDownload, piece: int, generation: int) -> bool:
        """Take note of a complete piece; return False when the file was emptied meanwhile."""
        pieces = download.pieces
        with self._lock:
            if pieces.generation == generation and pieces.state[piece] != PRESENT:
                pieces.mark_present(piece)
                self._changed.notify_all()
            return pieces.generation == generation

    def _fetch_in_order(self, download: FileDownload, *, again: bool) -> None:
        """From now on fetch the file from first byte to last, since the server sends it so whatever is requested."""
        with self._lock:
            if again:  # several connections may find out at once, the first time
                download.restarts += 1
            download.pieces.in_order = True
            if download.cache is None or download.restarts > MAX_RESTARTS:
                remedy = "run without --stream" if download.cache is None else "try again later"
                problem, where = "the server does not serve ranges", download.pieces.file.name
                download.pieces.failed = InputOutputError(problem, where=where, remedy=remedy)

    def _verify_all(self) -> None:
        while True:
            with self._lock:
                while (download := next((each for each in self._downloads if each.ready), None)) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
            if self._access.stop.is_set():
                return
            try:
                found = download.hash_on(self._access.stop)
                if found is not None:
                    self._conclude(download, found)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._lock:
                    download.pieces.failed = error
                    self._changed.notify_all()

    def _conclude(self, download: FileDownload, found: str) -> None:
        if download.pieces.file.accepts(found):
            download.publish()
            with self._lock:
                download.verified = True
                self._changed.notify_all()
            return
        self._warn(download.refuse_damage(found))
        with self._lock:
            download.damaged, download.found = True, found
            download.restart()
            self._changed.notify_all()
