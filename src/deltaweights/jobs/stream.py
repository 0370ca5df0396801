"""The shards of a job, written by the stream.

Enters: a prepared job, and which of its shards are wanted. Leaves: the shards, each with its fragment. Never: a shard made of bytes
that the checksums of their file contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltaweights.checkpoint.checksums import prove
from deltaweights.jobs.prepare import Prepared
from deltaweights.manifest.manifest import Fragment
from deltaweights.merge.operation import VISION_TOWER
from deltaweights.merge.plan import Shard
from deltaweights.merge.stream import Resources, Stream
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder


def stream_shards(
    job: Prepared,
    missing: Sequence[Shard],
    folder: OpenFolder,
    keep: Callable[[Fragment], None],
    resources: Resources,
    report: Report,
) -> float:
    """Write shards into ``folder``, ``keep`` each one's fragment, and return the seconds that the disk was waited for."""
    prove_unread(job)
    base = job.checkpoints["base"].tensors if "base" in job.plan.inputs else {}
    stream = Stream(job.plan, base, job.primarys, folder, keep, resources, report)
    report.begin(job.plan.operation.doing, sum(shard.nbytes for shard in missing))
    try:
        for done in stream.run(missing):
            report.progress(done)
    finally:
        report.end()
    return stream.flush_seconds


def prove_unread(job: Prepared) -> None:
    """Compare the recorded checksums of what the stream does not read whole: parts of storages, files, and dropped tensors."""
    for role, record in job.plan.inputs.items():
        checkpoint = job.checkpoints[role]
        for weights in checkpoint.files:
            for loose in weights.loose:
                prove(loose)
        for dropped in record.dropped if role != VISION_TOWER else ():  # CLIP's other half is of no concern
            prove(checkpoint.tensors[dropped.spec.name])
