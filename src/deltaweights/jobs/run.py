"""The pipeline behind all verbs: prepare, stream the missing shards, check the findings, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, TargetBusy
from deltaweights.hub.files import AGAIN, Refetched
from deltaweights.hub.transfer import DamagedFile
from deltaweights.inference.check_process import check_in_subprocess
from deltaweights.jobs.documents import write_documents
from deltaweights.jobs.findings import check_sum
from deltaweights.jobs.judgement import judge, judge_records
from deltaweights.jobs.options import Options
from deltaweights.jobs.other_result import refuse_other_result
from deltaweights.jobs.planned_result import PlannedResult, planned_result
from deltaweights.jobs.prepare import Prepared, prepare
from deltaweights.jobs.provenance import UNVERIFIED, marks_of
from deltaweights.jobs.refusal_remedies import saying_what_is_kept, saying_what_is_there
from deltaweights.jobs.request import Request
from deltaweights.jobs.result import ALREADY_COMPLETE, Outcome, Published, published
from deltaweights.jobs.stream import stream_shards
from deltaweights.jobs.summary import check_space, report_plan
from deltaweights.manifest.records import Fragment
from deltaweights.manifest.verify import finish_verify
from deltaweights.merge.device import check_device
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.record import records_of
from deltaweights.report import Report
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.publish import clear_staging, publish, recover_publication
from deltaweights.staging.read_back import read_back
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.staging.target_contents import may_be_replaced
from deltaweights.staging.target_state import TargetState
from deltaweights.util.interruption import GO_ON, Interrupted
from deltaweights.util.text import finished_of
from deltaweights.util.workers import resolve_workers

T = TypeVar("T")


def run(request: Request, report: Report, result_of: Callable[[Prepared, Published], T]) -> T:
    """Publish the result of a request, unless it is there already. Raises what ``apply_delta`` raises."""
    began = time.monotonic()
    return with_prepared(request, report, lambda prepared: result_of(prepared, _run(prepared, report, began)))


def with_prepared(request: Request, report: Report, do: Callable[[Prepared], T]) -> T:
    """Prepare a request and return ``do(prepared)``; try once more when an input was damaged in transit and is fetched again."""
    try:
        with prepare(request, report) as prepared:
            return do(prepared)
    except Refetched as error:
        report.warn(f"{str(error).removesuffix(f'; {AGAIN}')}: starting again")
    try:
        with prepare(request, report) as prepared:
            return do(prepared)
    except Refetched as error:
        raise error.twice() from None


def _run(prepared: Prepared, report: Report, began: float) -> Published:
    report_plan(prepared, report)
    hashing = prepared.hashes.seconds
    seconds = {"prepare": time.monotonic() - began - hashing, "hash inputs": hashing}
    location, options = prepared.location, prepared.request.options
    target = TargetState(location, prepared.plan.identity)
    outcome = None if prepared.unpacking.holds_the_lock else _already_complete(prepared, target)
    if outcome is None or location.root.exists():
        with prepared.unpacking.locked() as lock:
            for text in (lock.note, recover_publication(lock.staging)):
                if text:
                    report.note(text)
            # The run that held the lock before this one may have published the same plan.
            outcome = _already_complete(prepared, target)
            if outcome is None:
                refuse_other_result(lock.staging, prepared.plan, overwrite=options.overwrite)
                outcome = _make(prepared, lock.staging, report, seconds)
            else:
                clear_staging(lock.staging)
    if outcome.status == ALREADY_COMPLETE:
        report.note(
            "the result of these inputs is already there, judging by headers and samples; remove it to make it again"
        )
        if prepared.hashes.read - {VISION_TOWER}:
            report.warn("the existing manifest is not changed: --hash-inputs adds nothing to it")
        with saying_what_is_there(location.target):
            judge(prepared.plan, outcome.findings, options, report, prepared.inputs.of_base, outcome.base_digest)
        if options.check:
            check_in_subprocess(location.target, location.target, report)
    seconds["total"] = time.monotonic() - began
    return published(prepared.plan, prepared.recipe, outcome, seconds)


def _already_complete(prepared: Prepared, target: TargetState) -> Outcome | None:
    """Return the published result of this plan if it verifies; None if the target is empty, or holds something else.

    Raises ``TargetBusy`` when it is damaged and may not be replaced.
    """
    options, location = prepared.request.options, prepared.location
    where = location.target
    there = target.published_result()
    if there is None:
        return None
    manifest, check = there
    if options.require_verified and manifest.unverified:
        if options.overwrite:
            return None
        raise CheckFailed(
            f"the result is there, and {UNVERIFIED}",
            where=where,
            found=f"no sha256 of input {manifest.unverified[0]}",
            remedy=f"make it again {_replacing(location)}",
            code=ErrorCode.INPUTS_UNVERIFIED,
        )
    found = finish_verify(check, expect=manifest.content_digest)
    if options.overwrite and not found.ok:
        return None
    if not found.ok or found.manifest_sha256 is None:
        raise TargetBusy(
            f"the result of this plan is there, but it does not verify: {found.problems[0]}",
            where=where,
            remedy=f"make it again {_replacing(location)}",
            code=ErrorCode.TARGET_DAMAGED,
        )
    return Outcome(
        status=ALREADY_COMPLETE,
        content_digest=manifest.content_digest,
        manifest_sha256=found.manifest_sha256,
        findings=manifest.findings,
        streamed=manifest.streamed,
        base_digest=manifest.origins.get("base", {}).get("tensors_digest"),
        source_proof=manifest.source_proof,
    )


def _replacing(location: TargetLocation) -> str:
    return "with --overwrite" if may_be_replaced(location) else "in another folder, or move this one away"


def _make(prepared: Prepared, opened: OpenStaging, report: Report, seconds: dict[str, float]) -> Outcome:
    """Write the missing shards into staging, and publish."""
    request, plan = prepared.request, prepared.plan
    began = time.monotonic()
    check_device(request.options.device)
    seconds["load arithmetic"] = time.monotonic() - began
    staging, fragments, discarded = StagedShards.prepare(opened, plan, marks_of(prepared.checkpoints))
    if discarded:
        report.note("staging held another plan (other inputs or options): it was discarded")
    if fragments:
        report.note(f"{finished_of(len(fragments), len(plan.shards), 'shard')} already")
    for done in fragments.values():
        report.shard_reused(done.file, done.record.size, done.record.sha256)
    check_space(prepared, fragments)

    def keep(fragment: Fragment) -> None:
        staging.keep(fragment)
        fragments[fragment.file] = fragment

    try:
        _stream(prepared, staging, fragments, keep, report, seconds)
        return publish_result(planned_result(prepared), staging, fragments, request.options, report, seconds)
    except Interrupted as error:
        kept = finished_of(len(fragments), len(plan.shards), "shard")
        raise Interrupted(error.number, f"{kept}{' and kept' if fragments else ''}; {GO_ON}") from None


def _stream(
    prepared: Prepared,
    staging: StagedShards,
    fragments: Mapping[str, Fragment],
    keep: Callable[[Fragment], None],
    report: Report,
    seconds: dict[str, float],
) -> None:
    """Write the shards that have no fragment, and wait until the inputs are complete and verified."""
    plan, began = prepared.plan, time.monotonic()
    try:
        missing = [shard for shard in plan.shards if shard.file not in fragments]
        seconds["flush"] = stream_shards(prepared, missing, staging.shards, keep, report)
        seconds["stream"] = time.monotonic() - began
        for checkpoint in prepared.checkpoints.values():
            checkpoint.check_unchanged()
    except DamagedFile:
        staging.discard()  # the next run must not reuse shards made of damaged bytes
        raise
    seconds["rest of the download"] = time.monotonic() - began - seconds["stream"]


def publish_result(
    planned: PlannedResult,
    staging: StagedShards,
    fragments: Mapping[str, Fragment],
    options: Options,
    report: Report,
    seconds: dict[str, float],
) -> Outcome:
    """Check the findings of finished shards, write the documents beside them, and publish. Raises what ``apply_delta`` raises."""
    plan, location, records, source = planned.plan, staging.staging.location, records_of(fragments), planned.source
    with saying_what_is_kept(location, fragments):
        findings, digests = judge_records(planned, records, options, report)
    source_proof = None if source is None else source.carried(digests[plan.operation.primary], report)
    # The published sum is that of the merged weights.
    summed = planned.recipe if plan.operation is Operation.APPLY else None
    published_sum = check_sum(records.values(), summed, report)
    if options.read_back:
        began = time.monotonic()
        read_back(staging, fragments, resolve_workers(options.workers), report)
        seconds["read back"] = time.monotonic() - began
    began = time.monotonic()
    digest, manifest_sha256 = write_documents(planned, staging.shards, fragments, findings, source_proof)
    if options.check:
        check_in_subprocess(location.shards, location.target, report)
        staging.staging.refuse_moved()  # the child process opened the folder by its path
    staging.refuse_modified(fragments)
    publish(staging.staging, plan.identity, overwrite=options.overwrite)
    seconds["publish"] = time.monotonic() - began
    return Outcome(
        status=plan.operation.status,
        content_digest=digest,
        manifest_sha256=manifest_sha256,
        findings=findings,
        published_sum=published_sum,
        streamed=planned.streamed,
        source_proof=source_proof,
    )
