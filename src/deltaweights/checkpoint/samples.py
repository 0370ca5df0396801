"""A short look at the bytes of each tensor, so that two checkpoints of the same shapes are told apart without reading them.

Enters: lazy tensors. Leaves: digests of samples. Never: more than 64 KiB of a tensor.
"""

from __future__ import annotations

from blake3 import blake3

from deltaweights.checkpoint.tensors import LazyTensor

SAMPLE, SAMPLES = 32 * 1024, 2
"""Bytes per sample, and samples per tensor: few places, since each may be a seek on a spinning disk."""


def sample_digest(tensor: LazyTensor) -> str:
    """Return ``blake3:`` and the digest of samples from one third and from the end of a tensor, or of all of a small one.

    Raises ``InputOutputError`` when the bytes cannot be read.
    """
    nbytes = tensor.spec.nbytes
    room = nbytes - SAMPLE
    # Multiples of 8, so that a sample begins on an element whatever the dtype.
    starts = [room // 3 // 8 * 8, room // 8 * 8] if nbytes > SAMPLES * SAMPLE else [0]
    length = SAMPLE if len(starts) > 1 else nbytes
    hasher = blake3()
    buffer = memoryview(bytearray(length))
    for start in starts:
        tensor.source.read_into(buffer, start)
        hasher.update(buffer)
    return f"blake3:{hasher.hexdigest()}"
