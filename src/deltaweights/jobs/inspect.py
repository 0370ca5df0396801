"""Describe a checkpoint from its headers."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.naming import PLAIN, Naming
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.hub.ids import ModelLocation, ModelSource
from deltaweights.hub.locate import HubOptions, located
from deltaweights.jobs.provenance import verified_hashes
from deltaweights.jobs.shared_storage import SharedStorage, by_storage, distinct_elements, shared_storage
from deltaweights.manifest.base_claim import BaseClaim, base_claim
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of_if_any, with_source
from deltaweights.merge.rules import is_buffer
from deltaweights.recipes.identify import Identity, config_of, identify
from deltaweights.recipes.input_hashes import collect_hashes
from deltaweights.report import Report
from deltaweights.util.name_groups import NameGroup, group_names
from deltaweights.util.text import natural_key, short_repr
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True)
class TensorEntry:
    """One tensor, from its file's header."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str


@dataclass(frozen=True)
class FileEntry:
    """One weights file: its size on disk, its tensors, and its sha256 where that was computed, or compared with the Hub's."""

    name: str
    size: int
    tensors: int
    sha256: str | None = None


@dataclass(frozen=True)
class Total:
    """Tensors of a kind, with their elements and bytes; shared ones count once per tensor."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class StatedManifest:
    """What manifest.json states, not verified: content digest and ``base``; ``fits``: it lists exactly these tensors."""

    content_digest: str
    fits: bool
    base: BaseClaim | None = None


@dataclass(frozen=True)
class InspectReport:
    """The contents of a checkpoint.

    ``parameters`` counts the stored elements of weights, each once, also where tensors share them. (Views with gaps that overlap in
    part may be counted too high, up to the storage between the first and the last.) ``buffers``, known by their names, are not
    weights; packed integers count as stored. ``bytes`` and ``dtypes`` are of all tensors, shared ones counted for each;
    ``bytes_on_disk`` is the size of the weights files. ``model_type`` and ``architectures`` are from config.json. ``tensors`` are
    in natural order, by their names on disk; ``naming`` says how these differ from those in the model.
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
    naming: Naming = PLAIN

    def __repr__(self) -> str:
        facts: dict[str, object] = {"path": self.path, "identity": self.identity.text, "tensors": len(self.tensors)}
        if self.manifest is not None:
            facts["stated_content_digest"] = self.manifest.content_digest
            facts |= {"base": self.manifest.base.text} if self.manifest.base is not None else {}
        return short_repr(self, **facts, parameters=self.parameters)


def inspect_checkpoint(
    path: ModelLocation,
    *,
    hash_inputs: bool = False,
    workers: int | None = None,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> InspectReport:
    """Describe the checkpoint at ``path``: a folder, an ``*.index.json``, or one weights file. Reads headers and samples.

    Raises ``InputOutputError`` when it does not exist or cannot be read, ``MalformedInput`` when a file breaks its format.

    >>> from deltaweights import inspect_checkpoint
    >>> inspect_checkpoint("base").container
    'safetensors'
    """
    hub = replace(hub or HubOptions(), stream=not hash_inputs)  # headers and samples are a small part of a model
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
        verified = verified_hashes({"": checkpoint}, known)[""]
        own = manifest_of_if_any(checkpoint, report)
        stated = with_source(checkpoint, own, report)
        return InspectReport(
            path=str(path.id) if isinstance(path, ModelSource) else os.fspath(path),
            identity=identify(checkpoint, known.files[""], read=bool(known.read), stated=lambda _: stated),
            container=checkpoint.container,
            model_type=model_type,
            architectures=architectures,
            parameters=sum(distinct_elements(sharing) for sharing in by_storage(weights)),
            bytes=sum(tensor.spec.nbytes for tensor in tensors),
            bytes_on_disk=sum(weights.file.size for weights in checkpoint.files),
            buffers=_total(tensor for tensor in tensors if is_buffer(tensor.spec.name)),
            dtypes={dtype: _total(by_dtype[dtype]) for dtype in sorted(by_dtype)},
            files=tuple(
                FileEntry(w.file.path.name, w.file.size, len(w.tensors), verified.get(w.file.path.name))
                for w in checkpoint.files
            ),
            shared=tuple(shared_storage(sharing) for sharing in by_storage(tensors) if len(sharing) > 1),
            manifest=None
            if own is None
            else StatedManifest(own.content_digest, lists_same_tensors(own, checkpoint), base_claim(own)),
            notes=checkpoint.notes,
            tensors=entries,
            naming=checkpoint.naming,
        )


def _total(tensors: Iterable[LazyTensor]) -> Total:
    specs = [tensor.spec for tensor in tensors]
    return Total(len(specs), sum(spec.count for spec in specs), sum(spec.nbytes for spec in specs))


def _config(checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    """Return model type and architectures; a malformed config.json is no error here, its facts are only absent."""
    config = config_of(checkpoint)
    model_type, named = config.get("model_type"), config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return model_type if isinstance(model_type, str) else None, tuple(architectures)


def group_tensors(tensors: dict[str, TensorEntry]) -> list[tuple[NameGroup, TensorEntry]]:
    """Group tensors of one dtype and shape whose names differ only in numbers; return each group with its first tensor."""
    kinds: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, entry in tensors.items():
        kinds[entry.dtype, entry.shape].append(name)
    groups = [group for names in kinds.values() for group in group_names(names)]
    return [(group, tensors[group.first]) for group in sorted(groups, key=lambda group: natural_key(group.first))]
