"""The tensors of a folder against those that a model class has.

Enters: headers, and what the library says of their names and shapes. Leaves: findings. Never: a list of expected names of ours,
but for the projector of LLaVA's own code, which no library knows any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.inference.findings import Findings
from deltaweights.inference.folder import CONFIG, Held
from deltaweights.inference.loading import Refusal, ends, load_names
from deltaweights.merge.rules import is_buffer
from deltaweights.util.text import Json, natural_key

LONGEST_TAIL, MOST_ALIKE = 6, 16
"""Parts at the end of names that are compared, and names of one end that are: real ones have fewer, a hostile header may not."""


def check_tensors(held: Held, model_class: Any, config: Any, model: Any, found: Findings) -> None:
    """Compare the tensors of ``held`` with what ``model``, an empty one, has; a LLaVA's own projector apart."""
    tensors = dict(held.tensors)
    if held.is_original:
        _check_projector({name: tensors.pop(name) for name in PROJECTOR if name in tensors}, held, config, found)
    try:
        loaded = load_names(model_class, config, {name: tensor.spec.shape for name, tensor in tensors.items()})
    except Refusal as refusal:
        found.problem(held.start, "transformers does not take the tensors", found=refusal)
        return
    wanted, names = model.state_dict(), StoredNames(tensors)
    for name in sorted(loaded.missing, key=natural_key):
        found.problem(held.start, "is missing", tensor=name, expected=_shape(wanted[name].shape))
    for name in sorted(loaded.mismatched, key=natural_key):
        given, expected = loaded.mismatched[name]
        stored = names.of(name)
        found.problem(
            _file(tensors, stored, held),
            "has the wrong shape",
            tensor=stored,
            found=_shape(given),
            expected=_shape(expected),
        )
    for name in sorted(loaded.unexpected, key=natural_key):
        stored = names.of(name)
        found.problem(_file(tensors, stored, held), "is none of the model's", tensor=stored)
    _check_ties(held, names, model, found)
    _note_dtypes(held, found)


class StoredNames:
    """Under which names tensors are stored, found from what the library calls them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._tails: dict[tuple[str, ...], list[str]] = {}

    def of(self, name: str) -> str:
        """Return the stored name of what the library calls ``name``; the name itself when nothing comes near.

        The library renames what stands before, never the end: it is the name that agrees the longest, seen from its end, and of
        several the one with the most parts in common.
        """
        if name in self._names:
            return name
        if not self._tails:
            self._fill()
        parts = name.split(".")
        for first in range(max(0, len(parts) - LONGEST_TAIL), len(parts)):
            alike = self._tails.get(tuple(parts[first:]))
            if alike:
                return max(alike, key=lambda other: (Counter(parts) & Counter(other.split("."))).total())
        return name

    def _fill(self) -> None:
        for name in sorted(self._names):
            parts = name.rsplit(".", LONGEST_TAIL)
            for first in range(max(0, len(parts) - LONGEST_TAIL), len(parts)):
                alike = self._tails.setdefault(tuple(parts[first:]), [])
                if len(alike) < MOST_ALIKE:
                    alike.append(name)


def _file(tensors: Mapping[str, LazyTensor], name: str, held: Held) -> str:
    return tensors[name].file if name in tensors else held.start


def _shape(shape: Sequence[int]) -> str:
    return str(list(shape))


def _check_projector(given: Mapping[str, LazyTensor], held: Held, config: Any, found: Findings) -> None:
    """Check the one linear layer from features to embeddings that LLaVA's own code makes where the configuration says so."""
    if "use_mm_proj" not in held.config:
        for name, tensor in given.items():
            found.warn(tensor.file, f"{name} is stored, and config.json does not say that there is one (use_mm_proj)")
        return
    width = held.config.get("mm_hidden_size")
    expected: dict[str, tuple[Json, ...]] = dict(
        zip(PROJECTOR, ((config.hidden_size, width), (config.hidden_size,)), strict=True)
    )
    for name, shape in expected.items():
        if name not in given:
            found.problem(held.start, "is missing", tensor=name, expected=_shape(shape))
        elif given[name].spec.shape != shape:
            found.problem(
                given[name].file,
                "has the wrong shape",
                tensor=name,
                found=_shape(given[name].spec.shape),
                expected=_shape(shape),
            )


def _check_ties(held: Held, names: StoredNames, model: Any, found: Findings) -> None:
    """Hold the two ends of the language model, which may be one tensor, against what the configuration says of them."""
    embeddings, output = ends(model)
    if output is not embeddings:
        return  # one that is missing has been found
    tied = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is output]
    stored = sorted({names.of(name) for name in tied if names.of(name).split(".")[-2:] == name.split(".")[-2:]})
    if len({held.tensors[name].storage for name in stored if name in held.tensors}) > 1:
        found.problem(
            CONFIG,
            "ties output and input embeddings (tie_word_embeddings), and both are stored",
            found=" and ".join(stored),
            expected="one of them, or tie_word_embeddings false",
        )


def _note_dtypes(held: Held, found: Findings) -> None:
    """Note when weights have more than one dtype, or another one than config.json states."""
    counts: Counter[str] = Counter()
    for tensor in held.tensors.values():
        if not is_buffer(tensor.spec.name):
            counts[tensor.spec.dtype] += tensor.spec.count
    if len(counts) > 1:
        listed = ", ".join(f"{dtype} ({count:,} weights)" for dtype, count in counts.most_common())
        found.note(f"{held.path}: weights of several dtypes: {listed}")
