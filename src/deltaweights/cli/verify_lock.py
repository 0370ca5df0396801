"""``deltaweights verify --lock``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.cli.ci_output import write_for_ci
from deltaweights.cli.failure import failure_of
from deltaweights.cli.output import print_outcome
from deltaweights.cli.signature import signed_by
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, DeltaweightsError
from deltaweights.jobs.verify_lock import PinnedModel, verify_lock
from deltaweights.manifest.ci_report import CheckedModel
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.report import Report
from deltaweights.util.text import Json, counted

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions


def check_lock(
    lock: Path,
    *,
    hub: HubOptions,
    weights: bool,
    trust_config: str | None,
    workers: int | None,
    report: Report,
    summary: Path | None,
    annotated: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify all models of a lock, and print a line for each. Raises ``CheckFailed`` when one is not as pinned."""
    found = []
    for one in verify_lock(lock, hub=hub, weights=weights, trust_config=trust_config, workers=workers, report=report):
        found.append(one)
        for note in one.result.notes if isinstance(one.result, VerifyReport) else ():
            report.note(note)
    failed = sum(not one.ok for one in found)
    outcome = {"ok": not failed, "lock": str(lock), "models": [_json(one) for one in found]}
    lines = (line for one in found if not (one.ok and quiet) for line in _lines(one))
    print_outcome(outcome, lines, as_json=as_json)
    write_for_ci([CheckedModel(one.pin.title, one.result) for one in found], summary, annotated=annotated)
    if failed:
        problem = f"{failed} of {counted(len(found), 'model')} not as pinned"
        remedy = "do not use what failed: fetch it again, or pin it anew if the change is wanted"
        raise CheckFailed(problem, where=lock, remedy=remedy, code=ErrorCode.NOT_AS_RECORDED)


def _lines(one: PinnedModel) -> Iterator[str]:
    title = one.pin.title
    if isinstance(one.result, DeltaweightsError):
        yield f"FAILED          {title}: {one.result}"
    elif one.ok:
        by = f"; signed by {one.signed}" if one.signed else ""
        yield f"verified        {title}: {one.result.weights.sentence}{by}"
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
