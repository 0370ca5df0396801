"""Worker threads: progress, errors, interruption."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Generator, Iterator
from typing import cast

import pytest

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub import downloads
from deltaweights.report import Report
from deltaweights.util.workers import WorkerPool, default_workers, resolve_workers, run_parallel
from tests.support.errors import refused
from tests.support.limits import PATIENCE


class Progress(Report):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def begin(self, doing: str, total: int) -> None:
        self.calls.append((doing, total))

    def progress(self, done: int) -> None:
        self.calls.append(done)

    def end(self) -> None:
        self.calls.append("end")


def test_every_item_is_done_once_with_a_state_of_the_thread() -> None:
    """Each worker makes one state, in its own thread; progress ends at the total, between ``begin`` and ``end``."""
    done: list[int] = []
    states: list[int] = []

    def make_state() -> int:
        states.append(threading.get_ident())
        return states[-1]

    def do(state: int, item: int) -> Iterator[int]:
        assert state == threading.get_ident()
        yield 1
        done.append(item)
        yield 1

    report = Progress()
    run_parallel(iter(range(50)), make_state, do, workers=3, report=report, doing="working", total=100)
    assert sorted(done) == list(range(50))
    assert len(states) == 3
    assert (report.calls[0], report.calls[-2:]) == (("working", 100), [100, "end"])


def test_the_first_error_stops_the_others() -> None:
    """It is raised in the caller's thread; other workers stop between two steps, and the work is reported to have ended."""
    reached = threading.Event()

    def do(_: None, item: int) -> Iterator[int]:
        if item == 0:
            assert reached.wait(PATIENCE)
            raise ValueError("broken")
        while True:
            reached.set()
            yield 0

    report = Progress()
    with pytest.raises(ValueError, match="broken"):
        run_parallel(iter(range(2)), lambda: None, do, workers=2, report=report, doing="working", total=0)
    assert report.calls[-1] == "end"


def test_an_error_while_a_state_is_made_is_raised() -> None:
    """A state may need memory that is not there."""

    def make_state() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_parallel(iter([1]), make_state, lambda *_: [1], workers=2, report=Report(), doing="working", total=1)


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses a thread, the remedy is fewer of them; those that were started end."""
    start, left = threading.Thread.start, [1]

    def limited(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    pool = WorkerPool(lambda: None, 3)
    with refused(InputOutputError, remedy="allow more threads (ulimit -u), or run with fewer --workers"):
        list(pool.run())
    assert pool.stopped


@pytest.mark.parametrize("given", [0, -1])
def test_there_is_at_least_one_worker(given: int) -> None:
    """Fewer are a usage error; None means the default."""
    assert (resolve_workers(3), resolve_workers(None)) == (3, default_workers())
    assert 2 <= default_workers() <= 8
    with refused(UsageError, found=given):
        resolve_workers(given)


def test_ctrl_c_in_a_program_that_uses_the_package_stops_all_workers() -> None:
    """KeyboardInterrupt, raised as a Python function that took a lock returns, reaches the caller, and all workers end."""
    began = threading.Event()

    def work() -> None:
        began.set()
        while not pool.stopped:
            time.sleep(0.001)

    def raise_in_conditions(frame: object, event: str, _argument: object) -> None:
        code = getattr(frame, "f_code")  # noqa: B009  (frames have no type here)
        if event == "return" and code.co_name == "__enter__" and code.co_filename == threading.__file__:
            raise KeyboardInterrupt

    pool = WorkerPool(work, 2)
    running = cast(Generator[None, None, None], pool.run())
    next(running)
    assert began.wait(PATIENCE)
    sys.setprofile(raise_in_conditions)  # from here on, in this thread, entering a condition raises
    try:
        next(running)
        running.close()
    finally:
        sys.setprofile(None)
    for thread in pool._threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_downloads_take_their_lock_in_c_too() -> None:
    """A reader of a download enters the lock, not its condition, so that Ctrl-C cannot leave it taken."""
    source = inspect.getsource(downloads)
    assert "with self._lock:" in source
    assert "with self._changed" not in source
