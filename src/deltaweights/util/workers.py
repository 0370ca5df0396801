"""Jobs shared out among threads.

Enters: jobs, and what does one. Leaves: all of them done, with progress. Never: an order in which they are done, or a second error
after the first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.report import Report
from deltaweights.util.interruption import POLL, check, signalled

Desk = TypeVar("Desk")
Job = TypeVar("Job")


class WorkerPool:
    """Threads that all do the same work, each until it returns; the work looks at ``is_off`` between two steps, and ends then.

    In a program that uses us, Ctrl-C may raise an exception in the main thread between any two steps. So that one here waits at a
    queue in C, and enters no condition, event or semaphore: a function of Python's takes their lock, and when that raises as it
    returns, the lock stays taken. The workers would wait for it for ever.
    """

    def __init__(self, work: Callable[[], None], workers: int) -> None:
        self._work, self._off = work, False
        self._threads = [threading.Thread(target=self._guard, daemon=True) for _ in range(workers)]
        self._errors: list[BaseException] = []
        self._ended: list[None] = []
        self._news: SimpleQueue[None] = SimpleQueue()

    @property
    def stopped(self) -> bool:
        """Whether there is nothing more to be done: one of them failed, whoever waits was interrupted, or a signal came."""
        return self._off or signalled()

    def run(self) -> Iterator[None]:
        """Work; yield about ten times a second. However this is left, nobody is at work any more.

        Raises what a worker met first, ``Interrupted``, and ``InputOutputError`` when none can be started.
        """
        try:
            for thread in self._threads:
                _start(thread)
            while len(self._ended) < len(self._threads):
                self._wait()
                check()
                yield
        finally:
            self._off = True
            self._wait_for_all()
        check()  # they end when they hear a signal, or break of it
        if self._errors:
            raise self._errors[0]

    def _wait(self) -> None:
        with contextlib.suppress(Empty):
            self._news.get(timeout=POLL)

    def _wait_for_all(self) -> None:
        """Wait until all have ended, however often Ctrl-C asks not to; then pass its exception on."""
        late: BaseException | None = None
        while len(self._ended) < sum(thread.ident is not None for thread in self._threads):
            try:
                self._wait()
            except BaseException as error:  # noqa: BLE001  (raised below)
                late = error
        if late is not None:
            raise late

    def _guard(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  (raised again by ``run``, in the caller's thread)
            self._errors.append(error)
            self._off = True
        finally:
            self._ended.append(None)
            self._news.put(None)


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise InputOutputError(f"cannot start a worker: {error}", remedy="run with fewer --workers") from error


def run_parallel(
    jobs: Iterator[Job],
    make_desk: Callable[[], Desk],
    do: Callable[[Desk, Job], Iterable[int]],
    *,
    workers: int,
    report: Report,
    doing: str,
    total: int,
) -> None:
    """Have every job done by one of ``workers`` threads, each with a desk of its own, made in it.

    ``do`` yields how many of the ``total`` bytes it did, now and then: between two such steps it can be stopped. Raises what
    ``Crew.run`` raises.
    """
    lock, done = threading.Lock(), 0

    def work() -> None:
        nonlocal done
        desk = make_desk()
        while not crew.stopped:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            for nbytes in do(desk, job):
                with lock:
                    done += nbytes
                if crew.stopped:
                    return

    crew = WorkerPool(work, workers)
    report.begin(doing, total)
    try:
        for _ in crew.run():
            report.progress(done)
        report.progress(done)
    finally:
        report.end()


def resolve_workers(given: int | None) -> int:
    """Return the number of workers asked for, or ``default_workers``. Raises ``UsageError`` when none may work."""
    if given is not None and given < 1:
        raise UsageError("no workers", found=given, expected="at least 1")
    return default_workers() if given is None else given


def default_workers() -> int:
    """Return a worker for each processor that this process may use, at least 2 and at most 8."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(count, 8))
