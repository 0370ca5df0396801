"""What a checkpoint is, in people's words: by its files' hashes, else by its manifest, its shapes and the size of its numbers.

Enters: an open checkpoint, and the sha256 of those of its files whose hash is known. Leaves: an ``Identity``. Never: a verdict
where only a guess is to be had, or more than some kilobytes of weights.
"""

from __future__ import annotations

import contextlib
import statistics
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import DeltaweightsError
from deltaweights.manifest.beside import lists_exactly, stated_beside
from deltaweights.manifest.parsed import Manifest
from deltaweights.recipes.catalogue import load, recipe_of_file
from deltaweights.recipes.likely_reason import FINE_TUNED_ROWS, hidden_size, layers, rows
from deltaweights.recipes.models import FORMS, KnownModel, known_file, models
from deltaweights.util.text import Json, counted, strict_json

MAX_CONFIG = 1024 * 1024
"""A config.json has some kilobytes; what is larger is something else."""

SAMPLED, ELEMENTS = 16, 1024
"""Matrices that are looked at, and elements of each."""

SMALL = 0.004
"""A typical weight (root mean square) below which a checkpoint is likely a delta. LLaMA's matrices have 0.01 to 0.03, a fine-tuning
step of 2 % of that some 0.0004."""

AS_LARGE = 0.5
"""The share of the base's typical weight from which on a delta's is no fine-tuning step any more, but a model's."""


STATED = " (stated by the Hub's cache)"
"""Said of a hash that nobody made: it was true when the file was fetched."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is. ``model`` is a key of models.toml or None, ``certain`` says that hashes made of all its files tell so.

    ``typical`` is the root mean square of sampled matrices; None when there are none.
    """

    text: str
    model: str | None = None
    certain: bool = False
    typical: float | None = None


def identify(
    checkpoint: Checkpoint,
    hashes: Mapping[str, str],
    *,
    read: bool,
    stated: Callable[[Checkpoint], Manifest | None] = stated_beside,
) -> Identity:
    """Return what ``checkpoint`` is; ``hashes`` are sha256 by file name, ``read`` from the files or stated by the Hub's cache.

    ``stated`` returns its manifest, and is called where hashes do not tell.
    """
    typical = typical_weight(checkpoint.tensors.values())
    by_hash = _by_hashes(checkpoint, hashes, read=read)
    if by_hash is not None:
        text, model, certain = by_hash
        return Identity(text, model, certain, typical)
    text = _by_manifest(checkpoint, stated(checkpoint)) or _by_shapes(checkpoint, typical)
    if all(weights.file.path.name in hashes for weights in checkpoint.files):
        text += f"; the sha256 of its files{'' if read else STATED} are not among those that are known"
    return Identity(text, typical=typical)


def _by_hashes(checkpoint: Checkpoint, hashes: Mapping[str, str], *, read: bool) -> tuple[str, str | None, bool] | None:
    """Return text, model and certainty when a file is known by its hash."""
    names = [weights.file.path.name for weights in checkpoint.files]
    found = {name: known for name in names if (known := known_file(hashes.get(name, "")))}
    recipes = {name: recipe for name in names if (recipe := recipe_of_file(hashes.get(name, "")))}
    matching = len(found) + len(recipes)
    if not matching:
        return None
    files = "" if matching == len(names) else f" of {matching} of {len(names)} files"
    whole = f"sha256{files}{'' if read else STATED} matches"
    of = {f"the delta of {load(recipe).title}, recipe {recipe}" for recipe in recipes.values()}
    of |= {f"{model.title} ({FORMS[file.form]})" for model, file in found.values()}
    if len(of) > 1:
        return f"files of different models: {', '.join(sorted(of))}; {whole}", None, False
    keys = {model.key for model, _ in found.values()}
    return f"{of.pop()}; {whole}", keys.pop() if keys else None, read and matching == len(names)


def _by_manifest(checkpoint: Checkpoint, manifest: Manifest | None) -> str | None:
    """Return what the manifest says that deltaweights made of it, if it is one of ours; it is not verified here."""
    if manifest is None or not lists_exactly(manifest, checkpoint):
        return None
    by = f" by recipe {manifest.recipe}" if manifest.recipe else ""
    what = {
        "delta": "a delta that deltaweights made",
        "merge": f"a merge that deltaweights made{by}, neither a base nor a delta",
    }
    return f"{what[manifest.kind]} (as its manifest says)" if manifest.kind in what else None


def _by_shapes(checkpoint: Checkpoint, typical: float | None) -> str:
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
    hidden, depth = hidden_size(specs), layers(specs)
    if not hidden:
        return "no embedding under a LLaMA's name"
    likely = " or ".join(known.title for known in models() if _fits(known, hidden, depth))
    size = f"{counted(depth, 'layer')}, hidden size {hidden}, {rows(specs)} rows"
    facts = [f"shapes of {likely}" if likely else f"{size}: no model that is known by its shapes"]
    if rows(specs) in FINE_TUNED_ROWS:
        facts.append(f"{rows(specs)} rows as {FINE_TUNED_ROWS[rows(specs)]} has")
    hint = generation_of_config(checkpoint)
    if hint:
        facts.append(f"config.json is that of {hint}")
    if typical is not None:
        kind = "as small as a delta's" if typical < SMALL else "as large as a model's"
        facts.append(f"weights {kind} (typically {typical:.2g})")
    return "; ".join(facts)


def _fits(known: KnownModel, hidden: int, depth: int) -> bool:
    shapes = known.shapes
    return (shapes.hidden_size, shapes.layers) == (hidden, depth) and shapes.base_rows is not None


def config_of(checkpoint: Checkpoint) -> dict[str, Json]:
    """Return what config.json says; nothing where there is none, where it is malformed, or may belong to others."""
    config = None
    if not checkpoint.is_lone_file:
        with contextlib.suppress(DeltaweightsError, ValueError):
            config = strict_json(checkpoint.directory.read("config.json", MAX_CONFIG))
    return config if isinstance(config, dict) else {}


def generation_of_config(checkpoint: Checkpoint) -> str | None:
    """Return the generation that config.json speaks of; configurations get copied around, so it is a hint."""
    config = config_of(checkpoint)
    generations = {
        known.generation
        for known in models()
        if known.config and all(config.get(key) == value for key, value in known.config.items())
    }
    return generations.pop() if len(generations) == 1 else None


# The size of the numbers.


def typical_weight(tensors: Iterable[LazyTensor]) -> float | None:
    """Return the median of the root mean squares of sampled matrices; None when there are none to look at."""
    squares = [value for tensor in _some(tensors) if (value := mean_square(tensor)) is not None]
    return statistics.median(squares) ** 0.5 if squares else None


def size_of_delta(base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor]) -> float | None:
    """Return how large a delta's weights are, measured by its base's: the median of sampled matrices; None when unknown."""
    shares = []
    for tensor in _some(tensor for name, tensor in delta.items() if name in base):
        one, other = mean_square(tensor), mean_square(base[tensor.spec.name])
        if one is not None and other:
            shares.append((one / other) ** 0.5)
    return statistics.median(shares) if shares else None


def _some(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    matrices = [tensor for tensor in tensors if len(tensor.spec.shape) == 2 and tensor.spec.count]
    return matrices[:: max(1, len(matrices) // SAMPLED)][:SAMPLED]


def mean_square(tensor: LazyTensor) -> float | None:
    """Return the mean of the squares of some elements, from a third of a tensor on; None without, or when one is not finite."""
    spec = tensor.spec
    count = min(ELEMENTS, spec.count)
    if not count or spec.dtype not in _DECODERS:
        return None
    data = bytearray(count * spec.item_size)
    tensor.source.read_into(memoryview(data), (spec.count - count) // 3 * spec.item_size)
    if spec.dtype == "BF16":  # the upper half of a float32
        data = bytearray(b"".join(b"\0\0" + data[k : k + 2] for k in range(0, len(data), 2)))
    total = sum(x * x for x in struct.unpack(f"<{count}{_DECODERS[spec.dtype]}", data)) / count
    return total if total < float("inf") else None


_DECODERS = {"F16": "e", "BF16": "f", "F32": "f", "F64": "d"}
"""The struct module's names of the formats of numbers."""
