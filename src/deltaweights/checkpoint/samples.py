"""A short look at the bytes of each tensor, so that two checkpoints of the same shapes are told apart without reading them.

Enters: lazy tensors. Leaves: digests of samples. Never: more than 64 KiB of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blake3 import blake3

from deltaweights.checkpoint.tensors import LazyTensor

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
    for name, tensor in tensors.items():
        nbytes = tensor.spec.nbytes
        room = nbytes - SAMPLE
        # Multiples of 8, so that a sample begins on an element whatever the dtype.
        starts = [room // 3 // 8 * 8, room // 8 * 8] if nbytes > SAMPLES * SAMPLE else [0]
        sample = buffer[: SAMPLE if len(starts) > 1 else nbytes]
        hasher = blake3()
        for start in starts:
            tensor.source.read_into(sample, start)
            hasher.update(sample)
        digests[name] = f"blake3:{hasher.hexdigest()}"
    return digests


def same_weights(one: Mapping[str, LazyTensor], other: Mapping[str, LazyTensor], names: Sequence[str]) -> bool:
    """Tell whether the tensors ``names``, of equal specs in both, hold the same numbers as far as samples tell. Raises as above."""
    few = names[:: max(1, len(names) // FEW)]
    return all(
        sample_digests({name: one[name] for name in some}) == sample_digests({name: other[name] for name in some})
        for some in (few, names)
    )
