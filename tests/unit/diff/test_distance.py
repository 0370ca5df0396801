"""Tests of how far tensors are apart: the figures are those of the whole tensors in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights import DiffReport, diff_checkpoints
from deltaweights.diff import tensor_pairs
from tests.support.diffs import FLOATS, Listener, changed, figures, flipped, only, reference
from tests.support.pairs import save


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("bit", [0, 9])
def test_one_flipped_bit(both: Callable[..., DiffReport], dtype: torch.dtype, bit: int) -> None:
    """One flipped bit in the last of many blocks is one bit of one element, exactly as far apart as torch says."""
    torch.manual_seed(1)
    one = {"w": (torch.randn(31, 33) * 100).to(dtype), "other": torch.ones(5)}
    other = one | {"w": flipped(one["w"], 31 * 33 - 1, bit)}
    with patch.object(tensor_pairs, "BLOCK", 64):
        report = both(one, other)
    found = only(report.tensors.differing)
    assert (report.identical, report.tensors.identical) == (False, 1)
    assert (found.name, found.shape, found.elements, found.bits) == ("w", (31, 33), 1, 1)
    assert figures(found) == reference(one["w"], other["w"])
    assert found.max_abs == abs(one["w"].view(-1)[-1].double() - other["w"].view(-1)[-1].double())


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    count=st.integers(1, 300),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    block=st.sampled_from([8, 64, 1000, 1 << 19]),
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_figures_are_those_of_float64(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, count: int, share: float, block: int, workers: int, seed: int
) -> None:
    """Whatever dtype, share of changed weights, blocks and workers: the figures are those of the whole tensors in float64."""
    torch.manual_seed(seed)
    one = (torch.randn(count) * 10 ** torch.randint(-5, 4, (count,)).double()).to(FLOATS[dtype])
    other = torch.where(torch.rand(count) < share, (one.double() + torch.randn(count) * 0.1).to(FLOATS[dtype]), one)
    folder = tmp_path_factory.mktemp("pair")
    a, b = (save({"w": t}, folder / name, "safetensors", 1) for name, t in (("a", one), ("b", other)))
    with patch.object(tensor_pairs, "BLOCK", block):
        report = diff_checkpoints(a, b, workers=workers)
        assert report == diff_checkpoints(a, b, workers=5 - workers), "to the last digit"
    assert report.identical == bool((one == other).all())
    if not report.identical:
        assert figures(only(report.tensors.differing)) == reference(one, other)


@pytest.mark.parametrize(("index", "again"), [(0, None), (999, 1984)], ids=["first", "last"])
def test_the_norm_is_of_all_blocks(both: Callable[..., DiffReport], index: int, again: int | None) -> None:
    """The norm is the whole tensor's when one of 125 blocks differs; read again are only blocks that were equal before it."""
    torch.manual_seed(2)
    one = torch.randn(1000).half()
    other = flipped(one, index, 12)
    listener = Listener()
    with patch.object(tensor_pairs, "BLOCK", 16):
        report = both({"w": one, "same": one.clone()}, {"w": other, "same": one.clone()}, workers=1, report=listener)
    assert figures(only(report.tensors.differing)) == reference(one, other)
    assert listener.totals == {"comparing": 4000} | ({"measuring": again} if again else {})


def test_signed_zeros_and_nan_payloads_are_bits(both: Callable[..., DiffReport]) -> None:
    """Minus zero and another NaN are differences of bits alone: no difference of values, and no NaN among the figures."""
    one = {"zero": torch.zeros(3), "nan": torch.tensor([math.nan, 1.0, math.inf])}
    other = {"zero": changed(one["zero"], 1, -0.0), "nan": flipped(one["nan"], 0, 3)}
    nan, zero = both(one, other).tensors.differing
    assert figures(zero) == {"elements": 1, "bits": 1, "max_abs": 0.0, "relative_norm": 0.0, "nonfinite": 0}
    assert figures(nan) == {"elements": 1, "bits": 1, "max_abs": 0.0, "relative_norm": 0.0, "nonfinite": 1}


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_counted_apart(
    both: Callable[..., DiffReport], dtype: torch.dtype, strange: float, side: int
) -> None:
    """NaN or infinity on one side is counted; the other differences keep their figures; the same on both sides is no difference."""
    plain = torch.tensor([3.0, 4.0, 0.0, 1.0], dtype=dtype)
    sides = [changed(plain, 3, strange), changed(plain, 3, strange)]
    sides[side] = changed(sides[side], 2, strange)
    sides[1] = changed(sides[1], 0, 3.5)
    found = only(both({"w": sides[0]}, {"w": sides[1]}).tensors.differing)
    assert (found.elements, found.nonfinite, found.max_abs) == (2, 1, 0.5)
    assert found.relative_norm == pytest.approx(0.5 / 5, rel=1e-12)


def test_what_float64_cannot_hold_is_null(both: Callable[..., DiffReport]) -> None:
    """A norm of zero, and differences, squares and sums of squares beyond float64, give None where they matter, and no error."""
    cases: dict[str, tuple[list[float], list[float], float | None]] = {
        "divided by zero": ([0.0, 0.0], [1.0, 1.0], 1.0),
        "differences": ([1.5e308, 1.0], [-1.5e308, 1.0], None),
        "squares": ([1.5e308, 1.0], [1.0e308, 1.0], 1.5e308 - 1.0e308),
        "sum of squares": ([1.2e154] * 3, [-1.2e154] * 3, 2.4e154),
        "norm alone": ([1.5e308, 1.0], [1.5e308, 2.0], 1.0),
        "sum of norm alone": ([1.2e154] * 3, [0.0, 1.2e154, 1.2e154], 1.2e154),
    }
    one, other = (
        {name: torch.tensor(case[side], dtype=torch.float64) for name, case in cases.items()} for side in (0, 1)
    )
    with patch.object(tensor_pairs, "BLOCK", 8):
        found = both(one, other).tensors.differing
    assert {tensor.name: tensor.max_abs for tensor in found} == {name: case[2] for name, case in cases.items()}
    assert {(tensor.relative_norm, tensor.nonfinite) for tensor in found} == {(None, 0)}


def test_long_integers_are_subtracted_exactly(both: Callable[..., DiffReport]) -> None:
    """The difference of 64-bit integers is taken before it is rounded to float64, also where it overflows."""
    one = {"far": torch.tensor([2**63 - 1, 5]), "near": torch.tensor([2**62 + 1, 5])}
    other = {"far": torch.tensor([-(2**63), 5]), "near": torch.tensor([2**62, 5])}
    found = both(one, other).tensors.differing
    assert [(tensor.elements, tensor.max_abs) for tensor in found] == [(1, 2.0**64), (1, 1.0)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn, torch.complex64, torch.uint8, torch.int16], ids=str)
def test_other_dtypes_are_compared_as_bits(both: Callable[..., DiffReport], dtype: torch.dtype) -> None:
    """Elements and bits are counted for every dtype; there is a largest difference only where there is arithmetic."""
    one = torch.ones(11, dtype=dtype)
    other = changed(one, 10, 0)
    found = only(both({"w": one, "same": one.clone()}, {"w": other, "same": one.clone()}).tensors.differing)
    words = [int.from_bytes(bytes(t[10:].view(torch.uint8).tolist()), "little") for t in (one, other)]
    assert (found.elements, found.bits) == (1, (words[0] ^ words[1]).bit_count())
    assert found.max_abs == (1.0 if dtype in {torch.uint8, torch.int16} else None)


def test_bits_without_bitwise_count(both: Callable[..., DiffReport], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a numpy before 2.0, which cannot count bits, the figures are the same."""
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    one = torch.randn(77).half()
    other = (one.float() * 1.01).half()
    assert figures(only(both({"w": one}, {"w": other}).tensors.differing)) == reference(one, other)


@pytest.mark.parametrize(
    ("first", "second"), [("F64", "F32"), ("F64", "F16"), ("F16", "F64"), ("F32", "BF16"), ("BF16", "F16")]
)
def test_another_dtype_is_a_difference(both: Callable[..., DiffReport], first: str, second: str) -> None:
    """Equal values in another dtype are a difference of no elements; values that were rounded are counted, NaNs are one value."""
    plain = torch.tensor([1.0, -0.5, 0.0, math.nan, math.inf] * 20).to(FLOATS[first])
    rounded = torch.full((100,), 1 / 3, dtype=torch.float64).to(FLOATS[first])
    with patch.object(tensor_pairs, "BLOCK", 64):
        report = both(
            {"plain": plain, "rounded": rounded},
            {"plain": plain.to(FLOATS[second]), "rounded": rounded.to(FLOATS[second])},
        )
    one, other = report.tensors.differing
    assert (report.identical, one.dtypes) == (False, (first, second))
    assert figures(one) == {"elements": 0, "bits": None, "max_abs": 0.0, "relative_norm": 0.0, "nonfinite": 0}
    apart = (rounded.double() - rounded.to(FLOATS[second]).double()).abs()
    assert (other.elements, other.bits, other.max_abs) == (int((apart > 0).sum()), None, float(apart.max()))
    assert other.relative_norm == pytest.approx(float(apart.norm() / rounded.double().norm()), rel=1e-12)


def test_dtypes_that_have_no_common_numbers(both: Callable[..., DiffReport]) -> None:
    """Between float8, or 64-bit integers, and another dtype there are no figures, and nothing is read."""
    one = {"a": torch.ones(3).to(torch.float8_e5m2), "b": torch.ones(3, dtype=torch.int64)}
    listener = Listener()
    found = both(one, {"a": torch.ones(3), "b": torch.ones(3)}, report=listener).tensors.differing
    assert [tensor.dtypes for tensor in found] == [("F8_E5M2", "F32"), ("I64", "F32")]
    assert [set(figures(tensor).values()) for tensor in found] == [{None}, {None}]
    assert listener.totals == {"comparing": 0}
