"""The rules by which a delta, or the model that one is made from, meets its base, and what to say when they do not fit.

Enters: the tensors of both checkpoints, as headers describe them. Leaves: one fate for every tensor of both, or ``Mismatch``.
Never: a byte of weights, or a tensor that is passed over in silence.

The rules are those of ``llava/model/apply_delta.py`` and ``make_delta.py`` of LLaVA v0 and LLaVA-Med v1.0.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import Mismatch
from deltaweights.merge.operation import Fate, NewRows, Operation
from deltaweights.recipes.mismatch_hints import likely_reason, pair_warnings
from deltaweights.util.interruption import check
from deltaweights.util.text import counted

GROWN = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Tensors whose primary may be larger than their base: the vocabulary was extended."""

DELTA_ONLY = frozenset(PROJECTOR)
"""Tensors that the base need not have, only the primary: LLaVA's projector."""

BUFFER_SUFFIXES = (".rotary_emb.inv_freq", "rope.freqs")
"""Buffers, not weights: zero in a delta (target minus base), recomputed by current loaders, and harmful when copied. The second is
what Meta's files call it."""

RESERVED = "__metadata__"
"""A name that torch files may hold, and that would overwrite the metadata of a safetensors header."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class Rules:
    """How base and primary may differ: tensors that only the primary may have, and rows that only it has."""

    delta_only: frozenset[str] = DELTA_ONLY
    new_rows: NewRows = NewRows.COPY


PLAIN = Rules()
"""Those of LLaVA and LLaVA-Med."""


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor of the result: its primary, its base unless it is copied, and how they meet.

    ``renamed`` is its name in the result where that is not the primary's.
    """

    primary: TensorSpec
    base: TensorSpec | None
    fate: Fate
    renamed: str | None = None

    @property
    def name(self) -> str:
        """The tensor's name in the result."""
        return self.renamed or self.primary.name


@dataclass(frozen=True, slots=True)
class Dropped:
    """An input tensor that has no part in the result, and why."""

    spec: TensorSpec
    reason: str


@dataclass(frozen=True)
class Matching:
    """The fates of all tensors of both inputs. ``warnings`` tell of pairs that fit but should not."""

    matches: tuple[Match, ...]
    dropped_base: tuple[Dropped, ...]
    dropped_primary: tuple[Dropped, ...]
    warnings: tuple[str, ...]


def is_buffer(name: str) -> bool:
    """Tell whether ``name`` is that of a buffer, which is no weight."""
    return name.endswith(BUFFER_SUFFIXES)


def match(
    base: Mapping[str, LazyTensor],
    primary: Mapping[str, LazyTensor],
    operation: Operation = Operation.APPLY,
    rules: Rules = PLAIN,
) -> Matching:
    """Give every tensor of ``base`` and ``primary`` exactly one fate.

    Raises ``Mismatch`` when one has none; the message names the tensor, both shapes and the likely reason.
    """
    matches: list[Match] = []
    dropped_base: list[Dropped] = []
    dropped_primary: list[Dropped] = []
    problems: list[Mismatch] = []
    for name, tensor in primary.items():
        check()
        if is_buffer(name):
            dropped_primary.append(Dropped(tensor.spec, "buffer"))
            continue
        outcome = _meet(tensor, base.get(name), operation, rules)
        if isinstance(outcome, Match):
            matches.append(outcome)
        else:
            problems.append(outcome)
    alone = {name for name in base if name not in primary and not is_buffer(name)}
    used = {
        (tensor.storage, tensor.spec.shape): name
        for name, tensor in base.items()
        if alone and name in primary and not is_buffer(name)
    }
    for name, tensor in base.items():
        if is_buffer(name):
            dropped_base.append(Dropped(tensor.spec, "buffer"))
        elif name in alone:
            twin = used.get((tensor.storage, tensor.spec.shape))
            if twin is not None:
                dropped_base.append(Dropped(tensor.spec, f"tied to {twin}"))
            else:
                problem = f"is in the base, not in the {operation.primary}"
                problems.append(_problem("base", tensor, problem, str(tensor.spec), "no such tensor"))
    specs = _specs(base), _specs(primary)
    if problems or not matches:
        raise _refusal(problems, likely_reason(*specs, operation.primary), operation)
    warnings = pair_warnings(*specs) if operation is Operation.APPLY else ()
    return Matching(tuple(matches), tuple(dropped_base), tuple(dropped_primary), warnings)


def copies(tensors: Mapping[str, LazyTensor], operation: Operation) -> Matching:
    """Copy every weight, and drop buffers. Raises ``Mismatch`` when one cannot be copied, or there is none."""
    matches, dropped, problems = [], [], []
    for name, tensor in tensors.items():
        if is_buffer(name):
            dropped.append(Dropped(tensor.spec, "buffer"))
            continue
        outcome = _of_floats(tensor, tensor, operation, Match(tensor.spec, None, Fate.COPY))
        if isinstance(outcome, Match):
            matches.append(outcome)
        else:
            problems.append(outcome)
    if problems or not matches:
        raise _refusal(problems, "only weights of floating-point numbers are converted", operation)
    return Matching(tuple(matches), (), tuple(dropped), ())


def _meet(primary: LazyTensor, base: LazyTensor | None, operation: Operation, rules: Rules) -> Match | Mismatch:
    """Return how two tensors of one name meet, or why they cannot."""
    spec, role = primary.spec, operation.primary
    if spec.name == RESERVED:
        return _problem(
            role, primary, "cannot be written: safetensors keeps this name for itself", str(spec), "another name"
        )
    if base is None:
        if spec.name not in rules.delta_only:
            return _problem(role, primary, f"is in the {role}, not in the base", "no such tensor", str(spec))
        return _of_floats(primary, primary, operation, Match(spec, None, Fate.COPY))
    if base.spec.shape == spec.shape:
        return _of_floats(primary, base, operation, Match(spec, base.spec, operation.fate(grown=False)))
    if spec.name in GROWN and _fits_inside(base.spec.shape, spec.shape, rules.new_rows):
        return _of_floats(
            primary, base, operation, Match(spec, base.spec, operation.fate(grown=True, new_rows=rules.new_rows))
        )
    found, expected = f"{list(base.spec.shape)} in the base", f"{list(spec.shape)}, as in the {role}"
    return _problem("base", base, "shapes do not fit", found, expected)


def _fits_inside(inner: tuple[int, ...], outer: tuple[int, ...], new_rows: NewRows) -> bool:
    if not len(inner) == len(outer) == 2 or any(i > o for i, o in zip(inner, outer, strict=True)):
        return False
    return new_rows is NewRows.COPY or inner[1] == outer[1]  # zeros and means are rows of the base's width


def _of_floats(primary: LazyTensor, base: LazyTensor, operation: Operation, outcome: Match) -> Match | Mismatch:
    for role, tensor in ((operation.primary, primary), ("base", base)):
        if tensor.spec.dtype not in FLOATS:
            found = f"dtype {tensor.spec.dtype}"
            return _problem(role, tensor, f"cannot be {operation.value.past}", found, "one of F16 BF16 F32 F64")
    return outcome


def _problem(role: str, tensor: LazyTensor, problem: str, found: str, expected: str) -> Mismatch:
    return Mismatch(problem, where=f"{role} {tensor.file}", tensor=tensor.spec.name, found=found, expected=expected)


def _refusal(problems: list[Mismatch], reason: str, operation: Operation) -> Mismatch:
    if not problems:
        return Mismatch(f"nothing to {operation.value.verb}: the {operation.primary} has no weights")
    more = f" (and {counted(len(problems) - 1, 'more tensor')} not fitting)" if len(problems) > 1 else ""
    return Mismatch(f"{problems[0]}{more}; {reason}")


def _specs(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in tensors.items()}
