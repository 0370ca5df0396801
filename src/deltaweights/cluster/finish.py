"""Publish the finished parts of a merge: the folder that one process would have written."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deltaweights.cluster.handoff import has_handoff, load_handoff
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError
from deltaweights.hub.ids import PathLike
from deltaweights.jobs.options import Options
from deltaweights.jobs.other_result import refuse_other_result
from deltaweights.jobs.request import check_extras
from deltaweights.jobs.result import Published, published
from deltaweights.jobs.run import publish_result
from deltaweights.merge.plan import Plan
from deltaweights.report import Report
from deltaweights.staging.location import PARTS, TargetLocation, locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.publish import clear_staging, recover_publication
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.staging.target_state import TargetState, published_result
from deltaweights.util.text import counted


@dataclass(frozen=True, kw_only=True, repr=False)
class FinishResult(Published):
    """A merged checkpoint in the folder ``target``."""

    target: str


def finish_parts(
    target: PathLike,
    *,
    overwrite: bool = False,
    strict: bool = False,
    allow_unproved_base: bool = False,
    check: bool = False,
    read_back: bool = False,
    report: Report | None = None,
) -> FinishResult | None:
    """Publish at ``target`` the shards that parts of one plan have written; return None when they were published before.

    Weights are read only with ``read_back``: the finished shards are then hashed once more. The options are those of
    ``apply_delta``.

    Raises ``CheckFailed`` when shards are missing (or for ``strict`` and ``check``), ``TargetBusy`` while a part is running or
    something else is in the target, ``InputOutputError`` when no part has run, ``MalformedInput`` and ``Mismatch``.

    >>> from deltaweights import finish_parts
    >>> finish_parts("parts").status
    'merged'
    """
    began = time.monotonic()
    report = report or Report()
    location = locate_target(target)
    options = Options(
        overwrite=overwrite,
        strict=strict,
        allow_unproved_base=allow_unproved_base,
        check=check,
        read_back=read_back,
    )
    check_extras(options)
    if not has_handoff(location) and not location.publication_begun():
        _refuse_nothing(location)
        return None
    seconds: dict[str, float] = {}
    with StagingLock(location) as lock:
        for text in (lock.note, recover_publication(lock.staging)):
            if text:
                report.note(text)
        if not has_handoff(location):  # the recovery finished the publication
            _refuse_nothing(location)
            return None
        planned = load_handoff(lock.staging)
        if TargetState(location, planned.plan.identity).published_result() is not None:
            clear_staging(lock.staging)
            return None
        refuse_other_result(lock.staging, planned.plan, overwrite=overwrite)
        staging = StagedShards(lock.staging)
        fragments = staging.finished(planned.plan, planned.plan.shards, read=False)
        _refuse_missing(planned.plan, set(fragments), location)
        lock.staging.root.remove(PARTS)
        for leftover in set(staging.shards.names()) - set(fragments):
            staging.shards.remove(leftover)
        outcome = publish_result(planned, staging, fragments, options, report, seconds)
    seconds["total"] = time.monotonic() - began
    return FinishResult(target=str(location.target), **vars(published(planned.plan, planned.recipe, outcome, seconds)))


def _refuse_nothing(location: TargetLocation) -> None:
    """Raise ``InputOutputError`` unless a result is published already."""
    if published_result(location) is None:
        remedy = "run the parts first: deltaweights apply ... --part 1/N"
        problem, code = "no part of a merge here", ErrorCode.NO_PARTS
        raise InputOutputError(problem, where=location.target, remedy=remedy, code=code)


def _refuse_missing(plan: Plan, finished: set[str], location: TargetLocation) -> None:
    missing = [shard.file for shard in plan.shards if shard.file not in finished]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckFailed(
            "not all shards are finished",
            where=location.root,
            found=f"no {missing[0]}{others}",
            expected=counted(len(plan.shards), "shard"),
            remedy="run the missing parts again",
            code=ErrorCode.PARTS_MISSING,
        )
