"""What a hanging test waits for: the kernel's state of every thread, of this process and its descendants.

The stacks that pytest-timeout prints do not include child processes, nor which lock or pipe a thread waits for in the kernel.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_timeout  # type: ignore[import-untyped]

PROC = Path("/proc")
"""Linux only."""

LONGEST = 500
"""Characters of a command to print: some tests pass whole programs."""


class Settings(Protocol):
    """pytest-timeout's settings of a test."""

    timeout: float
    method: str
    disable_debugger_detection: bool


def set_timer(item: pytest.Item, settings: Settings) -> bool | None:
    """Report and end ``item`` when its time is up; return None to leave it to pytest-timeout."""
    if settings.method != "thread":
        return None
    timer = threading.Timer(settings.timeout, _end, (item, settings))
    timer.name = f"timeout of {item.nodeid}"

    def cancel() -> None:
        timer.cancel()
        timer.join()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]  # where pytest-timeout keeps it
    timer.start()
    return True


def _end(item: pytest.Item, settings: Any) -> None:
    if not settings.disable_debugger_detection and pytest_timeout.is_debugging():
        return
    try:
        capture = item.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture()
        said = "\n".join([f"+++ {item.nodeid} hangs: what the kernel says of all its threads +++", *told(os.getpid())])
        os.write(2, f"\n{said}\n".encode(errors="backslashreplace"))
        faulthandler.dump_traceback(2)  # pytest-timeout's own is lost where xdist started this process
        # Otherwise they would keep the pipes open of a process that waits for the tests to end.
        for process in [*below(os.getpid())][::-1]:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
    except BaseException as error:  # noqa: BLE001  (the test has to end in any case)
        print(f"hang: {error!r}", file=sys.__stderr__)
    finally:
        pytest_timeout.timeout_timer(item, settings)


def told(process: int) -> Iterator[str]:
    """Yield the kernel's state of every thread of a process and its descendants: state, system call, wait channel, stack."""
    for each in (process, *below(process)):
        command = _read(PROC / str(each) / "cmdline").replace("\0", " ").strip()
        yield f"process {each}: {' '.join(command.split())[:LONGEST] or 'no command'}"
        for task in sorted((PROC / str(each) / "task").glob("*"), key=lambda path: int(path.name)):
            state = next(
                (line for line in _read(task / "status").splitlines() if line.startswith("State:")), "State: ?"
            )
            name, place, call = (_read(task / file).strip() or "?" for file in ("comm", "wchan", "syscall"))
            yield f"  thread {task.name} ({name}) {' '.join(state.split()[1:])}, in {place}, call {call}"
            for line in _read(task / "stack").splitlines() or ["no kernel stack: only root may read it"]:
                yield f"    {line}"


def below(process: int) -> Iterator[int]:
    """Yield the descendants of a process."""
    for task in (PROC / str(process) / "task").glob("*"):
        for child in _read(task / "children").split():
            yield int(child)
            yield from below(int(child))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace")
    except OSError:  # it has ended, or it is not ours to read
        return ""
