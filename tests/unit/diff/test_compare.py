"""``diff``: two checkpoints are identical, or differ exactly as far as torch says in float64; what it reads and what it trusts."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltaweights import DiffReport, apply_delta, diff_checkpoints
from deltaweights.diff import tensor_pairs
from deltaweights.diff.compare import DifferingTensor
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.report import Report
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, load, make_pair, save

BASE = base_tensors(layers=1, vocabulary=8, hidden=8)
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"
NORM = "model.norm.weight"

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that hold the bits of an element of so many bytes."""

PARTS = {"identical", "differing", "other_shape", "only_in_a", "only_in_b"}
KEYS = {"a", "b", "identical", "same_kind", "weights_read", "bytes", "tensors", "buffers"}
FIGURES = {"name", "shape", "dtypes", "elements", "bits", "max_abs", "relative_norm", "nonfinite"}

Value = TypeVar("Value")


class Listener(Report):
    """Keeps what is said, and the bytes that are announced."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.totals: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.said.append(text)

    def begin(self, doing: str, total: int) -> None:
        """Keep what is announced."""
        self.totals[doing] = total


@pytest.fixture
def both(tmp_path: Path) -> Callable[[Tensors, Tensors], DiffReport]:
    """Save two checkpoints as one safetensors file each, and compare them."""

    def compare(one: Tensors, other: Tensors, **options: Any) -> DiffReport:
        a, b = (save(t, tmp_path / name, "safetensors", 1) for name, t in (("a", one), ("b", other)))
        return diff_checkpoints(a, b, **options)

    return compare


def only(found: tuple[Value, ...]) -> Value:
    """Return the one thing that was found."""
    (one,) = found
    return one


def changed(tensor: torch.Tensor, index: int, value: float) -> torch.Tensor:
    """Return a copy with one element, counted in row-major order, replaced."""
    tensor = tensor.clone()
    tensor.view(-1)[index] = value
    return tensor


def flipped(tensor: torch.Tensor, index: int, bit: int = 0) -> torch.Tensor:
    """Return a copy with one bit of one element, counted in row-major order, the other way round."""
    tensor = tensor.clone()
    tensor.view(WORDS[tensor.element_size()]).view(-1)[index] ^= 1 << bit
    return tensor


def reference(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Return the figures of two finite tensors of one dtype, by torch, in float64, whole."""
    words = [tensor.contiguous().view(WORDS[tensor.element_size()]) for tensor in (one, other)]
    apart = one.double() - other.double()
    bits = (words[0] ^ words[1]).contiguous().view(torch.uint8)
    return {
        "elements": int((words[0] != words[1]).sum()),
        "bits": sum(int(((bits >> bit) & 1).sum()) for bit in range(8)),
        "max_abs": float(apart.abs().max()),
        "relative_norm": pytest.approx(float(apart.norm() / one.double().norm()), rel=1e-12),
        "nonfinite": 0,
    }


def figures(tensor: DifferingTensor) -> dict[str, Any]:
    """Return the figures of a differing tensor by their names."""
    return {key: value for key, value in asdict(tensor).items() if key not in {"name", "shape", "dtypes"}}


# What is the same.

FORMS = [("torch", 3), ("torch", 1), ("safetensors", 1), ("safetensors", 4)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_identical_across_containers_sharding_and_order(tmp_path: Path, form: tuple[str, int]) -> None:
    """The same tensors in another container, other shards and another order are identical, each counted once."""
    a = save(BASE, tmp_path / "a", "safetensors", 2)
    b = save(dict(reversed(BASE.items())), tmp_path / "b", *form)
    report = diff_checkpoints(a, b)
    assert (report.identical, report.same_kind, report.weights_read) == (True, True, True)
    assert (report.tensors.identical, report.buffers.identical) == (len(BASE) - 1, 1)
    assert report.tensors.different == report.buffers.different == 0
    assert sum(tensor.nbytes for name, tensor in BASE.items() if name != BUFFER) == report.bytes
    file = next(b.glob("*.index.json"), None) or next(b.glob("*model.*"))
    assert diff_checkpoints(file, a).identical, "an index or a file says as much as its folder"


def test_views_of_torch_files_are_compared_as_what_they_show(tmp_path: Path) -> None:
    """A transposed view and the same numbers laid out in rows are identical; a flipped bit is found where it shows."""
    storage = torch.randn(40, 30).half()
    rows, view = {"w": storage.t().contiguous()}, {"w": storage.t()}
    a, b = save(rows, tmp_path / "a", "safetensors", 1), save(view, tmp_path / "b", "torch", 1)
    with patch.object(tensor_pairs, "BLOCK", 256):
        assert diff_checkpoints(a, b).identical
        c = save({"w": flipped(storage, 41, 3).t()}, tmp_path / "c", "torch", 1)
        found = only(diff_checkpoints(a, c).tensors.differing)
    assert figures(found) == reference(rows["w"], flipped(storage, 41, 3).t())


def test_empty_and_scalar_tensors(both: Callable[..., DiffReport]) -> None:
    """Tensors without elements are equal, unless their dtypes are not; a scalar is one element."""
    one = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "cast": torch.zeros(0)}
    report = both(one, one | {"scalar": torch.tensor(3.0), "cast": torch.zeros(0, dtype=torch.float16)})
    cast, scalar = report.tensors.differing
    assert report.tensors.identical == 1
    assert figures(cast) == {"elements": 0, "bits": None, "max_abs": 0.0, "relative_norm": 0.0, "nonfinite": 0}
    assert (scalar.shape, scalar.elements, scalar.max_abs, scalar.relative_norm) == ((), 1, 1.0, 0.5)


# How far things are apart.


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


FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


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


# What else is not the same.


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


def test_other_shapes_and_lone_tensors(both: Callable[..., DiffReport]) -> None:
    """A grown embedding has another shape; what is in one only is listed with dtype and shape; all others are compared."""
    grown = torch.cat([BASE["model.embed_tokens.weight"], torch.zeros(2, 8, dtype=torch.float16)])
    other = BASE | {"model.embed_tokens.weight": grown, "model.mm_projector.bias": torch.ones(8)}
    del other["lm_head.weight"]
    report = both(BASE, other)
    reshaped = only(report.tensors.other_shape)
    assert (reshaped.name, reshaped.shapes) == ("model.embed_tokens.weight", ((8, 8), (10, 8)))
    assert [str(spec) for spec in report.tensors.only_in_a] == ["F16 [8, 8]"]
    assert [(spec.name, str(spec)) for spec in report.tensors.only_in_b] == [("model.mm_projector.bias", "F32 [8]")]
    assert (report.identical, report.same_kind) == (False, True)
    assert (report.tensors.identical, report.tensors.different) == (len(BASE) - 3, 3)


def test_buffers_do_not_count(both: Callable[..., DiffReport]) -> None:
    """Buffers that differ, or are in one checkpoint only, are listed apart, with figures, and leave the verdict alone."""
    other = BASE | {BUFFER: BASE[BUFFER] * 2, "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    report = both(BASE, other)
    assert (report.identical, report.tensors.different, report.tensors.identical) == (True, 0, len(BASE) - 1)
    found = only(report.buffers.differing)
    assert (found.name, found.elements, found.relative_norm) == (BUFFER, 1, 1.0)
    assert only(report.buffers.only_in_b).name.startswith("model.layers.1.")


def test_names_come_in_natural_order(both: Callable[..., DiffReport]) -> None:
    """Differing tensors are listed with the numbers in their names in order."""
    names = [f"layers.{number}.weight" for number in (10, 9, 100, 1)]
    report = both({name: torch.ones(1) for name in names}, {name: torch.zeros(1) for name in names})
    assert [tensor.name for tensor in report.tensors.differing] == [f"layers.{n}.weight" for n in (1, 9, 10, 100)]


# Manifests.


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge a pair twice, the second time in other shards; tests copy the folder with both."""
    folder = tmp_path_factory.mktemp("merged")
    pair = make_pair(folder)
    apply_delta(*pair, folder / "one")
    apply_delta(*pair, folder / "other", max_shard_size="20KB")
    apply_delta(*pair, folder / "bfloat16", dtype="bfloat16")
    return folder


def damage(folder: Path) -> None:
    """Flip the last bit of the last shard: a weight of the last tensor in it."""
    path = sorted(folder.glob("*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_manifests_are_trusted_when_that_is_asked_for(merged: Path, tmp_path: Path) -> None:
    """Digests that manifests state stand for weights only with the flag: damage is then not seen, and without it, it is."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "other")
    listener = Listener()
    trusted = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True, report=listener)
    assert (trusted.identical, trusted.weights_read, listener.totals) == (True, False, {})
    assert only(tuple(listener.said)).startswith("no weights were read")
    read = diff_checkpoints(tmp_path / "one", tmp_path / "other")
    assert (read.identical, read.weights_read) == (False, True)
    assert only(read.tensors.differing).bits == 1
    assert trusted.tensors.identical == read.tensors.identical + 1


def test_manifests_tell_which_tensors_differ(merged: Path, tmp_path: Path) -> None:
    """Where two manifests state another digest or dtype, the tensor is listed without figures."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "one" / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document["result"]["tensors"][NORM]["digest"] = "blake3:" + "0" * 64
    manifest.write_text(json.dumps(document))
    report = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True)
    assert figures(only(report.tensors.differing)) == dict.fromkeys(FIGURES - {"name", "shape", "dtypes"})
    assert only(report.tensors.differing).name == NORM
    cast = diff_checkpoints(tmp_path / "one", tmp_path / "bfloat16", trust_manifests=True)
    assert (cast.weights_read, cast.tensors.identical) == (False, 0)
    assert {tensor.dtypes for tensor in cast.tensors.differing} == {("F16", "BF16")}


@pytest.mark.parametrize("state", ["missing", "foreign", "of-others"])
def test_without_two_manifests_weights_are_read(merged: Path, tmp_path: Path, state: str) -> None:
    """A manifest that is missing, not ours, or of other tensors is not trusted: it is said, and the weights are read."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "other" / "manifest.json"
    if state == "missing":
        manifest.unlink()
    elif state == "foreign":
        manifest.write_text('{"manifest_version": 3}')
    else:
        shutil.copy(tmp_path / "bfloat16" / "manifest.json", manifest)
    damage(tmp_path / "other")
    listener = Listener()
    report = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True, report=listener)
    assert (report.identical, report.weights_read) == (False, True)
    assert str(manifest) in only(tuple(listener.said))
    assert only(tuple(listener.said)).startswith("the weights are read, since there are not two manifests to trust: ")


# Bad input.


def test_a_file_that_changes_meanwhile_is_no_ground_for_a_verdict(tmp_path: Path) -> None:
    """A file that is written to, or cut, while it is read ends the comparison with an error, on whatever worker."""
    a, b = (save(BASE, tmp_path / name, "safetensors", 1) for name in "ab")
    path = b / "model.safetensors"

    class Writer(Report):
        def end(self) -> None:
            path.write_bytes(path.read_bytes())

    class Cutter(Report):
        def begin(self, doing: str, total: int) -> None:
            path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InputOutputError, match="changed while being read"):
        diff_checkpoints(a, b, report=Writer())
    with pytest.raises(InputOutputError, match="cut short while being read"):
        diff_checkpoints(a, b, report=Cutter())


def test_workers_end_with_an_interrupt(tmp_path: Path) -> None:
    """An exception in the thread that waits, such as a signal's, reaches the caller, and no worker is left behind."""
    import threading  # noqa: PLC0415

    class Stop(Report):
        def progress(self, done: int) -> None:
            raise KeyboardInterrupt

    a = save({"w": torch.zeros(200_000)}, tmp_path / "a", "torch", 1)
    before = threading.active_count()
    with patch.object(tensor_pairs, "BLOCK", 8), pytest.raises(KeyboardInterrupt):
        diff_checkpoints(a, a, workers=3, report=Stop())
    assert threading.active_count() == before


def test_no_workers(tmp_path: Path) -> None:
    """No worker at all is a wrong argument."""
    with pytest.raises(UsageError, match="no workers"):
        diff_checkpoints(tmp_path, tmp_path, workers=0)


BAD: dict[str, tuple[int, str]] = {
    "missing": (5, "no second checkpoint here: found nothing"),
    "empty": (3, "no weights here: found an empty folder"),
    "malformed": (3, "model.safetensors: "),
    "two-sets": (3, "more than one set of weights"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(run: Run, tmp_path: Path, kind: str) -> None:
    """A checkpoint that is not there, or breaks its format, ends with 5 or 3, one line on stderr and nothing on stdout."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    if kind != "missing":
        (tmp_path / "b").mkdir()
    if kind == "malformed":
        (tmp_path / "b" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    if kind == "two-sets":
        save(BASE, tmp_path / "b", "torch", 2)
        save(BASE, tmp_path / "b", "torch", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    code, part = BAD[kind]
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("deltaweights: error: ")
    assert part in line


# The command.


def test_command_identical(run: Run, tmp_path: Path) -> None:
    """Identical checkpoints end with 0; the verdict stands in the first line, buffers are said to be apart."""
    save(BASE, tmp_path / "a", "safetensors", 2)
    save(BASE, tmp_path / "b", "torch", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("identical: 12 tensors, 1.78 kB\nbuffers, which do not count: 1 identical, 0 different\n")


def test_command_different(run: Run, tmp_path: Path) -> None:
    """Differences end with 6, one line on stderr, and a line for every tensor on stdout; long and foreign names break nothing."""
    odd = "odd\u202ename"
    one = BASE | {odd: torch.ones(2, 3), "cast": torch.ones(2), "lone": torch.ones(1), "grown": torch.ones(2)}
    other = one | {
        odd: torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.5]]),
        "cast": torch.ones(2).half(),
        "grown": torch.ones(3),
        NORM: changed(BASE[NORM], 0, math.nan),
    }
    del other["lone"]
    save(one, tmp_path / "a", "safetensors", 1)
    save(other, tmp_path / "b", "safetensors", 1)
    done = run("diff", "a", "b", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr == "deltaweights: error: b: not the same weights as a: found 5 of 16 tensors different\n"
    bits = (int(BASE[NORM].view(torch.int16)[0]) ^ 0x7E00).bit_count()
    assert done.stdout.splitlines() == [
        "different: 5 of 16 tensors",
        "        elements            bits    max abs  rel. norm  differing tensor",
        "               0               -          0          0  cast: F32 and F16 [2]",
        f"               1{bits:>16}          0          0  model.norm.weight: F16 [8], 1 NaN or infinite",
        "               1               1        0.5      0.204  odd\\u202ename: F32 [2, 3]",
        "  other shape  grown: F32 [2] in A, F32 [3] in B",
        "  only in A    lone: F32 [1]",
        "buffers, which do not count: 1 identical, 0 different",
    ]


def test_command_json(run: Run, tmp_path: Path) -> None:
    """``--json`` prints one strict object with the documented keys, the same on every run; null is what has no figure."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    zero = dict.fromkeys(BASE, torch.zeros(8, 8))
    save(BASE | {NORM: changed(BASE[NORM], 0, math.inf), BUFFER: zero[BUFFER]}, tmp_path / "b", "torch", 2)
    done, again = (run("diff", "a", "b", "--json", "-q", cwd=tmp_path) for _ in range(2))
    assert (done.returncode, done.stdout) == (6, again.stdout)
    assert len(done.stderr.splitlines()) == 1
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found.keys() == KEYS
    assert (found["identical"], found["same_kind"], found["weights_read"]) == (False, True, True)
    assert (found["a"], found["b"]) == ("a", "b")
    assert found["tensors"].keys() == found["buffers"].keys() == PARTS
    (tensor,) = found["tensors"]["differing"]
    assert tensor.keys() == FIGURES
    assert (tensor["name"], tensor["dtypes"], tensor["nonfinite"]) == (NORM, ["F16", "F16"], 1)
    (reshaped,) = found["buffers"]["other_shape"]
    assert reshaped == {"name": BUFFER, "shapes": [[1], [8, 8]], "dtypes": ["F32", "F32"]}


@pytest.mark.parametrize("how", ["sizes", "names"])
def test_command_of_unlike_models(run: Run, tmp_path: Path, how: str) -> None:
    """Models of another size, or with other names, are said to be of another kind in the first line, and end with 6."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    other = (
        base_tensors(layers=1, vocabulary=8, hidden=16) if how == "sizes" else {f"x.{n}": t for n, t in BASE.items()}
    )
    save(other, tmp_path / "b", "safetensors", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stdout.splitlines()[0] == (
        "not the same kind of model: no tensor has the same name and shape in both (12 tensors in A, 12 in B)"
    )
    assert len(done.stderr.splitlines()) == 1
    machine = run("diff", "a", "b", "--json", cwd=tmp_path)
    assert json.loads(machine.stdout)["same_kind"] is False


def test_a_manifest_is_not_trusted_for_a_file_beside_its_checkpoint(merged: Path, tmp_path: Path) -> None:
    """A file of the same names and other weights that lies in a merged folder is read, whatever the manifest there says."""
    folder = tmp_path / "folder"
    shutil.copytree(merged / "one", folder)
    tensors = load(folder)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, folder / "other.safetensors")
    report = diff_checkpoints(folder / "other.safetensors", merged / "one", trust_manifests=True)
    assert report.weights_read
    assert [tensor.name for tensor in report.tensors.differing] == [name]


def test_command_trusting_manifests(run: Run, merged: Path) -> None:
    """``--trust-manifests`` says, in the verdict too, that no weights were read."""
    done = run("diff", merged / "one", merged / "other", "--trust-manifests")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].endswith(", as the manifests state; no weights were read")
    assert done.stderr.startswith("no weights were read")
    quiet = run("diff", merged / "one", merged / "other", "--trust-manifests", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, done.stdout, "")


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="ru_maxrss would count the process that started it, too"
)
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A tensor of 300 MB, different in its last element, is compared and measured in less than 100 MB."""
    size = 300_000_000
    for name in "ab":
        header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        with open(tmp_path / f"{name}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)
            if name == "b":
                file.seek(-2, 2)
                file.write(b"\x80\x3f")
    program = f"""
from deltaweights import diff_checkpoints
report = diff_checkpoints({str(tmp_path / "a.safetensors")!r}, {str(tmp_path / "b.safetensors")!r}, workers=2)
(tensor,) = report.tensors.differing
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(tensor.elements, tensor.max_abs, peak)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    elements, most, kilobytes = done.stdout.split()
    assert (elements, most) == ("1", "1.0")
    assert int(kilobytes) < 100_000
