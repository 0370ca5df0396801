"""Inputs that are not what the recipe wants, or the same thing twice, are refused or warned about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import Mismatch
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.make import make_delta
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.identity import (
    AS_A_MODEL,
    BASE,
    COMMIT,
    CONFIGS,
    DELTA,
    LLAVA_MED,
    ONE,
    OWN,
    RECIPE,
    SHAPES,
    TWO,
    UNLISTED,
    Known,
    cached,
    known,
    recipe,
    sha256_of,
    with_projector,
)
from tests.support.pairs import Tensors, load, reference, same_bits, save
from tests.support.reports import RecordingReport

__all__ = ["known", "recipe"]  # fixtures


def another_base(tmp_path: Path, known: Known, files: Sequence[str] = (ONE, TWO)) -> tuple[Path, Path]:
    """Save the pair, and make files of the base known as LLaMA-2's."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    for name in files:
        known.of_model(base / name, "llama-2-7b")
    return base, delta


@pytest.mark.parametrize(("files", "share"), [((ONE, TWO), "sha256"), ((TWO,), "sha256 of 1 of 2 files")])
def test_row58_a_base_that_is_by_hash_another_model(
    tmp_path: Path, known: Known, recipe: Path, files: Sequence[str], share: str
) -> None:
    """A base whose hashes are those of another model than the recipe's is refused with 4; nothing is written."""
    base, delta = another_base(tmp_path, known, files)
    before = sorted(tmp_path.rglob("*"))
    found = f"LLaMA-2 7B (Hugging Face .bin); {share} matches"
    with refused(Mismatch, where=base, found=found, expected="LLaMA-1 7B") as info:
        apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True)
    assert info.value.exit_code == 4
    assert before == sorted(tmp_path.rglob("*"))


def test_another_base_that_is_let_pass(tmp_path: Path, known: Known, recipe: Path) -> None:
    """With ``allow_unproved_base`` it is a warning, and the merge is made."""
    base, delta = another_base(tmp_path, known)
    report = RecordingReport()
    options: dict[str, Any] = {"recipe_file": recipe, "hash_inputs": True, "report": report}
    apply_delta(base, delta, tmp_path / "out", allow_unproved_base=True, **options)
    assert report.warnings == [f"{base}: this is LLaMA-2 7B, not LLaMA-1 7B"]
    assert same_bits(load(tmp_path / "out"), reference(BASE, DELTA))


def another_copy(base: Path, title: str = "LLaMA-1 7B", name: str = ONE) -> str:
    """Return the warning about a base whose hashes are not those of the model."""
    return f"{base / name}: its sha256 is not a known one of {title}: another copy, or damaged"


def test_the_right_base_and_unlike_ones_pass(tmp_path: Path, known: Known, recipe: Path) -> None:
    """The recipe's base passes silently, as does any base without a recipe; files of two models give a warning."""
    base, delta = another_base(tmp_path, known)
    plain, mixed, right = RecordingReport(), RecordingReport(), RecordingReport()
    apply_delta(base, delta, tmp_path / "plain", hash_inputs=True, report=plain)
    known.of_model(base / ONE, "llama-1-7b")
    apply_delta(base, delta, tmp_path / "mixed", recipe_file=recipe, hash_inputs=True, report=mixed)
    known.of_model(base / TWO, "llama-1-7b")
    apply_delta(base, delta, tmp_path / "right", recipe_file=recipe, hash_inputs=True, report=right)
    assert (plain.warnings, mixed.warnings, right.warnings) == ([], [another_copy(base, name=TWO)], [])
    assert "base            LLaMA-2 7B (Hugging Face .bin); sha256 matches" in plain.notes
    assert any(note.startswith("base            files of different models: ") for note in mixed.notes)
    assert "base            LLaMA-1 7B (Hugging Face .bin); sha256 matches" in right.notes


def test_a_base_of_unlisted_hashes_is_a_warning(tmp_path: Path, known: Known, recipe: Path) -> None:
    """A base whose hashes are not those of any model gives a warning, whether they were computed or stated by the cache."""
    hashed_, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    stated = cached(save(BASE, tmp_path / "stated"), {ONE: "a" * 64, TWO: "b" * 64})
    for target, base, make in (("made", hashed_, True), ("cache", stated, False)):
        report = RecordingReport()
        apply_delta(base, delta, tmp_path / target, recipe_file=recipe, hash_inputs=make, report=report)
        assert report.warnings == [another_copy(base)]


def with_base_files(recipe: Path, files: Sequence[Path], model: str = "llama-1-7b") -> None:
    """Let the tiny pair's recipe accept these base files, and name ``model`` as its base unless empty."""
    listed = "".join(f'"{path.name}" = "{sha256_of(path)}"\n' for path in files)
    base = f'[base]\nmodel = "{model}"\n' if model else ""
    recipe.write_text(f"{OWN}{base}[base.files]\n{listed}")


@pytest.mark.parametrize("of", [None, "llama-2-7b"], ids=["nobody's", "another-model's"])
def test_a_base_that_the_recipe_lists_passes(tmp_path: Path, known: Known, recipe: Path, of: str | None) -> None:
    """A base whose hashes are all under ``[base.files]`` passes silently, whatever else is known of them."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    report = RecordingReport()
    for name in (ONE, TWO) if of else ():
        known.of_model(base / name, of or "")
    with_base_files(recipe, [base / ONE, base / TWO])
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == []


@pytest.mark.parametrize(
    ("model", "title"), [("llama-1-7b", "LLaMA-1 7B"), ("", "the base of recipe own")], ids=["with-a-model", "without"]
)
def test_a_base_that_the_recipe_lists_in_part(
    tmp_path: Path, known: Known, recipe: Path, model: str, title: str
) -> None:
    """A base one of whose hashes stands nowhere is another copy, maybe; without a model, it is that of the recipe by name."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    report = RecordingReport()
    with_base_files(recipe, [base / ONE], model)
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == [another_copy(base, title, TWO)]


def test_without_a_known_base_no_hash_is_unlisted(tmp_path: Path, known: Known, recipe: Path) -> None:
    """A recipe that knows neither model nor files of its base has nothing to hold hashes against."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    report = RecordingReport()
    with_base_files(recipe, [], "")
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == []


def test_without_hashes_nothing_is_known(tmp_path: Path, known: Known, recipe: Path) -> None:
    """InputHashes are made when they are asked for: without them the same base is only shapes and numbers."""
    base, delta = another_base(tmp_path, known)
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    assert f"base            {SHAPES}; {AS_A_MODEL}" in report.notes
    assert report.warnings == []


LLAMA_2 = {ONE: "ee62ed2ad7ded505ae47df50bc6c52916860dfb1c009df4715148cc4bfb50d2f"}

VICUNA = {
    ONE: "5ed572be140240b212049a3e791271eed8a04c40bc732c91a4da4b1469db23b1",
    TWO: "d9382da358f0ec38c4fca3bcf1e3e65274ae4c78090e0775b4bb4dea6a518e08",
}


@pytest.mark.parametrize(
    ("blobs", "found", "title"),
    [
        (
            LLAMA_2,
            "LLaMA-2 7B (Hugging Face .bin); sha256 of 1 of 2 files (stated by the Hub's cache) matches",
            "LLaMA-2 7B",
        ),
        (
            VICUNA,
            "Vicuna 7B v1.1 (a merge) (Hugging Face .bin); sha256 (stated by the Hub's cache) matches",
            "Vicuna 7B v1.1 (a merge)",
        ),
    ],
    ids=["llama-2", "vicuna"],
)
def test_row58_a_base_that_the_cache_states_to_be_another(
    run: Run, tmp_path: Path, recipe: Path, blobs: dict[str, str], found: str, title: str
) -> None:
    """The cache's names alone refuse a base that is another model than the recipe's, before a weight is read, or warn."""
    base, delta = cached(save(BASE, tmp_path / "base"), blobs), save(DELTA, tmp_path / "delta")
    arguments = ("apply", "--recipe", recipe, "--base", base, "--delta", delta, "--target", "out")
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"deltaweights: error: {base}: this is {title}, not LLaMA-1 7B: found {found}, expected LLaMA-1 7B; "
        "use LLaMA-1 7B; --allow-unproved-base lets it pass\n"
    )
    assert before == sorted(tmp_path.rglob("*"))
    passed = run(*arguments, "-q", "--allow-unproved-base", cwd=tmp_path)
    assert passed.returncode == 0
    assert passed.stderr == f"deltaweights: warning: {base}: this is {title}, not LLaMA-1 7B\n"
    assert same_bits(load(tmp_path / "out"), reference(BASE, DELTA))


def unknown_copy(path: Path, sha256: str, recipe: str = "llava-med-7b") -> str:
    return f"{path}: sha256 {sha256} is not that of recipe {recipe}: another copy, or damaged"


def test_a_delta_of_other_hashes_is_a_warning(run: Run, tmp_path: Path, recipe: Path) -> None:
    """A delta's file of a name that the recipe lists, with another hash, is a warning; a file of another name is unknown."""
    base = save(BASE, tmp_path / "base")
    delta = with_projector(tmp_path / "delta")
    arguments = ("apply", "--recipe", recipe, "--base", base, "--delta", delta, "--hash-inputs", "-q")
    done = run(*arguments, "--target", "out", cwd=tmp_path)
    assert done.returncode == 0
    of_delta = [unknown_copy(delta / name, sha256_of(delta / name)) for name in (ONE, TWO)]
    assert done.stderr.splitlines() == [f"deltaweights: warning: {text}" for text in (another_copy(base), *of_delta)]
    quiet = run(*arguments[:-2], "-q", "--target", "quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stderr) == (0, ""), "nobody asked for hashes"


def test_a_cached_delta_of_other_hashes_is_a_warning(tmp_path: Path, recipe: Path) -> None:
    """What the Hub's cache states of a delta's files is held against the recipe without a read; listed hashes pass in silence."""
    base = save(BASE, tmp_path / "base")
    delta = cached(save(DELTA, tmp_path / "delta"), LLAVA_MED | {TWO: "f" * 64})
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    assert report.warnings == [unknown_copy(delta / TWO, "f" * 64)]
    stated = "sha256 of 1 of 2 files (stated by the Hub's cache) matches"
    text = f"delta           the delta of LLaVA-Med v1, 7B, recipe llava-med-7b; {stated}"
    assert text in report.notes


OF_THE_RECIPE, KNOWN_COMMIT = "microsoft--llava-med-7b-delta", "3cdf72ff9d4f452f29788cef18f8e089ba588f4b"

COMMITS: dict[str, tuple[str, dict[str, str], str, bool]] = {
    # repository, hashes, the recipe's commit; whether there is a doubt
    "of-another-commit": (OF_THE_RECIPE, {}, KNOWN_COMMIT, True),
    "of-another-commit-one-file-unlisted": (OF_THE_RECIPE, {**LLAVA_MED, TWO: "f" * 64}, KNOWN_COMMIT, True),
    "of-another-commit-all-files-listed": (OF_THE_RECIPE, LLAVA_MED, KNOWN_COMMIT, False),
    "of-the-commit": (OF_THE_RECIPE, {}, COMMIT, False),
    "of-the-commit-whose-beginning-is-known": (OF_THE_RECIPE, {}, COMMIT[:7], False),
    "of-another-repository": ("somebody--mirror", {}, KNOWN_COMMIT, False),
}


@pytest.mark.parametrize(("repo", "blobs", "revision", "doubted"), COMMITS.values(), ids=COMMITS)
def test_a_snapshot_of_another_commit_is_a_warning(
    tmp_path: Path, recipe: Path, repo: str, blobs: dict[str, str], revision: str, doubted: bool
) -> None:
    """A snapshot of the recipe's repository at another commit than it knows is doubted, unless all its hashes are listed."""
    base, delta = save(BASE, tmp_path / "base"), cached(save(DELTA, tmp_path / "delta"), blobs, repo)
    recipe.write_text(f'{RECIPE}[delta]\nrevision = "{revision}"\n')
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    unlisted = [unknown_copy(delta / name, sha256) for name, sha256 in blobs.items() if sha256 != LLAVA_MED[name]]
    doubt = f"{delta}: is of commit {COMMIT}, recipe llava-med-7b knows {revision}"
    assert report.warnings == [*unlisted, *([doubt] if doubted else [])]


def test_nothing_is_said_twice(tmp_path: Path, recipe: Path) -> None:
    """Where the hashes that are made are those that the cache states, what follows from them is said once."""
    base, folder = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    delta = cached(folder, {name: sha256_of(folder / name) for name in (ONE, TWO)})
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    of_delta = [unknown_copy(delta / name, (delta / name).resolve().name) for name in (ONE, TWO)]
    assert report.warnings == [another_copy(base), *of_delta]
    named = [note for note in report.notes if note.startswith("delta ")]
    assert [UNLISTED in note for note in named] == [True]


@pytest.mark.parametrize("generation", CONFIGS)
def test_the_config_of_another_generation_is_a_warning(tmp_path: Path, recipe: Path, generation: str | None) -> None:
    """A base beside a config.json of another generation than the recipe's base is doubted; its own, and none, pass."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    (base / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIGS[generation]}))
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    doubt = f"{base}: config.json is that of LLaMA-2, and the base should be LLaMA-1 7B"
    assert report.warnings == ([doubt] if generation == "LLaMA-2" else [])


def test_hashes_outweigh_a_config(tmp_path: Path, known: Known, recipe: Path) -> None:
    """A base that is the right one by its hashes is not doubted for a config.json that was copied there."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    (base / "config.json").write_text(json.dumps(CONFIGS["LLaMA-2"]))
    report = RecordingReport()
    for name in (ONE, TWO):
        known.of_model(base / name, "llama-1-7b")
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == []


def scaled(factor: float) -> Tensors:
    """Return the base's weights times ``factor``, as a delta."""
    return {name: tensor if name.endswith("inv_freq") else tensor * factor for name, tensor in BASE.items()}


@pytest.mark.parametrize(
    ("factor", "share"), [(0.25, None), (0.484375, None), (0.5, "0.5"), (1.5, "1.5"), (64.0, "64")]
)
def test_a_delta_as_large_as_its_base_is_doubted(tmp_path: Path, factor: float, share: str | None) -> None:
    """Without a recipe, a delta that is the base's weights, at least half as large, is refused, unless that is allowed."""
    base, delta = save(BASE, tmp_path / "base"), save(scaled(factor), tmp_path / "delta")
    report = RecordingReport()
    problem, expected = "likely already a merged model, not a delta", "a small part of them"
    found = f"weights {share} times as large as the base's"
    if share:
        with refused(Mismatch, where=delta, problem=problem, found=found, expected=expected):
            apply_delta(base, delta, tmp_path / "refused", prove=False)
    apply_delta(base, delta, tmp_path / "out", prove=False, allow_unproved_base=True, report=report)
    warning = f"{delta}: {problem}: found {found}, expected {expected}"
    assert report.warnings == ([warning] if share else [])


def merged_as_delta(tmp_path: Path) -> tuple[Path, Path]:
    """Save the base, and the merged model in place of the delta."""
    return save(BASE, tmp_path / "base"), save(reference(BASE, DELTA), tmp_path / "merged")


def test_row58_a_merged_model_in_place_of_a_stated_delta(run: Run, tmp_path: Path, recipe: Path) -> None:
    """Under a recipe that states the delta's arithmetic it is an error (4), unless it is allowed."""
    base, merged = merged_as_delta(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = ("apply", "--recipe", recipe, "--base", base, "--delta", merged, "--target", "out", "-q")
    done = run(*arguments, cwd=tmp_path)
    problem = "likely already a merged model, not a delta"
    found = "found weights 1 times as large as the base's, expected a small part of them"
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"deltaweights: error: {merged}: {problem}: {found}; give the delta itself; --allow-unproved-base lets it pass\n"
    )
    assert before == sorted(tmp_path.rglob("*"))
    passed = run(*arguments, "--allow-unproved-base", cwd=tmp_path)
    assert passed.returncode == 0
    assert f"deltaweights: warning: {merged}: {problem}: {found}\n" in passed.stderr


def test_a_merged_model_under_a_recipe_that_states_nothing(tmp_path: Path, recipe: Path) -> None:
    """Under a recipe that does not state the delta's arithmetic it is refused, too, unless it is allowed."""
    base, merged = merged_as_delta(tmp_path)
    recipe.write_text(f"{RECIPE}[arithmetic]\nstated = false\n")
    report = RecordingReport()
    with refused(Mismatch, where=merged, problem="likely already a merged model, not a delta"):
        apply_delta(base, merged, tmp_path / "out", recipe_file=recipe)
    apply_delta(base, merged, tmp_path / "out", recipe_file=recipe, allow_unproved_base=True, report=report)
    assert report.warnings[0].startswith(f"{merged}: likely already a merged model, not a delta: found weights 1 times")


SAME = "base and delta hold the same weights, as far as samples tell"


def its_own_delta(tmp_path: Path) -> tuple[Path, Path]:
    """Save the base twice, in two containers."""
    return save(BASE, tmp_path / "base"), save(BASE, tmp_path / "again", "safetensors", 1)


@pytest.mark.parametrize("options", [[], ["--recipe", "own.toml"], ["--no-prove"], ["--dry-run"]], ids=str)
def test_row58_a_base_as_its_own_delta(run: Run, tmp_path: Path, options: list[str]) -> None:
    """A base that is given as its own delta is refused with 4, whatever the containers, and nothing is written."""
    its_own_delta(tmp_path)
    (tmp_path / "own.toml").write_text(OWN)
    before = sorted(tmp_path.rglob("*"))
    done = run("apply", "--base", "base", "--delta", "again", "--target", "out", "-q", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    remedy = "give the delta itself; --allow-unproved-base lets it pass"
    assert done.stderr == f"deltaweights: error: again: {SAME}; {remedy}\n"
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("options", [[], ["--recipe", "own.toml"]], ids=str)
def test_row58_a_base_as_its_own_delta_proves_nothing(run: Run, tmp_path: Path, options: list[str]) -> None:
    """``check-base`` of a base and itself ends with 4, and names no option that it does not have."""
    its_own_delta(tmp_path)
    (tmp_path / "own.toml").write_text(OWN)
    done = run("check-base", "--base", "base", "--delta", "again", "-q", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"deltaweights: error: again: {SAME}; give the delta itself\n"


def test_a_base_as_its_own_delta_that_is_let_pass(tmp_path: Path) -> None:
    """With ``allow_unproved_base`` there is one warning, and the sum is written."""
    base, again = its_own_delta(tmp_path)
    report = RecordingReport()
    apply_delta(base, again, tmp_path / "out", prove=False, allow_unproved_base=True, report=report)
    assert report.warnings == [f"{again}: {SAME}"]
    assert same_bits(load(tmp_path / "out"), reference(BASE, BASE))


def test_a_target_that_is_its_own_base(tmp_path: Path) -> None:
    """A target that is its own base gives a warning, and a delta of zeros."""
    base, again = its_own_delta(tmp_path)
    report = RecordingReport()
    make_delta(base, again, tmp_path / "zero", report=report)
    problem = "base and target hold the same weights, as far as samples tell"
    assert report.warnings[0] == f"{again}: {problem}: the delta will be zero where they meet"
    assert not any(tensor.any() for tensor in load(tmp_path / "zero").values())


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

WEIGHTS = {name: tensor for name, tensor in BASE.items() if not name.endswith("inv_freq")}

UNLIKE: dict[str, Tensors] = {
    "one-weight": {"model.norm.weight": BASE["model.norm.weight"] + 1},
    "names": {EMBEDDING: BASE[HEAD], HEAD: BASE[EMBEDDING]},
}


@pytest.mark.parametrize("change", UNLIKE.values(), ids=UNLIKE)
def test_what_is_not_the_same_twice(tmp_path: Path, change: Tensors) -> None:
    """Weights that differ from the base's, or have other names, are not reported as the base."""
    report = RecordingReport()
    base, other = save(BASE, tmp_path / "base"), save(BASE | change, tmp_path / "other")
    make_delta(base, other, tmp_path / "delta", report=report)
    assert not any("hold the same weights" in warning for warning in report.warnings)


ALIKE: dict[str, tuple[Tensors, Tensors]] = {
    "buffers-in-the-base": (BASE, WEIGHTS),
    "buffers-in-the-delta": (WEIGHTS, BASE),
    "other-buffers": (BASE, WEIGHTS | {name: BASE[name] * 2 for name in BASE.keys() - WEIGHTS.keys()}),
    "a-norm-in-float32": (WEIGHTS, WEIGHTS | {"model.norm.weight": BASE["model.norm.weight"].float()}),
    "a-projector": (WEIGHTS, WEIGHTS | {"model.mm_projector.weight": torch.ones(16, 4).half()}),
    "new-rows": (
        WEIGHTS,
        WEIGHTS | {name: torch.cat([BASE[name], torch.ones(1, 16).half()]) for name in (EMBEDDING, HEAD)},
    ),
}


@pytest.mark.parametrize(("base", "delta"), ALIKE.values(), ids=ALIKE)
def test_row58_a_copy_of_the_base_as_its_delta(tmp_path: Path, base: Tensors, delta: Tensors) -> None:
    """A copy of the base with or without buffers, with a projector or new rows, is refused as its delta."""
    given = save(base, tmp_path / "base"), save(delta, tmp_path / "delta")
    for attempt in (check_base, partial(apply_delta, target=tmp_path / "out")):
        with pytest.raises(Mismatch, match=SAME):
            attempt(*given)
    assert not (tmp_path / "out").exists()


def test_a_delta_of_copies_alone_is_no_base(tmp_path: Path) -> None:
    """A delta that has no weights in common with the base is not reported as the base."""
    base = save({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "base", "torch", 1)
    projector = {"model.mm_projector.weight": torch.ones(3, 4).half(), "model.mm_projector.bias": torch.zeros(0)}
    report = RecordingReport()
    apply_delta(base, save(projector, tmp_path / "delta", "torch", 1), tmp_path / "out", report=report)
    assert not any("hold the same weights" in text for text in report.warnings)
