"""Tests of blocks, and of the part of the base that belongs to each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.tensors import ITEM_SIZES, TensorSpec
from deltaweights.merge.blocks import base_part, blocks_of
from deltaweights.merge.operation import Fate
from deltaweights.merge.plan import PlannedTensor
from deltaweights.merge.rules import Match
from tests.support.headers import HEAD


def part_by_numpy(match: Match, start: int, stop: int) -> dict[int, int]:
    """Return, for each element of the delta in the range that has one, the element of the base that is added to it."""
    assert match.base is not None
    rows, columns = match.base.shape
    sources = np.full(match.primary.shape, -1)
    sources[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    return {place: int(source) for place, source in enumerate(sources.reshape(-1)[start:stop].tolist()) if source >= 0}


small = st.integers(0, 7)


@settings(deadline=None)
@given(
    rows=small,
    columns=small,
    more_rows=small,
    more_columns=st.sampled_from([0, 0, 1, 2, 5]),
    ends=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_base_part_is_the_top_left_block(
    rows: int, columns: int, more_rows: int, more_columns: int, ends: tuple[int, int]
) -> None:
    """For any range of any grown tensor, runs pair base and delta elements as numpy's indexing does."""
    delta = TensorSpec(HEAD, "F16", (rows + more_rows, columns + more_columns))
    grown = Match(delta, TensorSpec(HEAD, "F16", (rows, columns)), Fate.ADD_BLOCK)
    start, stop = sorted(min(end, delta.count) for end in ends)
    first, last, runs = base_part(grown, start, stop)
    assert all(0 <= run.start < run.stop <= stop - start for run in runs)
    assert all(one.stop <= other.start for one, other in pairwise(runs))
    found = {run.start + i: first + run.base + i for run in runs for i in range(run.stop - run.start)}
    assert part_by_numpy(grown, start, stop) == found
    assert len(found) == last - first  # what is read of the base is used, all of it
    assert set(found.values()) == set(range(first, last))


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), ends=st.tuples(st.integers(0, 200), st.integers(0, 200))
)
def test_base_part_of_equal_shapes(shape: tuple[int, ...], ends: tuple[int, int]) -> None:
    """If the shapes are equal, each range of the delta has the same range of the base; a copied tensor has none."""
    spec = TensorSpec("w", "F16", shape)
    start, stop = sorted(min(end, spec.count) for end in ends)
    first, last, runs = base_part(Match(spec, spec, Fate.ADD), start, stop)
    assert (start, stop) == (first, last)
    assert [(0, stop - start, 0)] == [(run.start, run.stop, run.base) for run in runs]
    assert base_part(Match(spec, None, Fate.COPY), start, stop) == (0, 0, ())


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    size=st.integers(1, 9),
    dtype=st.sampled_from(["F16", "F32"]),
)
def test_blocks_tile_the_shard(shapes: list[tuple[int, ...]], size: int, dtype: str) -> None:
    """Blocks cover every byte of a shard's tensors once, in order, none larger than asked, with their ends marked."""
    placed, offset = [], 24
    for number, shape in enumerate(shapes):
        spec = TensorSpec(f"w{number}", dtype, shape)
        placed.append(PlannedTensor(spec, Match(spec, None, Fate.COPY), offset))
        offset += spec.nbytes
    blocks = list(blocks_of(placed, size))
    place = 24
    for block in blocks:
        assert place == block.offset
        assert block.stop - block.start <= size
        place += (block.stop - block.start) * ITEM_SIZES[dtype]
    assert offset == place
    assert list(range(len(blocks))) == [block.number for block in blocks]
    assert [False] * (len(blocks) - 1) + [True] == [block.last_of_shard for block in blocks]
    names = [tensor.spec.name for tensor in placed]
    assert names == [block.tensor.spec.name for block in blocks if block.start == 0]
    assert names == [block.tensor.spec.name for block in blocks if block.last_of_tensor]
