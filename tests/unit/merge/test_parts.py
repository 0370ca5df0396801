"""Parts of a plan: their text form, and their shares of the shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltaweights.merge.parts import Part, parse_part, share_of
from deltaweights.merge.plan import Shard
from deltaweights.merge.torch_frame import TorchFrame


def shards_of(sizes: list[int]) -> list[Shard]:
    """Return shards of so many bytes."""

    class Frame(TorchFrame):
        def __init__(self, size: int) -> None:
            self.size = size

    return [Shard(f"model-{number:05d}.safetensors", Frame(size), ()) for number, size in enumerate(sizes)]


@given(sizes=st.lists(st.integers(1, 1000), max_size=30), of=st.integers(1, 12))
def test_shares_are_balanced(sizes: list[int], of: int) -> None:
    """Every shard belongs to one part; no two parts differ by more than the largest shard; the order of shards decides nothing."""
    shards = shards_of(sizes)
    shares = [share_of(shards, Part(number, of)) for number in range(1, of + 1)]
    assert sorted(s.file for share in shares for s in share) == [s.file for s in shards]
    loads = [sum(s.size for s in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert [[s.file for s in share_of(shards[::-1], Part(k + 1, of))][::-1] for k in range(of)] == [
        [s.file for s in share] for share in shares
    ]


@given(number=st.integers(1, 500), more=st.integers(0, 500))
def test_a_part_is_read_as_it_is_written(number: int, more: int) -> None:
    """K/N is read back as it is printed."""
    part = Part(number, number + more)
    assert parse_part(str(part)) == part
