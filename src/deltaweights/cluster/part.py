"""One part of a merge that several processes do, on one machine or many that share a disk.

Enters: a prepared job, and which part of it. Leaves: that part's shards in staging, and what whoever finishes the job needs. Never:
a published folder, a shard of another plan, or one made of bytes that were not compared.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from deltaweights.cluster.handoff import has_handoff, store_handoff
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.files import Refetched
from deltaweights.jobs.planned_result import planned_result
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import is_streamed
from deltaweights.jobs.run import Settings, begun_anew
from deltaweights.jobs.stream import stream_shards
from deltaweights.jobs.summary import check_space, say
from deltaweights.manifest.records import Fragment
from deltaweights.merge.device import check_device
from deltaweights.merge.parts import Part, share_of
from deltaweights.merge.plan import Shard
from deltaweights.report import Report
from deltaweights.staging.lock import PATIENCE, StagingLock
from deltaweights.staging.open_staging import PARTS
from deltaweights.staging.publish import recover_publication
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.staging.target_state import TargetState

PUBLISHED = "already complete"


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What a part did. ``status`` is "finished" or "already complete", when the result was published before.

    ``shards`` are those of this part, ``made`` those of them that this run made; ``finished`` of ``total`` shards of the plan are
    there.
    """

    target: str
    part: str
    status: str
    plan: str
    shards: tuple[str, ...]
    made: tuple[str, ...]
    finished: int
    total: int
    seconds: dict[str, float]


def perform_part(
    opener: Callable[[], AbstractContextManager[Prepared]],
    part: Part,
    settings: Settings,
    report: Report,
    began: float,
) -> PartResult:
    """Open a job with ``opener`` and do a part of it; once more when an input was damaged on its way and had to be fetched anew.

    Raises what ``apply_delta`` raises.
    """
    try:
        with opener() as job:
            return run_part(job, part, settings, report, began)
    except Refetched as error:
        begun_anew(error, report)
    with opener() as job:
        return run_part(job, part, settings, report, began)


def run_part(job: Prepared, part: Part, settings: Settings, report: Report, began: float) -> PartResult:
    """Do ``part`` of a prepared job.

    Raises what ``apply_delta`` raises, and ``TargetBusy`` when staging holds another plan, or somebody holds it alone.
    """
    say(job, report)
    mine = share_of(job.plan.shards, part)
    target = TargetState(job.place, job.plan.identity)
    if target.published_result() is not None:
        report.note("the result of this plan is published already")
        return _result(job, part, mine, [], PUBLISHED, len(job.plan.shards), began)
    _wait_for_inputs(job)
    check_device(settings.device)
    if job.place.publication_begun():
        # Alone: two that go on with one publication would undo each other's steps.
        with StagingLock(job.place, patience=PATIENCE) as lock:
            _note(recover_publication(lock.staging), report)
    with StagingLock(job.place, shared=True, patience=PATIENCE) as lock:
        _note(lock.note, report)
        if target.published_result() is not None:  # while this part prepared
            return _result(job, part, mine, [], PUBLISHED, len(job.plan.shards), began)
        lock.staging.refuse_content(overwrite=settings.overwrite)
        staging, fragments = StagedShards.join(lock.staging, job.plan, mine)
        for done in fragments.values():
            report.shard_reused(done.file, done.record.size, done.record.sha256)
        if not has_handoff(job.place):
            store_handoff(planned_result(job), lock.staging)
        missing = [shard for shard in mine if shard.file not in fragments]
        check_space(job, {shard.file for shard in job.plan.shards if shard not in missing})
        made = _make(job, missing, staging, settings, report) if missing else []
        found = staging.finished(job.plan, job.plan.shards, read=False)
        report.note(f"part {part}: {len(mine)} shards are finished, {len(found)} of {len(job.plan.shards)} of the plan")
        return _result(job, part, mine, made, "finished", len(found), began)


def _note(text: str | None, report: Report) -> None:
    if text:
        report.note(text)


def _wait_for_inputs(job: Prepared) -> None:
    """Wait until what comes from the Hub is here and compared: another part, or whoever finishes, cannot take shards back.

    Raises ``UsageError`` for inputs that are kept nowhere, which nobody compares.
    """
    for checkpoint in job.checkpoints.values():
        if is_streamed(checkpoint):
            raise UsageError("parts cannot be made of what is streamed", remedy="leave --stream or --part out")
        checkpoint.check_unchanged()


def _make(
    job: Prepared, missing: Sequence[Shard], staging: StagedShards, settings: Settings, report: Report
) -> list[str]:
    """Make shards in a folder of this process, and move each to the others once it is whole; return their names."""
    made: list[str] = []

    def keep(fragment: Fragment) -> None:
        staging.adopt(folder, fragment)
        made.append(fragment.file)

    own = secrets.token_hex(8)  # a folder that no other part has, on this machine or another
    with staging.staging.folder(PARTS, own) as folder:
        try:
            stream_shards(job, missing, folder, keep, settings.resources, report)
            for checkpoint in job.checkpoints.values():
                checkpoint.check_unchanged()
        finally:
            with contextlib.suppress(InputOutputError), staging.staging.folder(PARTS) as parts:
                parts.remove(own)
    return sorted(made)


def _result(
    job: Prepared, part: Part, mine: Sequence[Shard], made: Sequence[str], status: str, finished: int, began: float
) -> PartResult:
    return PartResult(
        target=str(job.place.target),
        part=str(part),
        status=status,
        plan=job.plan.identity,
        shards=tuple(shard.file for shard in mine),
        made=tuple(made),
        finished=finished,
        total=len(job.plan.shards),
        seconds={"total": round(time.monotonic() - began, 3)},
    )
