"""Compares a folder's tensors with those of a model on the meta device: names, shapes, ties and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import CONFIG, ModelFolder
from deltaweights.inference.transformers_loader import LibraryError, embedding_weights, load_names
from deltaweights.util.text import natural_key

# Parts of a name that are compared, and names kept per suffix: real models have fewer, a hostile header may not.
MAX_SUFFIX, MAX_SAME_SUFFIX = 6, 16
MISSING, WRONG_SHAPE = "is missing", "has the wrong shape"


def check_tensors(folder: ModelFolder, model_class: Any, config: Any, model: Any, findings: CheckFindings) -> None:
    """Compare the tensors of ``folder`` with those of ``model``, and the projector of an original LLaVA with its configuration."""
    tensors = dict(folder.tensors)
    if folder.is_original:
        _check_projector({name: tensors.pop(name) for name in PROJECTOR if name in tensors}, folder, config, findings)
    try:
        info = load_names(model_class, config, {name: tensor.spec.shape for name, tensor in tensors.items()})
    except LibraryError as error:
        findings.problem(folder.weights_file, "transformers cannot load the tensors", found=error)
        return

    def file_of(name: str) -> str:
        return tensors[name].file if name in tensors else folder.weights_file

    expected, names = model.state_dict(), StoredNames(tensors)
    for name in sorted(info.missing, key=natural_key):
        findings.problem(folder.weights_file, MISSING, tensor=name, expected=_text(expected[name].shape))
    for name in sorted(info.mismatched, key=natural_key):
        stored = names.of(name)
        found, due = map(_text, info.mismatched[name])
        findings.problem(file_of(stored), WRONG_SHAPE, tensor=stored, found=found, expected=due)
    for name in sorted(info.unexpected, key=natural_key):
        stored = names.of(name)
        findings.problem(file_of(stored), "is not part of the model", tensor=stored)
    _check_ties(folder, names, model, findings)
    _note_dtypes(folder, findings)


class StoredNames:
    """Finds the stored name of a tensor from the name that transformers gives it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._by_suffix: dict[tuple[str, ...], list[str]] = {}

    def of(self, name: str) -> str:
        """Return the stored name with the longest common suffix, and of several the one with the most parts in common.

        Transformers renames prefixes, never suffixes. When none is similar, this is ``name`` itself.
        """
        if name in self._names:
            return name
        if not self._by_suffix:
            self._index()
        parts = name.split(".")
        for suffix in _suffixes(parts):
            candidates = self._by_suffix.get(suffix)
            if candidates:
                return max(candidates, key=lambda other: (Counter(parts) & Counter(other.split("."))).total())
        return name

    def _index(self) -> None:
        for name in sorted(self._names):
            for suffix in _suffixes(name.rsplit(".", MAX_SUFFIX)):
                candidates = self._by_suffix.setdefault(suffix, [])
                if len(candidates) < MAX_SAME_SUFFIX:
                    candidates.append(name)


def _suffixes(parts: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return (tuple(parts[first:]) for first in range(max(0, len(parts) - MAX_SUFFIX), len(parts)))


def _text(shape: Sequence[int]) -> str:
    return str(list(shape))


def _check_projector(stored: dict[str, LazyTensor], folder: ModelFolder, config: Any, findings: CheckFindings) -> None:
    """Check the linear layer from image features to embeddings that LLaVA's own code builds if the configuration asks for it."""
    if "use_mm_proj" not in folder.config:
        for name, tensor in stored.items():
            findings.warn(tensor.file, f"{name} is stored, but config.json does not mention it (use_mm_proj)")
        return
    width, hidden = folder.config.get("mm_hidden_size"), config.hidden_size
    for name, shape in zip(PROJECTOR, ((hidden, width), (hidden,)), strict=True):
        due = _text(shape)
        if name not in stored:
            findings.problem(folder.weights_file, MISSING, tensor=name, expected=due)
        elif stored[name].spec.shape != shape:
            found = _text(stored[name].spec.shape)
            findings.problem(stored[name].file, WRONG_SHAPE, tensor=name, found=found, expected=due)


def _check_ties(folder: ModelFolder, names: StoredNames, model: Any, findings: CheckFindings) -> None:
    """Check that embeddings which the configuration ties are stored once."""
    embeddings, output = embedding_weights(model)
    if output is not embeddings:
        return  # missing tensors are reported already
    tied = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is output]
    stored = sorted({names.of(name) for name in tied if names.of(name).split(".")[-2:] == name.split(".")[-2:]})
    if len({folder.tensors[name].storage for name in stored if name in folder.tensors}) > 1:
        problem = "ties output and input embeddings (tie_word_embeddings), but both are stored"
        due = "one of them, or tie_word_embeddings false"
        findings.problem(CONFIG, problem, found=" and ".join(stored), expected=due)


def _note_dtypes(folder: ModelFolder, findings: CheckFindings) -> None:
    counts = folder.weights_by_dtype()
    if len(counts) > 1:
        listed = ", ".join(f"{dtype} ({count:,} weights)" for dtype, count in counts.most_common())
        findings.notes.append(f"{folder.path}: weights of several dtypes: {listed}")
