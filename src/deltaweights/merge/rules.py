"""The rules by which a delta meets its base, and what to say when they do not fit.

Enters: the tensors of both checkpoints, as headers describe them. Leaves: one fate for every tensor of both, or ``Mismatch``.
Never: a byte of weights, or a tensor that is passed over in silence.

The rules are those of ``llava/model/apply_delta.py`` of LLaVA v0 and LLaVA-Med v1.0.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import Mismatch
from deltaweights.merge.suspicions import likely_reason, suspicion
from deltaweights.text import counted

GROWN = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Tensors whose delta may be larger than their base: the vocabulary was extended."""

DELTA_ONLY = frozenset({"model.mm_projector.weight", "model.mm_projector.bias"})
"""Tensors that the base need not have: LLaVA's projector."""

BUFFER_SUFFIX = ".rotary_emb.inv_freq"
"""A buffer, not a weight: zero in a delta (target minus base), recomputed by current loaders, and harmful when copied."""

RESERVED = "__metadata__"
"""A name that torch files may hold, and that would overwrite the metadata of a safetensors header."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


class Fate(str, Enum):
    """What becomes of a delta tensor; the values are written into manifests."""

    ADD = "add"
    ADD_BLOCK = "add_block"
    COPY = "copy"


@dataclass(frozen=True)
class Match:
    """One tensor of the result: its delta, its base unless it is copied, and how they meet."""

    delta: TensorSpec
    base: TensorSpec | None
    fate: Fate


@dataclass(frozen=True)
class Dropped:
    """An input tensor that has no part in the result, and why."""

    spec: TensorSpec
    reason: str


@dataclass(frozen=True)
class Matching:
    """The fates of all tensors of both inputs. ``warnings`` tell of pairs that fit but should not."""

    matches: tuple[Match, ...]
    dropped_base: tuple[Dropped, ...]
    dropped_delta: tuple[Dropped, ...]
    warnings: tuple[str, ...]


def match(base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor]) -> Matching:
    """Give every tensor of ``base`` and ``delta`` exactly one fate.

    Raises ``Mismatch`` when one has none; the message names the tensor, both shapes and the likely reason.
    """
    matches: list[Match] = []
    dropped_base: list[Dropped] = []
    dropped_delta: list[Dropped] = []
    problems: list[Mismatch] = []
    for name, tensor in delta.items():
        if name.endswith(BUFFER_SUFFIX):
            dropped_delta.append(Dropped(tensor.spec, "buffer"))
            continue
        outcome = _meet(tensor, base.get(name))
        if isinstance(outcome, Match):
            matches.append(outcome)
        else:
            problems.append(outcome)
    used = {
        (tensor.storage, tensor.spec.shape): name
        for name, tensor in base.items()
        if name in delta and not name.endswith(BUFFER_SUFFIX)
    }
    for name, tensor in base.items():
        if name.endswith(BUFFER_SUFFIX):
            dropped_base.append(Dropped(tensor.spec, "buffer"))
        elif name not in delta:
            twin = used.get((tensor.storage, tensor.spec.shape))
            if twin is not None:
                dropped_base.append(Dropped(tensor.spec, f"tied to {twin}"))
            else:
                problems.append(
                    _problem("base", tensor, "is in the base, not in the delta", str(tensor.spec), "no such tensor")
                )
    if problems or not matches:
        raise _refusal(problems, base, delta)
    return Matching(tuple(matches), tuple(dropped_base), tuple(dropped_delta), suspicion(_specs(base), _specs(delta)))


def _meet(delta: LazyTensor, base: LazyTensor | None) -> Match | Mismatch:
    """Return how two tensors of one name meet, or why they cannot."""
    spec = delta.spec
    if spec.name == RESERVED:
        return _problem(
            "delta", delta, "cannot be written: safetensors keeps this name for itself", str(spec), "another name"
        )
    if base is None:
        if spec.name not in DELTA_ONLY:
            return _problem("delta", delta, "is in the delta, not in the base", "no such tensor", str(spec))
        return _of_floats(delta, delta, Match(spec, None, Fate.COPY))
    if base.spec.shape == spec.shape:
        return _of_floats(delta, base, Match(spec, base.spec, Fate.ADD))
    if spec.name in GROWN and _fits_inside(base.spec.shape, spec.shape):
        return _of_floats(delta, base, Match(spec, base.spec, Fate.ADD_BLOCK))
    found, expected = f"{list(base.spec.shape)} in the base", f"{list(spec.shape)}, as in the delta"
    return _problem("base", base, "shapes do not fit", found, expected)


def _fits_inside(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    return len(inner) == len(outer) == 2 and all(i <= o for i, o in zip(inner, outer, strict=True))


def _of_floats(delta: LazyTensor, base: LazyTensor, outcome: Match) -> Match | Mismatch:
    for role, tensor in (("delta", delta), ("base", base)):
        if tensor.spec.dtype not in FLOATS:
            return _problem(role, tensor, "cannot be added", f"dtype {tensor.spec.dtype}", "one of F16 BF16 F32 F64")
    return outcome


def _problem(role: str, tensor: LazyTensor, problem: str, found: str, expected: str) -> Mismatch:
    return Mismatch(problem, where=f"{role} {tensor.file}", tensor=tensor.spec.name, found=found, expected=expected)


def _refusal(problems: list[Mismatch], base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor]) -> Mismatch:
    if not problems:
        return Mismatch("nothing to add: the delta has no weights")
    reason = likely_reason(_specs(base), _specs(delta))
    more = f" (and {counted(len(problems) - 1, 'more tensor')} not fitting)" if len(problems) > 1 else ""
    return Mismatch(f"{problems[0]}{more}; {reason}")


def _specs(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in tensors.items()}
