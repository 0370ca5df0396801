"""Signals that end a run: noted whenever they come, obeyed at known points.

Enters: SIGINT and SIGTERM. Leaves: ``Interrupted``, raised by ``check`` in the main thread. Never: an exception out of a handler:
it could come between any two steps, right after a lock was taken as well, which nobody would release then.

Only the command line listens. In a program that uses the package, signals are that program's, and nothing here does anything.
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
if TYPE_CHECKING:  # without the module ``typing``: nothing hears a signal before this one is loaded
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor
    from types import FrameType
    from typing import TypeVar

    Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

POLL = 0.1
"""Seconds after which whoever waits looks whether a signal came."""

FORCE_QUIT_SIGNALS, FORCE_QUIT_SECONDS = 3, 2.0
"""So many signals within so many seconds end the process at once, whatever it is doing."""


class Interrupted(BaseException):
    """A signal asked the run to end; finished shards stay in staging. ``exit_code`` is what a shell makes of such a signal.

    No ``Exception``: whoever gets along with what is wrong with a file must not get along with this.
    """

    def __init__(self, number: int, remedy: str | None = None) -> None:
        problem = "interrupted" if number == signal.SIGINT else "terminated"
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.number, self.exit_code = number, 128 + number


class _Signals:
    """What was heard: ``first`` is the first signal's number; ``main`` the thread that ``check`` ends, None if nobody listens."""

    first: int | None = None
    main: int | None = None
    settled: bool = False
    pool: ThreadPoolExecutor | None = None


def listen() -> None:
    """From now on note signals instead of dying of them. What was ignored when the process started stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs of scripts have it
            signal.signal(number, _note)
    _Signals.main = threading.get_ident()
    sys.meta_path.insert(0, _Imports())  # torch, which takes seconds, is not loaded to its end


def force_quit_on_repeat() -> None:
    """Have a thread count signals: it hears them also while the main one is held up by the system, or by code in C."""
    try:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_count, args=(reader,), daemon=True).start()
    except (OSError, RuntimeError):  # without it a signal that is not obeyed has to be followed by SIGKILL
        return


def ignore_signals() -> None:
    """From now on ignore signals: how the process ends is decided."""
    _Signals.settled = True
    for number in SIGNALS:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_IGN)


def signalled() -> bool:
    """Tell whether a signal came: what waits in a worker's thread ends then, for whatever reason it likes."""
    return _Signals.first is not None


def check() -> None:
    """Raise ``Interrupted`` in the main thread when a signal came; do nothing while that is on its way up already."""
    if _Signals.first is None or _Signals.settled or threading.get_ident() != _Signals.main:
        return
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted):
            return
        error = error.__context__
    raise Interrupted(_Signals.first)


@contextmanager
def signal_first() -> Iterator[None]:
    """Raise ``Interrupted`` for whatever else is raised after a signal, which may have reached a child or a worker first."""
    try:
        yield
    except BaseException:
        check()
        raise


def run_in_side_thread(do: Callable[[], Result]) -> Result:
    """Return what ``do`` returns; it is called in another thread, always the same, so that this one hears signals meanwhile.

    For what holds up its thread in code of others. When a signal comes it is left behind, and ends with the process.
    """
    if threading.get_ident() != _Signals.main:
        return do()
    from concurrent.futures import ThreadPoolExecutor, wait  # noqa: PLC0415  (who waits for others)

    if _Signals.pool is None:
        _Signals.pool = ThreadPoolExecutor(1)
    future = _Signals.pool.submit(do)
    while wait([future], timeout=POLL).not_done:
        check()
    with signal_first():
        return future.result()


def _note(number: int, _frame: FrameType | None) -> None:
    if _Signals.first is None:
        _Signals.first = number


def _count(reader: int) -> None:
    times: deque[float] = deque(maxlen=FORCE_QUIT_SIGNALS)
    while True:
        for number in os.read(reader, 64):
            if number not in SIGNALS:
                continue
            _note(number, None)
            times.append(time.monotonic())
            if len(times) == FORCE_QUIT_SIGNALS and times[-1] - times[0] <= FORCE_QUIT_SECONDS:
                os._exit(128 + (_Signals.first or number))


class _Imports:
    """The first of those that are asked where a module is: knows none, and looks for signals."""

    @staticmethod
    def find_spec(_name: str, _path: object = None, _target: object = None) -> None:
        """Tell that somebody else must know."""
        check()
