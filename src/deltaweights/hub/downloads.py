"""Several files fetched at once over several connections, in the order in which readers ask for them, and hashed as they come.

Enters: files of the Hub, and rooms for their pieces. Leaves: pieces to whoever waits for them; files under their final names once
their hash is the one that the Hub states. Never: a hash that is trusted because of a name, or a wait that a stop does not end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, Listing
from deltaweights.hub.arrival import NEAR, Arrival
from deltaweights.hub.hashed import Job
from deltaweights.hub.notes import Notes
from deltaweights.hub.rooms import COMING, HERE, MISSING, DiskRoom
from deltaweights.hub.store import Store
from deltaweights.hub.transfer import Damaged, RangesIgnored, Stopped, Transfer
from deltaweights.util.interruption import POLL, check, signalled

CONNECTIONS, RESERVED = 8, 2
"""Requests at a time, and those of them that only fetch what a reader waits for."""

MOST_RESTARTS = 6
"""How often a file is begun anew from a server that does not serve ranges."""


LAST_SECOND = 1.0
"""Seconds that connections are given to end; one that is stalled ends with the process."""


class Downloads:
    """Fetches until it is closed. Every method is safe in threads."""

    def __init__(self, access: Access, warn: Callable[[str], None]) -> None:
        self._access, self._warn = access, warn
        # The lock itself is what is entered: ``with`` on a condition calls a function of Python's, and a Ctrl-C that is raised as
        # that returns, in a program that uses us, leaves the lock taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: list[Job] = []
        self._urgent: dict[tuple[Job, int], int] = {}
        self._running: Counter[Job] = Counter()
        self._threads: list[threading.Thread] = []
        self._demands = 0

    def add(self, listing: Listing, arrival: Arrival, store: Store | None, notes: Notes | None = None) -> Job:
        """Fetch a file from now on; into ``store`` when it is one to keep, whose room is a ``DiskRoom``, which ``notes`` note."""
        job = Job(arrival, Transfer(self._access, listing, arrival.file), store, notes, listing.commit)
        with self._lock:
            self._jobs.append(job)
            if not self._threads:
                self._start()
            self._changed.notify_all()
        return job

    def job_for(self, blob: Path) -> Job | None:
        """Return the job that puts ``blob`` in place, if one does: base and delta may share a file."""
        with self._lock:
            return next((job for job in self._jobs if job.store and job.store.blob(job.arrival.file.key) == blob), None)

    def raise_failed(self) -> None:
        """Raise what ended a download of these, if one has ended."""
        with self._lock:
            for job in self._jobs:
                if job.arrival.failed is not None:
                    raise job.arrival.failed

    def _start(self) -> None:
        works = [lambda reserved=k < RESERVED: self._fetch_all(reserved=reserved) for k in range(CONNECTIONS)]
        for work in (*works, self._verify_all):
            thread = threading.Thread(target=work, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End all waiting and fetching; what has arrived stays."""
        self._access.stop.set()
        with self._lock:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and close all files."""
        self.stop()
        until = time.monotonic() + LAST_SECOND
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        late = any(thread.is_alive() for thread in self._threads)
        for job in self._jobs:
            if isinstance(job.arrival.room, DiskRoom):
                job.arrival.room.close(used=late)

    # For readers.

    def read(self, job: Job, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes of a file from ``offset`` on, when they are here. Raises ``InputOutputError``."""
        arrival = job.arrival
        step = NEAR * arrival.room.piece  # what is asked for at once must fit into the room
        for begin in range(0, len(out), step):
            part, at = out[begin : begin + step], offset + begin
            while True:
                with self._lock:
                    self._demand(job, arrival.pieces(at, len(part)))
                if arrival.room.get(part, at):
                    break

    def state_of(self, job: Job) -> tuple[int, str | None]:
        """Return how often the file was begun anew, and the mark of the download as it is now."""
        with self._lock:
            room = job.arrival.room
            return job.arrival.generation, room.mark if isinstance(room, DiskRoom) else None

    def expect(self, job: Job, places: Iterable[tuple[int, int]]) -> None:
        """Fetch the pieces in which (offset, length) lie before others, since a reader will soon want them one after the other."""
        with self._lock:
            for offset, length in places:
                pieces = job.arrival.pieces(offset, length)
                lack = job.arrival.lacks(pieces)
                if lack is not None and job.arrival.state[lack] == MISSING:
                    self._urgent.setdefault((job, lack), pieces.stop)
            self._changed.notify_all()

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
            self._changed.wait(timeout=POLL)
        if arrival.ahead is not None:
            self._changed.notify_all()  # the cursor moved on, and more may be fetched

    def wait_until_verified(self, job: Job) -> None:
        """Return when the whole file is here and has its hash. Raises ``InputOutputError``."""
        self.wait_for_all([job], lambda: None)

    def wait_for_all(self, jobs: Collection[Job], tick: Callable[[], None]) -> None:
        """Return when all of ``jobs`` are here and have their hashes. Raises ``InputOutputError`` as soon as one cannot."""
        with self._lock:
            while not all(job.verified for job in jobs):
                for job in jobs:
                    self._raise_if_over(job)
                self._changed.wait(timeout=POLL)
                tick()

    def forget(self) -> None:
        """Forget the pieces that were read of files that have no hash yet. Only after ``close``."""
        for job in self._jobs:
            if isinstance(job.arrival.room, DiskRoom) and not job.verified:
                job.arrival.room.forget(job.arrival.used)

    @property
    def under_way(self) -> bool:
        """Whether a file that is kept has no hash yet."""
        with self._lock:
            return any(job.store is not None and not job.verified for job in self._jobs)

    def came_damaged(self) -> Job | None:
        """Wait for the hashes of all that is kept; return the first file that came damaged. Raises ``InputOutputError``."""
        with self._lock:
            for job in [job for job in self._jobs if job.store is not None]:
                while not job.verified and not job.attempts:
                    self._raise_if_over(job)
                    self._changed.wait(timeout=POLL)
                if job.attempts:
                    return job
        return None

    def _raise_if_over(self, job: Job) -> None:
        check()
        if job.arrival.failed is not None:
            raise job.arrival.failed
        if self._access.stop.is_set() or signalled():
            raise Stopped("the download was stopped", where=job.arrival.file.name)

    # Fetching.

    def _fetch_all(self, *, reserved: bool) -> None:
        while True:
            with self._lock:
                while (found := self._pick(reserved=reserved)) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
                if self._access.stop.is_set():
                    return
                job, first, last = found
                job.arrival.claim(first, last)
                self._running[job] += 1
                generation, in_order = job.arrival.generation, job.arrival.sequential
            try:
                self._fetch(job, first, last)
            except RangesIgnored:
                self._go_in_order(job, again=in_order)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._lock:
                    job.arrival.failed = job.arrival.failed or error
            finally:
                with self._lock:
                    self._running[job] -= 1
                    if job.arrival.generation == generation:  # else they are another request's by now
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
                    with self._lock:
                        if arrival.generation != generation:
                            return
                        if arrival.state[piece] != HERE:
                            arrival.arrive(piece)
                            self._changed.notify_all()
                    piece += 1

    def _go_in_order(self, job: Job, *, again: bool) -> None:
        """Fetch the file from its first byte to its last, as the server sends it whatever is asked for."""
        with self._lock:
            job.restarts += again  # several connections may find out at once, the first time
            job.arrival.sequential = True
            if job.store is None or job.restarts > MOST_RESTARTS:
                remedy = "run without --stream" if job.store is None else "try again later"
                where = job.arrival.file.name
                job.arrival.failed = InputOutputError("the server does not serve ranges", where=where, remedy=remedy)

    # Hashing.

    def _verify_all(self) -> None:
        while True:
            with self._lock:
                while (job := next((job for job in self._jobs if job.ready), None)) is None:
                    if self._access.stop.is_set():
                        return
                    self._changed.wait()
            if self._access.stop.is_set():
                return
            try:
                found = job.hash_on(self._access.stop)
                if found is not None:
                    self._conclude(job, found)
            except Exception as error:  # noqa: BLE001  (raised again where a reader waits)
                with self._lock:
                    job.arrival.failed = error
                    self._changed.notify_all()

    def _conclude(self, job: Job, found: str) -> None:
        """Put a file that is whole in place, or fetch it anew, once."""
        key = job.arrival.file.key
        if found == key:
            job.put_in_place()
            with self._lock:
                job.verified = True
                self._changed.notify_all()
            return
        if job.attempts:
            job.discard()
            remedy = "try again later, or from another network"
            problem = "what arrived is not the file of the Hub, twice"
            raise Damaged(problem, where=job.path, found=f"hash {found}", expected=key, remedy=remedy)
        self._warn(f"{job.path}: what arrived has hash {found}, the Hub states {key}: fetched again from its beginning")
        with self._lock:
            job.attempts, job.found = 1, found
            job.begin_anew()
            self._changed.notify_all()
