"""The rules by which a delta, or the model that one is made from, is matched with its base, and the errors if they do not fit.

The rules are those of ``llava/model/apply_delta.py`` and ``make_delta.py`` of LLaVA v0 and LLaVA-Med v1.0.0, but no tensor of
either checkpoint is ignored: each gets a fate or an error. Only headers are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.naming import PLAIN, Naming
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.merge.operation import Fate, NewRows, Operation
from deltaweights.recipes.incomplete import EMBEDDING, HEAD
from deltaweights.recipes.pair_check import likely_reason, pair_warnings
from deltaweights.recipes.stored_form import quantized_form
from deltaweights.util.interruption import check
from deltaweights.util.text import counted

GROWN = frozenset({EMBEDDING, HEAD})
"""Tensors whose primary may be larger than their base: the vocabulary was extended."""

DELTA_ONLY = frozenset(PROJECTOR)  # tensors that may be in the primary only: LLaVA's projector

BUFFER_SUFFIXES = (".rotary_emb.inv_freq", "rope.freqs")
"""Buffers, not weights: zero in a delta (target minus base), recomputed by current loaders, and harmful when copied. The second is
Meta's name."""

RESERVED = "__metadata__"  # a name that torch files may hold, and that would overwrite a safetensors header's metadata
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class MatchRules:
    """How base and primary may differ: tensors that only the primary may have, and what new rows are added to."""

    delta_only: frozenset[str] = DELTA_ONLY
    new_rows: NewRows = NewRows.COPY


LLAVA_RULES = MatchRules()  # those of LLaVA and LLaVA-Med


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor of the result: primary, base unless copied, fate, and ``renamed``, its name if that is not the primary's.

    The base has another name than the primary where it is tied (its embedding is its head, too), and where the names on disk of
    one of them are not those of the model; ``known_as`` is the primary's name in the model, if that is not the one on disk.
    """

    primary: TensorSpec
    base: TensorSpec | None
    fate: Fate
    renamed: str | None = None
    known_as: str | None = None

    @property
    def name(self) -> str:
        """The tensor's name in the result."""
        return self.renamed or self.primary.name

    @property
    def base_name(self) -> str | None:
        """The base's name, where that is not the primary's."""
        return self.base.name if self.base is not None and self.base.name != self.primary.name else None

    @property
    def model_name(self) -> str:
        """The primary's name in the model: the one that says what it is."""
        return self.known_as or self.primary.name

    def is_tied(self, base: Naming) -> bool:
        """Return whether the base's tensor is another one of the model."""
        return self.base is not None and base.model_name(self.base.name) != self.model_name


@dataclass(frozen=True, slots=True)
class Dropped:
    """An input tensor that is not used for the result, and why."""

    spec: TensorSpec
    reason: str


@dataclass(frozen=True)
class Matching:
    """The fates of all tensors of both inputs. ``warnings`` are about pairs that fit but look wrong.

    ``naming`` is that of the primary.
    """

    matches: tuple[Match, ...]
    dropped_base: tuple[Dropped, ...]
    dropped_primary: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    naming: Naming = PLAIN

    @property
    def primary_specs(self) -> dict[str, TensorSpec]:
        """The primary's tensors that are in the result, by their names in the model."""
        return {match.model_name: match.primary for match in self.matches}


def is_buffer(name: str) -> bool:
    """Return whether ``name`` is that of a buffer, which is not a weight."""
    return name.endswith(BUFFER_SUFFIXES)


def match_tensors(
    base: Mapping[str, LazyTensor],
    primary: Mapping[str, LazyTensor],
    operation: Operation = Operation.APPLY,
    rules: MatchRules = LLAVA_RULES,
    *,
    tied: bool = False,
    naming: Naming = PLAIN,
) -> Matching:
    """Give every tensor of both inputs one fate. ``tied``: the base's configuration says that its head is its embedding.

    Both are by the names of their tensors in the model; their specs have the names on disk; ``naming`` is that of the primary.
    Raises ``Mismatch`` for the first tensor that has none, with a likely reason.
    """
    of_base = {**base, **(tied_twins(base, primary) if tied else {})}
    matches: list[Match] = []
    problems: list[Mismatch] = []
    for name, tensor in primary.items():
        check()
        if not is_buffer(name):
            try:
                matches.append(_match_one(name, tensor, of_base.get(name), operation, rules))
            except Mismatch as problem:
                problems.append(problem.with_traceback(None))  # there may be many, and a traceback holds its frames
    dropped_base: list[Dropped] = []
    alone = {name for name in base if name not in primary and not is_buffer(name)}
    shared = {name: tensor for name, tensor in base.items() if alone and name in primary and not is_buffer(name)}
    twins = {(tensor.storage, tensor.spec.shape): name for name, tensor in shared.items()}
    for name, tensor in base.items():
        twin = twins.get((tensor.storage, tensor.spec.shape)) if name in alone else None
        if is_buffer(name):
            dropped_base.append(Dropped(tensor.spec, "buffer"))
        elif twin is not None:
            dropped_base.append(Dropped(tensor.spec, f"tied to {twin}"))
        elif name in alone:
            what = f"is in the base, not in the {operation.primary}"
            problems.append(_problem("base", tensor, what, str(tensor.spec), "no such tensor"))
    base_specs, primary_specs = ({name: tensor.spec for name, tensor in each.items()} for each in (of_base, primary))
    if problems or not matches:
        raise _refusal(problems, likely_reason(base_specs, primary_specs, operation.primary), operation)
    warnings = pair_warnings(base_specs, primary_specs) if operation is Operation.APPLY else ()
    return Matching(tuple(matches), tuple(dropped_base), _buffers(primary), warnings, naming)


def copy_all(tensors: Mapping[str, LazyTensor], operation: Operation, naming: Naming = PLAIN) -> Matching:
    """Copy every weight, and drop buffers; for ``tensors`` and ``naming`` see ``match_tensors``.

    Raises ``Mismatch`` when a weight cannot be copied, or there is none.
    """
    matches, problems = [], []
    for name, tensor in tensors.items():
        if not is_buffer(name):
            try:
                _require_floats(operation, tensor, None)
                matches.append(Match(tensor.spec, None, Fate.COPY, known_as=_known_as(name, tensor)))
            except Mismatch as problem:
                problems.append(problem.with_traceback(None))
    if problems or not matches:
        form = quantized_form({name: tensor.spec for name, tensor in tensors.items()})
        what = f"the {operation.primary} is {form.what}: {form.remedy}; " if form is not None else ""
        raise _refusal(problems, f"{what}only weights of floating-point numbers are {operation.past}", operation)
    return Matching(tuple(matches), (), _buffers(tensors), (), naming)


def tied_twins(base: Mapping[str, LazyTensor], primary: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return what a loader makes of a tied base that stores one of head and embedding: the other, if the primary has it."""
    pairs = ((HEAD, EMBEDDING), (EMBEDDING, HEAD))
    return {name: base[twin] for name, twin in pairs if name in primary and name not in base and twin in base}


def _known_as(name: str, tensor: LazyTensor) -> str | None:
    return name if name != tensor.spec.name else None


def _buffers(tensors: Mapping[str, LazyTensor]) -> tuple[Dropped, ...]:
    return tuple(Dropped(tensor.spec, "buffer") for name, tensor in tensors.items() if is_buffer(name))


def _match_one(
    name: str, primary: LazyTensor, base: LazyTensor | None, operation: Operation, rules: MatchRules
) -> Match:
    spec, role = primary.spec, operation.primary
    if spec.name == RESERVED:
        problem = "cannot be written: safetensors keeps this name for itself"
        raise _problem(role, primary, problem, str(spec), "another name")
    if base is None:
        if name not in rules.delta_only:
            raise _problem(role, primary, f"is in the {role}, not in the base", "no such tensor", str(spec))
        fate = Fate.COPY
    elif base.spec.shape == spec.shape:
        fate = operation.fate(grown=False)
    elif name in GROWN and _fits_inside(base.spec.shape, spec.shape, rules.new_rows):
        fate = operation.fate(grown=True, new_rows=rules.new_rows)
    else:
        found, expected = f"{list(base.spec.shape)} in the base", f"{list(spec.shape)}, as in the {role}"
        raise _problem("base", base, "shapes do not fit", found, expected)
    _require_floats(operation, primary, base)
    return Match(spec, base.spec if base is not None else None, fate, known_as=_known_as(name, primary))


def _fits_inside(inner: tuple[int, ...], outer: tuple[int, ...], new_rows: NewRows) -> bool:
    if not len(inner) == len(outer) == 2 or any(i > o for i, o in zip(inner, outer, strict=True)):
        return False
    return new_rows is NewRows.COPY or inner[1] == outer[1]  # zeros and means are rows of the base's width


def _require_floats(operation: Operation, primary: LazyTensor, base: LazyTensor | None) -> None:
    for role, tensor in ((operation.primary, primary), ("base", base)):
        if tensor is not None and tensor.spec.dtype not in FLOATS:
            found = f"dtype {tensor.spec.dtype}"
            raise _problem(role, tensor, f"cannot be {operation.past}", found, "one of F16 BF16 F32 F64")


def _problem(role: str, tensor: LazyTensor, problem: str, found: str, expected: str) -> Mismatch:
    return Mismatch(problem, where=f"{role} {tensor.file}", tensor=tensor.spec.name, found=found, expected=expected)


def _refusal(problems: list[Mismatch], reason: str, operation: Operation) -> Mismatch:
    if not problems:
        return Mismatch(f"nothing to {operation.verb}: the {operation.primary} has no weights")
    first = problems[0]
    more = f" (and {counted(len(problems) - 1, 'more tensor')} not fitting)" if len(problems) > 1 else ""
    return Mismatch(
        first.problem,
        where=first.where,
        tensor=first.tensor,
        found=first.found,
        expected=f"{first.expected}{more}",
        remedy=reason,
        code=ErrorCode.OTHER_TENSORS,
    )
