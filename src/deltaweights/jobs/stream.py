"""Write the shards of a prepared request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltaweights.checkpoint.checksums import verify_checksum
from deltaweights.jobs.prepare import Prepared
from deltaweights.manifest.records import Fragment
from deltaweights.merge.operation import VISION_TOWER
from deltaweights.merge.plan import Shard
from deltaweights.merge.stream import Stream
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder


def stream_shards(
    prepared: Prepared,
    missing: Sequence[Shard],
    folder: OpenFolder,
    keep: Callable[[Fragment], None],
    report: Report,
) -> float:
    """Write shards into ``folder``, ``keep`` the fragment of each, and return the seconds spent waiting for the disk."""
    check_unread(prepared)
    plan, resources = prepared.plan, prepared.request.resources
    stream = Stream(plan, prepared.base_tensors, prepared.primary_tensors, folder, keep, resources, report)
    report.begin(plan.operation.doing, sum(shard.nbytes for shard in missing))
    try:
        for done in stream.run(missing):
            report.progress(done)
    finally:
        report.end()
    return stream.flush_seconds


def check_unread(prepared: Prepared) -> None:
    """Verify the recorded checksums of what the stream does not read whole: parts of storages, files, and dropped tensors."""
    for role, record in prepared.plan.inputs.items():
        checkpoint = prepared.checkpoints[role]
        for weights in checkpoint.files:
            for loose in weights.extra_checksums:
                verify_checksum(loose)
        for dropped in record.dropped if role != VISION_TOWER else ():  # CLIP's text model does not matter here
            verify_checksum(checkpoint.tensors[dropped.spec.name])
