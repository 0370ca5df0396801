"""The check in a process of its own: its findings, errors and signals arrive."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltaweights.errors import CheckFailed, InputOutputError
from deltaweights.inference import check_process
from deltaweights.inference.check_process import check_in_subprocess
from tests.support.errors import refused
from tests.support.fork_server import run_python_in_fork
from tests.support.limits import PATIENCE
from tests.support.reports import RecordingReport
from tests.support.tiny_llava import (
    edit,
    make_original,
    published_ids,
)


def test_a_child_whose_time_is_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever merges with --check is told the same."""
    stub = tmp_path / "stub"
    stub.write_text(f"#!/bin/sh\necho 'deltaweights: error: {tmp_path}: the library takes too long' >&2; exit 6\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with refused(CheckFailed, problem="target: the library takes too long"):
        check_in_subprocess(tmp_path, Path("target"), RecordingReport())


@pytest.mark.slow
def test_a_child_checks_and_passes_warnings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good folder raises nothing; its warnings arrive at the report, with the folder's name."""
    monkeypatch.setattr(check_process, "run_python", run_python_in_fork)
    folder, report = make_original(tmp_path / "original"), RecordingReport()
    check_in_subprocess(folder, folder, report)
    assert len(report.warnings) == len(published_ids())
    for warning, (file, *facts) in zip(report.warnings, published_ids(), strict=True):
        assert warning.startswith(f"{folder}: {file}: ")
        assert all(fact in warning for fact in facts)


@pytest.mark.slow
def test_a_child_raises_what_the_check_found(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first problem is the parent's error, named by the target; a false package where the user stands is not imported."""
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=1))
    (llava.parent / "deltaweights").mkdir()
    (llava.parent / "deltaweights" / "__main__.py").write_text('print(\'{"problems": [], "warnings": []}\')')
    (llava.parent / "json.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(llava.parent)
    with refused(CheckFailed, where="target") as error:
        check_in_subprocess(Path("llava"), Path("target"), RecordingReport())
    assert error.value.problem.startswith("generation_config.json: ")
    assert error.value.problem.endswith(": found 1, expected 2 (</s>)")


def test_a_child_raises_the_errors_of_the_check(tmp_path: Path) -> None:
    """What ends the check ends the parent with the same class and words, under the target's name."""
    missing = tmp_path / "missing"
    target = tmp_path / "target"
    with refused(InputOutputError, problem="no checkpoint here", where=target, code="E-NOT-FOUND") as error:
        check_in_subprocess(missing, target, RecordingReport())
    assert str(missing) not in str(error.value)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo Traceback >&2; echo 'ValueError: a bug' >&2; exit 1", "ValueError: a bug"),
        ("exit 0", "no report"),
        ("echo '{}'; exit 6", "no report"),
        ("kill -9 $$", "signal 9"),
    ],
    ids=["a-bug", "silence", "another-report", "killed"],
)
def test_a_child_that_breaks_is_told(script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that ends in any other way, killed for memory say, is a failed one, with its last words."""
    stub = tmp_path / "stub"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with refused(CheckFailed, where="target", found=told):
        check_in_subprocess(tmp_path, Path("target"), RecordingReport())


def test_a_child_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interpreter to start there is no check, and the system's reason is told."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with refused(InputOutputError, where=tmp_path / "none"):
        check_in_subprocess(tmp_path, Path("target"), RecordingReport())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals, llava: Path) -> None:
    """A signal that ends the parent, which alone gets it, ends the child, too."""
    program = f"""
import click
from pathlib import Path
from deltaweights.util import interruption
from deltaweights.cli.run import run
from deltaweights.report import Report
from deltaweights.inference import check_process

@click.command()
def command():
    print("begun", flush=True)
    check_process.check_in_subprocess(Path({str(llava)!r}), Path("target"), Report())

interruption.listen()
raise SystemExit(run(command, "program"))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        if not children.exists():
            parent.kill()
            pytest.skip("a system that does not list children")
        until = time.monotonic() + PATIENCE
        while not (child := children.read_text().split()) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)  # so that it is within Python, with its own handlers of signals or before
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 128 + number
    assert errors == f"program: error: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"
    assert child
    assert not Path(f"/proc/{child[0]}").exists()
