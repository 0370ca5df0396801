"""Describe what a prepared request will do, and check that it fits on the disk."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError
from deltaweights.jobs.prepare import Prepared
from deltaweights.merge.plan import Plan, fates
from deltaweights.report import Report
from deltaweights.util.disk import free_bytes
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import Json, counted

SLACK = 16 * 1024 * 1024
"""Bytes kept free beyond the shards: folders, fragments, companions, the manifest."""

FOOTPRINT, TORCH, PER_WORKER = 40_000_000, 190_000_000, 8_000_000
"""Memory of the interpreter, of torch for a GPU, and of one worker's blocks; measured (docs/benchmarks.md)."""

WORDS = {
    "add": "added",
    "add_block": "added into a larger block",
    "add_zero_rows": "added, new rows to zeros",
    "add_float32_mean_rows": "added, new rows to the mean of the base's",
    "subtract": "subtracted",
    "subtract_block": "subtracted from a larger block",
    "subtract_zero_rows": "subtracted, zeros from new rows",
    "subtract_float32_mean_rows": "subtracted, the mean of the base's rows from new rows",
    "copy": "copied",
    "vision_tower": "copied from the vision tower",
    "identity": "made (identity)",
    "zeros": "made (zeros)",
}
"""The fates in reports."""


def report_plan(prepared: Prepared, report: Report) -> None:
    """Report the plan: how many tensors are added and copied, what is dropped, and which files are not copied."""
    report.plan(_facts(prepared.plan))
    counts = fates(prepared.plan)
    role_of_primary = prepared.plan.operation.primary
    parts = [f"{counts[fate]} {what}" for fate, what in WORDS.items() if counts.get(fate)]
    report.note(f"{counted(len(prepared.plan.tensors), 'tensor')}: {', '.join(parts)}")
    for role, record in prepared.plan.inputs.items():
        for reason in sorted({dropped.reason for dropped in record.dropped}):
            names = [dropped.spec.name for dropped in record.dropped if dropped.reason == reason]
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            report.note(f"dropped from the {role.replace('_', ' ')} ({reason}): {names[0]}{others}")
    if prepared.companions.left_behind:
        left = prepared.companions.left_behind
        others = f" and {len(left) - 8} more" if len(left) > 8 else ""
        report.note(f"not copied from the {role_of_primary}: {', '.join(left[:8])}{others}")
    if prepared.inputs.primary.is_lone_file:
        report.note(f"the {role_of_primary} is a single file: no configuration or tokenizer is copied")
    for change in prepared.companions.changes:
        report.note(change)


def check_space(prepared: Prepared, finished: Container[str]) -> None:
    """Raise ``InputOutputError`` when the shards that are not ``finished`` would not fit on the disk."""
    needed, free = disk_needed(prepared, finished) + _to_come(prepared), free_bytes(prepared.location.root)
    if free < needed:
        raise InputOutputError(
            "not enough free disk",
            where=prepared.location.root.parent,
            found=f"{human_bytes(free)} free",
            expected=human_bytes(needed),
            remedy="free some space, or choose a target on another disk",
            code=ErrorCode.DISK_FULL,
        )


def _to_come(prepared: Prepared) -> int:
    """Return the bytes of inputs yet to be downloaded to the disk of the result."""
    device = _device_of(prepared.location.root)
    return sum(
        weights.file.pending_bytes
        for checkpoint in prepared.checkpoints.values()
        if _device_of(checkpoint.directory.path) == device
        for weights in checkpoint.files
    )


def _device_of(path: Path) -> int | None:
    found = next((each for each in (path, *path.parents) if each.exists()), None)
    return found.stat().st_dev if found else None


def disk_needed(prepared: Prepared, finished: Container[str]) -> int:
    """Return the bytes to be written, without shards that are ``finished``."""
    return SLACK + sum(shard.size for shard in prepared.plan.shards if shard.file not in finished)


def describe(prepared: Prepared) -> dict[str, Json]:
    """Return what a run would do: shards, fates, and the disk and memory that it needs, in bytes."""
    request = prepared.request
    memory = FOOTPRINT + request.threads * PER_WORKER + (0 if request.options.device == "cpu" else TORCH)
    return {
        prepared.plan.operation.output: str(prepared.location.target),
        **_facts(prepared.plan),
        "disk_needed": disk_needed(prepared, ()),
        "disk_free": free_bytes(prepared.location.root),
        "memory_needed": memory,
    }


def _facts(plan: Plan) -> dict[str, Json]:
    return {
        "plan": plan.identity,
        "tensors": len(plan.tensors),
        "bytes": plan.nbytes,
        "shards": [{"file": shard.file, "size": shard.size, "tensors": len(shard.tensors)} for shard in plan.shards],
        "fates": fates(plan),
    }
