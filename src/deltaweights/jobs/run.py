"""The job: one or two checkpoints in, one out, from paths to a published folder; ``apply``, ``make``, ``convert`` are its names.

Enters: an operation, paths and options. Leaves: a folder with weights, manifest and checksums, and a result that says what it is.
Never: a folder that is not whole, or a byte of output before both inputs are known to fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from deltaweights.errors import CheckFailed, TargetBusy
from deltaweights.hub.files import AGAIN, Refetched
from deltaweights.hub.transfer import Damaged
from deltaweights.inference.child import check_in_child
from deltaweights.jobs.documents import write_documents
from deltaweights.jobs.findings import SumFound, check_sum, judge_base, report_numbers
from deltaweights.jobs.planned_result import PlannedResult, planned_result
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import UNVERIFIED, marks_of
from deltaweights.jobs.stream import stream_shards
from deltaweights.jobs.summary import check_space, say
from deltaweights.manifest.findings import Findings
from deltaweights.manifest.manifest import Fragment
from deltaweights.manifest.verify import verify_rest
from deltaweights.merge.device import check_device
from deltaweights.merge.operation import VISION_TOWER
from deltaweights.merge.plan import Plan, fates
from deltaweights.merge.record import findings_of, records_of
from deltaweights.merge.stream import Resources
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.staging.folder import StagingFolder
from deltaweights.staging.opened import OpenStaging
from deltaweights.staging.publish import forget, publish, recover
from deltaweights.staging.read_back import read_back
from deltaweights.staging.standing import Target
from deltaweights.util.workers import workers_of

ALREADY_COMPLETE = "already complete"


@dataclass(frozen=True, kw_only=True)
class Published(Findings):
    """What was made, and what was found in it.

    ``streamed`` says that an input was read from the Hub and kept nowhere, so that its hash could not be compared. ``status`` is
    "merged", "made", "converted" or "already complete"; ``bytes`` counts weights; ``seconds`` are by stage. ``recipe`` is the
    name of the one that was used; ``published_sum`` is None where the recipe has none, or nothing was written.
    """

    status: str
    content_digest: str
    manifest_sha256: str
    tensors: int
    parameters: int
    bytes: int
    shards: int
    fates: dict[str, int]
    dropped: dict[str, dict[str, str]]
    recipe: str | None
    published_sum: SumFound | None
    streamed: bool
    seconds: dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How to run, and what to insist on."""

    device: str = "cpu"
    workers: int | None = None
    overwrite: bool = False
    strict: bool = False
    allow_unproved_base: bool = False
    require_verified: bool = False
    check: bool = False
    read_back: bool = False

    def __post_init__(self) -> None:
        """Raise ``UsageError`` when nobody may work."""
        workers_of(self.workers)

    @property
    def threads(self) -> int:
        """How many workers there are, whatever the tensors' sizes."""
        return workers_of(self.workers)

    @property
    def resources(self) -> Resources:
        """What the stream may use."""
        return Resources(self.device, self.workers)


def perform(
    opener: Callable[[], AbstractContextManager[Prepared]], settings: Settings, report: Report, began: float
) -> tuple[Prepared, Published]:
    """Open a job with ``opener`` and do it; once more when an input was damaged on its way and had to be fetched anew.

    Raises what ``apply_delta`` raises.
    """
    try:
        with opener() as job:
            return job, run(job, settings, report, began)
    except Refetched as error:
        begun_anew(error, report)
    with opener() as job:
        return job, run(job, settings, report, began)


def begun_anew(error: Refetched, report: Report) -> None:
    """Say that a job is begun anew, and why."""
    report.warn(f"{str(error).removesuffix(f'; {AGAIN}')}: begun anew")


def run(job: Prepared, settings: Settings, report: Report, began: float) -> Published:
    """Do a job that is prepared, or find that it was done. ``began`` is when it did, by the monotonic clock.

    Raises what ``apply_delta`` raises.
    """
    say(job, report)
    seconds = {"prepare": time.monotonic() - began - job.hashes.seconds, "hash inputs": job.hashes.seconds}
    target = Target(job.place, job.plan.identity)
    done = None if job.unpacking.holds_the_lock else _already_complete(job, target, settings)
    if done is None or job.place.root.exists():
        with job.unpacking.locked() as lock:
            for text in (lock.note, recover(lock.staging)):
                if text:
                    report.note(text)
            # The run that held the lock before us may have published this very plan.
            done = _already_complete(job, target, settings)
            if done is None:
                lock.staging.refuse_content(overwrite=settings.overwrite)
                done = _make(job, lock.staging, settings, report, seconds)
            else:
                forget(lock.staging)
    if done.status == ALREADY_COMPLETE:
        report.note(
            "what is there is the result of these inputs, as far as their headers and samples tell; remove it to make it anew"
        )
        if job.hashes.read - {VISION_TOWER}:
            report.warn("the manifest that is there stays as it is: --hash-inputs adds nothing to it")
        _judge(job.plan, done.findings, settings, report, stated=job.stated)
        if settings.check:
            check_in_child(job.place.target, job.place.target, report)
    seconds["total"] = time.monotonic() - began
    return published_of(job.plan, job.recipe, done, seconds)


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    status: str
    content_digest: str
    manifest_sha256: str
    findings: Findings
    published_sum: SumFound | None = None
    streamed: bool = False


def _already_complete(job: Prepared, target: Target, settings: Settings) -> Done | None:
    """Return what stands there if it is the result of this plan and verifies; None if it is something else.

    Raises ``TargetBusy`` when it is the result of this plan, damaged, and may not be replaced.
    """
    there = target.published()
    if there is None:
        return None
    manifest, check = there
    if settings.require_verified and manifest.unverified:
        if settings.overwrite:
            return None
        raise CheckFailed(
            f"the result is there, and {UNVERIFIED}",
            where=job.place.target,
            found=f"no sha256 of input {manifest.unverified[0]}",
            remedy="make it anew with --overwrite",
        )
    found = verify_rest(check, expect=manifest.content_digest)
    if settings.overwrite and not found.ok:
        return None
    if not found.ok or found.manifest_sha256 is None:
        raise TargetBusy(
            f"the result of this very plan is there, but it does not verify: {found.problems[0]}",
            where=job.place.target,
            remedy="move it away, or replace it with --overwrite",
        )
    digest, sha256 = manifest.content_digest, found.manifest_sha256
    return Done(ALREADY_COMPLETE, digest, sha256, manifest.findings, streamed=manifest.streamed)


def _make(job: Prepared, opened: OpenStaging, settings: Settings, report: Report, seconds: dict[str, float]) -> Done:
    """Write what is missing into staging, and publish it."""
    began = time.monotonic()
    check_device(settings.device)
    seconds["load arithmetic"] = time.monotonic() - began
    staging, fragments, discarded = StagingFolder.prepare(opened, job.plan, marks_of(job.checkpoints))
    if discarded:
        report.note("staging held another plan (other inputs or options): it was discarded")
    if fragments:
        report.note(f"{len(fragments)} of {len(job.plan.shards)} shards are finished already")
    for done in fragments.values():
        report.shard_reused(done.file, done.record.size, done.record.sha256)
    check_space(job, fragments)
    began = time.monotonic()
    try:
        _stream(job, staging, fragments, settings, report, seconds)
        seconds["stream"] = time.monotonic() - began
        for checkpoint in job.checkpoints.values():
            checkpoint.check_unchanged()
    except Damaged:
        staging.discard()  # what was made of damaged bytes must not be found by the next run
        raise
    seconds["rest of the download"] = time.monotonic() - began - seconds["stream"]
    return conclude(planned_result(job), staging, fragments, settings, report, seconds)


def conclude(
    planned: PlannedResult,
    staging: StagingFolder,
    fragments: Mapping[str, Fragment],
    settings: Settings,
    report: Report,
    seconds: dict[str, float],
) -> Done:
    """Judge what was found, write what stands beside the weights, and publish. Raises what ``apply_delta`` raises."""
    plan, place, records = planned.plan, staging.staging.place, records_of(fragments)
    findings = findings_of(records, allowed=settings.allow_unproved_base and planned.stated)
    _judge(plan, findings, settings, report, stated=planned.stated)
    published_sum = check_sum(records.values(), planned.recipe, report)
    if settings.read_back:
        began = time.monotonic()
        read_back(staging, fragments, settings.threads, report)
        seconds["read back"] = time.monotonic() - began
    began = time.monotonic()
    digest, manifest_sha256 = write_documents(planned, staging.shards, fragments, findings)
    if settings.check:
        check_in_child(place.shards, place.target, report)
        staging.staging.refuse_moved()  # the check went by the name
    staging.refuse_touched(fragments)
    publish(staging.staging, plan.identity, overwrite=settings.overwrite)
    seconds["publish"] = time.monotonic() - began
    return Done(plan.operation.status, digest, manifest_sha256, findings, published_sum, planned.streamed)


def _stream(
    job: Prepared,
    staging: StagingFolder,
    fragments: dict[str, Fragment],
    settings: Settings,
    report: Report,
    seconds: dict[str, float],
) -> None:
    """Make the shards that have no fragment yet, and add theirs to ``fragments``."""

    def keep(fragment: Fragment) -> None:
        staging.keep(fragment)
        fragments[fragment.file] = fragment

    missing = [shard for shard in job.plan.shards if shard.file not in fragments]
    seconds["flush"] = stream_shards(job, missing, staging.shards, keep, settings.resources, report)


def _judge(plan: Plan, findings: Findings, settings: Settings, report: Report, *, stated: bool) -> None:
    """Tell what was found in the numbers. Raises ``CheckFailed`` or ``Mismatch`` for what must not be published."""
    report_numbers(findings, plan.operation, report, strict=settings.strict)
    judge_base(findings.proof, report, stated=stated, allowed=settings.allow_unproved_base)
    if stated and not plan.check:
        report.warn("the base is not proved: nobody looked (--no-prove)")


def published_of(plan: Plan, recipe: Recipe | None, done: Done, seconds: dict[str, float]) -> Published:
    """Return what is said of a published result."""
    dropped = {role: {item.spec.name: item.reason for item in record.dropped} for role, record in plan.inputs.items()}
    return Published(
        status=done.status,
        content_digest=done.content_digest,
        manifest_sha256=done.manifest_sha256,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=plan.nbytes,
        shards=len(plan.shards),
        fates=fates(plan),
        dropped=dropped,
        recipe=recipe.name if recipe else None,
        published_sum=done.published_sum,
        streamed=done.streamed,
        **vars(done.findings),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
