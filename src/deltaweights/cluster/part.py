"""Write one part of a merge that several processes share, on one machine or on many with a common disk."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaweights.cluster.handoff import has_handoff, store_handoff
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.jobs.apply import apply_request
from deltaweights.jobs.other_result import refuse_other_result
from deltaweights.jobs.planned_result import planned_result
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import is_streamed
from deltaweights.jobs.request import Request
from deltaweights.jobs.result import ALREADY_COMPLETE
from deltaweights.jobs.run import with_prepared
from deltaweights.jobs.stream import stream_shards
from deltaweights.jobs.summary import check_space, report_plan
from deltaweights.manifest.records import Fragment
from deltaweights.merge.device import check_device
from deltaweights.merge.parts import Part, parse_part, share_of
from deltaweights.merge.plan import Shard
from deltaweights.report import Report
from deltaweights.staging.location import PARTS
from deltaweights.staging.lock import PATIENCE, StagingLock
from deltaweights.staging.publish import recover_publication
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.staging.target_state import TargetState
from deltaweights.util.interruption import GO_ON, Interrupted
from deltaweights.util.text import finished_of, short_repr

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import ApplyOptions


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """The result of one part. ``status`` is "finished", or "already complete" when the result was published before.

    ``shards`` are those of this part, ``made`` those of them that this run wrote. Of the ``total`` shards of the plan, ``finished``
    are written.
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

    def __repr__(self) -> str:
        return short_repr(
            self, target=self.target, part=self.part, status=self.status, finished=self.finished, total=self.total
        )


def apply_part(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    *,
    part: str | Part,
    report: Report | None = None,
    **options: Unpack[ApplyOptions],
) -> PartResult:
    """Write the shards of one ``part`` (``"K/N"``) of a merge into staging beside ``target``; ``finish_parts`` publishes them.

    The other options are those of ``apply_delta``, and must be the same for all parts: parts of two plans never mix. A part may
    run on any machine that reaches base, delta and the target's folder, at any time, also twice. ``strict``, ``check`` and
    ``read_back`` concern the whole result: give them to ``finish_parts``.

    Raises what ``apply_delta`` raises, and ``TargetBusy`` when staging holds another plan.

    >>> from deltaweights import apply_part
    >>> [apply_part("base", "delta", "parts", part=f"{number}/2").part for number in (1, 2)]
    ['1/2', '2/2']
    """
    wanted = parse_part(part) if isinstance(part, str) else part
    return run_part(apply_request(base, delta, target, part=wanted, **options), report or Report())


def run_part(request: Request, report: Report) -> PartResult:
    """Run a request for a part. Raises ``UsageError`` for options that concern the whole result."""
    began = time.monotonic()
    part, options = request.part, request.options
    assert part is not None  # noqa: S101  (this tells mypy)
    if options.strict or options.check or options.read_back:
        problem = "--strict, --check and --read-back concern the whole result"
        raise UsageError(problem, remedy="give them to deltaweights finish")
    return with_prepared(request, report, lambda prepared: _run(prepared, part, report, began))


def _run(prepared: Prepared, part: Part, report: Report, began: float) -> PartResult:
    report_plan(prepared, report)
    plan, location, overwrite = prepared.plan, prepared.location, prepared.request.options.overwrite
    mine = share_of(plan.shards, part)
    target = TargetState(location, plan.identity)

    def result(status: str, made: Sequence[str], finished: int) -> PartResult:
        return PartResult(
            target=str(location.target),
            part=str(part),
            status=status,
            plan=plan.identity,
            shards=tuple(shard.file for shard in mine),
            made=tuple(made),
            finished=finished,
            total=len(plan.shards),
            seconds={"total": round(time.monotonic() - began, 3)},
        )

    if target.published_result() is not None:
        report.note("the result of this plan is published already")
        return result(ALREADY_COMPLETE, [], len(plan.shards))
    _wait_for_inputs(prepared)
    check_device(prepared.request.options.device)
    if location.publication_begun():
        # Under the exclusive lock: two processes that recover one publication would undo each other's steps.
        with StagingLock(location, patience=PATIENCE) as lock:
            _note(recover_publication(lock.staging), report)
    with StagingLock(location, shared=True, patience=PATIENCE) as lock:
        _note(lock.note, report)
        if target.published_result() is not None:  # while this part prepared
            return result(ALREADY_COMPLETE, [], len(plan.shards))
        refuse_other_result(lock.staging, plan, overwrite=overwrite)
        staging, fragments = StagedShards.join(lock.staging, plan, mine)
        for done in fragments.values():
            report.shard_reused(done.file, done.record.size, done.record.sha256)
        if not has_handoff(location):
            store_handoff(planned_result(prepared), lock.staging)
        missing = [shard for shard in mine if shard.file not in fragments]
        check_space(prepared, {shard.file for shard in plan.shards if shard not in missing})
        made: list[str] = []
        try:
            if missing:
                _make(prepared, missing, staging, made, report)
        except Interrupted as error:
            kept = finished_of(len(fragments) + len(made), len(mine), "shard")
            raise Interrupted(error.number, f"{kept} of part {part}; {GO_ON}") from None
        found = staging.finished(plan, plan.shards, read=False)
        own = finished_of(len(mine), len(mine), "shard")
        report.note(f"part {part}: {own}, {len(found):,} of {len(plan.shards):,} of the plan")
        return result("finished", sorted(made), len(found))


def _note(text: str | None, report: Report) -> None:
    if text:
        report.note(text)


def _wait_for_inputs(prepared: Prepared) -> None:
    """Wait until downloads are complete and verified: a shard that was handed over cannot be withdrawn.

    Raises ``UsageError`` for streamed inputs, whose hashes are never verified.
    """
    for checkpoint in prepared.checkpoints.values():
        if is_streamed(checkpoint):
            raise UsageError("streamed inputs cannot be merged in parts", remedy="leave --stream or --part out")
        checkpoint.check_unchanged()


def _make(prepared: Prepared, missing: Sequence[Shard], staging: StagedShards, made: list[str], report: Report) -> None:
    """Write shards in a folder of this process; once one is whole, move it to the shards of all parts, and add it to ``made``."""

    def keep(fragment: Fragment) -> None:
        staging.adopt(folder, fragment)
        made.append(fragment.file)

    own = secrets.token_hex(8)  # unique among all parts on all machines
    with staging.staging.folder(PARTS, own) as folder:
        try:
            stream_shards(prepared, missing, folder, keep, report)
            for checkpoint in prepared.checkpoints.values():
                checkpoint.check_unchanged()
        finally:
            with contextlib.suppress(InputOutputError), staging.staging.folder(PARTS) as parts:
                parts.remove(own)
