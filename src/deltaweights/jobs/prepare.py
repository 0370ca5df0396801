"""Open the inputs of a request and plan the result. Nothing is written, except archives that must be unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deltaweights.checkpoint.companions import Companions
from deltaweights.checkpoint.folder import Checkpoint, Unpacker
from deltaweights.checkpoint.samples import sample_digests
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.export.layout import ExportPlan, has_projector, plan_export, refuse_transformers_layout
from deltaweights.export.vision_tower import VisionTower, open_vision_tower
from deltaweights.jobs.companions import companions_of
from deltaweights.jobs.early_proof import refuse_wrong_base
from deltaweights.jobs.inputs import Inputs, open_inputs
from deltaweights.jobs.provenance import refuse_unverified
from deltaweights.jobs.request import Request
from deltaweights.jobs.sanity import check_sanity
from deltaweights.merge.choices import ORIGINAL, TORCH_NAMES
from deltaweights.merge.document_sizes import refuse_unreadable
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.plan import Companion, InputFileRecord, InputRecord, Plan, PlanOptions, RecipeRecord, make_plan
from deltaweights.merge.rules import Dropped
from deltaweights.recipes.input_hashes import InputHashes
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.staging.location import TargetLocation, locate_target, refuse_inputs
from deltaweights.staging.target_contents import refuse_foreign_content
from deltaweights.staging.unpacking import StagingUnpacker


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request whose inputs are open and matched, and its plan."""

    request: Request
    inputs: Inputs
    tower: VisionTower | None
    export: ExportPlan
    plan: Plan
    location: TargetLocation
    unpacking: StagingUnpacker

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """The open inputs by role, the vision tower included."""
        return {
            **({"base": self.inputs.base} if self.inputs.base else {}),
            self.plan.operation.primary: self.inputs.primary,
            **({VISION_TOWER: self.tower.checkpoint} if self.tower else {}),
        }

    @property
    def hashes(self) -> InputHashes:
        """The known sha256 of the inputs' files."""
        return self.inputs.hashes | self.tower.hashes if self.tower else self.inputs.hashes

    @property
    def recipe(self) -> Recipe | None:
        """The recipe in use; None where the plain rules apply."""
        return self.inputs.recipe

    @property
    def companions(self) -> Companions:
        """The files that are published with the weights."""
        return self.export.companions

    @property
    def base_tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the base; none when the primary is copied."""
        return self.inputs.base.tensors if self.inputs.base else {}

    @property
    def primary_tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the primary, with those that the layout adds."""
        return {**self.inputs.primary.tensors, **self.export.added}


@contextmanager
def prepare(request: Request, report: Report) -> Iterator[Prepared]:
    """Open and match the inputs, and plan the result from headers and samples.

    Parts do not unpack archives: several would unpack the same one. Raises ``UsageError``, ``MalformedInput``, ``Mismatch``,
    ``InputOutputError``, ``CheckFailed`` (``require_verified``), and ``TargetBusy`` when output and input overlap, or the target
    holds something else.
    """
    location = locate_target(request.target)
    refuse_inputs(location, request.paths)
    if not request.dry_run:
        refuse_foreign_content(location, overwrite=request.options.overwrite)
    with StagingUnpacker(location) as unpacking:
        unpacker = None if request.part is not None else unpacking
        with (
            _open_sound(request, unpacker, report) as inputs,
            _open_tower(request, inputs, unpacker, report) as tower,
        ):
            export = _lay_out(request, inputs, tower)
            plan = _plan(request, inputs, tower, export)
            prepared = Prepared(
                request=request,
                inputs=inputs,
                tower=tower,
                export=export,
                plan=plan,
                location=location,
                unpacking=unpacking,
            )
            refuse_unreadable(plan, str(inputs.primary.path))
            location.refuse_opened(file.file.path for each in prepared.checkpoints.values() for file in each.files)
            if request.options.require_verified and not request.dry_run:
                refuse_unverified(prepared.checkpoints, prepared.hashes)
            if plan.check and request.operation is Operation.APPLY and not request.options.allow_unproved_base:
                refuse_wrong_base(inputs)
            yield prepared


@contextmanager
def _open_sound(request: Request, unpacker: Unpacker | None, report: Report) -> Iterator[Inputs]:
    """Open the inputs, and refuse what cannot be a model before anything more is asked for."""
    with open_inputs(request.inputs, unpacker, report) as inputs:
        check_sanity(request, inputs, report)
        yield inputs


@contextmanager
def _open_tower(
    request: Request, inputs: Inputs, unpacker: Unpacker | None, report: Report
) -> Iterator[VisionTower | None]:
    """Open the vision tower, if the result has one."""
    if request.options.layout != ORIGINAL:
        refuse_transformers_layout(inputs.matching, inputs.primary.path)
    if request.options.layout == ORIGINAL or not has_projector(inputs.matching):
        if request.vision_tower is not None:
            report.warn("--vision-tower is not used: the model has no projector, so it takes no images")
        yield None
        return
    with open_vision_tower(
        request.vision_tower, inputs.recipe, request.inputs.hub, unpacker, request.threads, report
    ) as tower:
        yield tower


def _lay_out(request: Request, inputs: Inputs, tower: VisionTower | None) -> ExportPlan:
    """Return names and companions in the layout of the request."""
    companions = companions_of(request.operation, inputs)
    if request.options.layout == ORIGINAL:
        return ExportPlan(inputs.matching, {}, companions)
    dtype = TORCH_NAMES[inputs.stored]
    return plan_export(inputs.matching, companions, inputs.primary.directory.path, dtype, inputs.recipe, tower)


def _plan(request: Request, inputs: Inputs, tower: VisionTower | None, export: ExportPlan) -> Plan:
    base, recipe, matching = inputs.base, inputs.recipe, inputs.matching
    wants_sum = recipe is not None and recipe.checks is not None and request.operation is Operation.APPLY
    records = {"base": record_of(base, matching.dropped_base)} if base is not None else {}
    records[request.operation.primary] = record_of(inputs.primary, matching.dropped_primary)
    if tower is not None:
        records[VISION_TOWER] = record_of(tower.checkpoint, tower.dropped)
    return make_plan(
        export.matching,
        PlanOptions(inputs.compute, inputs.stored, request.shard_limit, request.options.layout, request.container),
        records,
        [
            Companion(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in export.companions.files.items()
        ],
        request.operation,
        check=base is not None and request.options.prove and not inputs.powerless,
        recipe=RecipeRecord(recipe.name, recipe.digest, wants_sum) if base and recipe else None,
    )


def record_of(checkpoint: Checkpoint, dropped: tuple[Dropped, ...]) -> InputRecord:
    """Return the plan's record of an input, with digests of samples of its tensors. Raises ``InputOutputError``."""
    samples = sample_digests(checkpoint.tensors)  # in file order, so that the disk reads forward
    names = sorted(samples)
    return InputRecord(
        checkpoint.container,
        tuple(InputFileRecord(w.file.path.name, w.file.size, w.header_digest, w.checks) for w in checkpoint.files),
        tuple(checkpoint.tensors[name].spec for name in names),
        tuple(samples[name] for name in names),
        dropped,
        checkpoint.naming,
    )
