"""The first half of the job: from paths to two open checkpoints that fit, and a plan.

Enters: paths and options. Leaves: everything that the second half needs, and what a dry run shows. Never: a
byte written, but for archives that must be unpacked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from deltaweights.checkpoint.companions import NOTICE, NOTICE_NAME, NOTICE_OF_A_DELTA, Companions, read_companions
from deltaweights.checkpoint.folder import Checkpoint, Unpacker
from deltaweights.checkpoint.samples import sample_digests
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import UsageError
from deltaweights.export.layout import Laid, lay_out, refuse_laid_out, sees
from deltaweights.export.tower import Tower, open_tower
from deltaweights.hub.ids import Given, PathLike
from deltaweights.hub.locate import HubOptions, paths_among
from deltaweights.jobs.inputs import Pair, compute_dtype_of, open_pair
from deltaweights.jobs.provenance import refuse_unverified
from deltaweights.jobs.request import USUAL, Wanted
from deltaweights.merge.document_sizes import refuse_unreadable
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.plan import (
    DTYPES,
    ORIGINAL,
    Companion,
    InputFileRecord,
    InputRecord,
    Options,
    Plan,
    RecipeRecord,
    make_plan,
)
from deltaweights.merge.rules import Dropped, Matching
from deltaweights.recipes.input_hashes import InputHashes
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.staging.location import TargetLocation, locate_target, refuse_inputs
from deltaweights.staging.target_contents import refuse_foreign_content
from deltaweights.staging.unpacking import StagingUnpacker
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True)
class Prepared:
    """The inputs open, by what they are called, known to fit, and planned; nothing written yet.

    ``recipe`` is None where the plain rules apply. ``expected`` is the content digest, in the original layout, that the input's own
    manifest states, if it has one, ``parents`` where that manifest says that its own inputs are from.
    """

    checkpoints: dict[str, Checkpoint]
    hashes: InputHashes
    recipe: Recipe | None
    laid: Laid
    plan: Plan
    place: TargetLocation
    unpacking: StagingUnpacker
    expected: str | None = None
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def companions(self) -> Companions:
        """The files that travel with the weights."""
        return self.laid.companions

    @property
    def primarys(self) -> Mapping[str, LazyTensor]:
        """The tensors that those of the result are made of, besides those of the base."""
        return {**self.primary.tensors, **self.laid.added}

    @property
    def primary(self) -> Checkpoint:
        """The input whose tensors are those of the result."""
        return self.checkpoints[self.plan.operation.primary]

    @property
    def stated(self) -> bool:
        """Whether it is known in which arithmetic the delta was computed."""
        return self.recipe is not None and self.recipe.stated


@contextmanager
def tower_for(
    matching: Matching,
    where: Path,
    wanted: Wanted,
    recipe: Recipe | None,
    hub: HubOptions | None,
    unpacker: Unpacker | None,
    hash_workers: int | None,
    report: Report,
) -> Iterator[Tower | None]:
    """Open the vision tower, if the result is to have one. Raises as ``open_tower`` does."""
    if wanted.layout != ORIGINAL:
        refuse_laid_out(matching, where)
    if wanted.layout == ORIGINAL or not sees(matching):
        if wanted.vision_tower is not None:
            report.warn("--vision-tower is not used: this model has no projector, so it does not see")
        yield None
        return
    with open_tower(wanted.vision_tower, recipe, hub, unpacker, resolve_workers(hash_workers), report) as tower:
        yield tower


def laid_out(
    matching: Matching,
    companions: Companions,
    primary: Checkpoint,
    wanted: Wanted,
    dtype: str,
    recipe: Recipe | None,
    tower: Tower | None,
) -> Laid:
    """Return what is written in the layout that is wanted; ``dtype`` is torch's name. Raises as ``lay_out`` does."""
    if wanted.layout == ORIGINAL:
        return Laid(matching, {}, companions)
    return lay_out(matching, companions, primary.directory.path, dtype, recipe, tower)


def companions_of(companions: Companions) -> list[Companion]:
    """Return what the plan keeps of them."""
    return [Companion(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in companions.files.items()]


@contextmanager
def prepare(
    operation: Operation,
    base: Given,
    primary: Given,
    output: PathLike,
    wanted: Wanted = USUAL,
    *,
    recipe: Recipe | None = None,
    hub: HubOptions | None = None,
    require_verified: bool = False,
    check: bool = False,
    allow_unproved_base: bool = False,
    hash_workers: int | None = None,
    overwrite: bool | None = None,
    parted: bool = False,
    report: Report | None = None,
) -> Iterator[Prepared]:
    """Open and match base and primary and plan the result, from headers and samples; nothing is written but unpacked archives.

    ``hash_workers`` threads make the sha256 of the inputs, if any. With ``overwrite`` None nobody cares yet what stands in the
    target. ``parted`` says that other processes do parts of the job: archives are not unpacked for it. Raises ``UsageError``,
    ``MalformedInput``, ``Mismatch``, ``InputOutputError``, and ``TargetBusy`` when output and input overlap, or the target is
    taken by something else.
    """
    report = Report() if report is None else report
    if not os.fspath(output):
        raise UsageError(f"{operation.output} is an empty path", remedy="is a variable unset?")
    compute_dtype_of(wanted.compute_dtype, recipe)  # a slip of the pen need not wait for the inputs
    place = locate_target(output)
    refuse_inputs(place, [*paths_among((base, primary)), *wanted.paths])
    if overwrite is not None:
        refuse_foreign_content(place, overwrite=overwrite)
    with (
        StagingUnpacker(place) as unpacking,
        nullcontext(None if parted else unpacking) as unpacker,
        open_pair(
            operation,
            base,
            primary,
            recipe=recipe,
            hub=hub,
            allow=allow_unproved_base,
            hash_workers=hash_workers,
            unpacker=unpacker,
            report=report,
        ) as pair,
        tower_for(pair.matching, pair.primary.path, wanted, pair.recipe, hub, unpacker, hash_workers, report) as tower,
    ):
        compute = compute_dtype_of(wanted.compute_dtype, pair.recipe)
        stored = wanted.dtype or compute
        laid = laid_out(
            pair.matching, _companions(pair, operation, stored), pair.primary, wanted, stored, pair.recipe, tower
        )
        job = Prepared(
            {"base": pair.base, operation.primary: pair.primary} | ({VISION_TOWER: tower.checkpoint} if tower else {}),
            pair.hashes | tower.hashes if tower else pair.hashes,
            pair.recipe,
            laid,
            make_plan(
                laid.matching,
                Options(DTYPES[compute], DTYPES[stored], wanted.limit, wanted.layout, wanted.container),
                record_of(pair.base, pair.matching.dropped_base),
                record_of(pair.primary, pair.matching.dropped_primary),
                companions_of(laid.companions),
                operation,
                check=check,
                recipe=_recipe_record(pair.recipe),
                tower=record_of(tower.checkpoint, tower.dropped) if tower else None,
            ),
            place,
            unpacking,
        )
        refuse_unreadable(job.plan, str(pair.primary.path))
        place.refuse_opened(weights.file.path for each in job.checkpoints.values() for weights in each.files)
        if require_verified:
            refuse_unverified(job.checkpoints, job.hashes)
        yield job


def notice_of(ours: str, recipe: Recipe | None) -> str:
    """Return our own notice, and the recipe's under it."""
    return f"{ours}\n{recipe.title}: {recipe.notice}\n" if recipe is not None and recipe.notice else ours


def _companions(pair: Pair, operation: Operation, stored: str) -> Companions:
    """Return what travels with the weights; the recipe's notice is added to our own."""
    notice = notice_of(NOTICE if operation is Operation.APPLY else NOTICE_OF_A_DELTA, pair.recipe)
    if pair.primary.is_lone_file:
        return Companions({NOTICE_NAME: notice.encode()}, ())
    return read_companions(pair.primary.directory, pair.primary.names, stored, operation.primary, notice)


def _recipe_record(recipe: Recipe | None) -> RecipeRecord | None:
    return RecipeRecord(recipe.name, recipe.digest, recipe.checks is not None) if recipe else None


def record_of(checkpoint: Checkpoint, dropped: tuple[Dropped, ...]) -> InputRecord:
    """Return what the plan keeps of an input, digests of samples of its tensors included. Raises ``InputOutputError``."""
    samples = sample_digests(checkpoint.tensors)  # in the order of the files: on the disk, one after the other
    names = sorted(samples)
    return InputRecord(
        checkpoint.container,
        tuple(InputFileRecord(w.file.path.name, w.file.size, w.header_digest, w.checks) for w in checkpoint.files),
        tuple(checkpoint.tensors[name].spec for name in names),
        tuple(map(samples.__getitem__, names)),
        dropped,
    )
