"""Worker threads that report progress, stop at signals, and pass on the first error."""

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

State = TypeVar("State")
Item = TypeVar("Item")


class WorkerPool:
    """Threads that all call ``work``, once each; ``work`` polls ``stopped`` between two steps, and returns when it is set.

    In a program that uses the package, Ctrl-C may raise an exception in the main thread between any two steps. The main thread
    therefore waits at a queue implemented in C, and uses no condition, event or semaphore: their ``__enter__`` is a Python
    function that takes a lock. If the exception comes as it returns, the lock is never released, and the workers wait for ever.
    """

    def __init__(self, work: Callable[[], None], workers: int) -> None:
        self._work, self._stopped = work, False
        self._threads = [threading.Thread(target=self._run_one, daemon=True) for _ in range(workers)]
        self._errors: list[BaseException] = []
        self._ended: list[None] = []
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    @property
    def stopped(self) -> bool:
        """Whether workers have to return: one of them failed, the main thread was interrupted, or a signal arrived."""
        return self._stopped or signalled()

    def run(self) -> Iterator[None]:
        """Run the workers; yield about ten times a second. However this generator ends, all workers have ended by then.

        Raises the first error of a worker, ``Interrupted``, and ``InputOutputError`` when a thread cannot be started.
        """
        try:
            for thread in self._threads:
                try:
                    thread.start()
                except RuntimeError as error:
                    remedy = "allow more threads (ulimit -u), or run with fewer --workers"
                    raise InputOutputError(f"cannot start a worker: {error}", remedy=remedy) from error
            while len(self._ended) < len(self._threads):
                self._wait()
                check()
                yield
        finally:
            self._stopped = True
            self._wait_for_all()
        check()  # a signal makes workers return, or fail
        if self._errors:
            raise self._errors[0]

    def _wait(self) -> None:
        with contextlib.suppress(Empty):
            self._wakeups.get(timeout=POLL)

    def _wait_for_all(self) -> None:
        """Wait until all have ended, no matter how often Ctrl-C is pressed; then raise its exception."""
        late: BaseException | None = None
        while len(self._ended) < len([thread for thread in self._threads if thread.ident is not None]):
            try:
                self._wait()
            except BaseException as error:  # noqa: BLE001  (raised below)
                late = error
        if late is not None:
            raise late

    def _run_one(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  (raised again by ``run``, in the caller's thread)
            self._errors.append(error)
            self._stopped = True
        finally:
            self._ended.append(None)
            self._wakeups.put(None)


def run_parallel(
    items: Iterator[Item],
    make_state: Callable[[], State],
    do: Callable[[State, Item], Iterable[int]],
    *,
    workers: int,
    report: Report,
    doing: str,
    total: int,
) -> None:
    """Process items in ``workers`` threads, each with a state; ``do`` yields how many bytes are done; it can be stopped there.

    Raises what ``WorkerPool.run`` raises.
    """
    lock, done = threading.Lock(), 0

    def work() -> None:
        nonlocal done
        state = make_state()
        while not pool.stopped:
            with lock:
                item = next(items, None)
            if item is None:
                return
            for nbytes in do(state, item):
                with lock:
                    done += nbytes
                if pool.stopped:
                    return

    pool = WorkerPool(work, workers)
    report.begin(doing, total)
    try:
        for _ in pool.run():
            report.progress(done)
        report.progress(done)
    finally:
        report.end()


def resolve_workers(given: int | None) -> int:
    """Return the number of workers ``given``, or ``default_workers``. Raises ``UsageError`` when it is below 1."""
    if given is not None and given < 1:
        raise UsageError("no workers", found=given, expected="at least 1")
    return default_workers() if given is None else given


def default_workers() -> int:
    """Return a worker for each processor that this process may use, at least 2 and at most 8."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(count, 8))
