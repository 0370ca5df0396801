"""Errors of libraries are turned into one kind, and the process is left as it was."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from deltaweights.inference.transformers_loader import LibraryError, quiet_and_offline, transformers_errors
from deltaweights.util.interruption import Interrupted
from tests.support.limits import PATIENCE


def test_panics_are_refusals_and_signals_are_not() -> None:
    """What Rust raises is no ``Exception``, and is turned into a refusal; a signal, an exit and our own errors pass."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(LibraryError, match="gave up"), transformers_errors():
        raise panic("gave up")
    for passing in (KeyboardInterrupt(), SystemExit(3), Interrupted(15), GeneratorExit()):
        with pytest.raises(type(passing)), transformers_errors():
            raise passing


def test_stderr_is_back_when_the_last_thread_has_left(capfd: pytest.CaptureFixture[str]) -> None:
    """While any thread is within the library nothing is written; afterwards stderr is what it was."""
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with transformers_errors():
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=stay)
    with transformers_errors():
        thread.start()
        entered.wait(PATIENCE)
    os.write(2, b"within")
    leave.set()
    thread.join()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_the_library_is_left_as_it_was() -> None:
    """Silence and staying offline end with the check: the program that asked goes on as before, also after a failure."""
    import huggingface_hub.constants  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    def state() -> tuple[object, ...]:
        return huggingface_hub.constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()

    before = state()
    with contextlib.suppress(ZeroDivisionError), quiet_and_offline():
        assert state() == (True, 50, False)
        raise ZeroDivisionError
    assert state() == before
