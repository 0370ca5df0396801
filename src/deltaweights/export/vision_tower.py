"""The vision tower: the frozen CLIP model that LLaVA uses, and that a delta does not contain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, Mismatch, UsageError
from deltaweights.export.config import VisionConfig, read_vision
from deltaweights.hub.ids import HubId, ModelLocation, ModelSource
from deltaweights.hub.locate import HubOptions, located
from deltaweights.merge.operation import VISION_TOWER
from deltaweights.merge.rules import Dropped
from deltaweights.recipes.input_hashes import InputHashes, collect_hashes
from deltaweights.recipes.models import KnownModel, known_file, model
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.table import Table
from deltaweights.report import Report

PREFIX = "vision_model."
"""How the vision model's tensors begin in CLIP's checkpoints; those of the text model and the projections do not."""

CONFIG, IMAGES, MAX_CONFIG_BYTES = "config.json", "preprocessor_config.json", 1024 * 1024


@dataclass(frozen=True)
class VisionTower:
    """An open CLIP checkpoint, the tensors of it that are used, and those that are dropped."""

    checkpoint: Checkpoint
    hashes: InputHashes
    vision: VisionConfig
    tensors: dict[str, LazyTensor]
    dropped: tuple[Dropped, ...]


@contextmanager
def open_vision_tower(
    given: ModelLocation | None,
    recipe: Recipe | None,
    hub: HubOptions | None,
    unpacker: Unpacker | None,
    workers: int | None,
    report: Report,
) -> Iterator[VisionTower]:
    """Open the vision tower at ``given``, else the one that ``recipe`` names; ``workers`` threads hash it if it must be hashed.

    Raises ``UsageError``, ``MalformedInput``, ``InputOutputError``, and ``Mismatch`` when it is not the one that was
    named, or not a CLIP vision model.
    """
    known = model(recipe.vision_tower) if recipe is not None and recipe.vision_tower is not None else None
    location = given if given is not None else _source(known)
    with (
        located([(VISION_TOWER, location)], hub, report) as (at,),
        open_checkpoint(at, VISION_TOWER, unpacker, report) as checkpoint,
    ):
        for text in checkpoint.notes:
            report.warn(text)
        unhashed = any(w.file.verified_sha256 is None and not w.file.streamed for w in checkpoint.files)
        hashes = collect_hashes({VISION_TOWER: checkpoint}, workers if unhashed else None, report)
        _compare_hashes(checkpoint, hashes, known, report, chosen=given is not None)
        vision = _read_config(checkpoint)
        used = _used_tensors(checkpoint, vision)
        dropped = (
            Dropped(tensor.spec, "a buffer" if name.startswith(PREFIX) else "not of the vision model")
            for name, tensor in checkpoint.tensors.items()
            if name not in used
        )
        yield VisionTower(checkpoint, hashes, vision, used, tuple(dropped))


def _source(known: KnownModel | None) -> ModelSource:
    if known is None:
        remedy = "give --vision-tower, for LLaVA and LLaVA-Med openai/clip-vit-large-patch14"
        raise UsageError("the vision tower of this model is not known", remedy=remedy)
    if known.repo is None:
        raise UsageError(f"the Hub repository of {known.title} is not known", remedy="give --vision-tower")
    return ModelSource(HubId(known.repo, known.revision), (".bin",))


def _compare_hashes(
    checkpoint: Checkpoint, hashes: InputHashes, known: KnownModel | None, report: Report, *, chosen: bool
) -> None:
    """Compare the files with the tower that the recipe names: warn if the user chose another, else raise ``Mismatch``."""
    found = hashes.files[VISION_TOWER]
    named = {other[0].title for sha256 in found.values() if (other := known_file(sha256))}
    report.note(f"{'vision tower':15} {', '.join(named) or checkpoint.path}")
    if known is None:
        return
    expected = {file.sha256 for file in known.files}
    problem = f"not the files of {known.title}, which the recipe names"
    for weights in checkpoint.files:
        sha256 = found.get(weights.file.path.name)
        if sha256 in expected:
            continue
        actual = f"sha256 {sha256}" if sha256 is not None else "not hashed: it is streamed"
        if not chosen and sha256 is not None:
            right, remedy = " or ".join(sorted(expected)), "fetch it again, or give another tower with --vision-tower"
            raise Mismatch(problem, where=weights.file.path, found=actual, expected=right, remedy=remedy)
        report.warn(f"{weights.file.path}: {problem}: {actual}")


def _read_config(checkpoint: Checkpoint) -> VisionConfig:
    directory = checkpoint.directory
    if checkpoint.is_lone_file or not directory.has(CONFIG):
        problem = "is missing beside the vision tower's weights"
        remedy = "give the folder of config.json and the weights"
        raise InputOutputError(problem, where=directory.path / CONFIG, remedy=remedy)

    def read(name: str) -> Table:
        where = directory.path / name
        return Table(json_object(directory.read_companion(name, MAX_CONFIG_BYTES), where), str(where))

    return read_vision(read(CONFIG), read(IMAGES) if directory.has(IMAGES) else None)


def _used_tensors(checkpoint: Checkpoint, vision: VisionConfig) -> dict[str, LazyTensor]:
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(PREFIX)}
    expected = dict(vision.sizes.tensors())
    where, remedy = f"vision tower {checkpoint.path}", "give a CLIP checkpoint, such as openai/clip-vit-large-patch14"
    problem = "not the vision tower that its config.json describes"
    for name, shape in expected.items():
        found = str(list(tensors[name].spec.shape)) if name in tensors else "no such tensor"
        if found != str(list(shape)):
            raise Mismatch(problem, where=where, tensor=name, found=found, expected=str(list(shape)), remedy=remedy)
    for name in tensors:
        if name not in expected and not name.endswith(".position_ids"):
            raise Mismatch(problem, where=where, tensor=name, found="an extra tensor", remedy=remedy)
    return {name: tensors[name] for name in expected}
