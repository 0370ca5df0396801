"""Several files fetched at once over several connections, in the order in which readers ask for them, and hashed as they come.

Enters: files of the Hub, and rooms for their pieces. Leaves: pieces to whoever waits for them; files under their final names once
their hash is the one that the Hub states. Never: a hash that is trusted because of a name, or a wait that a stop does not end.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, Listing
from deltaweights.hub.arrival import COMING, HERE, MISSING, Arrival, DiskRoom
from deltaweights.hub.store import Store
from deltaweights.hub.transfer import RangesIgnored, Stopped, Transfer

if TYPE_CHECKING:
    from hashlib import _Hash

CONNECTIONS, RESERVED = 8, 2
"""Requests at a time, and those of them that only fetch what a reader waits for."""

MOST_RESTARTS = 6
"""How often a file is begun anew from a server that does not serve ranges."""


_LIVE: weakref.WeakSet[Downloads] = weakref.WeakSet()


def stop_all() -> None:
    """End all waiting of this process; what has arrived stays. For handlers of signals."""
    for downloads in list(_LIVE):
        downloads.stop()


class Damaged(InputOutputError):
    """A file that arrived has not the hash that the Hub states."""


@dataclass(eq=False)
class Job:
    """One file: its state, how it is fetched, and, where it is kept, what is hashed of it. Its scheduler's alone to change."""

    arrival: Arrival
    transfer: Transfer
    store: Store | None = None
    commit: str = ""
    digest: _Hash = field(default_factory=hashlib.sha256)
    hashed: int = 0
    attempts: int = 0
    restarts: int = 0
    verified: bool = False


class Downloads:
    """Fetches until it is closed. Every method is safe in threads."""

    def __init__(self, access: Access, warn: Callable[[str], None]) -> None:
        self._access, self._warn = access, warn
        # Reentrant, since a signal's handler may stop us while its thread is inside.
        self._changed = threading.Condition(threading.RLock())
        self._jobs: list[Job] = []
        self._urgent: dict[tuple[Job, int], int] = {}
        self._running: Counter[Job] = Counter()
        self._threads: list[threading.Thread] = []
        self._demands = 0
        _LIVE.add(self)

    def add(self, listing: Listing, arrival: Arrival, store: Store | None) -> Job:
        """Fetch a file from now on; into ``store`` when it is one to keep, whose room is a ``DiskRoom``."""
        job = Job(arrival, Transfer(self._access, listing, arrival.file), store, listing.commit)
        job.digest = _digest_of(arrival)
        with self._changed:
            self._jobs.append(job)
            if not self._threads:
                self._start()
            self._changed.notify_all()
        return job

    def job_for(self, blob: Path) -> Job | None:
        """Return the job that puts ``blob`` in place, if one does: base and delta may share a file."""
        with self._changed:
            return next((job for job in self._jobs if job.store and job.store.blob(job.arrival.file.key) == blob), None)

    def _start(self) -> None:
        works = [lambda reserved=k < RESERVED: self._fetch_all(reserved=reserved) for k in range(CONNECTIONS)]
        for work in (*works, self._verify_all):
            thread = threading.Thread(target=work, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End all waiting and fetching; what has arrived stays."""
        self._access.stop.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and close all files."""
        self.stop()
        for thread in self._threads:
            thread.join(timeout=1.0)
        if not any(thread.is_alive() for thread in self._threads):  # else it might write to a number that is given anew
            for job in self._jobs:
                if isinstance(job.arrival.room, DiskRoom):
                    job.arrival.room.close()

    # For readers.

    def read(self, job: Job, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes of a file from ``offset`` on, when they are here. Raises ``InputOutputError``."""
        arrival = job.arrival
        while True:
            with self._changed:
                self._demand(job, arrival.pieces(offset, len(out)))
            if arrival.room.get(out, offset):
                return

    def _demand(self, job: Job, pieces: range) -> None:
        arrival = job.arrival
        arrival.demand(pieces)
        self._demands += 1
        arrival.demanded = self._demands
        while (lack := arrival.lacks(pieces)) is not None:
            self._raise_if_over(job)
            if arrival.state[lack] == MISSING:
                self._urgent[job, lack] = pieces.stop
                self._changed.notify_all()
            self._changed.wait()
        if arrival.ahead is not None:
            self._changed.notify_all()  # the cursor moved on, and more may be fetched

    def wait_until_verified(self, job: Job, tick: Callable[[], None] | None = None) -> None:
        """Return when the whole file is here and has its hash; call ``tick`` now and then. Raises ``InputOutputError``."""
        with self._changed:
            while not job.verified:
                self._raise_if_over(job)
                self._changed.wait(timeout=0.1)
                if tick is not None:
                    tick()

    def _raise_if_over(self, job: Job) -> None:
        if job.arrival.failed is not None:
            raise job.arrival.failed
        if self._access.stop.is_set():
            raise Stopped("the download was stopped", where=job.arrival.file.name)

    # Fetching.

    def _fetch_all(self, *, reserved: bool) -> None:
        while True:
            with self._changed:
                while (found := self._pick(reserved=reserved)) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
                if self._access.stop.is_set():
                    return
                job, first, last = found
                job.arrival.claim(first, last)
                self._running[job] += 1
            try:
                self._fetch(job, first, last)
            except RangesIgnored:
                self._go_in_order(job)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._changed:
                    job.arrival.failed = job.arrival.failed or error
            finally:
                with self._changed:
                    self._running[job] -= 1
                    job.arrival.release(first, last)
                    self._changed.notify_all()

    def _pick(self, *, reserved: bool) -> tuple[Job, int, int] | None:
        """Return what to fetch next: what a reader waits for, else what comes after the latest demands."""
        while self._urgent:
            job, first = next(iter(self._urgent))
            last, arrival = self._urgent.pop((job, first)), job.arrival
            if arrival.failed is None and not arrival.sequential and arrival.state[first] == MISSING:
                end = first + 1
                while end < last and arrival.state[end] == MISSING:
                    end += 1
                return job, first, end
        if reserved:
            return None
        jobs = [job for job in self._jobs if job.arrival.failed is None]
        for job in sorted(jobs, key=lambda job: (self._running[job], -job.arrival.demanded)):
            run = job.arrival.next_run()
            if run is not None:
                return job, *run
        return None

    def _fetch(self, job: Job, first: int, last: int) -> None:
        arrival, generation = job.arrival, job.arrival.generation
        at, end = arrival.extent(first, last)
        piece = first
        for chunk in job.transfer.read(at, end):
            data = memoryview(chunk)
            while data:
                _, until = arrival.extent(piece, piece + 1)
                part, data = data[: until - at], data[until - at :]
                if not arrival.sequential or arrival.state[piece] == COMING:
                    arrival.room.put(part, at)
                at += len(part)
                if at == until:
                    with self._changed:
                        if arrival.generation != generation:
                            return
                        if arrival.state[piece] != HERE:
                            arrival.arrive(piece)
                            self._changed.notify_all()
                    piece += 1

    def _go_in_order(self, job: Job) -> None:
        """Fetch the file from its first byte to its last, as the server sends it whatever is asked for."""
        with self._changed:
            job.restarts += 1
            job.arrival.sequential = True
            if job.store is None or job.restarts > MOST_RESTARTS:
                where, remedy = (
                    job.arrival.file.name,
                    "run without --stream" if job.store is None else "try again later",
                )
                job.arrival.failed = InputOutputError("the server does not serve ranges", where=where, remedy=remedy)

    # Hashing.

    def _verify_all(self) -> None:
        while True:
            with self._changed:
                while (job := self._ready()) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
            try:
                self._verify(job)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._changed:
                    job.arrival.failed = error
                    self._changed.notify_all()

    def _ready(self) -> Job | None:
        """Return a file of which the next pieces in order are here."""
        for job in self._jobs:
            if job.store is None or job.verified or job.arrival.failed is not None:
                continue
            if job.hashed == job.arrival.count or job.arrival.lacks(range(job.hashed, job.hashed + 1)) is None:
                return job
        return None

    def _verify(self, job: Job) -> None:
        """Hash what is here in order; at the end of the file, put it in place or fetch it anew."""
        arrival, room = job.arrival, job.arrival.room
        buffer = memoryview(bytearray(room.piece))
        while job.hashed < arrival.count and arrival.lacks(range(job.hashed, job.hashed + 1)) is None:
            begin, end = arrival.extent(job.hashed, job.hashed + 1)
            room.get(buffer[: end - begin], begin)
            job.digest.update(buffer[: end - begin])
            job.hashed += 1
            if self._access.stop.is_set():
                return
        if job.hashed == arrival.count:
            self._conclude(job, job.digest.hexdigest())

    def _conclude(self, job: Job, found: str) -> None:
        arrival, room, store = job.arrival, job.arrival.room, job.store
        if store is None or not isinstance(room, DiskRoom):
            return
        key = arrival.file.key
        if found == key:
            mark = room.mark
            room.publish(store.blob(key))
            store.link(job.commit, arrival.file)
            store.keep_verified(key, mark)
            with self._changed:
                job.verified = True
                self._changed.notify_all()
            return
        where = store.snapshot(job.commit) / arrival.file.name
        job.attempts += 1
        if job.attempts > 1:
            room.discard()
            problem, remedy = (
                "what arrived is not the file of the Hub, twice",
                "try again later, or from another network",
            )
            raise Damaged(problem, where=where, found=f"hash {found}", expected=key, remedy=remedy)
        self._warn(f"{where}: what arrived has hash {found}, the Hub states {key}: fetched again from its beginning")
        with self._changed:
            room.clear()
            arrival.state = bytearray(arrival.count)
            arrival.generation += 1
            job.hashed, job.digest = 0, _digest_of(arrival)
            self._changed.notify_all()


def _digest_of(arrival: Arrival) -> _Hash:
    """Return the running hash by which the Hub knows the file: sha256, or git's sha1 of a header and the content."""
    if arrival.file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % arrival.file.size, usedforsecurity=False)
