"""``make``: the rules in reverse, the reference's bits, and a count of the weights that do not come back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.tensors import LazyTensor, Storage, TensorSpec
from deltaweights.errors import CheckFailed, Mismatch, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.make import MakeResult, make_delta
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.verify import verify
from deltaweights.merge.arithmetic import BlockCombiner, Kernels, Task
from deltaweights.merge.blocks import Run as Meeting
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.operation import Fate, Operation
from deltaweights.merge.rules import DELTA_ONLY, GROWN, match_tensors
from deltaweights.staging.location import locate_target
from tests.conftest import Run
from tests.support.float_bits import DTYPES, every_or_random, of_bits, strange_pair
from tests.support.merging import block_size, files_of, small_base
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save

EMBEDDING = "model.embed_tokens.weight"


def tuned_tensors(base: Tensors, dtype: torch.dtype = torch.float16, step: float = 4e-4) -> Tensors:
    """Return a fine-tuned model: the base with a step on every weight, four new tokens and a projector; no buffers."""
    torch.manual_seed(7)
    tuned = {}
    for name, tensor in base.items():
        if name.endswith("inv_freq"):
            continue
        tuned[name] = (tensor.float() + torch.randn(tensor.shape) * step).to(dtype)
        if name in GROWN:
            tuned[name] = torch.cat([tuned[name], (torch.randn(4, tensor.shape[1]) * 0.02).to(dtype)])
    tuned["model.mm_projector.weight"] = torch.randn(base["model.norm.weight"].shape[0], 24).to(dtype)
    return tuned


def difference(base: Tensors, target: Tensors, compute: torch.dtype, stored: torch.dtype | None = None) -> Tensors:
    """Return target - base, by the original make_delta's algorithm: whole models in memory."""
    delta = {}
    for name, tensor in target.items():
        result = tensor.to(compute).clone()
        if name in base:
            other = base[name].to(compute)
            if other.shape == result.shape:
                result -= other
            else:
                result[: other.shape[0], : other.shape[1]] -= other
        delta[name] = result.to(stored or compute)
    return delta


def make(folder: Path, name: str = "made", **options: Any) -> MakeResult:
    """Make the delta of ``folder/target`` on ``folder/base``."""
    return make_delta(folder / "base", folder / "target", folder / name, **options)


def pair(folder: Path, base: Tensors, target: Tensors, container: str = "torch", shards: int = 2) -> None:
    """Save base and target under ``folder``."""
    save(base, folder / "base", container, shards)
    save(target, folder / "target", container, shards)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("container", ["torch", "safetensors"])
@pytest.mark.parametrize("compute", DTYPES)
def test_make_and_apply_give_the_target_but_for_the_counted_weights(
    tmp_path: Path, container: str, compute: str
) -> None:
    """The delta has the reference's bits; applying it gives the target, except for the counted weights of each tensor."""
    base = base_tensors(dtype=DTYPES[compute])
    target = tuned_tensors(base, DTYPES[compute], step=0.01)
    pair(tmp_path, base, target, container)
    result = make(tmp_path, compute_dtype=compute)
    assert same_bits(load(tmp_path / "made"), difference(base, target, DTYPES[compute]))
    back = load(
        Path(apply_delta(tmp_path / "base", tmp_path / "made", tmp_path / "back", compute_dtype=compute).target)
    )
    counted = {name: int((back[name] != target[name]).sum()) for name in target}
    assert result.inexact == {name: number for name, number in counted.items() if number}
    assert (sum(counted.values()) > 0) == (compute != "float32"), "this pair is rough enough that some do not come back"
    assert all(counted[name] < target[name].numel() // 4 for name in target)
    assert verify(tmp_path / "made", expect=result.content_digest).ok


@pytest.mark.sampled(5)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("engine", ["ours", "torch"])
def test_strange_numbers_and_mixed_dtypes_are_the_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str, stored: str, engine: str
) -> None:
    """NaN, infinities, subnormals, ties, mixed dtypes: the reference's difference and an exact count, by both sets of kernels."""
    if engine == "torch":
        monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", _never_proven())
    base, target = small_base(), tuned_tensors(small_base(), torch.float32, 0.01)
    for number, dtype in enumerate(DTYPES):
        patterns = every_or_random(dtype, seed=number)
        base[f"sum.{dtype}"], target[f"sum.{dtype}"] = (of_bits(row[::37], DTYPES[dtype]) for row in patterns)
        base[f"strange.{dtype}"], target[f"strange.{dtype}"] = strange_pair(dtype)
    pair(tmp_path, base, target)
    with block_size(100_003):
        result = make(tmp_path, compute_dtype=compute, dtype=stored, workers=3)
    made, wanted = load(tmp_path / "made"), difference(base, target, DTYPES[compute], DTYPES[stored])
    quiet = {name: torch.where(tensor.isnan(), torch.nan, tensor) for name, tensor in wanted.items()}
    settled = {name: torch.where(tensor.isnan(), torch.nan, tensor) for name, tensor in made.items()}
    assert same_bits(settled, quiet)
    compute_dtype = DTYPES[compute]
    back = reference(base, made, compute_dtype)
    width = {2: torch.int16, 4: torch.int32}[compute_dtype.itemsize]
    counts = {}
    for name, tensor in target.items():
        expected, got = tensor.to(compute_dtype), back[name]
        if tensor.dtype != compute_dtype:
            expected = torch.where(expected.isnan(), torch.nan, expected)
        if name in base or compute != stored:
            got = torch.where(got.isnan(), torch.nan, got)
        counts[name] = int((expected.view(width) != got.view(width)).sum())
    assert result.inexact == {name: count for name, count in counts.items() if count}


def _never_proven() -> type[CpuKernels]:
    class Unproven(CpuKernels):
        def add(self, one: Any, other: Any, out: Any) -> None:
            """Leave ``out`` as it is."""

    return Unproven


def test_workers_blocks_and_containers_change_no_byte(tmp_path: Path) -> None:
    """One to four workers, small blocks, several shards: the same files, counts included."""
    base = small_base()
    pair(tmp_path, base, tuned_tensors(base, step=0.01))
    first = make(tmp_path, "first", workers=1, max_shard_size=2500)
    assert first.shards >= 3
    assert first.inexact
    for block in (1000, 37):
        for workers in (2, 4):
            with block_size(block):
                made = make(tmp_path, f"{block}-{workers}", workers=workers, max_shard_size=2500)
            assert made.inexact == first.inexact
            assert files_of(Path(made.delta)) == files_of(Path(first.delta))


def test_the_manifest_says_what_a_delta_was_made_from(tmp_path: Path) -> None:
    """The manifest names base and target, fates and counts, and the folder has the notice and the target's configuration."""
    base = small_base()
    pair(tmp_path, base, tuned_tensors(base, step=0.01))
    (tmp_path / "target" / "README.md").write_text("my model")
    result = make(tmp_path)
    document = json.loads((tmp_path / "made" / "manifest.json").read_bytes())
    assert list(document["inputs"]) == ["plan", "base", "target"]
    assert (
        document["result"]["inexact"]
        == result.inexact
        == parse_manifest((tmp_path / "made" / "manifest.json").read_bytes()).findings.inexact
    )
    fates = {tensor["fate"] for tensor in document["result"]["tensors"].values()}
    assert fates == {"subtract", "subtract_block", "copy"}
    assert result.fates["subtract_block"] == 2
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert {"DELTAWEIGHTS_NOTICE.txt", "config.json", "TARGET_README.md"} <= names
    notice = (tmp_path / "made" / "DELTAWEIGHTS_NOTICE.txt").read_text()
    assert "NOT FOR CLINICAL USE" in notice
    assert "subtracting" in notice


def test_without_the_check_nothing_is_counted(tmp_path: Path) -> None:
    """``check=False`` gives the same weights, without the counts in result and manifest."""
    base = small_base()
    pair(tmp_path, base, tuned_tensors(base, step=0.01))
    counted, not_counted = make(tmp_path, "counted"), make(tmp_path, "not", check=False)
    assert not_counted.inexact is None
    assert "inexact" not in json.loads((tmp_path / "not" / "manifest.json").read_bytes())["result"]
    assert counted.content_digest == not_counted.content_digest
    with pytest.raises(TargetBusy, match="already there"):
        make(tmp_path, "not")  # the counts are missing, so the result is not the same
    assert make(tmp_path, "counted").status == "already complete"
    assert make(tmp_path, "counted").inexact == counted.inexact


def test_a_run_that_goes_on_keeps_the_counts_of_finished_shards(tmp_path: Path) -> None:
    """A run that stopped after some shards and is repeated writes what an uninterrupted one writes."""
    base = small_base()
    target = tuned_tensors(base, step=0.01)
    target["model.norm.weight"][0] = torch.inf
    pair(tmp_path, base, target)
    whole = make(tmp_path, "whole", max_shard_size=2500)
    with pytest.raises(CheckFailed):
        make(tmp_path, max_shard_size=2500, strict=True)
    fragments = sorted(locate_target(tmp_path / "made").fragments.iterdir())
    assert len(fragments) >= 3
    fragments[0].unlink()
    again = make(tmp_path, max_shard_size=2500)
    assert again.inexact == whole.inexact
    assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")


UNLIKE: dict[str, tuple[Callable[[Tensors, Tensors], object], str]] = {
    "rows": (
        lambda base, _: base.update({EMBEDDING: torch.zeros(99, 16).half()}),
        (
            r"base pytorch.*: tensor model\.embed_tokens\.weight: shapes do not fit: found \[99, 16\] in the base, "
            r"expected \[24, 16\], as in the target; .*use the base that the target was fine-tuned from"
        ),
    ),
    "missing": (
        lambda base, _: base.pop("model.norm.weight"),
        r"target pytorch.*: tensor model\.norm\.weight: is in the target, not in the base",
    ),
    "extra": (
        lambda _, target: target.pop("model.norm.weight"),
        r"tensor model\.norm\.weight: is in the base, not in the target",
    ),
    "whole numbers": (
        lambda _, target: target.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}),
        r"tensor model\.norm\.weight: cannot be subtracted: found dtype I8.*the target holds whole numbers",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_base_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A base of another shape, or with other tensors, is a ``Mismatch`` of base and target; nothing is written."""
    monkeypatch.chdir(tmp_path)
    base = small_base()
    target = tuned_tensors(base)
    change, message = UNLIKE[name]
    change(base, target)
    pair(Path(), base, target)
    with pytest.raises(Mismatch, match=message):
        make(Path())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "target"]


# The rules, for any names and shapes.

Shape = st.tuples(st.integers(0, 4), st.integers(0, 4))
NAMES = ["a", "b", "model.layers.0.self_attn.rotary_emb.inv_freq", *sorted(GROWN), *sorted(DELTA_ONLY)]
Headers = st.dictionaries(st.sampled_from(NAMES), Shape)


class _NoBytes:
    def read_into(self, out: memoryview, start: int) -> None:
        raise AssertionError("rules read no weights")


def lazy(shapes: dict[str, tuple[int, int]]) -> dict[str, LazyTensor]:
    """Return tensors that nobody may read."""
    return {
        name: LazyTensor(TensorSpec(name, "F16", shape), _NoBytes(), Path("f"), Storage("f", name, 0, ()))
        for name, shape in shapes.items()
    }


INVERSE = {Fate.SUBTRACT: Fate.ADD, Fate.SUBTRACT_BLOCK: Fate.ADD_BLOCK, Fate.COPY: Fate.COPY}


@settings(deadline=None)
@given(base=Headers, primary=Headers)
def test_the_rules_of_make_are_those_of_apply_backwards(
    base: dict[str, tuple[int, int]], primary: dict[str, tuple[int, int]]
) -> None:
    """A delta can be made from a pair if and only if it can be applied, with the opposite fates."""
    try:
        made = match_tensors(lazy(base), lazy(primary), Operation.MAKE)
    except Mismatch:
        with pytest.raises(Mismatch):
            match_tensors(lazy(base), lazy(primary), Operation.APPLY)
        return
    applied = match_tensors(lazy(base), lazy(primary), Operation.APPLY)
    assert [(m.primary, m.base, INVERSE[m.fate]) for m in made.matches] == [
        (m.primary, m.base, m.fate) for m in applied.matches
    ]
    assert (made.dropped_base, made.dropped_primary) == (applied.dropped_base, applied.dropped_primary)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["F16", "BF16", "F32"]))
def test_weights_within_a_factor_of_two_of_their_base_always_come_back(seed: int, dtype: str) -> None:
    """Sterbenz's lemma: where target and base have one sign and are within a factor of two, the difference is exact."""
    random = np.random.default_rng(seed)
    size, digits = (4, 23) if dtype == "F32" else (2, 10 if dtype == "F16" else 7)
    kind = np.dtype(f"<u{size}")
    top = {"F16": 0x7800, "BF16": 0x7F00, "F32": 0x7F000000}[dtype]
    base = random.integers(0, top, 4096).astype(np.int64)
    step = random.integers(-(1 << digits), 1 << digits, 4096)
    target = np.clip(base + step, 0, top)
    sign = random.integers(0, 2, 4096) << (8 * size - 1)
    kernels: Kernels = CpuKernels()
    bench = BlockCombiner(kernels, Task(Operation.MAKE, dtype, dtype, check=True), 4096)
    bench.primary[: 4096 * size] = (target | sign).astype(kind).tobytes()
    bench.base[: 4096 * size] = (base | sign).astype(kind).tobytes()
    outcome = bench.combine(4096, dtype, dtype, (Meeting(0, 4096, 0),))
    negative_zeros = int(((target == 0) & (sign != 0)).sum())  # a sum that is zero is +0
    assert outcome.tally.inexact == negative_zeros


# The command line.


def test_the_drop_in_takes_the_original_flags(tmp_path: Path, run: Run) -> None:
    """``make-delta`` with full and shortened flags; the line that uploads the delta; one JSON object."""
    base = small_base()
    pair(tmp_path, base, tuned_tensors(base, step=0.01))
    full = ("--base-model-path", "base", "--target-model-path", "target", "--delta-path", "d1", "--hub-repo-id", "me/x")
    done = run(*full, cwd=tmp_path, program="make-delta")
    assert done.returncode == 0
    assert f"publish it with hf upload me/x {tmp_path / 'd1'}\n" in done.stdout
    told = (
        r"[0-9,]+ of [0-9,]+ weights \([0-9.]+%\) in [0-9]+ tensors do not come back bit for bit \(applied in F16\)\n"
    )
    assert re.search(f"round trip      {told}", done.stdout)
    short = ("--base", "base", "--target-model", "target", "--delta", "d2", "--hub", "me/x", "--json", "-q")
    done = run(*short, cwd=tmp_path, program="make-delta")
    outcome = json.loads(done.stdout)
    assert list(outcome)[:2] == ["delta", "status"]
    assert outcome["inexact"]
    assert outcome["upload"] == f"hf upload me/x {tmp_path / 'd2'}"
    assert done.stderr == ""
    assert files_of(tmp_path / "d1") == files_of(tmp_path / "d2")
    done = run("make", "--base", "base", "--target", "target", "--delta", "d3", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["delta"] == str(tmp_path / "d3")
    assert not (tmp_path / "d3").exists()


def test_the_output_says_under_which_options_weights_come_back(tmp_path: Path, run: Run) -> None:
    """A float32 target is compared as rounded, and the output says so; the flags that are printed for a float32 delta work."""
    base = small_base()
    target = tuned_tensors(base, step=0.01)
    pair(tmp_path, base, {name: tensor.float() for name, tensor in target.items()})
    command = ("make", "--base", "base", "--target", "target")
    done = run(*command, "--delta", "d16", cwd=tmp_path)
    assert "(applied in F16; the target's F32 weights are compared as rounded to F16)\n" in done.stdout
    done = run(*command, "--delta", "d32", "--compute-dtype", "float32", cwd=tmp_path)
    assert "every weight comes back bit for bit (applied in F32)\n" in done.stdout
    assert "apply it with   --compute-dtype float32, and --dtype" in done.stderr
    back = apply_delta(tmp_path / "base", tmp_path / "d32", tmp_path / "back", compute_dtype="float32", dtype="float16")
    assert same_bits(load(Path(back.target)), target)


@pytest.mark.parametrize("repo", ["-x", "a b", "a/b/c", "", "x;y"])
def test_what_is_no_hub_id_is_refused(tmp_path: Path, run: Run, repo: str) -> None:
    """An invalid ``--hub-repo-id`` ends with 2 before anything is read."""
    done = run("make", "--base", "x", "--target", "y", "--delta", "z", f"--hub-repo-id={repo}", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not a Hub id" in done.stderr


def test_what_a_make_prints(tmp_path: Path, run: Run) -> None:
    """The round trip is reported also when every weight comes back; with ``--no-check`` it is not."""
    base = small_base()
    pair(tmp_path, base, {name: tensor for name, tensor in base.items() if not name.endswith("inv_freq")})
    command = ("make", "--base", "base", "--target", "target")
    done = run(*command, "--delta", "d1", cwd=tmp_path)
    assert "round trip      every weight comes back bit for bit (applied in F16)\n" in done.stdout
    assert (
        "base and target hold the same weights, as far as samples tell: the delta will be zero where they meet"
        in done.stderr
    )
    assert "round trip" not in run(*command, "--delta", "d2", "--no-check", cwd=tmp_path).stdout


def test_a_delta_made_of_a_merge_is_the_delta_again(tmp_path: Path) -> None:
    """A delta made from a merged model gives the same model again when it is applied."""
    base = base_tensors()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    merged = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "target")
    result = make(tmp_path)
    back = apply_delta(tmp_path / "base", tmp_path / "made", tmp_path / "back")
    assert (result.inexact == {}) == (back.content_digest == merged.content_digest)
    shutil.rmtree(tmp_path / "back")
