"""How tensors are cut into shards, the names of the files, and the header of a safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.choices import SAFETENSORS, TORCH
from deltaweights.util.text import Json, LazyObject, compact_pieces, in_chunks

NAMES = {SAFETENSORS: ("model", ".safetensors"), TORCH: ("pytorch_model", ".bin")}
"""How Hugging Face names weights files, before and after the number, by container."""


def shard_name(number: int, total: int, container: str = SAFETENSORS) -> str:
    """Return the Hugging Face name of shard ``number`` (from 1) of ``total``."""
    stem, suffix = NAMES[container]
    return f"{stem}{suffix}" if total == 1 else f"{stem}-{number:05d}-of-{total:05d}{suffix}"


def index_name(container: str) -> str:
    """Return the Hugging Face name of the index of several shards."""
    stem, suffix = NAMES[container]
    return f"{stem}{suffix}.index.json"


def shard_cuts(sizes: Sequence[int], limit: int) -> list[int]:
    """Cut a row of tensors into shards of even size; return the cuts, from 0 to ``len(sizes)``. Sizes and limit are in bytes.

    First fit under ``limit`` tells how many shards are needed; the smallest limit that needs no more makes them even. A tensor
    larger than the limit gets a shard of its own.
    """
    fewest = len(_first_fit(sizes, limit))
    if fewest == 1:
        return [0, len(sizes)]
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if len(_first_fit(sizes, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return [0, *_first_fit(sizes, low)]


def _first_fit(sizes: Sequence[int], limit: int) -> list[int]:
    """Return the index after the last tensor of each shard; a new shard starts when the next tensor would exceed ``limit``."""
    ends: list[int] = []
    filled = 0
    for index, size in enumerate(sizes):
        if index and filled + size > limit:
            ends.append(index)
            filled = 0
        filled += size
    return [*ends, len(sizes)]


def safetensors_header(specs: Iterable[TensorSpec]) -> bytes:
    """Return the header of a safetensors file that holds ``specs`` in this order: length prefix, JSON, padding to 8 bytes.

    ``__metadata__`` is exactly ``{"format":"pt"}``: the library keeps it in a hash map, so more keys would have no fixed order.
    """

    def entries() -> Iterator[tuple[str, Json]]:
        yield "__metadata__", {"format": "pt"}
        offset = 0
        for spec in specs:
            end = offset + spec.nbytes
            yield spec.name, {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
            offset = end

    text = b"".join(in_chunks(compact_pieces(LazyObject(entries))))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
