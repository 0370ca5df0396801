"""Jobs shared out among threads.

Enters: jobs, and what does one. Leaves: all of them done, with progress. Never: an order in which they are done, or a second error
after the first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.interruption import POLL, check, obeyed
from deltaweights.report import Report

Desk = TypeVar("Desk")
Job = TypeVar("Job")


def share_out(
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

    ``do`` yields how many of the ``total`` bytes it did, now and then: between two such steps it can be stopped. Raises what a
    worker met, ``InputOutputError`` when none can be started, and ``Interrupted``.
    """
    lock, stop, done = threading.Lock(), threading.Event(), 0

    def work() -> None:
        nonlocal done
        try:
            desk = make_desk()
            while not stop.is_set():
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                for nbytes in do(desk, job):
                    with lock:
                        done += nbytes
                    if stop.is_set():
                        return
        except BaseException:
            stop.set()
            raise

    pool = ThreadPoolExecutor(workers)
    report.begin(doing, total)
    try:
        futures = [_start(pool, work) for _ in range(workers)]
        while wait(futures, timeout=POLL).not_done:
            check()
            report.progress(done)
        with obeyed():
            for future in futures:
                future.result()
        report.progress(done)
    finally:
        stop.set()
        pool.shutdown()
        report.end()


def _start(pool: ThreadPoolExecutor, work: Callable[[], None]) -> Future[None]:
    try:
        return pool.submit(work)
    except RuntimeError as error:
        raise InputOutputError(f"cannot start a worker: {error}", remedy="run with fewer --workers") from error


def workers_of(given: int | None) -> int:
    """Return the number of workers asked for, or ``default_workers``. Raises ``UsageError`` when none may work."""
    if given is not None and given < 1:
        raise UsageError("no workers", found=given, expected="at least 1")
    return default_workers() if given is None else given


def default_workers() -> int:
    """Return a worker for each processor that this process may use, at least 2 and at most 8."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(count, 8))
