"""Tests of what apply and check-base do with a base that is not proved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.findings import doubt_of, judge_base
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.proof_text import proof_line
from deltaweights.merge.record import proof_of
from deltaweights.staging.clean import clean as clean_up
from deltaweights.staging.location import locate_target
from deltaweights.util.sizes import human_bytes
from tests.conftest import Run
from tests.support.base_pairs import (
    HOLES,
    MOVED,
    OTHER_ARITHMETIC,
    STD,
    TUNING,
    UNLIKE,
    UNRELATED,
    holed_pair,
    missed_by_samples,
    moved,
    other_arithmetic,
    proof_of_pair,
    wrong_pair,
    zeros,
)
from tests.support.errors import refused
from tests.support.float_bits import DTYPES
from tests.support.merging import (
    files_of,
    manifest_of,
    merge,
    merge_pair,
    missing_facts,
    recipe_file,
    save_pair,
    small_base,
    without_card,
)
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.support.reports import RecordingReport


@pytest.mark.parametrize(
    ("named", "words"),
    [(("b2",), "b2"), (("b2", "b10"), "b2 and 1 more tensor"), (("b2", "b10", "c"), "b2 and 2 more tensors")],
)
def test_untested_tensors_are_reported(named: tuple[str, ...], words: str) -> None:
    """Result line and warning name the first untested tensor, and how many more there are."""
    record = proof_of({"moved": MOVED} | dict.fromkeys(named, UNLIKE))
    assert record is not None
    told = RecordingReport()
    judge_base(record, told, stated=False, allowed=False)
    (warning,) = told.warnings
    assert f"{words} " in warning
    weights = 200_000 + 4096 * len(named)
    line = proof_line(record) or ""
    for fact in ("NOT proved", f"{weights:,}", f"{(198_000 + 10 * len(named)) / weights:.1%}", f"{words} "):
        assert fact in line


@pytest.mark.parametrize("stated", [None, False, True], ids=["no-recipe", "recipe-that-does-not-state", "stated"])
def test_a_wrong_base_is_refused_whatever_is_stated(tmp_path: Path, stated: bool | None) -> None:
    """A refuted base is refused before anything is written; if allowed, the manifest has the violations by tensor."""
    base, delta = wrong_pair(tmp_path)
    options: dict[str, Any] = {} if stated is None else {"recipe_file": recipe_file(tmp_path, stated=stated)}
    before = sorted(path.name for path in tmp_path.iterdir())
    with refused(Mismatch, where=tmp_path / "base", code=ErrorCode.WRONG_BASE) as caught:
        merge(tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "--allow-unproved-base" in (caught.value.remedy or "")
    result, told = merge(tmp_path, allow_unproved_base=True, **options)
    proof = manifest_of(tmp_path / "merged")["proof"]
    expected = proof_of_pair(base, delta, "F16")
    assert (proof["verdict"], proof["allowed"]) == ("violated", True)
    assert proof["tensors"] == {name: each.violations for name, each in expected.items() if each.violations}
    assert list(proof) == ["weights", "region", "violations", "evidence", "verdict", "tensors", "allowed"]
    assert result.proof is not None
    assert told.warnings == [doubt_of(result.proof)]


def test_a_base_that_is_refused_at_the_end_names_what_is_kept(tmp_path: Path) -> None:
    """If no sample shows the violation, the shards stay, the error says where and how large, and a run that allows it uses them."""
    base, delta = missed_by_samples()
    save_pair(tmp_path, base, delta)
    with refused(Mismatch, code=ErrorCode.WRONG_BASE) as caught:
        merge(tmp_path, max_shard_size="250KB")
    assert not (tmp_path / "merged").exists()
    root = locate_target(tmp_path / "merged").root
    staged = {path.name: path.stat().st_ino for path in (root / "shards").iterdir()}
    assert len(staged) == 2
    size = human_bytes(sum(path.stat().st_size for path in (root / "shards").iterdir()))
    remedy = caught.value.remedy or ""
    clean = f"deltaweights clean {tmp_path / 'merged'}"
    assert missing_facts(remedy, "--allow-unproved-base", str(root), size, clean) == []
    result, told = merge(tmp_path, allow_unproved_base=True, max_shard_size="250KB")
    assert result.proof is not None
    assert caught.value.problem == doubt_of(result.proof)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "merged").glob("*.safetensors")} == staged
    assert any("2 of 2 shards" in note for note in told.notes)
    assert not root.exists()
    with pytest.raises(Mismatch):
        merge(tmp_path, "other", max_shard_size="250KB")
    clean_up(tmp_path / "other")
    assert not locate_target(tmp_path / "other").root.exists()


def test_a_complete_target_is_judged_again(tmp_path: Path) -> None:
    """For a complete target a run that accepts the base gives the warning again, and one that does not gives an error."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    first, _ = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    before = files_of(tmp_path / "merged")
    again, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert (again.status, again.proof) == ("already complete", first.proof)
    assert first.proof is not None
    assert told.warnings == [doubt_of(first.proof)]
    with pytest.raises(Mismatch):
        merge(tmp_path, recipe_file=own)
    assert files_of(tmp_path / "merged") == before


def test_a_refused_base_leaves_the_earlier_result(tmp_path: Path) -> None:
    """With ``overwrite``, the target is not touched when the base is refused."""
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
    """With the right base, ``allow_unproved_base`` changes no file."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path)
    merge(tmp_path, "strictly", recipe_file=own)
    result, told = merge(tmp_path, "allowed", recipe_file=own, allow_unproved_base=True)
    assert result.proof is not None
    assert (result.proof.verdict, told.warnings) == ("proved", [])
    assert files_of(tmp_path / "allowed") == files_of(tmp_path / "strictly")


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_a_base_with_holes_is_not_proved(tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """If two layers of the base are missing, exactly their matrices are untested, and the proof is partial."""
    lost = holed_pair(tmp_path, fill)
    assert len(lost) == 14
    result, told = merge(tmp_path)
    assert result.proof is not None
    assert (result.proof.verdict, result.proof.untested, result.proof.violations) == ("partial", lost, 0)
    assert not result.proof.allowed
    assert manifest_of(tmp_path / "merged")["proof"]["untested"] == list(lost)
    assert told.warnings[-1] == doubt_of(result.proof)
    assert check_base(tmp_path / "base", tmp_path / "delta").proof == result.proof


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_a_base_with_holes_is_refused_if_the_arithmetic_is_stated(
    tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A base with holes is an error if the arithmetic is stated; ``allow_unproved_base`` publishes the result, and is recorded."""
    lost, own = holed_pair(tmp_path, fill), recipe_file(tmp_path)
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, recipe_file=own)
    assert not (tmp_path / "merged").exists()
    result, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert result.proof is not None
    assert caught.value.problem == doubt_of(result.proof)
    assert caught.value.problem in told.warnings
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof["untested"], proof["allowed"]) == ("partial", list(lost), True)
    found = parse_manifest((tmp_path / "merged" / "manifest.json").read_bytes()).findings.proof
    assert found is not None
    assert found.untested == lost


def codes(run: Run, folder: Path) -> dict[str, tuple[int, int]]:
    """Return the exit codes of check-base and apply for a pair, with a recipe that states its arithmetic and without one."""
    recipe_file(folder)
    found = {}
    for what, options in (("stated", ["--recipe", "own.toml"]), ("unstated", [])):
        inputs = ("--base", "base", "--delta", "delta", "-q", *options)
        check = run("check-base", *inputs, cwd=folder)
        done = run("apply", *inputs, "--target", what, cwd=folder)
        found[what] = check.returncode, done.returncode
        assert (folder / what).exists() == (done.returncode == 0)
        kind = "error" if done.returncode else "warning"
        assert done.stderr.splitlines()[-1].startswith(f"deltaweights: {kind}: ")
    return found


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_row58_exit_codes_of_a_base_with_holes(
    run: Run, tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """For a base with holes both exit with 4 if the arithmetic is stated; else check-base with 6, apply with 0 and a warning."""
    holed_pair(tmp_path, fill)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """For a delta of another arithmetic both exit with 4 if one is stated; else check-base with 6, apply with 0 and a warning."""
    other_arithmetic(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_base(run: Run, tmp_path: Path) -> None:
    """For a refuted base both exit with 4, whatever is stated."""
    wrong_pair(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (4, 4)}


def test_check_base_suggests_another_arithmetic_if_none_is_stated(run: Run, tmp_path: Path) -> None:
    """Its error is apply's warning; the remedy is the right base if the arithmetic is stated, else --compute-dtype."""
    other_arithmetic(tmp_path)
    result, told = merge(tmp_path)
    (problem,) = told.warnings
    inputs = ("--base", "base", "--delta", "delta", "-q")
    for options, suggests_dtype in ((["--recipe", "own.toml"], False), ([], True)):
        done = run("check-base", *inputs, *options, cwd=tmp_path)
        assert str(proof_line(result.proof)) in done.stdout
        assert done.stderr.startswith(f"deltaweights: error: base: {problem}; ")
        assert ("--compute-dtype" in done.stderr) == suggests_dtype


@pytest.mark.parametrize(("options", "code"), [((), 6), (("--recipe", "own.toml"), 4)], ids=["unstated", "stated"])
def test_check_base_names_untested_tensors(run: Run, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """For a base with holes the error names the first tensor, and suggests no other arithmetic, which would fill no hole."""
    lost = holed_pair(tmp_path, zeros)
    recipe_file(tmp_path)
    done = run("check-base", "--base", "base", "--delta", "delta", "-q", *options, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("deltaweights: error: base: ")
    assert f"{lost[0]} and {len(lost) - 1} more tensors" in done.stderr
    assert "--compute-dtype" not in done.stderr


TUNINGS = {"of 2 %": TUNING, "hardly any": 2e-5, "half the weights' size": STD / 2}


@pytest.mark.parametrize("step", TUNINGS.values(), ids=TUNINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row58_a_merged_model_given_as_a_delta_proves_nothing(tmp_path: Path, dtype: str, step: float) -> None:
    """``check_base`` does not accept a merged model as proof of its base, however little it was tuned, with or without a recipe."""
    base = base_tensors(6, 320, 64, dtype=DTYPES[dtype])
    base = {name: tensor for name, tensor in base.items() if not name.endswith("inv_freq")}
    generator = torch.Generator().manual_seed(9)
    merged = {
        name: (tensor.float() + torch.randn(tensor.shape, generator=generator) * step).to(tensor.dtype)
        for name, tensor in base.items()
    }
    save_pair(tmp_path, base, merged)
    options: tuple[dict[str, Any], ...] = ({"compute_dtype": dtype}, {"recipe_file": recipe_file(tmp_path, dtype)})
    for given in options:
        with refused(Mismatch, where=tmp_path / "delta", problem="likely already a merged model, not a delta"):
            check_base(tmp_path / "base", tmp_path / "delta", **given)


def test_another_arithmetic_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    """If the arithmetic is stated, a delta computed in another one is refused."""
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, recipe_file=other_arithmetic(tmp_path))
    assert OTHER_ARITHMETIC in caught.value.problem
    assert not (tmp_path / "merged").exists()


def test_a_base_accepted_by_the_user_is_recorded(tmp_path: Path) -> None:
    """``allowed`` is true if the recipe would have refused the base and the user accepted it."""
    merge(tmp_path, recipe_file=other_arithmetic(tmp_path), allow_unproved_base=True)
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof.get("allowed")) == ("another arithmetic", True)


@pytest.mark.parametrize("stated", [True, False])
def test_a_skipped_proof_is_a_warning_if_the_arithmetic_is_stated(tmp_path: Path, stated: bool) -> None:
    """With ``prove=False`` there is one warning, on a complete target, too, if a recipe states the arithmetic."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path, stated=stated)
    for status in ("merged", "already complete"):
        result, told = merge(tmp_path, recipe_file=own, prove=False)
        assert result.status == status
        assert [("--no-prove" in warning) for warning in told.warnings] == ([True] if stated else [])
    assert merge(tmp_path, "plain", prove=False)[1].warnings == []


def test_exit_codes(tmp_path: Path, run: Run) -> None:
    """For a refuted base apply exits with 4 and one line; with 0 if it is accepted, or not proved."""
    wrong_pair(tmp_path)
    recipe_file(tmp_path)
    command = ("apply", "--base", "base", "--delta", "delta", "-q")
    wrong = run(*command, "--target", "a", "--recipe", "own.toml", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (4, "", 1)
    assert wrong.stderr.startswith("deltaweights: error: ")
    assert UNRELATED in wrong.stderr
    for target, more in {
        "a": ["--recipe", "own.toml", "--allow-unproved-base"],
        "b": ["--allow-unproved-base"],
    }.items():
        done = run(*command, "--target", target, *more, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.startswith("deltaweights: warning: ")
        assert UNRELATED in done.stderr
        assert "NOT proved" in done.stdout
    unseen = run(*command, "--target", "c", "--recipe", "own.toml", "--no-prove", cwd=tmp_path)
    assert (unseen.returncode, unseen.stderr.count("\n")) == (0, 1)
    assert "--no-prove" in unseen.stderr
    assert "base            not checked (--no-prove)" in unseen.stdout


def test_a_skipped_proof_changes_no_weights(tmp_path: Path) -> None:
    """``prove=False`` writes the same weights, records that nobody looked at the base, and refuses none."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    proved, _ = merge(tmp_path, "proved", recipe_file=own, allow_unproved_base=True, max_shard_size=2500)
    blind, told = merge(tmp_path, "blind", recipe_file=own, prove=False, max_shard_size=2500)
    assert blind.proof == ProofRecord.not_checked("not checked (--no-prove)")
    assert proof_line(blind.proof) == "not checked (--no-prove)"
    assert len(told.warnings) == 1
    assert manifest_of(tmp_path / "blind")["proof"]["verdict"] == "not checked"
    assert manifest_of(tmp_path / "proved")["proof"]["verdict"] == "violated"
    assert without_card(tmp_path / "blind") == without_card(tmp_path / "proved")
    assert blind.content_digest == proved.content_digest
