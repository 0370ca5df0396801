"""The job: base + delta = merged, from paths to a published folder.

Enters: paths and options. Leaves: a target folder with weights, manifest and checksums, and a result that says what it is. Never:
a target that is not whole, or a byte of output before both inputs are known to fit.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaweights.checkpoint.files import ContiguousSource, LooseStorage, read_small
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, TargetBusy, UsageError
from deltaweights.manifest.manifest import (
    INDEX,
    MANIFEST,
    SUMS,
    FileRecord,
    Fragment,
    index_bytes,
    parse_manifest,
    sums_bytes,
)
from deltaweights.manifest.verify import MAX_MANIFEST, verify
from deltaweights.merge.device import check_device
from deltaweights.merge.plan import fates
from deltaweights.merge.record import merge_manifest, records_of
from deltaweights.merge.stream import Resources, Stream
from deltaweights.prepare import PathLike, Prepared, check_space, prepare, say
from deltaweights.report import Report
from deltaweights.staging.disk import write_file
from deltaweights.staging.folder import StagingFolder, StagingLock
from deltaweights.staging.place import refuse_content
from deltaweights.staging.publish import forget, publish, recover
from deltaweights.text import counted

ALREADY_COMPLETE = "already complete"


@dataclass(frozen=True)
class ApplyResult:
    """What was made. ``status`` is "merged" or "already complete"; ``bytes`` counts weights; ``seconds`` by stage, and in total."""

    target: str
    status: str
    content_digest: str
    manifest_sha256: str
    tensors: int
    parameters: int
    bytes: int
    shards: int
    fates: dict[str, int]
    dropped: dict[str, dict[str, str]]
    nonfinite: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)


def apply_delta(
    base: PathLike,
    delta: PathLike,
    target: PathLike,
    *,
    compute_dtype: str = "float16",
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    report: Report | None = None,
) -> ApplyResult:
    """Add ``delta`` to ``base`` and publish the merged checkpoint at ``target``.

    ``base`` and ``delta`` are folders, index files or single weights files (safetensors or torch). Both are cast to
    ``compute_dtype`` (float16, bfloat16 or float32), added once, and stored as ``dtype`` (the compute dtype unless given) in
    shards of at most ``max_shard_size`` (bytes, or text such as ``"5GB"``). ``device`` is ``cpu``, ``cuda[:N]`` or ``auto``; the
    bits are the same. With ``strict``, NaN or infinite weights in the result are an error; with ``hash_inputs`` the manifest has
    the sha256 of every input file. A killed run is finished by the same call.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``);
    the target is then as it was before, and finished shards wait in staging for the next call.
    """
    began = time.monotonic()
    report = Report() if report is None else report
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise UsageError("no workers", found=workers, expected="at least 1")
    with prepare(
        base, delta, target, compute_dtype=compute_dtype, dtype=dtype, max_shard_size=max_shard_size, report=report
    ) as job:
        say(job, report)
        seconds = {"prepare": time.monotonic() - began}
        done = _already_complete(job, overwrite=overwrite)
        if done is None or job.place.root.exists():
            with StagingLock(job.place) as lock:
                for text in (lock.note, recover(job.place)):
                    if text:
                        report.note(text)
                # The run that held the lock before us may have published this very plan.
                done = _already_complete(job, overwrite=overwrite)
                if done is None:
                    refuse_content(job.place, overwrite=overwrite)
                    done = _merge(
                        job,
                        device,
                        workers,
                        report,
                        seconds,
                        overwrite=overwrite,
                        strict=strict,
                        hash_inputs=hash_inputs,
                    )
                else:
                    forget(job.place)
        if done.status == ALREADY_COMPLETE:
            report.note(
                "the target is the result of these inputs, as far as their headers and samples tell; remove it to make it anew"
            )
            if hash_inputs:
                report.warn("--hash-inputs was not done: the target is complete, and its manifest stays as it is")
            if done.nonfinite:
                _report_nonfinite(done.nonfinite, report, strict=strict)
        seconds["total"] = time.monotonic() - began
        return _result(job, done, seconds)


def default_workers() -> int:
    """Return a worker for each processor that this process may use, at least 2 and at most 8."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(count, 8))


@dataclass(frozen=True)
class _Done:
    status: str
    content_digest: str
    manifest_sha256: str
    nonfinite: dict[str, int]


def _already_complete(job: Prepared, *, overwrite: bool) -> _Done | None:
    """Return what stands in the target if it is the result of this plan and verifies; None if it is something else.

    Raises ``TargetBusy`` when it is the result of this plan, damaged, and may not be replaced.
    """
    try:
        manifest = parse_manifest(read_small(job.place.target / MANIFEST, MAX_MANIFEST))
    except (InputOutputError, MalformedInput, ValueError):  # not their base class: a signal's exception must pass
        return None
    if manifest.plan != job.plan.identity or job.place.journal.exists():
        return None
    found = verify(job.place.target, expect=manifest.content_digest)
    if overwrite and not found.ok:
        return None
    if not found.ok or found.manifest_sha256 is None:
        raise TargetBusy(
            f"target is the result of this very plan, but it does not verify: {found.problems[0]}",
            where=job.place.target,
            remedy="move it away, or replace it with --overwrite",
        )
    return _Done(ALREADY_COMPLETE, manifest.content_digest, found.manifest_sha256, manifest.nonfinite)


def _merge(
    job: Prepared,
    device: str,
    workers: int,
    report: Report,
    seconds: dict[str, float],
    *,
    overwrite: bool,
    strict: bool,
    hash_inputs: bool,
) -> _Done:
    """Write what is missing into staging, and publish it."""
    began = time.monotonic()
    check_device(device)
    seconds["load arithmetic"] = time.monotonic() - began
    staging = StagingFolder(job.place)
    fragments, discarded = staging.prepare(job.plan)
    if discarded:
        report.note("staging held another plan (other inputs or options): it was discarded")
    if fragments:
        report.note(f"{len(fragments)} of {len(job.plan.shards)} shards are finished already")
    check_space(job, fragments)
    began = time.monotonic()
    _stream(job, staging, fragments, device, workers, report, seconds)
    seconds["stream"] = time.monotonic() - began
    nonfinite = {name: record.nonfinite for name, record in records_of(fragments).items() if record.nonfinite}
    if nonfinite:
        _report_nonfinite(nonfinite, report, strict=strict)
    began = time.monotonic()
    input_sha256 = _hash_inputs(job) if hash_inputs else {}
    seconds["hash inputs"] = time.monotonic() - began
    for checkpoint in (job.base, job.delta):
        checkpoint.check_unchanged()
    began = time.monotonic()
    digest, manifest_sha256 = _write_documents(job, fragments, input_sha256)
    publish(job.place, job.plan.identity, overwrite=overwrite)
    seconds["publish"] = time.monotonic() - began
    return _Done("merged", digest, manifest_sha256, nonfinite)


def _stream(
    job: Prepared,
    staging: StagingFolder,
    fragments: dict[str, Fragment],
    device: str,
    workers: int,
    report: Report,
    seconds: dict[str, float],
) -> None:
    """Make the shards that have no fragment yet, and add theirs to ``fragments``."""

    def keep(fragment: Fragment) -> None:
        staging.keep(fragment)
        fragments[fragment.file] = fragment

    _prove_unread(job)
    missing = [shard for shard in job.plan.shards if shard.file not in fragments]
    stream = Stream(job.plan, job.base.tensors, job.delta.tensors, job.place.shards, keep, Resources(device, workers))
    report.begin("merging", sum(shard.size - len(shard.header) for shard in missing))
    try:
        for done in stream.run(missing):
            report.progress(done)
    finally:
        report.end()
    seconds["flush"] = stream.flush_seconds


def _prove_unread(job: Prepared) -> None:
    """Compare the recorded checksums of what the stream does not read whole: parts of storages, and dropped tensors."""
    for checkpoint, record in ((job.base, job.plan.base), (job.delta, job.plan.delta)):
        for weights in checkpoint.files:
            for loose in weights.loose:
                loose.prove()
        for dropped in record.dropped:
            tensor = checkpoint.tensors[dropped.spec.name]
            if tensor.crc32 is not None and isinstance(tensor.source, ContiguousSource):
                LooseStorage(tensor.source, dropped.spec.name, dropped.spec.nbytes, tensor.crc32).prove()


def _report_nonfinite(nonfinite: Mapping[str, int], report: Report, *, strict: bool) -> None:
    name = next(iter(nonfinite))
    found = f"{sum(nonfinite.values())} NaN or infinite weights in {counted(len(nonfinite), 'tensor')}"
    if strict:
        remedy = "check base and delta; run without --strict to publish it, or give it up with deltaweights clean"
        raise CheckFailed("result is not finite", tensor=name, found=found, remedy=remedy)
    report.warn(f"tensor {name}: result is not finite: {found}")


def _hash_inputs(job: Prepared) -> dict[str, dict[str, str]]:
    return {
        checkpoint.role: {weights.file.path.name: weights.file.sha256() for weights in checkpoint.files}
        for checkpoint in (job.base, job.delta)
    }


def _write_documents(
    job: Prepared, fragments: Mapping[str, Fragment], input_sha256: Mapping[str, Mapping[str, str]]
) -> tuple[str, str]:
    """Write everything but weights beside the shards; return the content digest and the manifest's sha256."""
    plan, folder = job.plan, job.place.shards
    documents = dict(job.companions.files)
    if len(plan.shards) > 1:
        weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        documents[INDEX] = index_bytes(weight_map, plan.nbytes, plan.parameters)
    files = {shard.file: fragments[shard.file].record for shard in plan.shards}
    files |= {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in documents.items()}
    manifest, digest = merge_manifest(plan, fragments, files, input_sha256)
    manifest_record = FileRecord(len(manifest), hashlib.sha256(manifest).hexdigest())
    documents |= {MANIFEST: manifest, SUMS: sums_bytes(files, manifest_record)}
    for name, data in documents.items():
        write_file(folder / name, data)
    return digest, manifest_record.sha256


def _result(job: Prepared, done: _Done, seconds: dict[str, float]) -> ApplyResult:
    plan = job.plan
    dropped = {
        role: {item.spec.name: item.reason for item in record.dropped}
        for role, record in (("base", plan.base), ("delta", plan.delta))
    }
    return ApplyResult(
        target=str(job.place.target),
        status=done.status,
        content_digest=done.content_digest,
        manifest_sha256=done.manifest_sha256,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=plan.nbytes,
        shards=len(plan.shards),
        fates=fates(plan),
        dropped=dropped,
        nonfinite=done.nonfinite,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
