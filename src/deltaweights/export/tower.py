"""The vision tower: the frozen CLIP model through which LLaVA sees, and which no delta holds.

Enters: a path or an id of a CLIP checkpoint. Leaves: its vision model's tensors, lazy, and its configuration. Never: a tower whose
sha256 nobody made or compared, or another than the one that was named taken for it in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, Mismatch, UsageError
from deltaweights.export.config import Vision, read_vision
from deltaweights.export.sizes import Shape
from deltaweights.hub.ids import Given, HubId, Source
from deltaweights.hub.locate import HubOptions, located
from deltaweights.merge.operation import VISION_TOWER
from deltaweights.merge.rules import Dropped
from deltaweights.recipes.input_hashes import InputHashes, collect_hashes
from deltaweights.recipes.models import KnownModel, known_file, model
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.table import Table
from deltaweights.report import Report

PREFIX = "vision_model."
"""How the names of the vision model's tensors begin in CLIP's checkpoints; the text model's, and the projections', do not."""

CONFIG, IMAGES, MAX_CONFIG = "config.json", "preprocessor_config.json", 1024 * 1024


@dataclass(frozen=True)
class Tower:
    """An open CLIP checkpoint, what of it is used, and what is not."""

    checkpoint: Checkpoint
    hashes: InputHashes
    vision: Vision
    tensors: dict[str, LazyTensor]
    dropped: tuple[Dropped, ...]


def _known(recipe: Recipe | None) -> KnownModel | None:
    return model(recipe.vision_tower) if recipe is not None and recipe.vision_tower is not None else None


def _where(known: KnownModel | None) -> Source:
    """Return where the recipe's vision tower is. Raises ``UsageError`` when it names none."""
    if known is None:
        remedy = "give --vision-tower, for LLaVA and LLaVA-Med openai/clip-vit-large-patch14"
        raise UsageError("which vision tower belongs to this model is not known", remedy=remedy)
    if known.repo is None:
        raise UsageError(f"where {known.title} is on the Hub is not known", remedy="give --vision-tower")
    return Source(HubId(known.repo, known.revision), (".bin",))


@contextmanager
def open_tower(
    given: Given | None,
    recipe: Recipe | None,
    hub: HubOptions | None,
    unpacker: Unpacker | None,
    workers: int | None,
    report: Report,
) -> Iterator[Tower]:
    """Open the vision tower at ``given``, or the one of ``recipe``.

    ``workers`` threads hash its files where nobody did. Raises ``UsageError``, ``MalformedInput``, ``InputOutputError``, and
    ``Mismatch`` when it is not what was named, or no CLIP vision model.
    """
    known = _known(recipe)
    place = given if given is not None else _where(known)
    with (
        located([(VISION_TOWER, place)], hub, report) as (at,),
        open_checkpoint(at, VISION_TOWER, unpacker, report) as checkpoint,
    ):
        for text in checkpoint.notes:
            report.warn(text)
        unknown = any(w.file.verified_sha256 is None and not w.file.streamed for w in checkpoint.files)
        hashes = collect_hashes({VISION_TOWER: checkpoint}, workers if unknown else None, report)
        _compare(checkpoint, hashes, known, report, chosen=given is not None)
        vision = _vision(checkpoint)
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(PREFIX)}
        expected = dict(vision.sizes.tensors())
        _refuse_others(checkpoint, tensors, expected)
        used = {name: tensors[name] for name in expected}
        dropped = (
            Dropped(tensor.spec, "a buffer" if name.startswith(PREFIX) else "not of the vision model")
            for name, tensor in checkpoint.tensors.items()
            if name not in used
        )
        yield Tower(checkpoint, hashes, vision, used, tuple(dropped))


def _compare(
    checkpoint: Checkpoint, hashes: InputHashes, known: KnownModel | None, report: Report, *, chosen: bool
) -> None:
    """Hold the files' hashes against those of the tower that the recipe names: another one sees something else."""
    found = hashes.files[VISION_TOWER]
    named = {other[0].title for sha256 in found.values() if (other := known_file(sha256))}
    report.note(f"{'vision tower':15} {', '.join(named) or checkpoint.path}")
    ours = {file.sha256 for file in known.files} if known else set()
    for weights in checkpoint.files:
        sha256 = found.get(weights.file.path.name)
        if known is None or sha256 in ours:
            continue
        problem = f"not the files of {known.title}, which the recipe names"
        if not chosen and sha256 is not None:
            raise Mismatch(
                problem,
                where=weights.file.path,
                found=f"sha256 {sha256}",
                expected=" or ".join(sorted(ours)),
                remedy="fetch it again, or give a tower of your own with --vision-tower",
            )
        report.warn(f"{weights.file.path}: {problem}: {f'sha256 {sha256}' if sha256 else 'not hashed: it is streamed'}")


def _vision(checkpoint: Checkpoint) -> Vision:
    where = checkpoint.directory.path / CONFIG
    if checkpoint.is_lone_file or not checkpoint.directory.has(CONFIG):
        remedy = "give the folder that holds config.json and the weights"
        raise InputOutputError("is missing beside the vision tower's weights", where=where, remedy=remedy)
    documents = []
    for name in (CONFIG, IMAGES):
        where = checkpoint.directory.path / name
        if checkpoint.directory.has(name):
            documents.append(
                Table(json_object(checkpoint.directory.read_companion(name, MAX_CONFIG), where), str(where))
            )
    return read_vision(documents[0], documents[1] if len(documents) > 1 else None)


def _refuse_others(checkpoint: Checkpoint, tensors: dict[str, LazyTensor], expected: dict[str, Shape]) -> None:
    """Raise ``Mismatch`` unless ``tensors`` are those that the configuration speaks of."""
    remedy = "give a CLIP checkpoint, such as openai/clip-vit-large-patch14"
    problem = "not the vision tower that its config.json describes"
    where = f"vision tower {checkpoint.path}"
    for name, shape in expected.items():
        found = tensors[name].spec.shape if name in tensors else None
        if found != shape:
            seen = "no such tensor" if found is None else str(list(found))
            raise Mismatch(problem, where=where, tensor=name, found=seen, expected=str(list(shape)), remedy=remedy)
    for name in tensors:
        if name not in expected and not name.endswith(".position_ids"):
            raise Mismatch(problem, where=where, tensor=name, found="a tensor too many", remedy=remedy)
