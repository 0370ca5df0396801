"""What checkpoints are said to be: by hashes of their files, by manifests, by shapes and by the size of their numbers.

The files of the known models are not here, so tiny ones are made known in their place, or lie in a Hub cache under their names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaweights.checkpoint.files import LocalFile
from deltaweights.errors import Mismatch
from deltaweights.hub.repo_cache import Snapshot, snapshot_at, stated_sha256
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from deltaweights.recipes.identify import Identity
from deltaweights.recipes.models import KnownFile, KnownModel, model
from deltaweights.recipes.weight_scale import SMALL
from deltaweights.report import Report
from tests.conftest import Run
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save

BASE = base_tensors(layers=2, vocabulary=24, hidden=16)
DELTA = delta_tensors(BASE)

SHAPES = "2 layers, hidden size 16, 24 rows: no model that is known by its shapes"
AS_A_MODEL = "weights as large as a model's (typically 0.02)"

UNLISTED = "the sha256 of its files are not among those that are known"

FILE = "pytorch_model.bin"
ONE, TWO = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"

RECIPE = """\
format = "deltaweights-recipe"
version = 1
extends = "llava-med-7b"

[shapes]
hidden_size = 16
intermediate_size = 44
layers = 2
heads = 4
base_rows = 24
delta_rows = 28
"""
"""LLaVA-Med's with the sizes of the tiny pair; its base is LLaMA-1 7B."""

OWN = """\
format = "deltaweights-recipe"
version = 1
name = "own"

[arithmetic]
compute_dtype = "float16"
stated = true
"""
"""A recipe that knows no sizes, files or base."""


class Notes(Report):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Write the tiny pair's recipe."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Known:
    """Files that are known to belong to a model, or to the delta of a recipe, in place of the published ones."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[KnownModel, KnownFile]] = {}
        self.recipes: dict[str, str] = {}

    def of_model(self, path: Path, key: str, form: str = "bin") -> None:
        """Make a file one of this model's."""
        sha256 = sha256_of(path)
        self.models[sha256] = model(key), KnownFile(path.name, sha256, None, form)

    def of_recipe(self, path: Path, name: str) -> None:
        """Make a file one of this recipe's delta."""
        self.recipes[sha256_of(path)] = name


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """Know nothing but what the test makes known."""
    made = Known()
    for user in ("recipes.identify", "jobs.inputs"):
        monkeypatch.setattr(f"deltaweights.{user}.known_file", made.models.get)
    monkeypatch.setattr("deltaweights.recipes.identify.recipe_of_file", made.recipes.get)
    monkeypatch.setattr("deltaweights.jobs.inputs.recipe_of_file", made.recipes.get)
    return made


def hashed(path: Path) -> Identity:
    """Return what a checkpoint is by the hashes of its files; how large its weights are is left out."""
    found = inspect_checkpoint(path, hash_inputs=True).identity
    return Identity(found.text, found.model, found.certain)


# By hashes.


@pytest.mark.parametrize(
    ("key", "form", "text"),
    [
        ("llama-1-7b", "bin", "LLaMA-1 7B (Hugging Face .bin)"),
        ("llama-1-13b", "safetensors", "LLaMA-1 13B (Hugging Face safetensors)"),
        ("llama-2-7b", "bin", "LLaMA-2 7B (Hugging Face .bin)"),
        ("vicuna-7b-v1.1", "bin", "Vicuna 7B v1.1 (a merge) (Hugging Face .bin)"),
    ],
)
def test_all_files_of_a_model(tmp_path: Path, known: Known, key: str, form: str, text: str) -> None:
    """A checkpoint all of whose files are a known model's is that model, in its form, for certain."""
    save(BASE, tmp_path, "torch" if form == "bin" else "safetensors")
    for path in tmp_path.glob("*-of-*"):
        known.of_model(path, key, form)
    assert hashed(tmp_path) == Identity(f"{text}; sha256 matches", key, certain=True)


def test_all_files_of_metas(tmp_path: Path, known: Known) -> None:
    """Meta's parts are known, too."""
    save_meta(BASE, tmp_path, 2, 4)
    for path in tmp_path.glob("*.pth"):
        known.of_model(path, "llama-1-13b", "meta")
    assert hashed(tmp_path) == Identity("LLaMA-1 13B (Meta's files); sha256 matches", "llama-1-13b", certain=True)


def test_some_files_of_a_model(tmp_path: Path, known: Known) -> None:
    """Where some files are a known model's and others unknown, it is said how many are, and it is not certain."""
    save(BASE, tmp_path, "torch", 3)
    known.of_model(tmp_path / "pytorch_model-00002-of-00003.bin", "llama-2-7b")
    text = "LLaMA-2 7B (Hugging Face .bin); sha256 of 1 of 3 files matches"
    assert hashed(tmp_path) == Identity(text, "llama-2-7b", certain=False)


def test_files_of_two_models(tmp_path: Path, known: Known) -> None:
    """Files of two models are neither: both are named."""
    save(BASE, tmp_path)
    known.of_model(tmp_path / ONE, "llama-2-7b")
    known.of_model(tmp_path / TWO, "llama-1-7b")
    text = "files of different models: LLaMA-1 7B (Hugging Face .bin), LLaMA-2 7B (Hugging Face .bin); sha256 matches"
    assert hashed(tmp_path) == Identity(text, None, certain=False)


def test_files_of_a_model_and_a_delta(tmp_path: Path, known: Known) -> None:
    """A base's file and a delta's in one folder are told apart."""
    save(BASE, tmp_path, "torch", 3)
    known.of_model(tmp_path / "pytorch_model-00001-of-00003.bin", "llama-1-7b")
    known.of_recipe(tmp_path / "pytorch_model-00003-of-00003.bin", "llava-med-7b")
    assert hashed(tmp_path).text == (
        "files of different models: LLaMA-1 7B (Hugging Face .bin), "
        "the delta of LLaVA-Med v1, 7B, recipe llava-med-7b; sha256 of 2 of 3 files matches"
    )


def test_files_of_a_delta(tmp_path: Path, known: Known) -> None:
    """A delta whose files a recipe lists is that recipe's, and no model."""
    save(DELTA, tmp_path)
    for name in (ONE, TWO):
        known.of_recipe(tmp_path / name, "llava-med-7b")
    text = "the delta of LLaVA-Med v1, 7B, recipe llava-med-7b; sha256 matches"
    assert hashed(tmp_path) == Identity(text, None, certain=True)


def test_unknown_files(tmp_path: Path, known: Known) -> None:
    """Files that nobody lists are told by their shapes and numbers alone, without a verdict; that hashes were made is said."""
    save(BASE, tmp_path, config=False)
    text = f"{SHAPES}; {AS_A_MODEL}; {UNLISTED}"
    assert hashed(tmp_path) == Identity(text, None, certain=False)


def test_some_files_have_hashes(tmp_path: Path, known: Known) -> None:
    """Where the cache states hashes of some files alone, that they are not known is not said: the others may be."""
    snapshot = cached(save(BASE, tmp_path / "base", config=False), {ONE: "a" * 64})
    assert inspect_checkpoint(snapshot).identity.text == f"{SHAPES}; {AS_A_MODEL}"
    both = cached(save(BASE, tmp_path / "both", config=False), {ONE: "a" * 64, TWO: "b" * 64})
    stated = UNLISTED.replace("files", "files (stated by the Hub's cache)")
    assert inspect_checkpoint(both).identity.text == f"{SHAPES}; {AS_A_MODEL}; {stated}"


# A base that is known to be another.


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
    """A base that hashes show to be another model than the recipe's is refused with 4, by its name; nothing is left."""
    base, delta = another_base(tmp_path, known, files)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Mismatch) as caught:
        apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True)
    assert str(caught.value) == (
        f"{base}: this is LLaMA-2 7B, not LLaMA-1 7B: found LLaMA-2 7B (Hugging Face .bin); {share} matches, "
        "expected LLaMA-1 7B; use LLaMA-1 7B; --allow-unproved-base lets it pass"
    )
    assert caught.value.exit_code == 4
    assert before == sorted(tmp_path.rglob("*"))


def test_another_base_that_is_let_pass(tmp_path: Path, known: Known, recipe: Path) -> None:
    """With ``allow_unproved_base`` the same is a warning, and the merge is made."""
    base, delta = another_base(tmp_path, known)
    report = Notes()
    options: dict[str, Any] = {"recipe_file": recipe, "hash_inputs": True, "report": report}
    apply_delta(base, delta, tmp_path / "out", allow_unproved_base=True, **options)
    assert report.warnings == [f"{base}: this is LLaMA-2 7B, not LLaMA-1 7B"]
    assert same_bits(load(tmp_path / "out"), reference(BASE, DELTA))


def another_copy(base: Path, title: str = "LLaMA-1 7B", name: str = ONE) -> str:
    """Return what is said of a base of which a file's hash is known, and not the model's."""
    return f"{base / name}: its sha256 is not a known one of {title}: another copy, or damaged"


def test_the_right_base_and_unlike_ones_pass(tmp_path: Path, known: Known, recipe: Path) -> None:
    """The recipe's own base passes in silence, as does any without a recipe; one whose files are of two models with a warning."""
    base, delta = another_base(tmp_path, known)
    plain, mixed, right = Notes(), Notes(), Notes()
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
    """A base whose hashes are known, but not as any model's, is another copy, maybe: a warning, made or stated by the cache."""
    hashed_, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    stated = cached(save(BASE, tmp_path / "stated"), {ONE: "a" * 64, TWO: "b" * 64})
    for target, base, make in (("made", hashed_, True), ("cache", stated, False)):
        report = Notes()
        apply_delta(base, delta, tmp_path / target, recipe_file=recipe, hash_inputs=make, report=report)
        assert report.warnings == [another_copy(base)]


def with_base_files(recipe: Path, files: Sequence[Path], model: str = "llama-1-7b") -> None:
    """Let the tiny pair's recipe accept these files of a base, and be without a base's model when that is empty."""
    listed = "".join(f'"{path.name}" = "{sha256_of(path)}"\n' for path in files)
    base = f'[base]\nmodel = "{model}"\n' if model else ""
    recipe.write_text(f"{OWN}{base}[base.files]\n{listed}")


@pytest.mark.parametrize("of", [None, "llama-2-7b"], ids=["nobody's", "another-model's"])
def test_a_base_that_the_recipe_lists_passes(tmp_path: Path, known: Known, recipe: Path, of: str | None) -> None:
    """A base all of whose hashes stand under ``[base.files]`` passes in silence, whatever else is known of them."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    report = Notes()
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
    report = Notes()
    with_base_files(recipe, [base / ONE], model)
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == [another_copy(base, title, TWO)]


def test_without_a_known_base_no_hash_is_unlisted(tmp_path: Path, known: Known, recipe: Path) -> None:
    """A recipe that knows neither model nor files of its base has nothing to hold hashes against."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    report = Notes()
    with_base_files(recipe, [], "")
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == []


def test_without_hashes_nothing_is_known(tmp_path: Path, known: Known, recipe: Path) -> None:
    """InputHashes are made when they are asked for: without them the same base is only shapes and numbers."""
    base, delta = another_base(tmp_path, known)
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    assert f"base            {SHAPES}; {AS_A_MODEL}" in report.notes
    assert report.warnings == []


# What the Hub's cache states.

LLAMA_2 = {ONE: "ee62ed2ad7ded505ae47df50bc6c52916860dfb1c009df4715148cc4bfb50d2f"}
VICUNA = {
    ONE: "5ed572be140240b212049a3e791271eed8a04c40bc732c91a4da4b1469db23b1",
    TWO: "d9382da358f0ec38c4fca3bcf1e3e65274ae4c78090e0775b4bb4dea6a518e08",
}
LLAMA_1 = {
    ONE: "0087155d6df07106c1d910bfeb6aab1be8e612dfbf2b56ddfb4ccbde7dbd50d0",
    TWO: "461bc5e50200db7813ff99cc0b9316c48ccbd6aaaa31bf8cf7bee0b64bc3eda3",
}
LLAVA_MED = {
    ONE: "09431ba834a30e9c5d86ef2bf0765cd64f852f4a351bcc0976ba9f3df320de2b",
    TWO: "41d5c871c253afbee3eb6dcb389f9248c5b2e53162a45c068337f7824aac81cd",
}
"""The published sha256 of files of these names."""


COMMIT = "0123abc4" + "5" * 32


def cached(folder: Path, blobs: dict[str, str], repo: str = "somebody--mirror") -> Path:
    """Turn a folder into a snapshot of a Hub cache beside it, whose blobs have these names, or else their git ids."""
    repository = folder.parent / f"{folder.name}-hub" / f"models--{repo}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = blobs.get(path.name, f"{number:040x}")
        path.rename(repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    folder.rmdir()
    return snapshot


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


def test_the_cache_states_without_a_read(tmp_path: Path) -> None:
    """A snapshot's files are known by the names of their blobs, which are not read; a hash that is asked for is of the bytes."""
    snapshot = cached(save(BASE, tmp_path / "base"), LLAMA_1)
    real = {path.name: sha256_of(path) for path in snapshot.glob("*-of-*")}
    report = inspect_checkpoint(snapshot)
    assert {file.sha256 for file in report.files} == {None}, "what a name says is no hash of the file"
    assert report.identity.model == "llama-1-7b"
    hashes = inspect_checkpoint(snapshot, hash_inputs=True)
    assert {file.name: file.sha256 for file in hashes.files} == real
    assert hashes.identity.model is None, "what the blobs hold is nobody's"


def test_what_is_stated_is_said_to_be_stated(tmp_path: Path) -> None:
    """A blob whose content does not match its name is not said to match: nobody looked."""
    snapshot = cached(save(BASE, tmp_path / "base"), LLAMA_1)
    assert "sha256 matches" not in inspect_checkpoint(snapshot).identity.text


def test_a_blob_that_is_not_its_name_is_told(tmp_path: Path) -> None:
    """Where hashes are made, a file of the Hub's cache that has not the hash of its name is a warning: it is damaged."""
    base, delta = cached(save(BASE, tmp_path / "base"), LLAMA_1), save(DELTA, tmp_path / "delta")
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", hash_inputs=True, report=report)
    assert any(ONE in warning for warning in report.warnings)


def test_what_is_no_statement(tmp_path: Path) -> None:
    """Only a link to a blob named by 64 hex digits states a hash: no file, no other link, and no git id of a small file."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    sha256 = "ab" * 32
    made = {"blobs": (sha256, sha256.upper(), sha256[:40], f"{sha256}.incomplete"), "elsewhere": (sha256,)}
    for folder, blobs in made.items():
        for blob in blobs:
            (tmp_path / folder / blob).write_text("x")
            (tmp_path / f"{folder}-{blob}").symlink_to(f"{folder}/{blob}")
    (tmp_path / "chain").symlink_to(f"blobs-{sha256}")
    (tmp_path / "nothing").symlink_to(f"blobs/{'cd' * 32}")
    found = {name: stated_sha256(tmp_path / name) for name in os.listdir(tmp_path)}  # noqa: PTH208
    assert {name for name, stated in found.items() if stated} == {f"blobs-{sha256}", "chain", "nothing"}
    assert found["chain"] == sha256
    assert stated_sha256(tmp_path / "blobs" / sha256) is None, "a file that is no link"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models--org--name/snapshots/0123", Snapshot("org/name", "0123")),
        ("models--org--name/snapshots/0123/x.bin", Snapshot("org/name", "0123")),
        ("models--gpt2/snapshots/0123", Snapshot("gpt2", "0123")),
        ("models--org--a--b/snapshots/0123/", Snapshot("org/a/b", "0123")),
        ("datasets--org--name/snapshots/0123", None),
        ("models--org--name/blobs/0123", None),
        ("models--org--name/snapshots", None),
        ("models--org--name/snapshots/0123/sub/x.bin", None),
        ("org/name", None),
    ],
)
def test_where_a_snapshot_is(path: str, expected: Snapshot | None, tmp_path: Path) -> None:
    """A snapshot's folder, or a file right in it, is known by the names of the folders above; nothing need be there."""
    assert snapshot_at(tmp_path / path) == expected


# --hash-inputs.


def sums_of(paths: Iterator[Path]) -> dict[str, str]:
    """Return what ``sha256sum`` says of files, by their names."""
    done = subprocess.run(["sha256sum", *paths], capture_output=True, text=True, check=True)
    pairs = (line.split("  ", 1) for line in done.stdout.splitlines())
    return {Path(path).name: digest for digest, path in pairs}


def archive_of(folder: Path, method: int) -> Path:
    """Zip a folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as target:
        for file in sorted(folder.iterdir()):
            target.write(file, f"{folder.name}/{file.name}")
    return path


def with_projector(folder: Path) -> Path:
    """Take the projector out of a delta's shards and lay it beside them."""
    projector = {name: tensor for name, tensor in DELTA.items() if "mm_projector" in name}
    save({name: tensor for name, tensor in DELTA.items() if name not in projector}, folder)
    torch.save(projector, folder / "mm_projector.bin")
    return folder


FORMS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "shards": lambda f: (save(BASE, f / "base"), save(DELTA, f / "delta", "safetensors", 3)),
    "cache": lambda f: (cached(save(BASE, f / "base"), LLAMA_1), cached(save(DELTA, f / "delta"), {})),
    "meta": lambda f: (save_meta(BASE, f / "base", 2, 4), with_projector(f / "delta")),
    "stored-zip": lambda f: (save(BASE, f / "base"), archive_of(save(DELTA, f / "delta"), zipfile.ZIP_STORED)),
    "deflated-zip": lambda f: (
        archive_of(save(BASE, f / "base"), zipfile.ZIP_DEFLATED),
        archive_of(save(DELTA, f / "delta", "safetensors", 1), zipfile.ZIP_DEFLATED),
    ),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_hashes_of_the_inputs_are_those_of_sha256sum(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]) -> None:
    """With ``hash_inputs`` the manifest has the sha256 of every weights file, in an archive as unpacked; without it, none."""
    base, delta = make(tmp_path)
    apply_delta(base, delta, tmp_path / "out", hash_inputs=True)
    apply_delta(base, delta, tmp_path / "plain")
    for role, given in (("base", base), ("delta", delta)):
        folder = given.with_suffix("") if given.suffix == ".zip" else given
        weights = [path for path in folder.iterdir() if path.suffix in {".bin", ".pth", ".safetensors"}]
        recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"][role]["files"]
        assert {name: file["sha256"] for name, file in recorded.items()} == sums_of(iter(weights))
        assert all("sha256" in file["checks"] for file in recorded.values())
        plain = json.loads((tmp_path / "plain" / "manifest.json").read_text())["inputs"][role]["files"]
        assert not any("sha256" in file or "sha256" in file["checks"] for file in plain.values())
    shards = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("model*")}
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("model*")}


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
    report = Notes()
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
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    unlisted = [unknown_copy(delta / name, sha256) for name, sha256 in blobs.items() if sha256 != LLAVA_MED[name]]
    doubt = f"{delta}: is of commit {COMMIT}, recipe llava-med-7b knows {revision}"
    assert report.warnings == [*unlisted, *([doubt] if doubted else [])]


def test_nothing_is_said_twice(tmp_path: Path, recipe: Path) -> None:
    """Where the hashes that are made are those that the cache states, what follows from them is said once."""
    base, folder = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    delta = cached(folder, {name: sha256_of(folder / name) for name in (ONE, TWO)})
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    of_delta = [unknown_copy(delta / name, (delta / name).resolve().name) for name in (ONE, TWO)]
    assert report.warnings == [another_copy(base), *of_delta]
    named = [note for note in report.notes if note.startswith("delta ")]
    assert [UNLISTED in note for note in named] == [True]


def test_inspect_prints_hashes(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs`` prints the sha256 of each of several files, and has them in its JSON; without it, neither."""
    save(BASE, tmp_path)
    expected = sums_of(tmp_path.glob("*.bin"))
    shown = run("inspect", tmp_path, "--hash-inputs")
    assert (shown.returncode, shown.stderr) == (0, "")
    files = shown.stdout.split("\nfiles\n")[1].splitlines()
    assert [(line.split()[0], line.split("  sha256 ")[1]) for line in files] == sorted(expected.items())
    as_json = json.loads(run("inspect", tmp_path, "--hash-inputs", "--json").stdout)
    assert {file["name"]: file["sha256"] for file in as_json["files"]} == expected
    assert "sha256" not in run("inspect", tmp_path).stdout


def test_inspect_prints_the_hash_of_one_file(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs`` of a checkpoint in one file prints its sha256."""
    save(BASE, tmp_path, "torch", 1)
    assert sha256_of(tmp_path / FILE) in run("inspect", tmp_path, "--hash-inputs").stdout


def test_inspect_has_the_hash_of_one_file_in_json(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs --json`` has the sha256 of a single file."""
    save(BASE, tmp_path, "torch", 1)
    (file,) = json.loads(run("inspect", tmp_path, "--hash-inputs", "--json").stdout)["files"]
    assert file["sha256"] == sha256_of(tmp_path / FILE)


# By manifests.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one checkpoint of each kind; tests only read them, or copy them."""
    top = tmp_path_factory.mktemp("made")
    base, delta = save(BASE, top / "base", config=False), save(DELTA, top / "delta", config=False)
    (top / "tiny.toml").write_text(RECIPE)
    apply_delta(base, delta, top / "merge", max_shard_size=4000)
    apply_delta(base, delta, top / "by-recipe", recipe_file=top / "tiny.toml")
    make_delta(base, top / "merge", top / "made-delta")
    convert_checkpoint(base, top / "copy")
    return {path.name: path for path in top.iterdir()}


KINDS = {
    "merge": "a merge that deltaweights made, neither a base nor a delta (as its manifest says)",
    "by-recipe": (
        "a merge that deltaweights made by recipe llava-med-7b, neither a base nor a delta (as its manifest says)"
    ),
    "made-delta": "a delta that deltaweights made (as its manifest says)",
    "copy": f"{SHAPES}; {AS_A_MODEL}",
}


@pytest.mark.parametrize(("kind", "text"), KINDS.items(), ids=KINDS)
def test_kinds_of_manifests(made: dict[str, Path], kind: str, text: str) -> None:
    """A merge and a delta are what their manifests say; a copy is what it is a copy of, told by its shapes."""
    assert inspect_checkpoint(made[kind]).identity.text == text


def test_a_manifest_in_an_archive(made: dict[str, Path], tmp_path: Path) -> None:
    """A merge that was zipped is still known by its manifest."""
    copy = shutil.copytree(made["merge"], tmp_path / "merge")
    assert inspect_checkpoint(archive_of(copy, zipfile.ZIP_STORED)).identity.text == KINDS["merge"]


def test_a_manifest_of_other_tensors(made: dict[str, Path], tmp_path: Path) -> None:
    """A manifest that does not list exactly the tensors that are there, or is broken, says nothing."""
    folder = save(BASE, tmp_path / "base", config=False)
    for content in (
        (made["merge"] / "manifest.json").read_bytes(),
        b"{}",
        b"\xff",
        b'{"format": "deltaweights-manifest"}',
    ):
        (folder / "manifest.json").write_bytes(content)
        assert inspect_checkpoint(folder).identity.text == f"{SHAPES}; {AS_A_MODEL}"


def test_a_merge_taken_for_the_base(made: dict[str, Path], tmp_path: Path) -> None:
    """A merge given as the base is named as what it is, whether or not its shapes fit; one that was made as the delta, too."""
    report = Notes()
    wide = reference(BASE, delta_tensors(BASE, new_tokens=0, projector=False))
    save(wide, tmp_path / "tuned", config=False)
    make_delta(save(BASE, tmp_path / "base", config=False), tmp_path / "tuned", tmp_path / "delta")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merge")
    apply_delta(tmp_path / "merge", tmp_path / "delta", tmp_path / "twice", report=report)
    assert report.notes[:2] == [f"base            {KINDS['merge']}", f"delta           {KINDS['made-delta']}"]


# By shapes, rows and config.json.

CONFIGS = {
    "LLaMA-1": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-06},
    "LLaMA-2": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-05},
    None: {"max_position_embeddings": 4096, "rms_norm_eps": 1e-06},
}


@pytest.mark.parametrize("generation", CONFIGS)
def test_the_config_is_a_hint(tmp_path: Path, generation: str | None) -> None:
    """A config.json is said to be that of LLaMA-1 or LLaMA-2 when both of its telling values are; else nothing is said."""
    save(BASE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIGS[generation]}))
    hint = f"; config.json is that of {generation}" if generation else ""
    assert inspect_checkpoint(tmp_path).identity.text == f"{SHAPES}{hint}; {AS_A_MODEL}"


@pytest.mark.parametrize("content", [None, b"[]", b"{", b'{"max_position_embeddings": 4096}'])
def test_a_config_that_gives_no_hint(tmp_path: Path, content: bytes | None) -> None:
    """A config.json that is absent, broken or says too little is passed over, as is one beside a file of another name."""
    save(BASE, tmp_path, config=False)
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert inspect_checkpoint(tmp_path).identity.text == f"{SHAPES}; {AS_A_MODEL}"
    torch.save(BASE, tmp_path / "other.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["LLaMA-2"]))
    assert inspect_checkpoint(tmp_path / "other.pth").identity.text == f"{SHAPES}; {AS_A_MODEL}"


@pytest.mark.parametrize("generation", CONFIGS)
def test_the_config_of_another_generation_is_a_warning(tmp_path: Path, recipe: Path, generation: str | None) -> None:
    """A base beside a config.json of another generation than the recipe's base is doubted; its own, and none, pass."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    (base / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIGS[generation]}))
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, report=report)
    doubt = f"{base}: config.json is that of LLaMA-2, and the base should be LLaMA-1 7B"
    assert report.warnings == ([doubt] if generation == "LLaMA-2" else [])


def test_hashes_outweigh_a_config(tmp_path: Path, known: Known, recipe: Path) -> None:
    """A base that is the right one by its hashes is not doubted for a config.json that was copied there."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    (base / "config.json").write_text(json.dumps(CONFIGS["LLaMA-2"]))
    report = Notes()
    for name in (ONE, TWO):
        known.of_model(base / name, "llama-1-7b")
    apply_delta(base, delta, tmp_path / "out", recipe_file=recipe, hash_inputs=True, report=report)
    assert report.warnings == []


ROWS = {
    32000: "",
    32001: "; 32001 rows as Vicuna v0 or Alpaca has",
    32003: "; 32003 rows as LLaVA has",
    32004: "; 32004 rows as LLaVA-Med has",
    128256: "; 128256 rows as LLaMA-3 has",
}


@pytest.mark.parametrize("rows", ROWS)
def test_rows_that_fine_tuning_added(tmp_path: Path, rows: int) -> None:
    """The number of rows tells whose vocabulary it is."""
    grown = {name: torch.full((rows, 2), 0.25).half() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    layers = {f"model.layers.{layer}.mlp.up_proj.weight": torch.full((4, 2), 0.25).half() for layer in range(3)}
    save(grown | layers, tmp_path, config=False)
    shapes = f"3 layers, hidden size 2, {rows} rows: no model that is known by its shapes"
    assert inspect_checkpoint(tmp_path).identity.text == (
        f"{shapes}{ROWS[rows]}; weights as large as a model's (typically 0.25)"
    )


def test_one_layer_is_one_layer(tmp_path: Path) -> None:
    """A single layer is counted in the singular."""
    save(base_tensors(layers=1, vocabulary=24, hidden=16), tmp_path)
    assert inspect_checkpoint(tmp_path).identity.text.startswith("1 layer, hidden size 16")


def hole(path: Path, hidden: int, inner: int, layers: int, rows: int) -> Path:
    """Write a LLaMA of these sizes in float16 whose weights are a hole: gigabytes that take no room; all weights are 0."""
    layer = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    shapes |= {f"model.layers.{i}.{n}_layernorm.weight": (hidden,) for i in range(layers) for n in ("input", "post")}
    ends = list(itertools.accumulate(2 * math.prod(shape) for shape in shapes.values()))
    header: dict[str, Any] = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        for (name, shape), begin, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    os.truncate(path, 8 + len(data) + ends[-1])
    return path


SIBLINGS = "shapes of LLaMA-1 7B or LLaMA-2 7B or Vicuna 7B v1.1 (a merge)"

LARGE = {
    "7b": ((4096, 11008, 32, 32000), SIBLINGS),
    "13b": ((5120, 13824, 40, 32000), "shapes of LLaMA-1 13B"),
    "65b": ((8192, 22016, 80, 32000), "shapes of LLaMA-1 65B"),
    "llava-med": ((4096, 11008, 32, 32004), f"{SIBLINGS}; 32004 rows as LLaVA-Med has"),
    "of-none": (
        (4096, 11008, 31, 32000),
        "31 layers, hidden size 4096, 32000 rows: no model that is known by its shapes",
    ),
}


@pytest.mark.parametrize(("sizes", "text"), LARGE.values(), ids=LARGE)
def test_shapes_of_known_models(tmp_path: Path, sizes: tuple[int, int, int, int], text: str) -> None:
    """Hidden size and layers name all models that have them; siblings of the same shapes are all named."""
    hole(tmp_path / "model.safetensors", *sizes)
    expected = f"{text}; weights as small as a delta's (typically 0)"
    assert inspect_checkpoint(tmp_path).identity.text == expected


def test_no_embedding(tmp_path: Path) -> None:
    """A checkpoint without an embedding under a LLaMA's name is no LLaMA, and nothing more is said of it."""
    save(
        {"encoder.weight": torch.ones(3, 3), "model.layers.0.x": torch.ones(3)},
        tmp_path,
        "safetensors",
        1,
        config=False,
    )
    assert inspect_checkpoint(tmp_path).identity == Identity("no embedding under a LLaMA's name", typical=1.0)


# The size of the numbers.


def typical(folder: Path, tensors: Tensors) -> float | None:
    save(tensors, folder, "safetensors", 1)
    return inspect_checkpoint(folder).identity.typical


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_typical_weight_is_the_median_of_root_mean_squares(tmp_path: Path, dtype: torch.dtype) -> None:
    """In every dtype of floating-point numbers it is what numpy makes of the same elements; vectors and integers do not count."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(20, 30, generator=generator, dtype=torch.float64) * scale for scale in (0.5, 0.02, 1e-3, 7)]
    tensors = {f"m{number}": matrix.to(dtype) for number, matrix in enumerate(matrices)}
    squares = [float(np.mean(tensor.double().numpy() ** 2)) for tensor in tensors.values()]
    others = {"norm": torch.full((600,), 99.0), "steps": torch.full((20, 30), 99), "none": torch.zeros(0, 9)}
    assert typical(tmp_path, tensors | others) == pytest.approx(statistics.median(squares) ** 0.5, rel=1e-12)


def test_the_typical_weight_takes_a_part_of_large_tensors(tmp_path: Path) -> None:
    """Of a large matrix 1,024 elements from a third of the way on are looked at."""
    large = torch.full((100, 100), 8.0)
    large.view(-1)[(10_000 - 1024) // 3 :][:1024] = 0.5
    assert typical(tmp_path, {"m": large}) == 0.5


def test_what_has_no_typical_weight(tmp_path: Path) -> None:
    """Without a finite matrix nothing is said; one that is not finite is left out of the median."""
    bad = torch.full((4, 4), math.nan)
    assert typical(tmp_path / "nothing", {"v": torch.ones(3), "i": torch.ones(3, 3, dtype=torch.int8)}) is None
    assert typical(tmp_path / "nan", {"a": bad, "b": torch.full((4, 4), math.inf)}) is None
    assert typical(tmp_path / "some", {"a": bad, "b": torch.full((4, 4), 0.25)}) == 0.25
    save({"model.embed_tokens.weight": bad}, tmp_path / "words", "safetensors", 1, config=False)
    text = "0 layers, hidden size 4, 4 rows: no model that is known by its shapes"
    assert inspect_checkpoint(tmp_path / "words").identity.text == text


@pytest.mark.parametrize(("size", "kind"), [(SMALL * 0.99, "as small as a delta's"), (SMALL, "as large as a model's")])
def test_deltas_are_small(tmp_path: Path, size: float, kind: str) -> None:
    """Below the threshold weights are as small as a delta's, from it on as large as a model's."""
    save(
        {"model.embed_tokens.weight": torch.full((4, 4), size, dtype=torch.float64)},
        tmp_path,
        "safetensors",
        1,
        config=False,
    )
    assert f"weights {kind} (typically {size:.2g})" in inspect_checkpoint(tmp_path).identity.text


# A delta that is none.


def scaled(factor: float) -> Tensors:
    """Return the base's weights times ``factor``, as a delta."""
    return {name: tensor if name.endswith("inv_freq") else tensor * factor for name, tensor in BASE.items()}


@pytest.mark.parametrize(
    ("factor", "share"), [(0.25, None), (0.484375, None), (0.5, "0.5"), (1.5, "1.5"), (64.0, "64")]
)
def test_a_delta_as_large_as_its_base_is_doubted(tmp_path: Path, factor: float, share: str | None) -> None:
    """From half the base's size on, a delta's weights are likely a merged model's: a warning, without a recipe."""
    base, delta = save(BASE, tmp_path / "base"), save(scaled(factor), tmp_path / "delta")
    report = Notes()
    apply_delta(base, delta, tmp_path / "out", prove=False, report=report)
    expected = (
        f"{delta}: likely already a merged model, not a delta: "
        f"found weights {share} times as large as the base's, expected a small part of them"
    )
    assert report.warnings == ([expected] if share else [])


def merged_as_delta(tmp_path: Path) -> tuple[Path, Path]:
    """Save the base, and the merged model in place of the delta."""
    return save(BASE, tmp_path / "base"), save(reference(BASE, DELTA), tmp_path / "merged")


def test_row58_a_merged_model_in_place_of_a_stated_delta(run: Run, tmp_path: Path, recipe: Path) -> None:
    """Under a recipe that states the delta's arithmetic the same is an error, 4, unless it is let pass."""
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
    """Under a recipe that does not state the delta's arithmetic it is a warning."""
    base, merged = merged_as_delta(tmp_path)
    recipe.write_text(f"{RECIPE}[arithmetic]\nstated = false\n")
    report = Notes()
    apply_delta(base, merged, tmp_path / "out", recipe_file=recipe, report=report)
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
    """``check-base`` of a base and itself ends with 4, and names no option that it has not."""
    its_own_delta(tmp_path)
    (tmp_path / "own.toml").write_text(OWN)
    done = run("check-base", "--base", "base", "--delta", "again", "-q", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"deltaweights: error: again: {SAME}; give the delta itself\n"


def test_a_base_as_its_own_delta_that_is_let_pass(tmp_path: Path) -> None:
    """With ``allow_unproved_base`` it is a warning, said once, and the sum is made."""
    base, again = its_own_delta(tmp_path)
    report = Notes()
    apply_delta(base, again, tmp_path / "out", prove=False, allow_unproved_base=True, report=report)
    assert report.warnings == [f"{again}: {SAME}"]
    assert same_bits(load(tmp_path / "out"), reference(BASE, BASE))


def test_a_target_that_is_its_own_base(tmp_path: Path) -> None:
    """A target that is its own base is a warning, and the delta of zeros is made."""
    base, again = its_own_delta(tmp_path)
    report = Notes()
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
    """Weights that differ, or are called otherwise than the base's, are not the base itself."""
    report = Notes()
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
    """A copy with or without buffers, with a projector or new rows, is still the base where the two agree: no proof, no merge."""
    given = save(base, tmp_path / "base"), save(delta, tmp_path / "delta")
    for attempt in (check_base, partial(apply_delta, target=tmp_path / "out")):
        with pytest.raises(Mismatch, match=SAME):
            attempt(*given)
    assert not (tmp_path / "out").exists()


def test_a_delta_of_copies_alone_is_no_base(tmp_path: Path) -> None:
    """A delta without weights that the base has, whose tensors are all empty or its own, is not said to be the base."""
    base = save({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "base", "torch", 1)
    projector = {"model.mm_projector.weight": torch.ones(3, 4).half(), "model.mm_projector.bias": torch.zeros(0)}
    report = Notes()
    apply_delta(base, save(projector, tmp_path / "delta", "torch", 1), tmp_path / "out", report=report)
    assert not any("hold the same weights" in text for text in report.warnings)


# Headers only.


@contextmanager
def counted_reads() -> Iterator[dict[str, int]]:
    """Count the bytes that are read of each local file, by its name."""
    counts: dict[str, int] = {}
    read, scatter = LocalFile.read_into, LocalFile.scatter_into

    def read_into(self: LocalFile, out: memoryview, offset: int) -> None:
        counts[self.path.name] = counts.get(self.path.name, 0) + len(out)
        read(self, out, offset)

    def scatter_into(self: LocalFile, pieces: Sequence[memoryview], offset: int) -> None:
        counts[self.path.name] = counts.get(self.path.name, 0) + sum(map(len, pieces))
        scatter(self, pieces, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFile, "read_into", read_into)
        patch.setattr(LocalFile, "scatter_into", scatter_into)
        yield counts


def test_the_count_is_that_of_all_bytes(tmp_path: Path) -> None:
    """The way in which these tests count bytes sees the whole file when it is hashed."""
    save(BASE, tmp_path, "safetensors", 1)
    with counted_reads() as counts:
        inspect_checkpoint(tmp_path, hash_inputs=True)
    assert counts["model.safetensors"] > (tmp_path / "model.safetensors").stat().st_size


def middle(layers: int = 2) -> Tensors:
    """Return a base of 5 MB or more."""
    return base_tensors(layers, vocabulary=2000, hidden=256)


HELD: dict[str, Callable[[Path], Path]] = {
    "safetensors-of-13-gb": lambda folder: hole(folder / "model.safetensors", 4096, 11008, 32, 32000),
    "torch": lambda folder: save(middle(), folder, "torch", 1),
    "33-shards": lambda folder: save(middle(4), folder, "torch", 33),
    "meta": lambda folder: save_meta(middle(), folder, 1, 64),
    "meta-of-4-parts": lambda folder: save_meta(middle(), folder, 4, 64),
    "stored-zip": lambda folder: archive_of(save(middle(), folder / "x"), zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_inspect_reads_headers_and_samples(tmp_path: Path, hold: Callable[[Path], Path]) -> None:
    """Naming a checkpoint of any container reads some hundred kilobytes of it, whatever its size."""
    path = hold(tmp_path)
    with counted_reads() as counts:
        report = inspect_checkpoint(path)
    assert report.bytes > 5_000_000
    assert 0 < sum(counts.values()) < 300_000
    assert report.identity.typical is not None
