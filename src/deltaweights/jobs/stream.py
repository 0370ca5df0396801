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
    # While inputs arrive, they are what takes time: bytes that are merged come in leaps then, and tell nothing of what is left.
    to_fetch = _pending(prepared)
    total = sum(shard.nbytes for shard in missing)
    report.begin(f"fetching and {plan.operation.doing}" if to_fetch else plan.operation.doing, to_fetch or total)
    try:
        for done in stream.run(missing):
            pending = _pending(prepared) if to_fetch else 0
            if to_fetch and not pending:
                to_fetch = 0
                report.begin(plan.operation.doing, total)
                report.resumed(done)
            report.progress(to_fetch - pending if to_fetch else done)
    finally:
        report.end()
    return stream.flush_seconds


def _pending(prepared: Prepared) -> int:
    """Return how many bytes of the inputs are yet to arrive."""
    return sum(weights.file.pending_bytes for each in prepared.checkpoints.values() for weights in each.files)


def check_unread(prepared: Prepared) -> None:
    """Verify the recorded checksums of what the stream does not read whole: parts of storages, files, and dropped tensors."""
    for role, record in prepared.plan.inputs.items():
        checkpoint = prepared.checkpoints[role]
        for weights in checkpoint.files:
            for loose in weights.extra_checksums:
                verify_checksum(loose)
        for dropped in record.dropped if role != VISION_TOWER else ():  # CLIP's text model does not matter here
            verify_checksum(checkpoint.tensors[dropped.spec.name])
