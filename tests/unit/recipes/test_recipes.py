"""Recipes: facts carried over as they are, files that break the schema refused, digests that say which rules were used."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.cli.recipes import command
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.recipes import catalogue, models
from deltaweights.recipes.recipe import DELTA_ONLY, Recipe, Shapes, parse_recipe
from deltaweights.recipes.toml_document import MAX_SIZE, TomlDocument, overlay, parse_toml
from tests.conftest import Run
from tests.support.limits import MOMENT, PATIENCE

ROOT = Path(__file__).parents[3]
DATA = ROOT / "src/deltaweights/recipes/data"
DOCS = (ROOT / "docs/recipes.md").read_text()

PROJECTOR = {"model.mm_projector.weight", "model.mm_projector.bias"}

FACTS: dict[str, tuple[str, str, str, str, set[str], int | None]] = {
    # name: repository, base, arithmetic, new rows, in the delta alone, rows
    "alpaca-7b": ("tatsu-lab/alpaca-7b-wdiff", "llama-1-7b", "float32", "mean", set(), 32001),
    "llava-7b-v0": ("liuhaotian/LLaVA-7b-delta-v0", "llama-1-7b", "float16", "copy", PROJECTOR, None),
    "llava-13b-v0": ("liuhaotian/LLaVA-13b-delta-v0", "llama-1-13b", "float16", "copy", PROJECTOR, 32003),
    "llava-13b-v0-science-qa": ("liuhaotian/LLaVA-13b-delta-v0-science_qa", "llama-1-13b", "float16", "copy", PROJECTOR, None),
    "llava-13b-v1-1": ("liuhaotian/LLaVA-13b-delta-v1-1", "llama-1-13b", "float16", "copy", PROJECTOR, None),
    "llava-lightning-7b-v1-1": ("liuhaotian/LLaVA-Lightning-7B-delta-v1-1", "llama-1-7b", "float16", "copy", PROJECTOR, None),
    "llava-med-7b": ("microsoft/llava-med-7b-delta", "llama-1-7b", "float16", "copy", PROJECTOR, 32004),
    "llava-med-7b-pathvqa": ("katielink/llava-med-7b-pathvqa-delta", "llama-1-7b", "float16", "copy", PROJECTOR, None),
    "llava-med-7b-slake": ("katielink/llava-med-7b-slake-delta", "llama-1-7b", "float16", "copy", PROJECTOR, 32004),
    "llava-med-7b-vqarad": ("katielink/llava-med-7b-vqarad-delta", "llama-1-7b", "float16", "copy", PROJECTOR, 32004),
    "vicuna-7b-v0": ("lmsys/vicuna-7b-delta-v0", "llama-1-7b", "float16", "zero", set(), 32001),
    "vicuna-7b-v1.1": ("lmsys/vicuna-7b-delta-v1.1", "llama-1-7b", "float16", "copy", set(), 32000),
    "vicuna-13b-v0": ("lmsys/vicuna-13b-delta-v0", "llama-1-13b", "float16", "zero", set(), 32001),
    "vicuna-13b-v1.1": ("lmsys/vicuna-13b-delta-v1.1", "llama-1-13b", "float16", "copy", set(), 32000),
}  # fmt: skip

TENSORS = {"llama-1-7b": (291, 323), "llama-1-13b": (363, 403)}
"""Tensors of a checkpoint in the Hugging Face layout, without and with the inv_freq buffers."""

HEAD = 'format = "deltaweights-recipe"\nversion = 1\n'

OWN = HEAD + 'name = "own"\n[arithmetic]\ncompute_dtype = "float16"\n'

FULL: TomlDocument = {
    "format": "deltaweights-recipe",
    "version": 1,
    "name": "own",
    "title": "Our own",
    "description": "On two\nlines.",
    "sources": ["https://example.org/own"],
    "notice": "For research use only.",
    "notes": ["Nobody has seen it."],
    "delta": {
        "repo": "org/own",
        "revision": "0123abc",
        "has_weights": True,
        "archives": ["own.zip"],
        "files": {"a.bin": "0" * 64, "b.bin": {"sha256": "1" * 64, "size": 5}, "c.bin": ["2" * 64, {"sha256": "3" * 64}]},
    },
    "base": {"model": "llama-1-7b", "files": {"d.bin": "4" * 64, "e.bin": [{"sha256": "5" * 64, "size": 6}, "6" * 64]}},
    "arithmetic": {"compute_dtype": "float16", "stated": True},
    "rules": {"new_rows": "copy", "delta_only": ["x", "y"], "required": ["y"]},
    "shapes": {"hidden_size": 8, "intermediate_size": 16, "layers": 2, "heads": 2, "base_rows": 10, "delta_rows": 12},
    "checks": {"sum": 1.5, "tolerance": 0.1, "with_buffers": True},
}  # fmt: skip
"""A document with every key but ``extends``."""


def written(folder: Path, text: str | bytes) -> Path:
    """Write a recipe file."""
    path = folder / "own.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def places(document: TomlDocument, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where each key of a document stands."""
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(document: TomlDocument, place: tuple[str, ...], value: Any) -> TomlDocument:
    """Return a copy of a document with another value, or none for ``...``, at a place."""
    result = copy.deepcopy(document)
    table = result
    for key in place[:-1]:
        table = table[key]
    if value is ...:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    return result


# The recipes of the package.


def test_the_recipes_are_those_of_the_facts() -> None:
    """The package has exactly the recipes of the table, in natural order."""
    assert list(catalogue.names()) == list(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_what_decides_is_as_published(name: str) -> None:
    """Repository, base, arithmetic, rules and rows are the table's, and each delta is known to be made in its arithmetic.

    Where the delta has a projector of its own, it is not whole without the projector's weight.
    """
    recipe = catalogue.load(name)
    repo, base, dtype, new_rows, delta_only, rows = FACTS[name]
    found = recipe.delta.repo, recipe.base_model, recipe.compute_dtype, recipe.new_rows, {*recipe.delta_only}
    assert found == (repo, base, dtype, new_rows, delta_only)
    assert (recipe.shapes.base_rows, recipe.shapes.delta_rows) == (32000, rows)
    assert recipe.required == (("model.mm_projector.weight",) if delta_only else ())
    assert recipe.stated


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_is_complete_and_says_where_it_is_from(name: str) -> None:
    """A recipe is called as its file is, and has title, notice, sources (the repository first), and the shapes of its base."""
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
    """An abbreviated revision, rows that nobody saw and a repository without weights are each said in a note."""
    recipe = catalogue.load(name)
    notes = " ".join(recipe.notes)
    revision = recipe.delta.revision
    assert ("beginning of a commit id" in notes) is (revision is not None and len(revision) < 40)
    if recipe.shapes.delta_rows is None:
        assert re.search("rows.* not (seen|found)", notes)
    assert ("no weights" in notes) is not recipe.delta.has_weights


@pytest.mark.parametrize("name", [name for name in FACTS if name.startswith("llava-med")])
def test_llava_med_is_never_for_the_clinic(name: str) -> None:
    """Each LLaVA-Med recipe names the licences it is subject to, and says that it is not for clinical care."""
    recipe = catalogue.load(name)
    for words in ("research use only", "not for clinical care or for any clinical decision", "LLaMA, Vicuna and GPT-4"):
        assert words in recipe.notice
    assert len(recipe.delta.archives) == 1


def test_only_slake_has_no_weights() -> None:
    """The SLAKE repository is known to be without weights, and the archive that people hold is named; no other one is so."""
    assert [name for name in FACTS if not catalogue.load(name).delta.has_weights] == ["llava-med-7b-slake"]
    assert catalogue.load("llava-med-7b-slake").delta.archives == ("Slake1.0-9epoch_delta.zip",)


def test_only_alpaca_has_a_sum() -> None:
    """Alpaca's published sum is there with its tolerance and extent, and no other recipe has one."""
    assert [name for name in FACTS if catalogue.load(name).checks] == ["alpaca-7b"]
    checks = catalogue.load("alpaca-7b").checks
    assert checks is not None
    assert vars(checks) == {"sum": 50637.1836, "tolerance": 0.01, "with_buffers": True}


# Known models and files.


def test_every_model_is_there() -> None:
    """LLaMA-1 in four sizes, LLaMA-2 7B, CLIP and the merged Vicuna are known, by unique keys."""
    keys = [model.key for model in models.models()]
    llamas = ["llama-1-7b", "llama-1-13b", "llama-1-30b", "llama-1-65b", "llama-2-7b"]
    assert keys == [*llamas, "clip-vit-l-14", "vicuna-7b-v1.1"]


def test_the_default_base_is_pinned() -> None:
    """LLaMA-1 7B has a repository and two full commit ids, of which one is the default; CLIP has one, the others have none."""
    model = models.model("llama-1-7b")
    assert (model.repo, model.revision) == ("huggyllama/llama-7b", "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16")
    assert model.revisions[1:] == ("4782ad278652c7c71b72204d462d6d01eaaf7549",)
    assert [other.key for other in models.models() if other.repo or other.revision] == ["llama-1-7b", "clip-vit-l-14"]


def test_the_vision_tower_is_pinned() -> None:
    """Every LLaVA sees through CLIP ViT-L/14 at one commit, of which both weights files are known; no other recipe sees."""
    clip = models.model("clip-vit-l-14")
    commit = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    assert (clip.repo, clip.revision) == ("openai/clip-vit-large-patch14", commit)
    assert [file.name for file in clip.files] == ["pytorch_model.bin", "model.safetensors"]
    for name in FACTS:
        assert catalogue.load(name).vision_tower == ("clip-vit-l-14" if "llava" in name else None)


@pytest.mark.parametrize("key", TENSORS)
def test_layers_agree_with_the_tensors_that_are_counted(key: str) -> None:
    """Nine tensors and one buffer per layer, and three beside the layers, are the counts that are published."""
    layers = models.model(key).shapes.layers
    assert layers is not None
    assert (9 * layers + 3, 10 * layers + 3) == TENSORS[key]


def test_generations_differ_in_config_alone() -> None:
    """LLaMA-1 and LLaMA-2 7B have one shape, and differ in what config.json says."""
    one, two = models.model("llama-1-7b"), models.model("llama-2-7b")
    assert one.shapes == two.shapes
    assert one.config == {"max_position_embeddings": 2048, "rms_norm_eps": 1e-06}
    assert two.config == {"max_position_embeddings": 4096, "rms_norm_eps": 1e-05}


SHARD = "pytorch_model-0000{}-of-0000{}.bin"

KNOWN = [
    ("700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d", "llama-1-7b", "consolidated.00.pth", "meta"),
    ("461bc5e50200db7813ff99cc0b9316c48ccbd6aaaa31bf8cf7bee0b64bc3eda3", "llama-1-7b", SHARD.format(2, 2), "bin"),
    ("2efc56cddb7877c830bc5b402ee72996aedb5694c9e8007bf1d52d72c0d97d26", "llama-1-13b", SHARD.format(3, 3), "bin"),
    ("eac58861ca5f3749c819676d908b906d3df38046c09efe055fe78d7678b718e7", "llama-1-13b", SHARD.format(3, 3), "bin"),
    ("065611608159615ced8d38473ee693129a1a0d872ced0ad8daf09290af7c7061", "llama-1-30b", SHARD.format(7, 7), "bin"),
    ("d27f5b0677d7ff129ceacd73fd461c4d06910ad7787cf217b249948c3f3bc638", "llama-1-65b", "consolidated.07.pth", "meta"),
    ("ee62ed2ad7ded505ae47df50bc6c52916860dfb1c009df4715148cc4bfb50d2f", "llama-2-7b", SHARD.format(1, 2), "bin"),
    ("5ed572be140240b212049a3e791271eed8a04c40bc732c91a4da4b1469db23b1", "vicuna-7b-v1.1", SHARD.format(1, 2), "bin"),
]


@pytest.mark.parametrize(("sha256", "key", "name", "form"), KNOWN)
def test_a_file_names_its_model(sha256: str, key: str, name: str, form: str) -> None:
    """A known hash names the model, the file and its form; where two of one name circulate, both do."""
    found = models.known_file(sha256)
    assert found is not None
    assert (found[0].key, vars(found[1])) == (key, {"name": name, "sha256": sha256, "size": None, "form": form})


def test_a_size_is_kept_where_it_is_known() -> None:
    """The two safetensors files of LLaMA-2 7B and both files of CLIP, alone, are known with their bytes."""
    sizes = {(model.key, file.name): file.size for model in models.models() for file in model.files if file.size}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert sizes == {
        ("llama-2-7b", names[0]): 9976578928,
        ("llama-2-7b", names[1]): 3500297344,
        ("clip-vit-l-14", "pytorch_model.bin"): 1710671599,
        ("clip-vit-l-14", "model.safetensors"): 1710540580,
    }


def test_no_hash_tells_two_stories() -> None:
    """All hashes are sha256, and none is listed twice, in models and recipes together; an unlisted one is unknown."""
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
    """Every repository leads to its own recipe, however its letters are written, and others to none."""
    for name, (repo, *_) in FACTS.items():
        assert catalogue.recipe_of_repo(repo.upper()) == name
    assert catalogue.recipe_of_repo("CarperAI/stable-vicuna-13b-delta") is None


def test_an_unknown_model_is_a_usage_error() -> None:
    """A key that no model has is refused with the keys that are near it."""
    with pytest.raises(UsageError) as caught:
        models.model("llama-2-70b")
    assert (
        str(caught.value) == "not a known model: found llama-2-70b, expected one of llama-2-7b, llama-1-7b, llama-1-30b"
    )


# Schema.


def test_a_small_file_has_the_defaults(tmp_path: Path) -> None:
    """Head, name and arithmetic are enough; the rest is what LLaVA's scripts do, with nothing stated."""
    recipe = catalogue.load_file(written(tmp_path, OWN))
    assert (recipe.name, recipe.title, recipe.compute_dtype, recipe.stated) == ("own", "own", "float16", False)
    assert (recipe.new_rows, recipe.delta_only) == ("copy", frozenset(PROJECTOR))
    assert (recipe.required, recipe.base_files) == ((), ())
    assert (recipe.base_model, recipe.shapes, recipe.checks, recipe.notice, recipe.sources) == (
        None,
        Shapes(),
        None,
        "",
        (),
    )
    assert (recipe.delta.repo, recipe.delta.has_weights, recipe.delta.files) == (None, True, ())


def test_every_key_is_read() -> None:
    """A document with every key gives a recipe with every field, hashes in each of their three forms among them."""
    recipe = parse_recipe(FULL, "own.toml")
    assert recipe.description == "On two\nlines."
    assert (recipe.delta.revision, recipe.delta.archives) == ("0123abc", ("own.zip",))
    hashes = [(file.name, file.sha256[0], file.size) for file in recipe.delta.files]
    assert hashes == [("a.bin", "0", None), ("b.bin", "1", 5), ("c.bin", "2", None), ("c.bin", "3", None)]
    hashes = [(file.name, file.sha256[0], file.size) for file in recipe.base_files]
    assert hashes == [("d.bin", "4", None), ("e.bin", "5", 6), ("e.bin", "6", None)]
    assert (recipe.shapes.hidden_size, recipe.shapes.heads, recipe.shapes.delta_rows) == (8, 2, 12)
    assert (recipe.notes, recipe.delta_only) == (("Nobody has seen it.",), frozenset({"x", "y"}))
    assert recipe.required == ("y",)


NAME = "at most 64 lower-case letters, digits, '.', '_' and '-'"
SIZE = "a whole number from 1 to 1,000,000"
LINE = "one line of printable text"
REPO = "an id of the Hub, ORG/NAME"
HASH = "64 lower-case hex digits"
FLAG = "true or false"
FINITE = "a finite number"
MANY = "a number of more than 20 digits"
DROP = "correct it, or leave it out"
FIX = "correct it"
ZEROS = f'sha256 = "{"0" * 64}"'

UNUSABLE = {
    # id: what is added to OWN, or a whole file; what is not usable; what was found, what was expected; what to do
    "format": ('format = "recipe"\nversion = 1', "format", '"recipe"', "one of deltaweights-recipe", FIX),
    "version-as-text": ('format = "deltaweights-recipe"\nversion = "1"', "version", '"1"', SIZE, FIX),
    "version-as-bool": ('format = "deltaweights-recipe"\nversion = true', "version", "true", SIZE, FIX),
    "name": (OWN.replace("own", "../own"), "name", '"../own"', NAME, FIX),
    "dtype": (
        OWN.replace("float16", "float64"),
        "arithmetic.compute_dtype", '"float64"', "one of float16, float32, bfloat16", FIX,
    ),
    "rule": ('[rules]\nnew_rows = "keep"', "rules.new_rows", '"keep"', "one of copy, zero, mean", DROP),
    "required-of-others": (
        '[rules]\ndelta_only = ["x", "y"]\nrequired = ["x", "z"]',
        "rules.required", "a list", "names of delta_only, which has no z", DROP,
    ),
    "required-beside-the-default": (
        '[rules]\nrequired = ["x"]', "rules.required", "a list", "names of delta_only, which has no x", DROP,
    ),
    "required-of-none": (
        f'[rules]\ndelta_only = []\nrequired = ["{DELTA_ONLY[0]}"]',
        "rules.required", "a list", f"names of delta_only, which has no {DELTA_ONLY[0]}", DROP,
    ),
    "required-as-text": ('[rules]\nrequired = "x"', "rules.required", '"x"', "a list of strings", DROP),
    "base-hash": ('[base.files]\n"a.bin" = "ABC"', 'base.files."a.bin".sha256', '"ABC"', HASH, FIX),
    "hash": ('[delta.files]\n"a.bin" = "ABC"', 'delta.files."a.bin".sha256', '"ABC"', HASH, FIX),
    "hash-as-number": ("[delta.files]\na = [1]", "delta.files.a.sha256", "1", HASH, FIX),
    "negative-size": (
        f"[delta.files]\na = {{ {ZEROS}, size = -1 }}",
        "delta.files.a.size", "-1", "a whole number from 1 to 9,007,199,254,740,992", DROP,
    ),
    "archive": (
        '[delta]\narchives = ["a.zip", "b.tar"]',
        "entry 2 of delta.archives", '"b.tar"', "the name of a zip file", FIX,
    ),
    "repo-as-address": ('[delta]\nrepo = "https://x/a/b"', "delta.repo", '"https://x/a/b"', REPO, DROP),
    "repo-with-dots": ('[delta]\nrepo = "a/b..c"', "delta.repo", '"a/b..c"', REPO, DROP),
    "revision": (
        '[delta]\nrevision = "main"',
        "delta.revision", '"main"', "7 to 40 lower-case hex digits of a commit id", DROP,
    ),
    "source": (
        HEAD + 'name = "own"\nsources = ["a book"]\n[arithmetic]\ncompute_dtype = "float16"',
        "entry 1 of sources", '"a book"', "an address that begins with https:// or http://", FIX,
    ),
    "sources-as-text": (OWN.replace("[", 'sources = "https://a"\n[', 1), "sources", '"https://a"', "a list of strings", DROP),
    "title-of-two-lines": (OWN.replace("[", 'title = "a\\nb"\n[', 1), "title", r'"a\nb"', LINE, DROP),
    "title-as-table": ("[title]", "title", "a table", LINE, DROP),
    "title-as-list": (OWN.replace("[", "title = []\n[", 1), "title", "a list", LINE, DROP),
    "title-as-date": (OWN.replace("[", "title = 2023-07-01\n[", 1), "title", "2023-07-01", LINE, DROP),
    "notice": (OWN.replace("[", 'notice = "\\u001b[2J"\n[', 1), "notice", r'"\u001b[2J"', "printable text", DROP),
    "rules-as-text": (OWN.replace("[", 'rules = "none"\n[', 1), "rules", '"none"', "a table", FIX),
    "flag-as-number": ("stated = 1", "arithmetic.stated", "1", FLAG, DROP),
    "bool-as-number": ("[shapes]\nlayers = true", "shapes.layers", "true", "a whole number from 1 to 10,000", DROP),
    "negative-rows": ("[shapes]\nbase_rows = -5", "shapes.base_rows", "-5", SIZE, DROP),
    "zero": ("[shapes]\nheads = 0", "shapes.heads", "0", SIZE, DROP),
    "fraction": ("[shapes]\nheads = 1.0", "shapes.heads", "1.0", SIZE, DROP),
    "huge": (f"[shapes]\nheads = {10**4000}", "shapes.heads", MANY, SIZE, DROP),
    "hexadecimal": (f"[shapes]\nheads = 0x{'f' * 8000}", "shapes.heads", MANY, SIZE, DROP),
    "fewer-rows": ("[shapes]\nbase_rows = 5\ndelta_rows = 4", "shapes.delta_rows", "4", "base_rows, 5, or more", DROP),
    "nan": ("[checks]\nsum = nan\ntolerance = 1", "checks.sum", "nan", FINITE, FIX),
    "infinite": ("[checks]\nsum = -inf\ntolerance = 1", "checks.sum", "-inf", FINITE, FIX),
    "sum-as-bool": ("[checks]\nsum = true\ntolerance = 1", "checks.sum", "true", FINITE, FIX),
    "beyond-floats": (f"[checks]\nsum = {10**400}\ntolerance = 1", "checks.sum", MANY, FINITE, FIX),
    "tolerance": (
        "[checks]\nsum = 1\ntolerance = -0.5",
        "checks.tolerance", "-0.5", "a finite number, at least 0", FIX,
    ),
    "extends-as-number": (HEAD + "extends = 1", "extends", "1", NAME, DROP),
}  # fmt: skip


@pytest.mark.parametrize(("text", "what", "found", "expected", "remedy"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_value_of_another_kind_is_refused(
    tmp_path: Path, text: str, what: str, found: str, expected: str, remedy: str
) -> None:
    """A value that is not of the kind that its key wants is refused with key, what was found, what was expected, and a remedy."""
    path = written(tmp_path, text if text.startswith("format") else OWN + text)
    with pytest.raises(MalformedInput) as caught:
        catalogue.load_file(path)
    assert str(caught.value) == f"{path}: {what} is not usable: found {found}, expected {expected}; {remedy}"


TOP = (
    "format, version, extends, name, title, description, sources, notice, notes, "
    "delta, base, arithmetic, rules, shapes, checks, transformers"
)
SHAPES = "hidden_size, intermediate_size, layers, heads, base_rows, delta_rows"
NEAR_LLAVA = "llava-7b-v0, llava-med-7b, llava-13b-v0"
ARITHMETIC = "expected one of compute_dtype, stated"

REFUSED = {
    # id: file, what is said about it after its name
    "unknown-near": (OWN + "stateed = true", f"unknown key arithmetic.stateed: {ARITHMETIC}; did you mean stated?"),
    "unknown-table": (OWN + "[rulez]", f"unknown key rulez: expected one of {TOP}; did you mean rules?"),
    "unknown-far": (OWN + "[shapes]\nxyz = 1", f"unknown key shapes.xyz: expected one of {SHAPES}; leave it out"),
    "unknown-escape": (
        OWN + r'"\u001b[2J" = 1',
        rf'unknown key arithmetic."\u001b[2J": {ARITHMETIC}; leave it out',
    ),
    "no-format": ("version = 1", "lacks the key format; add it"),
    "no-version": ('format = "deltaweights-recipe"', "lacks the key version; add it"),
    "no-name": (HEAD, "lacks the key name; add it"),
    "no-arithmetic": (HEAD + 'name = "own"', "lacks the key arithmetic; add it"),
    "no-dtype": (HEAD + 'name = "own"\n[arithmetic]', "lacks the key arithmetic.compute_dtype; add it"),
    "no-tolerance": (OWN + "[checks]\nsum = 1", "lacks the key checks.tolerance; add it"),
    "no-hash": (OWN + "[delta.files]\na = { size = 1 }", "lacks the key delta.files.a.sha256; add it"),
    "later-version": (
        OWN.replace("= 1", "= 2"),
        "version is not known: found 2, expected 1; use a newer deltaweights",
    ),
    "file-in-folder": (
        OWN + f'[delta.files]\n"../a" = {{ {ZEROS} }}',
        'the key delta.files."../a" is not usable: expected the name of a file, without folders; correct it',
    ),
    "unknown-base": (
        OWN + '[base]\nmodel = "llama-7b"',
        f"base.model is not a known model: found llama-7b, expected one of llama-2-7b, llama-1-7b, llama-1-65b; {DROP}",
    ),
    "unknown-extends": (
        HEAD + 'extends = "llava-7b"',
        f"extends a recipe that does not exist: found llava-7b, expected one of {NEAR_LLAVA}; correct it",
    ),
    "duplicate-key": (
        OWN + 'compute_dtype = "float32"\n',
        "not TOML: found Cannot overwrite a value (at line 6, column 26); correct it there",
    ),
    "duplicate-table": (
        OWN + "[rules]\n[rules]",
        "not TOML: found Cannot declare ('rules',) twice (at line 7, column 7); correct it there",
    ),
    "not-toml": ("{}", "not TOML: found Invalid statement (at line 1, column 1); correct it there"),
    "nested": (OWN + "stated = " + "[" * 100_000, "not TOML: found nested too deeply; correct it there"),
    "not-utf8": (OWN.encode() + b"# \xff", f"not UTF-8: found byte 0xff at {len(OWN) + 2}; save it as UTF-8"),
    "too-long": (
        OWN + "#" * MAX_SIZE,
        "too long for a recipe: found more than 1,048,576 bytes; give the recipe, not the weights",
    ),
    "too-many-dots": (
        OWN + "a" + ".a" * 20_000 + " = 1",
        "too many dots for a recipe: found 20000, expected at most 2000; shorten it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_broken_file_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    """A file that is no recipe is refused with one line that names it and says what is wrong."""
    path = written(tmp_path, text)
    with pytest.raises(MalformedInput) as caught:
        catalogue.load_file(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_long_key_does_not_make_a_long_message(tmp_path: Path) -> None:
    """A key of 500,000 letters is shown by its beginning, in no time."""
    began = time.process_time()
    with pytest.raises(MalformedInput) as caught:
        catalogue.load_file(written(tmp_path, OWN + "a" * 500_000 + " = 1"))
    assert len(str(caught.value)) < 400
    assert time.process_time() - began < MOMENT


HOSTILE = {
    "dots": "\n".join(f"[a{i}{'.a' * 64}]" for i in range(7500)),
    "tables": "a = [" + "{a = 1}," * 120_000 + "]",
    "arrays": "[[a]]\n" * 150_000,
    "digits": "a = 0x" + "f" * 1_000_000,
    "keys": "\n".join(f"a{i} = 1" for i in range(80_000)),
}


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="ru_maxrss would count the process that started it, too"
)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_ends_quickly(tmp_path: Path, text: str) -> None:
    """A megabyte made to be slow is refused in seconds and 200 MB."""
    program = f"""
import time
from deltaweights.errors import MalformedInput
from deltaweights.recipes.catalogue import load_file
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
before, began = peak(), time.process_time()
try:
    load_file({str(written(tmp_path, OWN + text))!r})
except MalformedInput:
    print(time.process_time() - began, (peak() - before) / 1000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < MOMENT
    assert megabytes < 200


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that is not there is the system's error (5), not the recipe's."""
    with pytest.raises(InputOutputError) as caught:
        catalogue.load_file(tmp_path / "own.toml")
    assert str(caught.value) == f"{tmp_path / 'own.toml'}: cannot read the recipe: No such file or directory"


@pytest.mark.parametrize("kind", ["row60-fifo", "row60-folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A FIFO that nobody writes to, or a folder, is refused without waiting."""
    path = tmp_path / "own.toml"
    if kind == "row60-fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(MalformedInput) as caught:
        catalogue.load_file(path)
    assert str(caught.value) == f"{path}: not a regular file; give the recipe file itself"


@pytest.mark.parametrize("name", ["llava-med7b", "../data/llava-med-7b", "", "x" * 100_000, "\x1b[2J"])
def test_an_unknown_name_is_a_usage_error(name: str) -> None:
    """A name that no recipe of the package has is refused with 2, and never reaches outside the package."""
    with pytest.raises(UsageError) as caught:
        catalogue.load(name)
    assert re.fullmatch(
        r"no recipe has this name: found .*, expected one of .*; `deltaweights recipes` lists them", str(caught.value)
    )
    assert len(str(caught.value)) < 1000


# Files that are laid over a recipe.

TINY = HEAD + 'extends = "llava-med-7b"\nname = "tiny"\n[shapes]\nlayers = 2\ndelta_rows = 32008\n[delta]\nfiles = {}\n'


def test_a_file_is_laid_over_a_recipe_key_by_key(tmp_path: Path) -> None:
    """A file that extends a recipe changes the keys that it gives, ``files`` as a whole, and nothing else."""
    below, above = catalogue.load("llava-med-7b"), catalogue.load_file(written(tmp_path, TINY))
    assert vars(above.shapes) == {**vars(below.shapes), "layers": 2, "delta_rows": 32008}
    assert vars(above.delta) == {**vars(below.delta), "files": ()}
    same = {"title", "description", "sources", "notice", "notes", "base_model", "compute_dtype", "stated", "new_rows"}
    assert {key: vars(above)[key] for key in same} == {key: vars(below)[key] for key in same}
    assert (above.name, above.delta_only, above.checks) == ("tiny", below.delta_only, None)
    assert above.digest != below.digest


def test_the_command_line_can_name_what_is_below(tmp_path: Path) -> None:
    """A file without ``extends`` is laid over the recipe that is named beside it, as if it extended that one."""
    without = written(tmp_path, TINY.replace('extends = "llava-med-7b"\n', ""))
    assert catalogue.load_file(without, over="llava-med-7b") == catalogue.load_file(written(tmp_path, TINY))
    assert catalogue.load_file(written(tmp_path, TINY), over="llava-med-7b").name == "tiny"


def test_a_file_that_gives_nothing_is_the_recipe(tmp_path: Path) -> None:
    """A file of nothing but its head and ``extends`` is the recipe that it extends, for every recipe of the package."""
    for name in catalogue.names():
        assert catalogue.load_file(written(tmp_path, f'{HEAD}extends = "{name}"\n')) == catalogue.load(name)


OVER_MED = HEAD + 'extends = "llava-med-7b"\n'

NOT_OVER: dict[str, tuple[str, str | None, type[DeltaweightsError], str]] = {
    # id: file, name beside it, error, message
    "conflict": (
        TINY, "alpaca-7b", UsageError,
        "{path}: extends another recipe than the one that is named: found llava-med-7b, expected alpaca-7b; name one of them",
    ),
    "unknown": (
        TINY, "alpaca", UsageError,
        "no recipe has this name: found alpaca, expected one of alpaca-7b; `deltaweights recipes` lists them",
    ),
    "no-head": ('version = 1\nextends = "llava-med-7b"', None, MalformedInput, "{path}: lacks the key format; add it"),
    "no-head-named": ("version = 1", "llava-med-7b", MalformedInput, "{path}: lacks the key format; add it"),
    "table-lost": (
        OVER_MED + "shapes = 1", None, MalformedInput,
        "{path}: shapes is not usable: found 1, expected a table; correct it",
    ),
    "fewer-rows": (
        OVER_MED + "[shapes]\ndelta_rows = 4", None, MalformedInput,
        f"{{path}}: shapes.delta_rows is not usable: found 4, expected base_rows, 32000, or more; {DROP}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "over", "error", "message"), NOT_OVER.values(), ids=NOT_OVER)
def test_what_cannot_be_laid_over(
    tmp_path: Path, text: str, over: str | None, error: type[DeltaweightsError], message: str
) -> None:
    """A contradiction and an unknown name are errors of usage (2); the file needs a head, and must fit what it is laid over."""
    path = written(tmp_path, text)
    with pytest.raises(error) as caught:
        catalogue.load_file(path, over=over)
    assert str(caught.value) == message.format(path=path)


def test_a_recipe_of_the_package_cannot_extend() -> None:
    """``extends`` is resolved before a document is parsed, once, so recipes of the package stand alone."""
    with pytest.raises(MalformedInput) as caught:
        parse_recipe({**FULL, "extends": "llava-med-7b"}, "recipe own")
    assert str(caught.value) == "recipe own: extends cannot stand in a recipe that others extend; leave it out"


# The digest.

DECISIVE = {("name",), ("arithmetic",), ("rules",), ("shapes",), ("checks",)}

ONLY_REFUSES = {("rules", "required")}
"""What says which deltas are merged, not how."""

OTHERS: dict[tuple[str, ...], Any] = {
    ("format",): None,
    ("version",): None,
    ("name",): "other",
    ("title",): "Another",
    ("description",): "",
    ("sources",): [],
    ("notice",): "Another.",
    ("notes",): [],
    ("delta",): {},
    ("delta", "repo"): "org/other",
    ("delta", "revision"): "a" * 40,
    ("delta", "has_weights"): False,
    ("delta", "archives"): [],
    ("delta", "files"): {},
    ("delta", "files", "a.bin"): "9" * 64,
    ("delta", "files", "b.bin"): "9" * 64,
    ("delta", "files", "b.bin", "sha256"): "9" * 64,
    ("delta", "files", "b.bin", "size"): 6,
    ("delta", "files", "c.bin"): [],
    ("base",): {},
    ("base", "model"): "llama-1-13b",
    ("base", "files"): {},
    ("base", "files", "d.bin"): "9" * 64,
    ("base", "files", "e.bin"): [],
    ("arithmetic",): {"compute_dtype": "bfloat16"},
    ("arithmetic", "compute_dtype"): "float32",
    ("arithmetic", "stated"): False,
    ("rules",): {},
    ("rules", "new_rows"): "zero",
    ("rules", "delta_only"): ["y"],
    ("rules", "required"): [],
    ("shapes",): {"hidden_size": 8, "heads": 2, "layers": 9},
    ("shapes", "hidden_size"): 9,
    ("shapes", "intermediate_size"): 17,
    ("shapes", "layers"): 3,
    ("shapes", "heads"): 4,
    ("shapes", "base_rows"): 11,
    ("shapes", "delta_rows"): 13,
    ("checks",): {"sum": 0, "tolerance": 0},
    ("checks", "sum"): 2.5,
    ("checks", "tolerance"): 0.2,
    ("checks", "with_buffers"): False,
}
"""Another valid value for every key."""


def test_the_digest_changes_exactly_with_what_decides() -> None:
    """Another name, arithmetic, rule, shape or check gives another digest, each its own; no other key has a part in it.

    ``required`` has none: what it lets pass is merged as without it.
    """
    assert set(places(FULL)) == set(OTHERS)
    digest = parse_recipe(FULL, "own.toml").digest
    digests = [digest]
    for place, value in OTHERS.items():
        other = parse_recipe(changed(FULL, place, value), "own.toml").digest if value is not None else digest
        assert (other != digest) is (place[:1] in DECISIVE and place not in ONLY_REFUSES), place
        digests += [other] if other != digest else []
    assert len(set(digests)) == len(digests)


def test_the_digest_is_what_the_document_says(tmp_path: Path) -> None:
    """The digest of llava-med-7b is that of the JSON in docs/recipes.md; defaults that are written out change nothing."""
    block = re.search(r"```json\n(.*)\n```", DOCS)
    assert block is not None
    assert catalogue.load("llava-med-7b").digest == f"recipe1:{blake3(block[1].encode()).hexdigest()}"
    assert catalogue.load("llava-med-7b").digest[:20] in DOCS
    spelled = (
        OWN
        + f'stated = false\n[rules]\nnew_rows = "copy"\ndelta_only = {[*DELTA_ONLY, DELTA_ONLY[0]][::-1]}\n[shapes]\n'
    )
    assert catalogue.load_file(written(tmp_path, spelled)).digest == catalogue.load_file(written(tmp_path, OWN)).digest


# Properties.


def kept(document: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[TomlDocument]:
    """Return documents with the required keys, and any of the others."""
    optional = {key: value for key, value in document.items() if key not in required}
    return st.fixed_dictionaries({key: document[key] for key in required}, optional=optional)


def documents() -> st.SearchStrategy[TomlDocument]:
    """Return valid documents."""
    line = st.text("aZ0 é日", min_size=1).filter(str.isprintable)
    sha256, size = st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 1_000_000)
    one_hash = sha256 | kept({"sha256": sha256, "size": size}, "sha256")
    number = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**64), 2**64)
    shapes = kept(
        {"hidden_size": size, "layers": st.integers(1, 10_000), "heads": size, "base_rows": st.integers(1, 500),
         "delta_rows": st.integers(500, 10**6)}
    )  # fmt: skip
    delta = {
        "repo": st.just("org/name"),
        "revision": st.text("0123456789abcdef", min_size=7, max_size=40),
        "has_weights": st.booleans(),
        "archives": st.lists(st.sampled_from(["a.zip", "B 1.ZIP"])),
        "files": st.dictionaries(line, one_hash | st.lists(one_hash), max_size=3),
    }
    rules = kept({"new_rows": st.sampled_from(["copy", "zero", "mean"]), "delta_only": st.lists(line, max_size=3)})
    arithmetic = {"compute_dtype": st.sampled_from(["float16", "float32", "bfloat16"]), "stated": st.booleans()}
    checks = {"sum": number, "tolerance": st.floats(0, 1), "with_buffers": st.booleans()}
    return kept(
        {
            "format": st.just("deltaweights-recipe"),
            "version": st.just(1),
            "name": st.text("a0.-_", max_size=63).map("a".__add__),
            "title": line,
            "notice": st.text("a é\n"),
            "sources": st.lists(st.just("https://example.org")),
            "notes": st.lists(line, max_size=2),
            "delta": kept(delta),
            "base": kept({"model": st.just("llama-1-7b"), "files": delta["files"]}),
            "arithmetic": kept(arithmetic, "compute_dtype"),
            "rules": rules.flatmap(_with_required),
            "shapes": shapes,
            "checks": kept(checks, "sum", "tolerance"),
        },
        "format", "version", "name", "arithmetic",
    ).filter(_fits_together)  # fmt: skip


def _with_required(rules: TomlDocument) -> st.SearchStrategy[TomlDocument]:
    """Return rules that may require some of what they allow."""
    allowed = rules.get("delta_only", [*DELTA_ONLY])
    return kept({"required": st.lists(st.sampled_from(allowed)) if allowed else st.just([])}).map(rules.__or__)


def _fits_together(document: TomlDocument) -> bool:
    """Tell whether a document keeps the two rules that span tables."""
    mean = document.get("rules", {}).get("new_rows") == "mean"
    buffers = document.get("checks", {}).get("with_buffers", False)
    sizes = {"hidden_size", "heads", "layers"} <= document.get("shapes", {}).keys()
    return (not mean or document["arithmetic"]["compute_dtype"] == "float32") and (not buffers or sizes)


ANYTHING = st.recursive(
    st.none().map(lambda _: ...)
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 0, 1, 2])
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def judged(document: TomlDocument) -> Recipe | None:
    """Return the recipe, or None when it is refused as it should be."""
    try:
        return parse_recipe(document, "own.toml")
    except MalformedInput as error:
        assert str(error).startswith("own.toml: ")  # noqa: PT017  (acceptance is no failure here)
        assert str(error).isprintable()  # noqa: PT017
        return None


RULES_OF_TWO_TABLES = {
    "mean-in-float16": (
        OWN + '[rules]\nnew_rows = "mean"\n',
        'rules.new_rows is not usable: found "mean", expected mean only with arithmetic.compute_dtype = "float32"',
    ),
    "buffers-without-sizes": (
        OWN + "[checks]\nsum = 1.0\ntolerance = 0.1\nwith_buffers = true\n",
        "checks.with_buffers is not usable: found true, expected true only with shapes.hidden_size, heads and layers",
    ),
}


@pytest.mark.parametrize(("text", "message"), RULES_OF_TWO_TABLES.values(), ids=RULES_OF_TWO_TABLES)
def test_rules_that_span_tables(tmp_path: Path, text: str, message: str) -> None:
    """A mean is made in float32 alone, and buffers can be counted only where their sizes are stated."""
    with pytest.raises(MalformedInput, match=re.escape(message)):
        catalogue.load_file(written(tmp_path, text))


@given(documents())
@settings(deadline=None)
def test_what_fits_the_schema_parses(document: TomlDocument) -> None:
    """Every document that the schema allows parses, and lays over itself without a change."""
    recipe = parse_recipe(document, "own.toml")
    assert recipe.name == document["name"]
    assert parse_recipe(overlay(document, document), "own.toml") == recipe


@given(documents() | st.just(FULL), st.data())
@settings(deadline=None, max_examples=300)
def test_any_change_parses_or_is_refused(document: TomlDocument, data: st.DataObject) -> None:
    """A document with any key dropped, retyped or replaced parses or is refused as malformed, in one printable line."""
    place = data.draw(st.sampled_from(list(places(document))))
    value = data.draw(ANYTHING)
    recipe = judged(changed(document, place, value))
    if value is ... and place[0] in {"format", "version", "name", "arithmetic"} and place[-1] != "stated":
        assert recipe is None


@given(documents() | st.just(FULL), st.text(max_size=12), st.data())
@settings(deadline=None)
def test_any_further_key_is_refused(document: TomlDocument, key: str, data: st.DataObject) -> None:
    """A key that the schema does not know is refused in every table of the document but that of files."""
    tables = [
        (),
        *(
            place
            for place in places(document)
            if place in {(k,) for k in ("delta", "base", "rules", "shapes", "checks")}
        ),
    ]
    place = data.draw(st.sampled_from(tables))
    key = f"{key}?"
    assert judged(changed(document, (*place, key), 1)) is None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None)
def test_any_bytes_are_a_document_or_malformed(data: bytes) -> None:
    """Bytes are read as TOML or refused as malformed, whatever they are."""
    try:
        assert isinstance(parse_toml(data, "own.toml"), dict)
    except MalformedInput as error:
        assert str(error).isprintable()  # noqa: PT017


# The command.

LIST = """\
recipe                   model                                    base         delta
alpaca-7b                Alpaca, 7B                               llama-1-7b   tatsu-lab/alpaca-7b-wdiff
llava-7b-v0              LLaVA v0, 7B                             llama-1-7b   liuhaotian/LLaVA-7b-delta-v0
llava-13b-v0             LLaVA v0, 13B                            llama-1-13b  liuhaotian/LLaVA-13b-delta-v0
llava-13b-v0-science-qa  LLaVA v0, 13B, fine-tuned on ScienceQA   llama-1-13b  liuhaotian/LLaVA-13b-delta-v0-science_qa
llava-13b-v1-1           LLaVA v1.1, 13B                          llama-1-13b  liuhaotian/LLaVA-13b-delta-v1-1
llava-lightning-7b-v1-1  LLaVA Lightning v1.1, 7B                 llama-1-7b   liuhaotian/LLaVA-Lightning-7B-delta-v1-1
llava-med-7b             LLaVA-Med v1, 7B                         llama-1-7b   microsoft/llava-med-7b-delta
llava-med-7b-pathvqa     LLaVA-Med v1, 7B, fine-tuned on PathVQA  llama-1-7b   katielink/llava-med-7b-pathvqa-delta
llava-med-7b-slake       LLaVA-Med v1, 7B, fine-tuned on SLAKE    llama-1-7b   katielink/llava-med-7b-slake-delta (NO WEIGHTS)
llava-med-7b-vqarad      LLaVA-Med v1, 7B, fine-tuned on VQA-RAD  llama-1-7b   katielink/llava-med-7b-vqarad-delta
vicuna-7b-v0             Vicuna v0, 7B                            llama-1-7b   lmsys/vicuna-7b-delta-v0
vicuna-7b-v1.1           Vicuna v1.1, 7B                          llama-1-7b   lmsys/vicuna-7b-delta-v1.1
vicuna-13b-v0            Vicuna v0, 13B                           llama-1-13b  lmsys/vicuna-13b-delta-v0
vicuna-13b-v1.1          Vicuna v1.1, 13B                         llama-1-13b  lmsys/vicuna-13b-delta-v1.1
"""

SLAKE = """\
recipe          llava-med-7b-slake
model           LLaVA-Med v1, 7B, fine-tuned on SLAKE
                LLaVA-Med v1.0.0, the model that was fine-tuned on SLAKE.
delta           katielink/llava-med-7b-slake-delta (NO WEIGHTS) at 1515369
archive         Slake1.0-9epoch_delta.zip
                The repository has no weights. Whoever holds the archive can use that.
base            LLaMA-1 7B (llama-1-7b): huggyllama/llama-7b at 8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16
base files      700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d  consolidated.00.pth
                7e89e242ddc0dd6f060b43ca219ce8b3e8f08959a72cb3c0855df8bb04d46265  params.json
                7935c843a25ae265d60bf4543b90bfd91c4911b728412b5c1d5cff42a3cd5645  checklist.chk
                0087155d6df07106c1d910bfeb6aab1be8e612dfbf2b56ddfb4ccbde7dbd50d0  pytorch_model-00001-of-00002.bin
                461bc5e50200db7813ff99cc0b9316c48ccbd6aaaa31bf8cf7bee0b64bc3eda3  pytorch_model-00002-of-00002.bin
                aca3c1facc89d12311a667c32e85ac86e625990992ea8a189e3b036ba371b931  pytorch_model.bin.index.json
                d43476fdd2fca0c44d55ee930039dd5dafb6331764dc0b5e5f89c60b551fcc12  model-00001-of-00002.safetensors
arithmetic      float16, in which the delta was made
new rows        kept as they are
in delta only   model.mm_projector.bias
                model.mm_projector.weight (required)
shapes          hidden size 4096, intermediate size 11008, layers 32, heads 32, base rows 32000, delta rows 32004
digest          recipe1:037acecc347007c4ea24677c1d3b69f388409c106142926101916a6f6977b513
notice          LLaVA-Med is for research use only. It is not for clinical care or for any clinical decision. \
The merged weights are subject to the terms of LLaMA, Vicuna and GPT-4, and to the licence of the delta.
notes           The repository holds a README and no weights: the archive Slake1.0-9epoch_delta.zip is the only known source.
                The archive is one of the four of LLaVA-Med v1.0.0; the links to it are reported dead, people still hold it.
                The revision is the beginning of a commit id, as far as it was seen.
sources         https://huggingface.co/katielink/llava-med-7b-slake-delta
                https://github.com/microsoft/LLaVA-Med/tree/v1.0.0
"""


@pytest.mark.parametrize("arguments", [(), ("list",)], ids=["alone", "list"])
def test_the_list_is_for_people(run: Run, arguments: tuple[str, ...]) -> None:
    """``recipes`` and ``recipes list`` print the same table, on stdout alone."""
    done = run("recipes", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, LIST, "")


def test_slake_says_that_it_has_no_weights(run: Run) -> None:
    """``recipes show`` of SLAKE says that the repository has no weights, and which archive has them."""
    done = run("recipes", "show", "llava-med-7b-slake")
    assert (done.returncode, done.stdout, done.stderr) == (0, SLAKE, "")


@pytest.mark.parametrize("arguments", [("--json",), ("list", "--json"), ("--json", "list")], ids=" ".join)
def test_the_list_is_for_programs(run: Run, arguments: tuple[str, ...]) -> None:
    """With --json, in either place, the list is one JSON object that says which repositories have weights."""
    done = run("recipes", *arguments)
    entries = {entry.pop("name"): entry for entry in json.loads(done.stdout)["recipes"]}
    assert list(entries) == list(FACTS)
    assert {name: (entry["repo"], entry["base"]) for name, entry in entries.items()} == {
        n: f[:2] for n, f in FACTS.items()
    }
    assert [name for name, entry in entries.items() if not entry["has_weights"]] == ["llava-med-7b-slake"]


@pytest.mark.parametrize("arguments", [("show", "--json"), ("--json", "show")], ids=" ".join)
def test_a_recipe_is_for_programs(run: Run, arguments: tuple[str, ...]) -> None:
    """With --json, in either place, a recipe is one JSON object with every field."""
    done = run("recipes", *arguments, "alpaca-7b")
    document = json.loads(done.stdout)
    assert set(document) == set(Recipe.__dataclass_fields__)
    assert (document["delta_only"], document["new_rows"], document["checks"]["sum"]) == ([], "mean", 50637.1836)
    assert document["digest"] == catalogue.load("alpaca-7b").digest


@pytest.mark.parametrize("name", FACTS)
def test_every_recipe_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``recipes show`` of each recipe names its delta, base and digest, and every hash of delta and base."""
    command.main(["show", name], standalone_mode=False)
    shown, recipe = capsys.readouterr().out, catalogue.load(name)
    for words in (recipe.delta.repo, recipe.base_model, recipe.digest, recipe.notice, *recipe.notes, *recipe.sources):
        assert words is not None
        assert words in shown
    assert recipe.base_model is not None
    files = [*recipe.delta.files, *models.model(recipe.base_model).files]
    assert all(f"{file.sha256}  {file.name}\n" in shown for file in files)


def test_the_files_of_a_base_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``recipes show`` lists the files that a recipe itself accepts as its base's before those of its base model."""
    recipe = parse_recipe(FULL, "own.toml")
    monkeypatch.setattr("deltaweights.cli.recipes.load", {"own": recipe}.__getitem__)
    command.main(["show", "own"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index(f"base files      {'4' * 64}  d.bin")
    shown = [line[16:] for line in lines[begin : begin + 3 + len(models.model("llama-1-7b").files)]]
    known = [f"{file.sha256}  {file.name}" for file in models.model("llama-1-7b").files]
    assert shown == [f"{'4' * 64}  d.bin", f"{'5' * 64}  e.bin", f"{'6' * 64}  e.bin", *known]


def test_without_files_of_a_base_none_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``recipes show`` has no line for the files of a base where none are known."""
    own = {key: value for key, value in FULL.items() if key != "base"}
    monkeypatch.setattr("deltaweights.cli.recipes.load", {"own": parse_recipe(own, "own.toml")}.__getitem__)
    command.main(["show", "own"], standalone_mode=False)
    assert "\nbase" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("show", "alpaca"),
            "no recipe has this name: found alpaca, expected one of alpaca-7b; `deltaweights recipes` lists them",
        ),
        (("show",), "Missing argument 'NAME' (see deltaweights recipes show --help)"),
        (("list", "x"), "Got unexpected extra argument (x) (see deltaweights recipes list --help)"),
    ],
    ids=["unknown", "no-name", "too-many"],
)
def test_a_wrong_command_line_ends_with_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    """An unknown name, none or one too many ends with 2 and one line."""
    done = run("recipes", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"deltaweights: error: {message}\n")


def test_the_command_loads_nothing_that_computes() -> None:
    """``recipes`` loads neither torch nor numpy nor numkong."""
    program = """
import sys
from deltaweights.cli.group import deltaweights
deltaweights.main(["recipes"], standalone_mode=False)
print({"torch", "numpy", "numkong"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.endswith("\nset()\n")


# Documents and package.


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


def test_the_document_names_every_key() -> None:
    """docs/recipes.md has every key of the schema in its tables."""
    cells = {line.split("|")[1] for line in DOCS.splitlines() if line.startswith("| `")}
    named = {key for cell in cells for key in re.findall("`([a-z_]+)`", cell)}
    tables = {"delta", "base", "arithmetic", "rules", "shapes", "checks"}
    keys = {place[-1] for place in places(FULL) if ".bin" not in "".join(place)} - tables
    assert keys | {"extends"} <= named
    assert all(f"**`[{table}]`**" in DOCS for table in tables)


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
