"""The recipes of the package state the published facts; recipe files are laid over them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.recipes import catalogue, models
from deltaweights.recipes.recipe import Shapes
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.recipes import DOCS, FACTS, HEAD, PROJECTOR, ROOT, written

DATA = ROOT / "src/deltaweights/recipes/data"


def test_the_recipes_are_those_of_the_facts() -> None:
    """The package has exactly the recipes of the table, in natural order."""
    assert list(catalogue.names()) == list(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_what_decides_is_as_published(name: str) -> None:
    """Repository, base, arithmetic, rules and rows are those of the table; a delta with a projector requires its weight."""
    recipe = catalogue.load(name)
    repo, base, dtype, new_rows, delta_only, rows = FACTS[name]
    found = recipe.delta.repo, recipe.base_model, recipe.compute_dtype, recipe.new_rows, {*recipe.delta_only}
    assert found == (repo, base, dtype, new_rows, delta_only)
    assert (recipe.shapes.base_rows, recipe.shapes.delta_rows) == (32000, rows)
    assert recipe.required == (("model.mm_projector.weight",) if delta_only else ())
    assert recipe.stated


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_is_complete_and_says_where_it_is_from(name: str) -> None:
    """A recipe has the name of its file, a title, a notice, sources (the repository first), and the shapes of its base."""
    recipe = catalogue.load(name)
    assert recipe.name == name
    assert recipe.title != name
    assert recipe.notice
    assert recipe.sources[0] == f"https://huggingface.co/{recipe.delta.repo}"
    assert any(source.startswith("https://github.com/") for source in recipe.sources)
    assert recipe.base_model is not None
    base = models.model(recipe.base_model).shapes
    assert Shapes(**{**vars(recipe.shapes), "delta_rows": None}) == base


@pytest.mark.parametrize("name", FACTS)
def test_what_is_not_known_is_said(name: str) -> None:
    """An abbreviated revision, unknown rows and a repository without weights are each mentioned in a note."""
    recipe = catalogue.load(name)
    notes = " ".join(recipe.notes)
    revision = recipe.delta.revision
    assert ("beginning of a commit id" in notes) is (revision is not None and len(revision) < 40)
    if recipe.shapes.delta_rows is None:
        assert re.search("rows.* not (seen|found)", notes)
    assert ("no weights" in notes) is not recipe.delta.has_weights


@pytest.mark.parametrize("name", [name for name in FACTS if name.startswith("llava-med")])
def test_llava_med_is_never_for_the_clinic(name: str) -> None:
    """Each LLaVA-Med recipe names the licences it is subject to, and says that it is not for clinical use."""
    recipe = catalogue.load(name)
    for words in ("research use only", "not for clinical care or for any clinical decision", "LLaMA, Vicuna and GPT-4"):
        assert words in recipe.notice
    assert len(recipe.delta.archives) == 1


def test_only_slake_has_no_weights() -> None:
    """Only the SLAKE repository has no weights; its recipe names the archive that people have."""
    assert [name for name in FACTS if not catalogue.load(name).delta.has_weights] == ["llava-med-7b-slake"]
    assert catalogue.load("llava-med-7b-slake").delta.archives == ("Slake1.0-9epoch_delta.zip",)


def test_only_alpaca_has_a_sum() -> None:
    """Only Alpaca's recipe has a published sum, with its tolerance and extent."""
    assert [name for name in FACTS if catalogue.load(name).checks] == ["alpaca-7b"]
    checks = catalogue.load("alpaca-7b").checks
    assert checks is not None
    assert vars(checks) == {"sum": 50637.1836, "tolerance": 0.01, "with_buffers": True}


def test_no_hash_tells_two_stories() -> None:
    """All hashes are sha256, none is listed twice in models and recipes together, and others are unknown."""
    hashes = [file.sha256 for model in models.models() for file in model.files]
    hashes += [file.sha256 for name in FACTS for file in catalogue.load(name).delta.files]
    assert len(hashes) == len(set(hashes)) == 40 + 8
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    tokenizer = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
    assert (models.known_file(tokenizer), catalogue.recipe_of_file(tokenizer)) == (None, None)


@pytest.mark.parametrize(
    ("sha256", "name"),
    [
        ("09431ba834a30e9c5d86ef2bf0765cd64f852f4a351bcc0976ba9f3df320de2b", "llava-med-7b"),
        ("41d5c871c253afbee3eb6dcb389f9248c5b2e53162a45c068337f7824aac81cd", "llava-med-7b"),
        ("60e23ab5eb721bee278d58453cfcf0aa19283f13ef6e311049989c6ad4426f12", "llava-med-7b-vqarad"),
        ("1eac4079f134f4765bd2bf5e38d1a60739e0ff81c6707978072591b912caeacb", "llava-med-7b-pathvqa"),
        ("c117714cbcc1e487b8fc15b49cd6cd6da631e0507d5ece91a8ba39b16230f940", "llava-13b-v0"),
        ("d7c89bb170d36a5b7f0cda596ed863db89326b1dde739c6a2a0ef4dc1f949b87", "llava-lightning-7b-v1-1"),
    ],
)
def test_a_file_of_a_delta_names_its_recipe(sha256: str, name: str) -> None:
    """The hash of a delta's file leads to its recipe."""
    assert catalogue.recipe_of_file(sha256) == name


def test_a_repository_names_its_recipe() -> None:
    """Every repository leads to its own recipe, regardless of case, and others to none."""
    for name, (repo, *_) in FACTS.items():
        assert catalogue.recipe_of_repo(repo.upper()) == name
    assert catalogue.recipe_of_repo("CarperAI/stable-vicuna-13b-delta") is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is the system's error (5), not the recipe's."""
    with refused(InputOutputError, where=tmp_path / "own.toml"):
        catalogue.load_file(tmp_path / "own.toml")


@pytest.mark.parametrize("kind", ["row60-fifo", "row60-folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """A FIFO without a writer, or a folder, is refused without waiting."""
    path = tmp_path / "own.toml"
    if kind == "row60-fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with refused(MalformedInput, where=path, found="a FIFO" if kind == "row60-fifo" else "a folder"):
        catalogue.load_file(path)


@pytest.mark.parametrize("name", ["llava-med7b", "../data/llava-med-7b", "", "x" * 100_000, "\x1b[2J"])
def test_an_unknown_name_is_a_usage_error(name: str) -> None:
    """A name that no recipe of the package has is refused with 2, and never reaches outside the package."""
    with refused(UsageError, found=name) as info:
        catalogue.load(name)
    assert len(str(info.value)) < 1000


TINY = HEAD + 'extends = "llava-med-7b"\nname = "tiny"\n[shapes]\nlayers = 2\ndelta_rows = 32008\n[delta]\nfiles = {}\n'


def test_a_file_is_laid_over_a_recipe_key_by_key(tmp_path: Path) -> None:
    """A file that extends a recipe changes only the keys that it has, and ``files`` as a whole."""
    below, above = catalogue.load("llava-med-7b"), catalogue.load_file(written(tmp_path, TINY))
    assert vars(above.shapes) == {**vars(below.shapes), "layers": 2, "delta_rows": 32008}
    assert vars(above.delta) == {**vars(below.delta), "files": ()}
    same = {"title", "description", "sources", "notice", "notes", "base_model", "compute_dtype", "stated", "new_rows"}
    assert {key: vars(above)[key] for key in same} == {key: vars(below)[key] for key in same}
    assert (above.name, above.delta_only, above.checks) == ("tiny", below.delta_only, None)
    assert above.digest != below.digest


def test_the_command_line_can_name_what_is_below(tmp_path: Path) -> None:
    """A file without ``extends`` is laid over the recipe that the caller names."""
    without = written(tmp_path, TINY.replace('extends = "llava-med-7b"\n', ""))
    assert catalogue.load_file(without, over="llava-med-7b") == catalogue.load_file(written(tmp_path, TINY))
    assert catalogue.load_file(written(tmp_path, TINY), over="llava-med-7b").name == "tiny"


def test_a_file_that_gives_nothing_is_the_recipe(tmp_path: Path) -> None:
    """A file with only a head and ``extends`` gives the recipe that it extends, for every recipe of the package."""
    for name in catalogue.names():
        assert catalogue.load_file(written(tmp_path, f'{HEAD}extends = "{name}"\n')) == catalogue.load(name)


OVER_MED = HEAD + 'extends = "llava-med-7b"\n'

NOT_OVER: dict[str, tuple[str, str | None, type[DeltaweightsError], str | None, str | None]] = {
    # id: file, name beside it, error, what was found, what was expected
    "conflict": (TINY, "alpaca-7b", UsageError, "llava-med-7b", "alpaca-7b"),
    "unknown": (TINY, "alpaca", UsageError, "alpaca", "one of alpaca-7b"),
    "no head": ('version = 1\nextends = "llava-med-7b"', None, MalformedInput, None, None),
    "no head, named": ("version = 1", "llava-med-7b", MalformedInput, None, None),
    "table lost": (OVER_MED + "shapes = 1", None, MalformedInput, "1", "a table"),
    "fewer rows": (OVER_MED + "[shapes]\ndelta_rows = 4", None, MalformedInput, "4", "base_rows, 32000, or more"),
}


@pytest.mark.parametrize(("text", "over", "error", "found", "expected"), NOT_OVER.values(), ids=NOT_OVER)
def test_files_that_cannot_be_laid_over(
    tmp_path: Path, text: str, over: str | None, error: type[DeltaweightsError], found: str | None, expected: str | None
) -> None:
    """A contradiction and an unknown name are usage errors (2); the file needs a head, and must fit the recipe below."""
    with refused(error, found=found, expected=expected):
        catalogue.load_file(written(tmp_path, text), over=over)


def test_the_document_lists_every_recipe() -> None:
    """docs/recipes.md has a line for each recipe, with its repository, arithmetic, new rows and rows."""
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in DOCS.splitlines() if line.startswith("| `")
    ]
    listed = {row[0]: row for row in rows if row[0] in FACTS}
    assert set(listed) == set(FACTS)
    for name, (repo, base, dtype, new_rows, _, size) in FACTS.items():
        _, delta, model, *rest = listed[name]
        assert delta.partition(":")[0] == repo
        assert models.model(base).title == model
        assert rest == [dtype, new_rows, str(size or "not seen")]


def test_the_examples_of_the_document_are_recipes(tmp_path: Path) -> None:
    """Both examples of docs/recipes.md load, one laid over llava-med-7b, the other with the defaults."""
    tiny, own = (
        catalogue.load_file(written(tmp_path, text)) for text in re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    )
    assert (tiny.name, tiny.stated, tiny.delta.files, tiny.shapes.delta_rows) == ("tiny-llava-med", True, (), 324)
    assert (own.name, own.compute_dtype, own.delta_only) == ("our-llava-13b", "float32", frozenset(PROJECTOR))


@pytest.mark.slow
def test_the_wheel_has_the_data(tmp_path: Path) -> None:
    """A wheel holds models.toml and every recipe, byte for byte."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(tmp_path), str(ROOT)], check=True, timeout=PATIENCE
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in [DATA.parent / "models.toml", *DATA.iterdir()]:
            assert archive.read(path.relative_to(ROOT / "src").as_posix()) == path.read_bytes()
