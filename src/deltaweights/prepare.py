"""The first half of the job: from paths to two open checkpoints that fit, and a plan.

Enters: paths and options. Leaves: everything that the second half needs, and what a dry run shows. Never: a
byte written, but for archives that must be unpacked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.companions import NOTICE, NOTICE_NAME, NOTICE_OF_A_DELTA, Companions, read_companions
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.samples import sample_digests
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hashing import Hashes
from deltaweights.hub.ids import Given, PathLike
from deltaweights.hub.locate import HubOptions, paths_among
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import (
    DTYPES,
    Companion,
    InputFileRecord,
    InputRecord,
    Options,
    Plan,
    RecipeRecord,
    fates,
    make_plan,
)
from deltaweights.merge.rules import Dropped
from deltaweights.pair import Pair, compute_dtype_of, open_pair
from deltaweights.provenance import refuse_unverified
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.sizes import human_bytes, parse_size
from deltaweights.staging.disk import free_bytes
from deltaweights.staging.place import Place, locate, refuse_foreign, refuse_inputs
from deltaweights.staging.unpacking import Unpacking
from deltaweights.text import Json, counted

SLACK = 16 * 1024 * 1024
"""Bytes kept free beyond the shards: folders, fragments, companions, the manifest."""

FOOTPRINT, TORCH, PER_WORKER = 40_000_000, 190_000_000, 8_000_000
"""Memory of the interpreter, of torch where a GPU is asked for, and of one worker's blocks; measured (docs/benchmarks.md)."""


WORDS = {
    "add": "added",
    "add_block": "added into a larger block",
    "add_zero_rows": "added, new rows to zeros",
    "add_mean_rows": "added, new rows to the mean of the base's",
    "subtract": "subtracted",
    "subtract_block": "subtracted from a larger block",
    "copy": "copied",
}
"""The fates, for people."""


@dataclass(frozen=True)
class Prepared:
    """The inputs open, by what they are called, known to fit, and planned; nothing written yet.

    ``recipe`` is None where the plain rules apply.
    """

    checkpoints: dict[str, Checkpoint]
    hashes: Hashes
    recipe: Recipe | None
    companions: Companions
    plan: Plan
    place: Place
    unpacking: Unpacking

    @property
    def lead(self) -> Checkpoint:
        """The input whose tensors are those of the result."""
        return self.checkpoints[self.plan.operation.lead]

    @property
    def stated(self) -> bool:
        """Whether it is known in which arithmetic the delta was computed."""
        return self.recipe is not None and self.recipe.stated


@contextmanager
def prepare(
    operation: Operation,
    base: Given,
    lead: Given,
    output: PathLike,
    *,
    recipe: Recipe | None = None,
    hub: HubOptions | None = None,
    require_verified: bool = False,
    compute_dtype: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    check: bool = False,
    allow_unproved_base: bool = False,
    hash_workers: int | None = None,
    overwrite: bool | None = None,
    report: Report | None = None,
) -> Iterator[Prepared]:
    """Open and match base and lead and plan the result, from headers and samples; nothing is written but unpacked archives.

    ``hash_workers`` threads make the sha256 of the inputs, if any. With ``overwrite`` None nobody cares yet what stands in the
    target. Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, and ``TargetBusy`` when output and
    input overlap, or the target is taken by something else.
    """
    report = Report() if report is None else report
    if not os.fspath(output):
        raise UsageError(f"{operation.output} is an empty path", remedy="is a variable unset?")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError("unknown dtype", found=dtype, expected=", ".join(DTYPES))
    limit = parse_size(max_shard_size, "max shard size")
    compute_dtype_of(compute_dtype, recipe)  # a slip of the pen need not wait for the inputs
    place = locate(output)
    refuse_inputs(place, paths_among((base, lead)))
    if overwrite is not None:
        refuse_foreign(place, overwrite=overwrite)
    with (
        Unpacking(place) as unpacking,
        open_pair(
            operation,
            base,
            lead,
            recipe=recipe,
            hub=hub,
            allow=allow_unproved_base,
            hash_workers=hash_workers,
            unpacker=unpacking,
            report=report,
        ) as pair,
    ):
        inputs = {"base": pair.base, operation.lead: pair.lead}
        if require_verified:
            refuse_unverified(inputs, pair.hashes)
        compute = compute_dtype_of(compute_dtype, pair.recipe)
        stored = dtype or compute
        place.refuse_opened(weights.file.path for each in (pair.base, pair.lead) for weights in each.files)
        companions = _companions(pair, operation, stored)
        of_base, of_lead = (
            record_of(pair.base, pair.matching.dropped_base),
            record_of(pair.lead, pair.matching.dropped_lead),
        )
        plan = make_plan(
            pair.matching,
            Options(DTYPES[compute], DTYPES[stored], limit),
            of_base,
            of_lead,
            [Companion(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in companions.files.items()],
            operation,
            check=check,
            recipe=_recipe_record(pair.recipe),
        )
        yield Prepared(inputs, pair.hashes, pair.recipe, companions, plan, place, unpacking)


def _companions(pair: Pair, operation: Operation, stored: str) -> Companions:
    """Return what travels with the weights; the recipe's notice is added to our own."""
    notice = NOTICE if operation is Operation.APPLY else NOTICE_OF_A_DELTA
    if pair.recipe is not None and pair.recipe.notice:
        notice = f"{notice}\n{pair.recipe.title}: {pair.recipe.notice}\n"
    if pair.lead.alone:
        return Companions({NOTICE_NAME: notice.encode()}, ())
    return read_companions(pair.lead.directory, pair.lead.names, stored, operation.lead, notice)


def _recipe_record(recipe: Recipe | None) -> RecipeRecord | None:
    return RecipeRecord(recipe.name, recipe.digest, recipe.checks is not None) if recipe else None


def record_of(checkpoint: Checkpoint, dropped: tuple[Dropped, ...]) -> InputRecord:
    """Return what the plan keeps of an input, digests of samples of its tensors included. Raises ``InputOutputError``."""
    return InputRecord(
        checkpoint.container,
        tuple(InputFileRecord(w.file.path.name, w.file.size, w.header_digest, w.checks) for w in checkpoint.files),
        {name: tensor.spec for name, tensor in checkpoint.tensors.items()},
        sample_digests(checkpoint.tensors),
        dropped,
    )


def say(job: Prepared, report: Report) -> None:
    """Report every fate: how many tensors are added and copied, what is dropped, and what is not copied beside them."""
    counts = fates(job.plan)
    role_of_lead = job.plan.operation.lead
    parts = [f"{counts[fate]} {what}" for fate, what in WORDS.items() if counts.get(fate)]
    report.note(f"{counted(len(job.plan.tensors), 'tensor')}: {', '.join(parts)}")
    for role, record in job.plan.inputs.items():
        for reason in sorted({dropped.reason for dropped in record.dropped}):
            names = [dropped.spec.name for dropped in record.dropped if dropped.reason == reason]
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            report.note(f"dropped from the {role} ({reason}): {names[0]}{others}")
    if job.companions.left_behind:
        left = job.companions.left_behind
        others = f" and {len(left) - 8} more" if len(left) > 8 else ""
        report.note(f"not copied from the {role_of_lead}: {', '.join(left[:8])}{others}")
    if job.lead.alone:
        report.note(f"the {role_of_lead} is a single file: no configuration or tokenizer is copied")
    if job.companions.change:
        report.note(job.companions.change)


def check_space(job: Prepared, finished: Mapping[str, object]) -> None:
    """Raise ``InputOutputError`` when the shards that are not ``finished`` would not fit on the disk."""
    needed, free = disk_needed(job, finished) + _to_come(job), free_bytes(job.place.root)
    if free < needed:
        raise InputOutputError(
            "not enough free disk",
            where=job.place.root.parent,
            found=f"{human_bytes(free)} free",
            expected=human_bytes(needed),
            remedy="make room, or choose a place on another disk",
        )


def _to_come(job: Prepared) -> int:
    """Return the bytes of inputs that will still be written to the disk of the result."""
    device = _device_of(job.place.root)
    return sum(
        weights.file.to_come
        for checkpoint in job.checkpoints.values()
        if _device_of(checkpoint.directory.path) == device
        for weights in checkpoint.files
    )


def _device_of(path: Path) -> int | None:
    """Return the disk that the first of ``path`` and its parents is on that exists."""
    found = next((each for each in (path, *path.parents) if each.exists()), None)
    return found.stat().st_dev if found else None


def disk_needed(job: Prepared, finished: Mapping[str, object]) -> int:
    """Return the bytes that will be written, shards that are ``finished`` left out."""
    return SLACK + sum(shard.size for shard in job.plan.shards if shard.file not in finished)


def describe(job: Prepared, workers: int, device: str) -> dict[str, Json]:
    """Return what a run would do: shards, fates, and the disk and memory that it needs, in bytes."""
    return {
        job.plan.operation.output: str(job.place.target),
        "plan": job.plan.identity,
        "tensors": len(job.plan.tensors),
        "bytes": job.plan.nbytes,
        "shards": [
            {"file": shard.file, "size": shard.size, "tensors": len(shard.tensors)} for shard in job.plan.shards
        ],
        "fates": fates(job.plan),
        "disk_needed": disk_needed(job, {}),
        "disk_free": free_bytes(job.place.root),
        "memory_needed": FOOTPRINT + workers * PER_WORKER + (0 if device == "cpu" else TORCH),
    }
