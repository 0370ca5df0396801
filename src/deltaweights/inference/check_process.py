"""The structure check in a process of its own, which keeps transformers out of this one."""

from __future__ import annotations

import json
from pathlib import Path

from deltaweights.errors import CheckFailed, DeltaweightsError
from deltaweights.inference.findings import Finding, first_of
from deltaweights.inference.python_process import run_python
from deltaweights.report import Report

FAILED = "the check itself failed"


def check_in_subprocess(folder: Path, target: Path, report: Report) -> None:
    """Run ``deltaweights check`` on ``folder`` and pass on what it finds; messages name ``target``, the folder's final path.

    Raises ``CheckFailed`` with the first problem or when the check breaks, and the error with which the check ended.
    """
    program = ["-m", "deltaweights", "check", "--json", str(folder.absolute())]
    code, output, errors = run_python(program, "start the check")
    if code not in {0, CheckFailed.exit_code} or (code and not output):
        raise _error(code, errors, folder, target)
    try:
        report_json = json.loads(output)
        problems = [Finding(**row) for row in report_json["problems"]]
        warnings = [Finding(**row) for row in report_json["warnings"]]
    except (ValueError, KeyError, TypeError):
        raise CheckFailed(FAILED, where=target, found="no report") from None
    if bool(problems) != bool(code):
        raise CheckFailed(FAILED, where=target, found=f"exit code {code} and {len(problems)} problems")
    for warning in warnings:
        report.warn(f"{target}: {warning}")
    if problems:
        raise CheckFailed(first_of(problems), where=target)


def _error(code: int, stderr: str, folder: Path, target: Path) -> DeltaweightsError:
    """Return the error that an exit code stands for, with the last line of stderr."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}" if code > 0 else f"signal {-code}"
    for kind in DeltaweightsError.__subclasses__():
        if kind.exit_code == code != 1:
            return kind(last.removeprefix("deltaweights: error: ").replace(str(folder.absolute()), str(target)))
    return CheckFailed(FAILED, where=target, found=last)
