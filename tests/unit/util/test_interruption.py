"""Signals: when they are acted on, and by which thread.

Most processes here are real, and send the signal to themselves at the place that the test names.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from deltaweights.util import interruption
from deltaweights.util.interruption import Interrupted, check
from tests.support.limits import PATIENCE

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record a SIGTERM in this process, as if a command had got it in this thread."""
    monkeypatch.setattr(interruption._Signals, "first", signal.SIGTERM)
    monkeypatch.setattr(interruption._Signals, "main", threading.get_ident())


def test_an_interruption_is_no_exception() -> None:
    """Code that tolerates any ``Exception`` does not swallow a signal."""
    assert not issubclass(Interrupted, Exception)


def test_nothing_happens_without_handlers() -> None:
    """A program that uses the package keeps its own handlers; ``check`` does nothing, and calls are made in the same thread."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    check()
    assert interruption.run_in_side_thread(threading.get_ident) == threading.get_ident()


def test_a_check_ends_the_main_thread_alone(terminated: None) -> None:
    """After a signal, each check in the main thread raises, and none in a worker thread."""
    for _ in range(2):
        with pytest.raises(Interrupted, match=r"^terminated$") as caught:
            check()
        assert caught.value.exit_code == 143
    passed = threading.Event()
    worker = threading.Thread(target=lambda: (check(), passed.set()))  # type: ignore[func-returns-value]
    worker.start()
    worker.join()
    assert passed.is_set()


def test_cleaning_up_is_not_interrupted(terminated: None) -> None:
    """While the exception propagates, checks do nothing, also within other exceptions; once it is caught, they raise again."""
    passed = 0
    try:
        try:
            check()
        finally:
            check()
            try:
                Path("/no/such/file").stat()
            except OSError:
                check()
            passed += 1
    except Interrupted:
        check()
        passed += 1
    assert passed == 2
    with pytest.raises(Interrupted):
        check()


def test_an_error_that_a_signal_caused_is_not_reported(terminated: None) -> None:
    """A child process or a worker that a signal broke first makes the run interrupted, not failed."""
    with pytest.raises(Interrupted), interruption.signal_first():
        raise OSError("broken by the signal")


@BOTH
def test_a_handler_leaves_no_lock_taken(number: signal.Signals) -> None:
    """A signal right after a condition took its lock, between two steps of Python's, leaves no lock taken."""
    program = f"""
    import os, threading
    from deltaweights.util import interruption
    interruption.listen()
    enter = threading.Condition.__enter__
    def interrupted_enter(self):
        enter(self)
        os.kill(os.getpid(), {int(number)})
        return True
    threading.Condition.__enter__ = interrupted_enter
    condition = threading.Condition(threading.Lock())
    with condition:
        pass
    assert condition.acquire(blocking=False)
    try:
        interruption.check()
    except interruption.Interrupted as error:
        os._exit(error.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=PATIENCE, check=False)
    assert done.returncode == 128 + number


def sent_to(command: list[str], *numbers: signal.Signals, started: str = "begun\n") -> tuple[int, str, float]:
    """Start a command, and send it signals when it says that it has begun; return code, stderr and the seconds until it ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == started
        time.sleep(0.1)
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err, time.monotonic() - began


WAITS = {
    "the system": "os.read(os.pipe()[0], 1)",
    "code in C": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.sampled(1)
@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: f"row83-{wait.replace(' ', '-')}")
def test_the_third_signal_ends_the_process_at_once(number: signal.Signals, wait: str) -> None:
    """A process that hangs where it cannot poll misses the first two signals; the third within two seconds ends it."""
    program = f"""
import os, sys
from deltaweights.util import interruption
interruption.listen()
interruption.force_quit_on_repeat()
print("begun", flush=True)
{WAITS[wait]}
"""
    code, err, _ = sent_to([sys.executable, "-c", program], number, number, number)
    assert (code, err) == (128 + number, "")


@pytest.mark.sampled(3)
@BOTH
@pytest.mark.parametrize(
    "wait",
    [
        "interruption.run_in_side_thread(lambda: time.sleep(600))",
        "run_python(['-c', 'import time; time.sleep(600)'], 'start')",
        "sys.stdout.write('much ' * 1_000_000)",
        "list(WorkerPool(work, 2).run())",
    ],
    ids=["third-party code", "a child", "a pipe without a reader", "workers"],
)
def test_what_waits_ends(number: signal.Signals, wait: str) -> None:
    """A command that waits for something ends at the first signal."""
    program = f"""
import os, sys, time
from deltaweights import cli
from deltaweights.util import interruption
from deltaweights.inference.python_process import run_python
from deltaweights.util.workers import WorkerPool
import click
def work():
    while not interruption.signalled():
        time.sleep(0.01)
@click.command()
def command():
    print("begun", flush=True)
    {wait}
cli.waiting = command
cli._start("deltaweights.cli", "waiting", "deltaweights")
"""
    code, err, seconds = sent_to([sys.executable, "-c", program], number)
    assert (code, err) == (128 + number, f"deltaweights: error: {WORDS[number]}\n")
    assert seconds < 30
