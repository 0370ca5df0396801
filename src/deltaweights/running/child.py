"""The structure check in a process of its own, so that transformers never weighs on whoever asks for it.

Enters: a folder. Leaves: nothing when it will load; its warnings go to the report. Never: an import of transformers here, or a
child that outlives its parent's Ctrl-C.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import deltaweights.errors
from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError
from deltaweights.report import Report
from deltaweights.running.findings import Problem

PATIENCE = 10.0
"""Seconds that a child has to end by itself when it is told to."""


def check_in_child(folder: Path, target: Path, report: Report) -> None:
    """Check the structure of ``folder`` as ``deltaweights check`` does, and pass on its warnings.

    ``target`` is what the folder will be called, and what messages call it: it may be in staging still.

    Raises ``CheckFailed`` with the first problem, what the check itself raises, and ``CheckFailed`` when it ends otherwise.
    """
    code, output, errors = _run(folder.absolute())
    if code not in {0, CheckFailed.exit_code} or (code and not output):
        raise _error(code, errors, folder, target)
    try:
        told = json.loads(output)
        problems, warnings = ([Problem(**row) for row in told[key]] for key in ("problems", "warnings"))
    except (ValueError, KeyError, TypeError):
        raise CheckFailed("the check itself failed", where=target, found="no report") from None
    if bool(problems) != bool(code):
        raise CheckFailed(
            "the check itself failed", where=target, found=f"exit code {code} and {len(problems)} problems"
        )
    for warning in warnings:
        report.warn(f"{target}: {warning}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckFailed(f"{problems[0]}{more}", where=target)


def _run(folder: Path) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it wrote. However this is left, the child has ended by then."""
    # From the folder of the package: what stands where the user does, or in a model's folder, is never imported.
    command = [sys.executable, "-m", "deltaweights", "check", "--json", str(folder)]
    home = Path(deltaweights.errors.__file__).parents[1]
    try:
        child = subprocess.Popen(
            command, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise InputOutputError.from_os(error, sys.executable, "start the check") from error
    with child:
        try:
            output, errors = child.communicate()
        except BaseException:
            child.terminate()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    return child.returncode, output, errors


def _error(code: int, errors: str, folder: Path, target: Path) -> DeltaweightsError:
    """Return what the child's exit code stands for, with its last words."""
    said = [line for line in errors.splitlines() if line.strip()]
    last = said[-1] if said else f"exit code {code}" if code > 0 else f"signal {-code}"
    for kind in DeltaweightsError.__subclasses__():
        if kind.exit_code == code != 1:
            return kind(last.removeprefix("deltaweights: error: ").replace(str(folder.absolute()), str(target)))
    return CheckFailed("the check itself failed", where=target, found=last)
