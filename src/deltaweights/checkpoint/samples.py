"""A short look at the bytes of each tensor, so that two checkpoints of the same shapes are told apart without reading them.

Enters: lazy tensors. Leaves: digests of samples. Never: more than 64 KiB of a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from blake3 import blake3

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.weights_file import ContiguousSource

BATCH = 32
"""Tensors of which samples are asked for ahead, where the bytes have to come first."""

FEW = 16
"""Tensors that are looked at first, where two checkpoints are compared: most differ in any."""

SAMPLE, SAMPLES = 32 * 1024, 2
"""Bytes per sample, and samples per tensor: few places, since each may be a seek on a spinning disk."""


def sample_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Return ``blake3:`` and the digest of samples from one third and from the end of each tensor, or of all of a small one.

    Raises ``InputOutputError`` when the bytes cannot be read.
    """
    buffer = memoryview(bytearray(SAMPLES * SAMPLE))
    digests = {}
    members = iter(tensors.items())
    while batch := list(itertools.islice(members, BATCH)):
        _expect(tensor for _, tensor in batch)
        for name, tensor in batch:
            starts, length = _places(tensor)
            sample = buffer[:length]
            hasher = blake3()
            for start in starts:
                tensor.source.read_into(sample, start)
                hasher.update(sample)
            digests[name] = f"blake3:{hasher.hexdigest()}"
    return digests


def _places(tensor: LazyTensor) -> tuple[list[int], int]:
    """Return where the samples of a tensor begin, and their length, in bytes."""
    nbytes = tensor.spec.nbytes
    room = nbytes - SAMPLE
    if nbytes <= SAMPLES * SAMPLE:
        return [0], nbytes
    return [room // 3 // 8 * 8, room // 8 * 8], SAMPLE  # multiples of 8: on an element, whatever the dtype


def _expect(tensors: Iterable[LazyTensor]) -> None:
    for tensor in tensors:
        if isinstance(tensor.source, ContiguousSource):
            starts, length = _places(tensor)
            tensor.source.file.expect((tensor.source.offset + start, length) for start in starts if length)


def same_weights(one: Mapping[str, LazyTensor], other: Mapping[str, LazyTensor], names: Sequence[str]) -> bool:
    """Tell whether the tensors ``names``, of equal specs in both, hold the same numbers as far as samples tell. Raises as above."""
    few = names[:: max(1, len(names) // FEW)]
    return all(
        sample_digests({name: one[name] for name in some}) == sample_digests({name: other[name] for name in some})
        for some in (few, names)
    )
