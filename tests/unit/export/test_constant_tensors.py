"""Constant tensors, read in any pieces."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.export.constant_tensors import ONE, IdentitySource, ZeroSource


@given(size=st.integers(1, 9), dtype=st.sampled_from(["F16", "BF16", "F32"]), cuts=st.lists(st.integers(0, 81)))
def test_an_identity_is_made_in_any_pieces(size: int, dtype: str, cuts: list[int]) -> None:
    """Read in any pieces, the constant tensors equal torch's identity and zeros."""
    item, count = len(ONE[dtype]), size * size
    places = sorted({0, count, *(min(cut, count) for cut in cuts)})
    made, zeros = bytearray(b"x" * count * item), bytearray(b"x" * count * item)
    for start, stop in pairwise(places):
        part = slice(start * item, stop * item)
        IdentitySource(size, dtype).read_into(memoryview(made)[part], start * item)
        ZeroSource().read_into(memoryview(zeros)[part], start * item)
    kind = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    assert torch.equal(torch.frombuffer(made, dtype=kind).reshape(size, size), torch.eye(size, dtype=kind))
    assert not any(zeros)
