"""``deltaweights verify --lock``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltaweights.cli.ci_output import CiOutput
from deltaweights.cli.failure import failure_of
from deltaweights.cli.output import print_outcome
from deltaweights.cli.signature import signed_by
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.jobs.verify_lock import PinnedModel, read_lock, verify_lock
from deltaweights.manifest.ci_report import CheckedModel
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.report import Report
from deltaweights.util.text import Json, counted


def check_lock(
    lock: Path,
    *,
    verification: Mapping[str, Any],
    weights_only: bool,
    ci: CiOutput,
    report: Report,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify all models of a lock, and print a line for each; ``verification`` holds keywords of ``verify_lock``.

    Raises ``CheckFailed`` when a model is not as pinned.
    """
    found: list[PinnedModel] = []
    try:
        ci.check(*(lock.parent / pin.path for pin in read_lock(lock) if pin.path is not None))
        for one in verify_lock(lock, report=report, weights_only=weights_only, **verification):
            found.append(one)
            _tell(one, report)
    except (InputOutputError, MalformedInput) as error:  # of the lock itself
        ci.write([CheckedModel(str(lock), error)])
        raise
    failed = sum(not one.ok for one in found)
    document = {"ok": not failed, "lock": str(lock), "models": [_json(one) for one in found]}
    lines = (line for one in found if not (one.ok and quiet) for line in _lines(one))
    print_outcome(document, lines, as_json=as_json)
    ci.write([CheckedModel(one.pin.title, one.result, weights_only) for one in found])
    if failed:
        problem = f"{failed} of {counted(len(found), 'model')} not as pinned"
        remedy = "do not use what failed: fetch it again, or pin it anew if the change is wanted"
        raise CheckFailed(problem, where=lock, remedy=remedy, code=ErrorCode.NOT_AS_RECORDED)


def _tell(one: PinnedModel, report: Report) -> None:
    """Report what is no problem, but worth telling."""
    if not isinstance(one.result, VerifyReport):
        return
    for note in one.result.notes:
        report.note(note)
    if one.result.base is not None and one.result.base.warning is not None:
        report.warn(f"{one.pin.title}: {one.result.base.warning}")


def _lines(one: PinnedModel) -> Iterator[str]:
    title = one.pin.title
    if isinstance(one.result, DeltaweightsError):
        yield f"FAILED          {title}: {one.result}"
    elif one.ok:
        by = f"; signed by {one.signed}" if one.signed else ""
        yield f"verified        {title}: {one.result.weights.sentence}{by}"
        yield from (f"not counted     {title}: {problem}" for problem in one.result.problems)  # with --weights-only
    else:
        yield f"FAILED          {title}: {counted(len(one.result.problems), 'problem')}"
        yield from (f"                {problem}" for problem in one.result.problems)


def _json(one: PinnedModel) -> dict[str, Json]:
    about: dict[str, Json] = {"model": one.pin.title, "ok": one.ok}
    if isinstance(one.result, DeltaweightsError):
        about["error"] = failure_of(one.result).document()
    else:
        about |= asdict(one.result)
    return about | signed_by(one.signed)
