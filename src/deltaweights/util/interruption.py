"""Signals that end a run: recorded by a handler whenever they arrive, acted on where the code calls ``check``.

A handler never raises. An exception from it could surface between any two steps, also right after a lock was taken, which would
then never be released.

Only the command line installs handlers. In a program that uses the package, signals are that program's, and nothing here acts.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:  # ``typing`` is not imported: until this module is loaded, signals are not handled
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor
    from types import FrameType
    from typing import TypeVar

    Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "run the same command again to continue"
POLL = 0.1  # seconds between two looks for a signal while waiting
FORCE_QUIT_SIGNALS, FORCE_QUIT_SECONDS = 3, 2.0  # so many signals in so many seconds end the process at once


class Interrupted(BaseException):
    """A signal asked the run to end. It is no ``Exception``, so that code which tolerates a broken file does not swallow it."""

    def __init__(self, number: int, remedy: str | None = None) -> None:
        problem = "interrupted" if number == signal.SIGINT else "terminated"
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy
        self.number, self.exit_code = number, 128 + number


class _Signals:
    """The process's state: the first signal's number, the thread in which ``check`` raises, whether signals are ignored."""

    first: int | None = None
    main: int | None = None
    ignored: bool = False
    pool: ThreadPoolExecutor | None = None


def listen() -> None:
    """Record signals from now on, instead of dying of them. What was ignored when the process started stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, and in background jobs of scripts
            signal.signal(number, _record)
    _Signals.main = threading.get_ident()
    sys.meta_path.insert(0, _CheckOnImport())  # loading torch takes seconds


def force_quit_on_repeat() -> None:
    """Start a thread that ends the process after ``FORCE_QUIT_SIGNALS``, even while the main thread hangs in the system or in C."""
    try:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_count_signals, args=(reader,), daemon=True).start()
    except (OSError, RuntimeError):  # without the thread, a process that hangs needs SIGKILL
        return


def ignore_signals() -> None:
    """Ignore signals from now on: how the process ends is decided."""
    _Signals.ignored = True
    for number in SIGNALS:
        if signal.getsignal(number) is _record:
            signal.signal(number, signal.SIG_IGN)


def signalled() -> bool:
    """Return whether a signal arrived; worker threads poll this, and stop in any way they like."""
    return _Signals.first is not None


def check() -> None:
    """Raise ``Interrupted`` in the main thread when a signal arrived, unless it is being handled already."""
    if _Signals.first is None or _Signals.ignored or threading.get_ident() != _Signals.main:
        return
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted):
            return
        error = error.__context__
    raise Interrupted(_Signals.first)


@contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Add to an ``Interrupted`` what to do, unless it says so already."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.number, error.remedy or remedy) from None


@contextmanager
def signal_first() -> Iterator[None]:
    """Raise ``Interrupted`` in place of any error after a signal, which may have broken a child process or a worker first."""
    try:
        yield
    except BaseException:
        check()
        raise


def run_in_side_thread(call: Callable[[], Result]) -> Result:
    """Return the result of ``call``, third-party code that blocks, made in a side thread; after a signal it is abandoned."""
    if threading.get_ident() != _Signals.main:
        return call()
    from concurrent.futures import ThreadPoolExecutor, wait  # noqa: PLC0415  (needed only by commands that call others)

    if _Signals.pool is None:
        _Signals.pool = ThreadPoolExecutor(1)
    future = _Signals.pool.submit(call)
    while wait([future], timeout=POLL).not_done:
        check()
    with signal_first():
        return future.result()


def _record(number: int, _frame: FrameType | None) -> None:
    if _Signals.first is None:
        _Signals.first = number


def _count_signals(reader: int) -> None:
    times: deque[float] = deque(maxlen=FORCE_QUIT_SIGNALS)
    while True:
        for number in os.read(reader, 64):
            if number not in SIGNALS:
                continue
            _record(number, None)
            times.append(time.monotonic())
            if len(times) == FORCE_QUIT_SIGNALS and times[-1] - times[0] <= FORCE_QUIT_SECONDS:
                os._exit(128 + (_Signals.first or number))


class _CheckOnImport:
    """A finder that finds no module, and checks for signals on every import."""

    @staticmethod
    def find_spec(_name: str, _path: object = None, _target: object = None) -> None:
        """Leave the module to the next finder."""
        check()
