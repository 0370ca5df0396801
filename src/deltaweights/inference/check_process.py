"""The structure check in a process of its own, which keeps transformers out of this one."""

from __future__ import annotations

import json
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import FIELDS, CheckFailed, DeltaweightsError
from deltaweights.inference.findings import Finding, first_of
from deltaweights.inference.python_process import run_python
from deltaweights.report import Report
from deltaweights.util.text import Json, counted

FAILED = "the check itself failed"


def check_in_subprocess(folder: Path, target: Path, report: Report) -> None:
    """Run ``deltaweights check`` on ``folder`` and pass on what it finds; messages name ``target``, the folder's final path.

    Raises ``CheckFailed`` with the first problem or when the check breaks, and the error with which the check ended.
    """
    program = ["-m", "deltaweights", "check", "--json", str(folder.absolute())]
    code, output, errors = run_python(program, "start the check")
    try:
        report_json = json.loads(output)
    except ValueError:
        report_json = {}
    if code and (
        code != CheckFailed.exit_code or not output or ("error" in report_json and "problems" not in report_json)
    ):
        raise _error(code, report_json, errors, folder, target)
    try:
        problems = [Finding(**row) for row in report_json["problems"]]
        warnings = [Finding(**row) for row in report_json["warnings"]]
    except (KeyError, TypeError):
        raise CheckFailed(FAILED, where=target, found="no report") from None
    if bool(problems) != bool(code):
        raise CheckFailed(FAILED, where=target, found=f"exit code {code} and {counted(len(problems), 'problem')}")
    for warning in warnings:
        report.warn(f"{target}: {warning}")
    if problems:
        raise CheckFailed(first_of(problems), where=target, code=ErrorCode.DOES_NOT_LOAD)


def _error(code: int, report_json: Json, stderr: str, folder: Path, target: Path) -> DeltaweightsError:
    """Return the error that the check's JSON states, else the one of its exit code, with the last line of stderr."""
    shown, real = str(folder.absolute()), str(target)
    try:
        stated = report_json["error"]
        kind = next(each for each in DeltaweightsError.__subclasses__() if each.__name__ == stated["class"])
        parts = {name: str(stated[name]).replace(shown, real) for name in FIELDS if stated[name] is not None}
        return kind(**parts, code=next(each for each in ErrorCode if each.text == stated["code"]))
    except (LookupError, TypeError, StopIteration):
        pass
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}" if code > 0 else f"signal {-code}"
    for kind in DeltaweightsError.__subclasses__():
        if kind.exit_code == code != 1:
            return kind(last.removeprefix("deltaweights: error: ").replace(shown, real))
    return CheckFailed(FAILED, where=target, found=last)
