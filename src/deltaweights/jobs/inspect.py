"""What a checkpoint holds, told from its headers."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.hub.ids import ModelLocation, ModelSource
from deltaweights.hub.locate import HubOptions, located
from deltaweights.jobs.provenance import verified_hashes
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of_if_any
from deltaweights.merge.rules import is_buffer
from deltaweights.recipes.identify import Identity, config_of, identify
from deltaweights.recipes.input_hashes import collect_hashes
from deltaweights.report import Report
from deltaweights.util.name_groups import NameGroup, group_names
from deltaweights.util.text import natural_key
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as its file's header states it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str


@dataclass(frozen=True)
class FileEntry:
    """One weights file: its size on disk, its tensors, and its sha256 where that was made, or compared with the Hub's."""

    name: str
    size: int
    tensors: int
    sha256: str | None = None


@dataclass(frozen=True)
class Total:
    """How many tensors there are of a kind, and what they hold as they show: what two share counts twice."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class SharedStorage:
    """Tensors that share one storage.

    ``tied`` says that all of them are the same view of it, under several names; otherwise they are different views, such as
    slices or transposes. ``elements`` counts what they show together, each element of the storage once.
    """

    file: str
    tied: bool
    elements: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class StatedManifest:
    """The content digest that manifest.json states, not verified; ``fits`` says whether it lists exactly these tensors."""

    content_digest: str
    fits: bool


@dataclass(frozen=True)
class InspectReport:
    """What a checkpoint holds.

    ``parameters`` counts the stored elements that weights show: tied weights count once, slices of one storage each for
    themselves, a storage shown whole and in slices once. (Views with gaps that overlap in part may be counted too high, up to the
    storage between the first and the last.) ``buffers``, by their names, are no weights; packed integers count as stored.
    ``bytes`` and ``dtypes`` are of all tensors as they show, ``bytes_on_disk`` is the size of the weights files. ``model_type`` and
    ``architectures`` are config.json's, if any. ``identity`` says what it is. ``tensors`` are in natural order.
    """

    path: str
    identity: Identity
    container: str
    model_type: str | None
    architectures: tuple[str, ...]
    parameters: int
    bytes: int
    bytes_on_disk: int
    buffers: Total
    dtypes: dict[str, Total]
    files: tuple[FileEntry, ...]
    shared: tuple[SharedStorage, ...]
    manifest: StatedManifest | None
    notes: tuple[str, ...]
    tensors: dict[str, TensorEntry]


def inspect_checkpoint(
    path: ModelLocation,
    *,
    hash_inputs: bool = False,
    workers: int | None = None,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> InspectReport:
    """Tell what the checkpoint at ``path`` holds: a folder, an ``*.index.json``, or one weights file. Reads headers and samples.

    Raises ``InputOutputError`` when it is not there or cannot be read, ``MalformedInput`` when a file breaks its format.
    """
    hub = replace(hub or HubOptions(), stream=not hash_inputs)  # headers and samples are little of a model
    report = report or Report()
    with (
        TemporaryUnpacker() as scratch,
        located([("checkpoint", path)], hub, report) as (at,),
        open_checkpoint(at, "checkpoint", scratch, report) as checkpoint,
    ):
        tensors = [checkpoint.tensors[name] for name in sorted(checkpoint.tensors, key=natural_key)]
        entries = {t.spec.name: TensorEntry(t.spec.dtype, t.spec.shape, t.spec.nbytes, t.file) for t in tensors}
        by_dtype: defaultdict[str, list[LazyTensor]] = defaultdict(list)
        for tensor in tensors:
            by_dtype[tensor.spec.dtype].append(tensor)
        model_type, architectures = _config(checkpoint)
        weights = [tensor for tensor in tensors if not is_buffer(tensor.spec.name)]
        known = collect_hashes({"": checkpoint}, resolve_workers(workers) if hash_inputs else None, report)
        hashes, made = known.files[""], verified_hashes({"": checkpoint}, known)[""]
        stated = manifest_of_if_any(checkpoint)
        return InspectReport(
            str(path.id) if isinstance(path, ModelSource) else os.fspath(path),
            identify(checkpoint, hashes, read=bool(known.read), stated=lambda _: stated),
            checkpoint.container,
            model_type,
            architectures,
            sum(_distinct(views) for views in _by_storage(weights)),
            sum(tensor.spec.nbytes for tensor in tensors),
            sum(weights.file.size for weights in checkpoint.files),
            _total(tensor for tensor in tensors if is_buffer(tensor.spec.name)),
            {dtype: _total(by_dtype[dtype]) for dtype in sorted(by_dtype)},
            tuple(
                FileEntry(w.file.path.name, w.file.size, len(w.tensors), made.get(w.file.path.name))
                for w in checkpoint.files
            ),
            tuple(_shared(views) for views in _by_storage(tensors) if len(views) > 1),
            StatedManifest(stated.content_digest, lists_same_tensors(stated, checkpoint)) if stated else None,
            checkpoint.notes,
            entries,
        )


def _total(tensors: Iterable[LazyTensor]) -> Total:
    specs = [tensor.spec for tensor in tensors]
    return Total(len(specs), sum(spec.count for spec in specs), sum(spec.nbytes for spec in specs))


# What the folder says of itself: of no consequence, so whatever is wrong with it, it is only absent.


def _config(checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    config = config_of(checkpoint)
    model_type, named = config.get("model_type"), config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return model_type if isinstance(model_type, str) else None, tuple(architectures)


# Storages.


@dataclass(frozen=True)
class _View:
    """The elements of a storage that a tensor shows, whatever their order: axes of (stride, size), neighbours merged."""

    dtype: str
    begin: int
    axes: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return math.prod(size for _, size in self.axes)

    @property
    def end(self) -> int:
        return self.begin + sum(stride * (size - 1) for stride, size in self.axes) + 1


def _view(tensor: LazyTensor) -> _View:
    axes: list[tuple[int, int]] = []
    for stride, size in sorted(
        axis for axis in zip(tensor.storage.strides, tensor.spec.shape, strict=True) if axis[1] > 1
    ):
        if axes and axes[-1][0] * axes[-1][1] == stride:
            axes[-1] = (axes[-1][0], axes[-1][1] * size)
        else:
            axes.append((stride, size))
    return _View(tensor.spec.dtype, tensor.storage.offset, tuple(axes))


def _by_storage(tensors: Iterable[LazyTensor]) -> list[list[LazyTensor]]:
    """Return the tensors that have elements, in lists of those that share a storage."""
    # Empty ones begin where the next one does in safetensors, and torch may put them all on one storage.
    storages: defaultdict[object, list[LazyTensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.spec.count:
            storages[tensor.storage.file, tensor.storage.key].append(tensor)
    return list(storages.values())


def _distinct(tensors: list[LazyTensor]) -> int:
    """Return how many elements of their one storage the tensors show."""
    if len(tensors) == 1:
        return tensors[0].spec.count
    by_dtype: defaultdict[str, set[_View]] = defaultdict(set)
    for tensor in tensors:
        by_dtype[tensor.spec.dtype].add(_view(tensor))
    total = 0
    for views in by_dtype.values():
        # Exact when the views overlap in nothing (the sum) or have no gaps (the union of their extents).
        covered = place = 0
        for view in sorted(views, key=lambda view: view.begin):
            covered += max(0, view.end - max(place, view.begin))
            place = max(place, view.end)
        total += min(covered, sum(view.count for view in views))
    return total


def _shared(tensors: list[LazyTensor]) -> SharedStorage:
    tied = len({(tensor.storage, tensor.spec.dtype, tensor.spec.shape) for tensor in tensors}) == 1
    return SharedStorage(tensors[0].file, tied, _distinct(tensors), tuple(tensor.spec.name for tensor in tensors))


def group_tensors(tensors: dict[str, TensorEntry]) -> list[tuple[NameGroup, TensorEntry]]:
    """Group tensors of one dtype and shape whose names differ in numbers alone; with each group goes its first tensor."""
    kinds: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, entry in tensors.items():
        kinds[entry.dtype, entry.shape].append(name)
    groups = [group for names in kinds.values() for group in group_names(names)]
    return [(group, tensors[group.first]) for group in sorted(groups, key=lambda group: natural_key(group.first))]
