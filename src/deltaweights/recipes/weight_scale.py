"""How large the weights of a checkpoint are, from samples of a few kilobytes: deltas are much smaller than models."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Iterable, Mapping

from deltaweights.checkpoint.tensors import LazyTensor

SAMPLED, ELEMENTS = 16, 1024  # matrices that are sampled, and elements of each
# The root mean square of weights below which a checkpoint is likely a delta. LLaMA's matrices have 0.01 to
# 0.03, a fine-tuning step of 2 % of that about 0.0004.
SMALL = 0.004
# The share of the base's weights from which on a delta's weights are those of a model, not of a step.
AS_LARGE = 0.5
_DECODERS = {"F16": "e", "BF16": "f", "F32": "f", "F64": "d"}  # format characters of the struct module


def typical_weight(tensors: Iterable[LazyTensor]) -> float | None:
    """Return the median root mean square of sampled matrices; None when there are none."""
    squares = [value for tensor in _sample(tensors) if (value := mean_square(tensor)) is not None]
    return statistics.median(squares) ** 0.5 if squares else None


def relative_scale(base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor]) -> float | None:
    """Return the size of a delta's weights relative to its base's: the median of sampled matrices; None when unknown."""
    shares = []
    bases = {id(tensor): base[name] for name, tensor in delta.items() if name in base}
    for tensor in _sample(tensor for tensor in delta.values() if id(tensor) in bases):
        of_delta, of_base = mean_square(tensor), mean_square(bases[id(tensor)])
        if of_delta is not None and of_base:
            shares.append((of_delta / of_base) ** 0.5)
    return statistics.median(shares) if shares else None


def _sample(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    matrices = [tensor for tensor in tensors if len(tensor.spec.shape) == 2 and tensor.spec.count]
    return matrices[:: max(1, len(matrices) // SAMPLED)][:SAMPLED]


def mean_square(tensor: LazyTensor) -> float | None:
    """Return the mean square of some elements, starting at a third of the tensor; None without a finite one."""
    spec = tensor.spec
    count = min(ELEMENTS, spec.count)
    if not count or spec.dtype not in _DECODERS:
        return None
    total = sum(x * x for x in numbers_of(tensor, (spec.count - count) // 3, count)) / count
    return total if total < float("inf") else None


def numbers_of(tensor: LazyTensor, start: int, count: int) -> tuple[float, ...]:
    """Return ``count`` elements of a tensor of floating-point numbers. Raises ``InputOutputError``."""
    dtype, item = tensor.spec.dtype, tensor.spec.item_size
    data = bytearray(count * item)
    tensor.source.read_into(memoryview(data), start * item)
    if dtype == "BF16":  # the upper half of a float32
        data = bytearray(b"".join(b"\0\0" + data[k : k + 2] for k in range(0, len(data), 2)))
    return struct.unpack(f"<{count}{_DECODERS[dtype]}", data)
