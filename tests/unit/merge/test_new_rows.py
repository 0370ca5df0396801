"""Tests of what the new rows of an extended vocabulary are added to."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import MalformedInput, Mismatch, TargetBusy
from deltaweights.manifest.verify import verify
from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.floats import as_float64
from deltaweights.merge.operation import Fate
from tests.support.float_bits import DTYPES, bits, of_bits
from tests.support.merging import (
    EMBEDDING,
    Killed,
    block_size,
    files_of,
    killed_after,
    manifest_of,
    merge,
    merge_pair,
    missing_facts,
    recipe_file,
    save_pair,
)
from tests.support.pairs import GROWN, Tensors, load, same_bits

ZERO, MEAN = '[rules]\nnew_rows = "zero"\n', '[rules]\nnew_rows = "mean"\n'


def grown(dtype: torch.dtype, new: int = 4, rows: int = 20, columns: int = 16) -> tuple[Tensors, Tensors]:
    """Return a pair of which embedding and head have new rows, with zeros of both signs and NaN among them."""
    generator = torch.Generator().manual_seed(4)
    base = {name: torch.randn(rows, columns, generator=generator).to(dtype) for name in (*GROWN, "w")}
    delta = {name: (torch.randn(rows, columns, generator=generator) / 50).to(dtype) for name in base}
    for name in GROWN:
        added = torch.randn(new, columns, generator=generator).to(dtype)
        added[0, ::3], added[-1, 1::3], added[new // 2, 2::5] = -0.0, 0.0, -0.0
        delta[name] = torch.cat([delta[name], added])
    return base, delta


@pytest.mark.sampled(4)
@pytest.mark.parametrize("block", [1 << 20, 100, 16, 7, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_added_to_zeros_lose_the_sign_of_zero(tmp_path: Path, dtype: str, block: int) -> None:
    """With ``zero``, -0 in new rows becomes +0, and nothing else differs from ``copy``; the fates differ."""
    base, delta = grown(DTYPES[dtype])
    save_pair(tmp_path, base, delta)
    with block_size(block):
        zero, _ = merge(tmp_path, "zero", recipe_file=recipe_file(tmp_path, dtype, stated=False, more=ZERO), workers=3)
        copy, _ = merge(tmp_path, "copy", compute_dtype=dtype, workers=3)
    of_zero, of_copy = load(tmp_path / "zero"), load(tmp_path / "copy")
    assert (zero.fates["add_zero_rows"], zero.fates["add_block"]) == (2, 0)
    assert copy.fates["add_block"] == 2
    for name, primary in delta.items():
        old = base[name].shape[0]
        assert torch.equal(bits(of_zero[name][:old]), bits(of_copy[name][:old]))
        assert torch.equal(bits(of_copy[name][old:]), bits(primary[old:]))
        assert torch.equal(bits(of_zero[name][old:]), bits(primary[old:] + 0))
        negative = (primary[old:] == 0) & primary[old:].signbit()
        changed = bits(of_zero[name][old:]) != bits(of_copy[name][old:])
        assert torch.equal(changed, negative)
        assert negative.any() == (name in GROWN)
    fates = {name: tensor["fate"] for name, tensor in manifest_of(tmp_path / "zero")["tensors"].items()}
    assert fates == {EMBEDDING: "add_zero_rows", "lm_head.weight": "add_zero_rows", "w": "add"}


@pytest.mark.sampled(2)
@pytest.mark.fidelity
@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("given", DTYPES)
def test_rows_that_are_added_to_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, new: int) -> None:
    """With ``mean``, each new row is the delta's plus torch's mean, in float32, for any blocks and workers."""
    base, delta = grown(DTYPES[given], new, columns=32)
    save_pair(tmp_path, base, delta)
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    whole, _ = merge(tmp_path, "whole", recipe_file=own, workers=1)
    merged = load(tmp_path / "whole")
    assert whole.fates["add_float32_mean_rows"] == 2
    for name in GROWN:
        wanted = base[name].float().mean(dim=0) + delta[name][20:].float()
        assert torch.equal(bits(merged[name][20:]), bits(wanted))
        assert torch.equal(merged[name][:20], base[name].float() + delta[name][:20].float())
    assert torch.equal(merged["w"], base["w"].float() + delta["w"].float())
    # Blocks that begin and end within old and new rows; a base that is read in several pieces for its mean.
    for block, read in ((100, 1 << 19), (32, 9 * 32 * 4), (7, 64), (1, 1)):
        monkeypatch.setattr("deltaweights.merge.new_rows.READ", read)
        with block_size(block):
            merge(tmp_path, "again", recipe_file=own, workers=3)
        assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "again")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_new_rows_are_stored_as_anything(tmp_path: Path, compute: str, stored: str) -> None:
    """Sums with zeros or a mean are rounded once to the stored dtype, wherever blocks are cut, like the rows above them."""
    save_pair(tmp_path, *grown(torch.float32))
    for rule in (ZERO, MEAN) if compute == "float32" else (ZERO,):
        own = recipe_file(tmp_path, compute, stated=False, more=rule)
        for folder in ("plain", "stored"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        merge(tmp_path, "plain", recipe_file=own)
        with block_size(37):
            merge(tmp_path, "stored", recipe_file=own, dtype=stored)
        plain, found = load(tmp_path / "plain"), load(tmp_path / "stored")
        assert same_bits(found, {name: tensor.to(DTYPES[stored]) for name, tensor in plain.items()})


def test_a_mean_in_float16_is_refused(tmp_path: Path) -> None:
    """A recipe that asks for the mean and adds in float16 is malformed, and nothing is written."""
    save_pair(tmp_path, *grown(torch.float16))
    own = recipe_file(tmp_path, "float16", stated=False, more=MEAN)
    with pytest.raises(MalformedInput) as caught:
        merge(tmp_path, recipe_file=own)
    assert missing_facts(str(caught.value), "rules.new_rows", "mean", "compute_dtype") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "own.toml"]


@pytest.mark.parametrize("rule", [ZERO, MEAN], ids=["zero", "mean"])
def test_a_narrower_base_has_no_rows_to_add_to(tmp_path: Path, rule: str) -> None:
    """A base with fewer columns is refused if new rows are added to zeros or a mean, and accepted if they are copied."""
    base, delta = grown(torch.float32)
    base[EMBEDDING] = base[EMBEDDING][:, :15].clone()
    save_pair(tmp_path, base, delta)
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, recipe_file=recipe_file(tmp_path, "float32", stated=False, more=rule))
    assert missing_facts(str(caught.value), EMBEDDING, "[20, 15]", "[24, 16]") == []
    assert merge(tmp_path, compute_dtype="float32")[0].status == "merged"


@pytest.mark.parametrize("rule", [ZERO, MEAN], ids=["zero", "mean"])
def test_a_base_with_all_rows_has_no_new_ones(tmp_path: Path, rule: str) -> None:
    """If the delta has as many rows as its base, every rule adds."""
    base, delta = grown(torch.float32)
    delta = {name: tensor[:20].clone() for name, tensor in delta.items()}
    result, _ = merge_pair(tmp_path, base, delta, recipe_file=recipe_file(tmp_path, "float32", stated=False, more=rule))
    assert result.fates == {"add": 3, "add_block": 0, "copy": 0, "dropped": 0}
    assert torch.equal(load(tmp_path / "merged")[EMBEDDING], base[EMBEDDING] + delta[EMBEDDING])


def test_the_mean_of_nothing_is_zero(tmp_path: Path) -> None:
    """For a base without rows, new rows are the delta's."""
    delta = torch.ones(6, 4)
    merge_pair(
        tmp_path,
        {EMBEDDING: torch.zeros(0, 4)},
        {EMBEDDING: delta},
        recipe_file=recipe_file(tmp_path, "float32", stated=False, more=MEAN),
    )
    assert torch.equal(load(tmp_path / "merged")[EMBEDDING], delta)


def test_an_infinite_mean_is_the_base_s_fault(tmp_path: Path) -> None:
    """If the base's mean is infinite, the new rows do not count as overflow."""
    base = torch.ones(3, 4)
    base[1, 2] = math.inf
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    result, _ = merge_pair(tmp_path, {EMBEDDING: base}, {EMBEDDING: torch.ones(5, 4)}, recipe_file=own)
    assert result.nonfinite == {EMBEDDING: 3}
    assert result.overflow == {}


@pytest.mark.parametrize(
    "strange", [[0x7F80_0000, 0xFF80_0000], [0x7F80_0001]], ids=["both-infinities", "signalling-nan"]
)
def test_a_mean_that_is_nan_is_no_warning_of_numpy_s(tmp_path: Path, strange: list[int]) -> None:
    """Infinities of both signs in a column, or a NaN, give a mean that is NaN, which is counted, without a numpy warning."""
    base = torch.ones(3, 4)
    base[: len(strange), 2] = of_bits(strange, torch.float32)
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    result, _ = merge_pair(tmp_path, {EMBEDDING: base}, {EMBEDDING: torch.ones(5, 4)}, recipe_file=own)
    assert result.nonfinite == {EMBEDDING: len(strange) + 2}


@pytest.fixture
def older_rule(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Merge as the first releases did: ``add_mean_rows``, of the mean summed in float64."""

    def mean_of_old(tensor: LazyTensor, _: Kernels) -> bytes:
        data = memoryview(bytearray(tensor.spec.nbytes))
        tensor.source.read_into(data, 0)
        mean = as_float64(data, tensor.spec.dtype).reshape(tensor.spec.shape).mean(axis=0)
        return bytes(mean.astype("<f4").tobytes())

    monkeypatch.setattr("deltaweights.merge.new_rows.mean_row", mean_of_old)
    monkeypatch.setattr(Fate.ADD_MEAN_ROWS, "_value_", "add_mean_rows")
    return monkeypatch


def rough_pair(folder: Path) -> Path:
    """Save a pair whose float64 mean is another than its float32 mean; return a recipe that adds the mean."""
    base, delta = grown(torch.float16, columns=32, rows=300)
    assert not torch.equal(base[EMBEDDING].float().mean(dim=0), base[EMBEDDING].double().mean(dim=0).float())
    save_pair(folder, base, delta)
    return recipe_file(folder, "float32", stated=False, more=MEAN)


def test_a_result_by_the_older_mean_verifies_and_is_another(tmp_path: Path, older_rule: pytest.MonkeyPatch) -> None:
    """A result of the first releases keeps verifying, says its own rule, and is not taken for one of this rule."""
    own = rough_pair(tmp_path)
    old, _ = merge(tmp_path, recipe_file=own)
    older_rule.undo()
    assert manifest_of(tmp_path / "merged")["tensors"][EMBEDDING]["fate"] == "add_mean_rows"
    assert verify(tmp_path / "merged", expect=old.content_digest).ok
    with pytest.raises(TargetBusy):
        merge(tmp_path, recipe_file=own)
    new, _ = merge(tmp_path, recipe_file=own, overwrite=True)
    assert manifest_of(tmp_path / "merged")["tensors"][EMBEDDING]["fate"] == "add_float32_mean_rows"
    assert new.content_digest != old.content_digest


def test_a_merge_by_the_older_mean_is_not_continued(tmp_path: Path, older_rule: pytest.MonkeyPatch) -> None:
    """Shards that an older release left in staging are made anew, so that no result has rows of both rules."""
    own = rough_pair(tmp_path)
    with killed_after(1), pytest.raises(Killed):
        merge(tmp_path, recipe_file=own, max_shard_size=40_000, workers=1)
    older_rule.undo()
    _, told = merge(tmp_path, recipe_file=own, max_shard_size=40_000)
    assert "staging held another plan (other inputs or options): it was discarded" in told.notes
    base, delta = load_file(tmp_path / "base"), load_file(tmp_path / "delta")
    merged = load(tmp_path / "merged")
    for name in GROWN:
        wanted = base[name].float().mean(dim=0) + delta[name][300:].float()
        assert torch.equal(bits(merged[name][300:]), bits(wanted))


def load_file(folder: Path) -> Tensors:
    """Load the one torch file of a folder."""
    return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
