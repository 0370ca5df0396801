"""Tests of what apply and check-base do with a base that is not proved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import CheckFailed, Mismatch
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.findings import judge_base, proof_line
from deltaweights.manifest.parse import parse_manifest
from deltaweights.merge.record import proof_of
from deltaweights.staging.location import locate_target
from tests.conftest import Run
from tests.support.base_pairs import (
    HOLES,
    MOVED,
    STD,
    TUNING,
    UNLIKE,
    holed_pair,
    moved,
    other_arithmetic,
    part_of,
    proof_of_pair,
    violations_of,
    wrong_pair,
    zeros,
)
from tests.support.float_bits import DTYPES
from tests.support.merging import (
    RecordingReport,
    files_of,
    manifest_of,
    merge,
    merge_pair,
    recipe_file,
    save_pair,
    small_base,
    without_card,
)
from tests.support.pairs import base_tensors, delta_tensors, save


@pytest.mark.parametrize(
    ("named", "words"),
    [(("b2",), "of b2"), (("b2", "b10"), "of b2 and 1 more tensor"), (("b2", "b10", "c"), "of b2 and 2 more tensors")],
)
def test_what_is_untested_is_told(named: tuple[str, ...], words: str) -> None:
    """Result and warning name the first untested tensor, and how many more there are."""
    record = proof_of({"moved": MOVED} | dict.fromkeys(named, UNLIKE))
    assert record is not None
    told = RecordingReport()
    judge_base(record, told, stated=False, allowed=False)
    few = f"{words} too few weights lie in the region"
    assert told.warnings == [
        f"the base is proved in part only: {few}; likely holes in the base, or a delta that is none"
    ]
    weights = 200_000 + 4096 * len(named)
    share = f"{weights:,} weights, {(198_000 + 10 * len(named)) / weights:.1%} in the region"
    assert proof_line(record) == f"NOT proved: {share}, 0 violations, but {few}"


@pytest.mark.parametrize("stated", [None, False], ids=["no-recipe", "recipe-that-does-not-state"])
def test_where_the_arithmetic_is_not_stated_a_wrong_base_is_a_warning(tmp_path: Path, stated: bool | None) -> None:
    """Without a recipe, or with one that does not state the arithmetic, the merge is published, with its violations by tensor."""
    base, delta = wrong_pair(tmp_path)
    options: dict[str, Any] = {} if stated is None else {"recipe_file": recipe_file(tmp_path, stated=stated)}
    result, told = merge(tmp_path, **options)
    merge(tmp_path, "allowed", allow_unproved_base=True, **options)  # there is nothing to allow
    assert files_of(tmp_path / "allowed") == files_of(tmp_path / "merged")
    proof = manifest_of(tmp_path / "merged")["proof"]
    expected = proof_of_pair(base, delta, "F16")
    assert proof["verdict"] == "violated"
    assert proof["tensors"] == {name: each.violations for name, each in expected.items() if each.violations}
    assert list(proof) == ["weights", "region", "violations", "evidence", "verdict", "tensors"]
    assert result.proof is not None
    assert told.warnings == [violations_of(result.proof)]


def test_where_it_is_stated_a_wrong_base_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    """With a stated arithmetic: ``Mismatch``, the shards wait in staging; ``allow_unproved_base`` publishes those very files."""
    wrong_pair(tmp_path)
    options: dict[str, Any] = {"recipe_file": recipe_file(tmp_path), "max_shard_size": 2500}
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, **options)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "merged").exists()
    staged = {path.name: path.stat().st_ino for path in locate_target(tmp_path / "merged").shards.iterdir()}
    assert len(staged) >= 4
    result, told = merge(tmp_path, allow_unproved_base=True, **options)
    assert result.status == "merged"
    assert result.proof is not None
    assert str(caught.value) == (
        f"{violations_of(result.proof)}; use the right base; --allow-unproved-base publishes it anyway, "
        "deltaweights clean discards it"
    )
    assert told.warnings == [violations_of(result.proof)]
    assert f"{len(staged)} of {len(staged)} shards are finished already" in told.notes
    assert {path.name: path.stat().st_ino for path in (tmp_path / "merged").glob("*.safetensors")} == staged
    assert list(manifest_of(tmp_path / "merged")["proof"].items())[-1] == ("allowed", True)
    assert not locate_target(tmp_path / "merged").root.exists()


def test_what_stands_there_is_judged_again(tmp_path: Path) -> None:
    """A complete target whose base was let pass is refused by a run that does not let it pass, told by one that does."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    first, _ = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    before = files_of(tmp_path / "merged")
    again, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert (again.status, again.proof) == ("already complete", first.proof)
    assert first.proof is not None
    assert told.warnings == [violations_of(first.proof)]
    with pytest.raises(Mismatch, match="the base is not the one that the delta was made from"):
        merge(tmp_path, recipe_file=own)
    assert files_of(tmp_path / "merged") == before


def test_a_result_that_stands_there_is_kept_when_another_base_is_refused(tmp_path: Path) -> None:
    """With ``overwrite``, a refused base leaves the earlier result as it is."""
    base, delta = small_base(), delta_tensors(small_base())
    own = recipe_file(tmp_path)
    merge_pair(tmp_path, base, delta, recipe_file=own)
    before = files_of(tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    save(wrong_pair(tmp_path / "wrong")[0], tmp_path / "base", "torch", 1, config=False)
    with pytest.raises(Mismatch):
        merge(tmp_path, recipe_file=own, overwrite=True)
    assert files_of(tmp_path / "merged") == before


def test_allowing_what_is_proved_records_nothing(tmp_path: Path) -> None:
    """``allow_unproved_base`` on the right base writes the files that a merge without it writes."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path)
    merge(tmp_path, "strictly", recipe_file=own)
    result, told = merge(tmp_path, "allowed", recipe_file=own, allow_unproved_base=True)
    assert result.proof is not None
    assert (result.proof.verdict, told.warnings) == ("proved", [])
    assert files_of(tmp_path / "allowed") == files_of(tmp_path / "strictly")


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_a_base_with_holes_is_not_proved(tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A base of which two layers are missing proves the rest, and exactly the matrices of those layers are untested."""
    lost = holed_pair(tmp_path, fill)
    assert len(lost) == 14
    result, told = merge(tmp_path)
    assert result.proof is not None
    assert (result.proof.verdict, result.proof.untested, result.proof.violations) == ("partial", lost, 0)
    assert not result.proof.allowed
    assert manifest_of(tmp_path / "merged")["proof"]["untested"] == list(lost)
    assert told.warnings[-1] == part_of(lost)
    assert check_base(tmp_path / "base", tmp_path / "delta").proof == result.proof


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_where_it_is_stated_a_base_with_holes_is_refused(
    tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """With a stated arithmetic a base with holes ends an apply; ``allow_unproved_base`` publishes it, which is recorded."""
    lost, own = holed_pair(tmp_path, fill), recipe_file(tmp_path)
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, recipe_file=own)
    assert str(caught.value) == (
        f"{part_of(lost)}; use the right base; --allow-unproved-base publishes it anyway, deltaweights clean discards it"
    )
    assert not (tmp_path / "merged").exists()
    _, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert part_of(lost) in told.warnings
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof["untested"], proof["allowed"]) == ("partial", list(lost), True)
    found = parse_manifest((tmp_path / "merged" / "manifest.json").read_bytes()).findings.proof
    assert found is not None
    assert found.untested == lost


def codes(run: Run, folder: Path) -> dict[str, tuple[int, int]]:
    """Return how check-base and apply end for a pair, with a recipe that states its arithmetic and without one."""
    recipe_file(folder)
    found = {}
    for what, options in (("stated", ["--recipe", "own.toml"]), ("unstated", [])):
        inputs = ("--base", "base", "--delta", "delta", "-q", *options)
        check = run("check-base", *inputs, cwd=folder)
        done = run("apply", *inputs, "--target", what, cwd=folder)
        found[what] = check.returncode, done.returncode
        assert (folder / what).exists() == (done.returncode == 0)
        kind = "error" if done.returncode else "warning"
        assert done.stderr.splitlines()[-1].startswith(f"deltaweights: {kind}: the base ")
    return found


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_row58_exit_codes_of_a_base_with_holes(
    run: Run, tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A base with holes ends check-base and apply with 4 where the arithmetic is stated; else with 6, and 0 and a warning."""
    holed_pair(tmp_path, fill)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """A delta of another arithmetic ends check-base and apply with 4 where one is stated; else with 6, and 0 and a warning."""
    other_arithmetic(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_base(run: Run, tmp_path: Path) -> None:
    """A refuted base ends check-base with 4, stated or not, and apply with 4 where the arithmetic is stated, else with 0."""
    wrong_pair(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (4, 0)}


def test_what_check_base_says_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """Its one line is apply's, with the way out: another base where the arithmetic is stated, else another arithmetic."""
    other_arithmetic(tmp_path)
    result, told = merge(tmp_path)
    (problem,) = told.warnings
    assert problem.startswith("the base cannot be proved: ")
    inputs = ("--base", "base", "--delta", "delta", "-q")
    line = f"base            {proof_line(result.proof)}\n"
    stated = run("check-base", *inputs, "--recipe", "own.toml", cwd=tmp_path)
    remedy = "use the base that the delta was made from"
    assert (stated.stdout, stated.stderr) == (line, f"deltaweights: error: base: {problem}; {remedy}\n")
    unstated = run("check-base", *inputs, cwd=tmp_path)
    remedy = "try --compute-dtype, if you know in which arithmetic the delta was computed"
    assert (unstated.stdout, unstated.stderr) == (line, f"deltaweights: error: base: {problem}; {remedy}\n")


@pytest.mark.parametrize(("options", "code"), [((), 6), (("--recipe", "own.toml"), 4)], ids=["unstated", "stated"])
def test_what_check_base_says_of_holes(run: Run, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """Its one line is apply's, and the way out is the right base: no other arithmetic fills a hole."""
    lost = holed_pair(tmp_path, zeros)
    recipe_file(tmp_path)
    done = run("check-base", "--base", "base", "--delta", "delta", "-q", *options, cwd=tmp_path)
    error = f"deltaweights: error: base: {part_of(lost)}; use the base that the delta was made from\n"
    assert (done.returncode, done.stderr) == (code, error)


TUNINGS = {"of 2 %": TUNING, "hardly any": 2e-5, "half the weights' size": STD / 2}


@pytest.mark.parametrize("step", TUNINGS.values(), ids=TUNINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row58_a_merged_model_in_place_of_a_delta_proves_nothing(tmp_path: Path, dtype: str, step: float) -> None:
    """``check_base`` never says that a merged model proves its base, however little it was tuned, with or without a recipe."""
    base = base_tensors(6, 320, 64, dtype=DTYPES[dtype])
    base = {name: tensor for name, tensor in base.items() if not name.endswith("inv_freq")}
    generator = torch.Generator().manual_seed(9)
    merged = {
        name: (tensor.float() + torch.randn(tensor.shape, generator=generator) * step).to(tensor.dtype)
        for name, tensor in base.items()
    }
    save_pair(tmp_path, base, merged)
    own, told = recipe_file(tmp_path, dtype), RecordingReport()
    found = check_base(tmp_path / "base", tmp_path / "delta", compute_dtype=dtype, report=told)
    assert found.proof is not None
    assert found.proof.evidence > 100_000
    assert not found.proved
    with pytest.raises((Mismatch, CheckFailed)):
        found.raise_unless_proved()
    assert told.warnings[0].startswith(f"{tmp_path / 'delta'}: likely already a merged model, not a delta: found ")
    with pytest.raises(Mismatch, match=r"likely already a merged model, not a delta: .*; give the delta itself$"):
        check_base(tmp_path / "base", tmp_path / "delta", recipe_file=own)


def test_another_arithmetic_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    """Where the arithmetic is stated, a delta from another one does not pass as its own."""
    with pytest.raises(Mismatch, match=r"^the base cannot be proved: .* likely the delta was computed in another"):
        merge(tmp_path, recipe_file=other_arithmetic(tmp_path))
    assert not (tmp_path / "merged").exists()


def test_another_arithmetic_that_was_let_pass_is_recorded(tmp_path: Path) -> None:
    """``allowed`` is true wherever a recipe would have refused and the user insisted."""
    merge(tmp_path, recipe_file=other_arithmetic(tmp_path), allow_unproved_base=True)
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof.get("allowed")) == ("another arithmetic", True)


@pytest.mark.parametrize("stated", [True, False])
def test_that_nobody_looked_is_told_where_it_is_stated(tmp_path: Path, stated: bool) -> None:
    """With ``prove=False`` a recipe that states the arithmetic gives a warning, also when the result is there; others do not."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path, stated=stated)
    expected = [NOBODY_LOOKED] if stated else []
    for status in ("merged", "already complete"):
        result, told = merge(tmp_path, recipe_file=own, prove=False)
        assert (result.status, told.warnings) == (status, expected)
    assert merge(tmp_path, "plain", prove=False)[1].warnings == []


NOBODY_LOOKED = "the base was not checked (--no-prove)"


def test_exit_codes(tmp_path: Path, run: Run) -> None:
    """A refuted base ends with 4 and one line where it is stated, with 0 where it is let pass, not stated, or not looked at."""
    wrong_pair(tmp_path)
    recipe_file(tmp_path)
    command = ("apply", "--base", "base", "--delta", "delta", "-q")
    refused = run(*command, "--target", "a", "--recipe", "own.toml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (4, "", 1)
    assert refused.stderr.startswith("deltaweights: error: the base is not the one that the delta was made from: ")
    for target, more in {"a": ["--recipe", "own.toml", "--allow-unproved-base"], "b": []}.items():
        done = run(*command, "--target", target, *more, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.startswith("deltaweights: warning: the base is not the one that the delta was made from: ")
        assert "\nbase            NOT proved: " in done.stdout
    unseen = run(*command, "--target", "c", "--recipe", "own.toml", "--no-prove", cwd=tmp_path)
    assert (unseen.returncode, unseen.stderr) == (0, f"deltaweights: warning: {NOBODY_LOOKED}\n")
    assert "proved" not in unseen.stdout


def test_without_the_proof_the_weights_are_the_same(tmp_path: Path) -> None:
    """``prove=False`` writes the same weights, records nothing of the base in manifest and result, and refuses no base."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    proved, _ = merge(tmp_path, "proved", recipe_file=own, allow_unproved_base=True, max_shard_size=2500)
    blind, told = merge(tmp_path, "blind", recipe_file=own, prove=False, max_shard_size=2500)
    assert blind.proof is None
    assert proof_line(blind.proof) is None
    assert told.warnings == [NOBODY_LOOKED]
    assert "proof" not in manifest_of(tmp_path / "blind")
    assert "proof" in manifest_of(tmp_path / "proved")
    assert without_card(tmp_path / "blind") == without_card(tmp_path / "proved")
    assert blind.content_digest == proved.content_digest
