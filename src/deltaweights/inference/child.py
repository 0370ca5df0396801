"""The structure check in a process of its own, so that transformers never weighs on whoever asks for it.

Enters: a folder. Leaves: nothing when it will load; its warnings go to the report. Never: an import of transformers here, or a
child that outlives its parent's Ctrl-C.
"""

from __future__ import annotations

import json
from pathlib import Path

from deltaweights.errors import CheckFailed, DeltaweightsError
from deltaweights.inference.findings import Problem
from deltaweights.inference.process import finished
from deltaweights.report import Report


def check_in_child(folder: Path, target: Path, report: Report) -> None:
    """Check the structure of ``folder`` as ``deltaweights check`` does, and pass on its warnings.

    ``target`` is what the folder will be called, and what messages call it: it may be in staging still.

    Raises ``CheckFailed`` with the first problem, what the check itself raises, and ``CheckFailed`` when it ends otherwise.
    """
    asked = ["-m", "deltaweights", "check", "--json", str(folder.absolute())]
    code, output, errors = finished(asked, "start the check")
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


def _error(code: int, errors: str, folder: Path, target: Path) -> DeltaweightsError:
    """Return what the child's exit code stands for, with its last words."""
    said = [line for line in errors.splitlines() if line.strip()]
    last = said[-1] if said else f"exit code {code}" if code > 0 else f"signal {-code}"
    for kind in DeltaweightsError.__subclasses__():
        if kind.exit_code == code != 1:
            return kind(last.removeprefix("deltaweights: error: ").replace(str(folder.absolute()), str(target)))
    return CheckFailed("the check itself failed", where=target, found=last)
