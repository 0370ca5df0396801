"""Tests of how tensors are cut into shards, and of the header of a safetensors file."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.shards import safetensors_header, shard_cuts


def brute_force(sizes: list[int], limit: int) -> list[tuple[int, ...]]:
    """Return all ways to cut ``sizes`` into the fewest shards that are legal under ``limit``."""
    for count in range(len(sizes)):
        legal = []
        for inner in combinations(range(1, len(sizes)), count):
            cuts = (0, *inner, len(sizes))
            if all(sum(sizes[a:b]) <= limit or b - a == 1 for a, b in pairwise(cuts)):
                legal.append(cuts)
        if legal:
            return legal
    raise AssertionError("a shard for each tensor is always legal")


def loads(sizes: list[int], cuts: tuple[int, ...] | list[int]) -> list[int]:
    return [sum(sizes[a:b]) for a, b in pairwise(cuts)]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9),
    limit=st.integers(1, 30),
    unit=st.sampled_from([1, 1000, 2**40, 2**55 + 1]),
)
def test_shard_laws(sizes: list[int], limit: int, unit: int) -> None:
    """Shards keep the order and the limit, are the fewest possible, the largest is the smallest possible, and so is the limit."""
    sizes, limit = [size * unit for size in sizes], limit * unit
    cuts = shard_cuts(sizes, limit)
    legal = brute_force(sizes, limit)
    assert tuple(cuts) in legal  # in order, within the limit unless alone, as few as can be
    assert min(max(loads(sizes, each)) for each in legal) == max(loads(sizes, cuts))

    def needed(each: tuple[int, ...] | list[int]) -> int:
        return max((sum(sizes[a:b]) for a, b in pairwise(each) if b - a > 1), default=0)

    assert min(map(needed, legal)) == needed(cuts)


@pytest.mark.parametrize(
    ("sizes", "limit", "cuts"),
    [
        ([4], 10, [0, 1]),
        ([4], 1, [0, 1]),
        ([5, 5, 5, 5], 10, [0, 2, 4]),
        ([1, 1, 1, 1, 1, 1], 4, [0, 3, 6]),
        ([9, 1, 1, 1, 9], 10, [0, 1, 4, 5]),
        ([100, 20, 20, 20, 20], 70, [0, 1, 3, 5]),
        ([0, 0, 0], 1, [0, 3]),
    ],
)
def test_shard_goldens(sizes: list[int], limit: int, cuts: list[int]) -> None:
    """These rows of tensors are cut at these places, in this version and any later one of the format."""
    assert cuts == shard_cuts(sizes, limit)


def test_header_golden() -> None:
    """The header of a tiny shard is exactly these bytes, the last of which is padding."""
    specs = [TensorSpec("b", "F16", (2, 3)), TensorSpec("ü", "BF16", ()), TensorSpec("a", "F32", (0,))]
    expected = (
        b"\xc8\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
        b'"\xc3\xbc":{"dtype":"BF16","shape":[],"data_offsets":[12,14]},'
        b'"a":{"dtype":"F32","shape":[0],"data_offsets":[14,14]}} '
    )
    assert expected == safetensors_header(specs)


def test_empty_header_golden() -> None:
    """The header of no tensors is exactly these bytes, which need no padding."""
    assert safetensors_header([]) == b'\x20\0\0\0\0\0\0\0{"__metadata__":{"format":"pt"}}'
