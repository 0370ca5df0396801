"""Samples of tensors, to tell apart two checkpoints of the same shapes without reading them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from blake3 import blake3

from deltaweights.checkpoint.tensors import ContiguousSource, LazyTensor

BATCH = 32
"""Tensors whose samples are prefetched together."""

FEW = 16
"""Tensors compared first: two checkpoints that differ mostly differ in all of them."""

SAMPLE, SAMPLES = 32 * 1024, 2
"""Bytes per sample, and samples per tensor. Few, since each may cost a seek on a spinning disk."""


def sample_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Return ``blake3:`` and a digest per tensor: of two samples (at one third and at the end), or of all of a small one.

    Raises ``InputOutputError`` when the bytes cannot be read.
    """
    buffer = memoryview(bytearray(SAMPLES * SAMPLE))
    digests = {}
    items = iter(tensors.items())
    while batch := list(itertools.islice(items, BATCH)):
        _prefetch(tensor for _, tensor in batch)
        for name, tensor in batch:
            starts, length = sample_places(tensor)
            sample = buffer[:length]
            hasher = blake3()
            for start in starts:
                tensor.source.read_into(sample, start)
                hasher.update(sample)
            digests[name] = f"blake3:{hasher.hexdigest()}"
    return digests


def sample_places(tensor: LazyTensor) -> tuple[list[int], int]:
    """Return where the samples of a tensor begin, in bytes, and how long each is."""
    nbytes = tensor.spec.nbytes
    if nbytes <= SAMPLES * SAMPLE:
        return [0], nbytes
    last = nbytes - SAMPLE
    return [last // 3 // 8 * 8, last // 8 * 8], SAMPLE  # multiples of 8: element boundaries of every dtype


def _prefetch(tensors: Iterable[LazyTensor]) -> None:
    for tensor in tensors:
        if isinstance(tensor.source, ContiguousSource):
            tensor.source.file.prefetch(_stored_samples(tensor, tensor.source.offset))


def _stored_samples(tensor: LazyTensor, offset: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the samples in the file; a local file never asks, and 100,000 tensors take a while."""
    starts, length = sample_places(tensor)
    yield from ((offset + start, length) for start in starts if length)


def same_weights(one: Mapping[str, LazyTensor], other: Mapping[str, LazyTensor], names: Sequence[str]) -> bool:
    """Return whether the tensors ``names``, of equal specs in both, have equal samples. Raises ``InputOutputError``."""
    few = names[:: max(1, len(names) // FEW)]
    return all(
        sample_digests({name: one[name] for name in some}) == sample_digests({name: other[name] for name in some})
        for some in (few, names)
    )
