"""The recipe schema: documents that break it are refused, and digests cover what decides the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.errors import MalformedInput
from deltaweights.recipes.catalogue import load, load_file
from deltaweights.recipes.recipe import DELTA_ONLY, KEYS, Recipe, Shapes, parse_recipe
from deltaweights.recipes.table import MAX_SIZE, TomlDocument, overlay
from tests.support.errors import refused
from tests.support.recipes import DOCS, DROP, FULL, HEAD, OWN, PROJECTOR, changed, places, written


def test_a_small_file_has_the_defaults(tmp_path: Path) -> None:
    """Head, name and arithmetic are enough; the defaults are what LLaVA's scripts do."""
    recipe = load_file(written(tmp_path, OWN))
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
    """A document with every key gives a recipe with every field; hashes may have three forms."""
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
    """A value of the wrong kind is refused with its key, what was found and expected, and a remedy."""
    path = written(tmp_path, text if text.startswith("format") else OWN + text)
    with refused(MalformedInput, where=path, found=found, expected=expected, remedy=remedy) as info:
        load_file(path)
    assert info.value.problem.startswith(f"{what} ")


UNKNOWN_KEYS = {
    # id: what is added to OWN, the key, those that are known, what to do
    "near": ("stateed = true", "arithmetic.stateed", ("compute_dtype", "stated"), "did you mean stated?"),
    "table": ("[rulez]", "rulez", KEYS, "did you mean rules?"),
    "far": ("[shapes]\nxyz = 1", "shapes.xyz", tuple(vars(Shapes())), "leave it out"),
    "escape": (r'"\u001b[2J" = 1', r'arithmetic."\u001b[2J"', ("compute_dtype", "stated"), "leave it out"),
}


@pytest.mark.parametrize(("text", "key", "known", "remedy"), UNKNOWN_KEYS.values(), ids=UNKNOWN_KEYS)
def test_unknown_keys_are_refused(tmp_path: Path, text: str, key: str, known: tuple[str, ...], remedy: str) -> None:
    """An unknown key is refused with the known ones, and the nearest of them as a guess."""
    path = written(tmp_path, OWN + text)
    with refused(MalformedInput, where=path, expected=f"one of {', '.join(known)}", remedy=remedy) as info:
        load_file(path)
    assert info.value.problem.endswith(f" {key}")


MISSING_KEYS = {
    "format": "version = 1",
    "version": 'format = "deltaweights-recipe"',
    "name": HEAD,
    "arithmetic": HEAD + 'name = "own"',
    "arithmetic.compute_dtype": HEAD + 'name = "own"\n[arithmetic]',
    "checks.tolerance": OWN + "[checks]\nsum = 1",
    "delta.files.a.sha256": OWN + "[delta.files]\na = { size = 1 }",
}


@pytest.mark.parametrize(("key", "text"), MISSING_KEYS.items(), ids=MISSING_KEYS)
def test_missing_keys_are_refused(tmp_path: Path, key: str, text: str) -> None:
    """A file that lacks a required key is refused with the key."""
    path = written(tmp_path, text)
    with refused(MalformedInput, where=path, remedy="add it") as info:
        load_file(path)
    assert info.value.problem.endswith(f" {key}")


REFUSED = {
    # id: file, what was found, what was expected, what to do
    "later version": (OWN.replace("= 1", "= 2"), 2, 1, "use a newer deltaweights"),
    "file in a folder": (
        OWN + f'[delta.files]\n"../a" = {{ {ZEROS} }}', None, "the name of a file, without folders", FIX,
    ),
    "unknown base": (
        OWN + '[base]\nmodel = "llama-7b"', "llama-7b", "one of llama-2-7b, llama-1-7b, llama-1-65b", DROP,
    ),
    "unknown extends": (
        HEAD + 'extends = "llava-7b"', "llava-7b", "one of llava-7b-v0, llava-med-7b, llava-13b-v0", FIX,
    ),
    "duplicate key": (
        OWN + 'compute_dtype = "float32"\n', "Cannot overwrite a value (at line 6, column 26)", None, "correct it there",
    ),
    "duplicate table": (
        OWN + "[rules]\n[rules]", "Cannot declare ('rules',) twice (at line 7, column 7)", None, "correct it there",
    ),
    "not TOML": ("{}", "Invalid statement (at line 1, column 1)", None, "correct it there"),
    "nested": (OWN + "stated = " + "[" * 100_000, "nested too deeply", None, "correct it there"),
    "not UTF-8": (OWN.encode() + b"# \xff", f"byte 0xff at {len(OWN) + 2}", None, "save it as UTF-8"),
    "too long": (OWN + "#" * MAX_SIZE, "more than 1,048,576 bytes", None, "give the recipe, not the weights"),
    "too many dots": (OWN + "a" + ".a" * 20_000 + " = 1", 20_000, "at most 2000", "shorten it"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "found", "expected", "remedy"), REFUSED.values(), ids=REFUSED)
def test_other_broken_files_are_refused(
    tmp_path: Path, text: str | bytes, found: object, expected: object, remedy: str
) -> None:
    """A file that is not a recipe is refused with what is wrong and where."""
    path = written(tmp_path, text)
    with refused(MalformedInput, where=path, found=found, expected=expected, remedy=remedy):
        load_file(path)


def test_a_recipe_of_the_package_cannot_extend() -> None:
    """``extends`` is resolved before a document is parsed, once, so recipes of the package cannot have it."""
    with refused(MalformedInput, where="recipe own", remedy="leave it out"):
        parse_recipe({**FULL, "extends": "llava-med-7b"}, "recipe own")


# The digest.

DECISIVE = {("name",), ("arithmetic",), ("rules",), ("shapes",), ("checks",)}

ONLY_REFUSES = {("rules", "required")}
"""Keys that decide which deltas are merged, not how."""

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
    """Each other name, arithmetic, rule, shape or check gives a digest of its own; other keys, and ``required``, do not count."""
    assert set(places(FULL)) == set(OTHERS)
    digest = parse_recipe(FULL, "own.toml").digest
    digests = [digest]
    for place, value in OTHERS.items():
        other = parse_recipe(changed(FULL, place, value), "own.toml").digest if value is not None else digest
        assert (other != digest) is (place[:1] in DECISIVE and place not in ONLY_REFUSES), place
        digests += [other] if other != digest else []
    assert len(set(digests)) == len(digests)


def test_the_digest_is_what_the_document_says(tmp_path: Path) -> None:
    """The digest of llava-med-7b is that of the JSON in docs/recipes.md; explicit defaults give the same digest."""
    block = re.search(r"```json\n(.*)\n```", DOCS)
    assert block is not None
    assert load("llava-med-7b").digest == f"recipe1:{blake3(block[1].encode()).hexdigest()}"
    assert load("llava-med-7b").digest[:20] in DOCS
    spelled = (
        OWN
        + f'stated = false\n[rules]\nnew_rows = "copy"\ndelta_only = {[*DELTA_ONLY, DELTA_ONLY[0]][::-1]}\n[shapes]\n'
    )
    assert load_file(written(tmp_path, spelled)).digest == load_file(written(tmp_path, OWN)).digest


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
    """Return whether a document keeps the two rules that span tables."""
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


ACROSS_TABLES = {
    "mean in float16": (
        '[rules]\nnew_rows = "mean"\n', "rules.new_rows", '"mean"', 'mean only with arithmetic.compute_dtype = "float32"',
    ),
    "buffers without sizes": (
        "[checks]\nsum = 1.0\ntolerance = 0.1\nwith_buffers = true\n",
        "checks.with_buffers", "true", "true only with shapes.hidden_size, heads and layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "key", "found", "expected"), ACROSS_TABLES.values(), ids=ACROSS_TABLES)
def test_rules_across_tables(tmp_path: Path, text: str, key: str, found: str, expected: str) -> None:
    """The mean needs float32, and buffers can be counted only where their sizes are stated."""
    with refused(MalformedInput, found=found, expected=expected) as info:
        load_file(written(tmp_path, OWN + text))
    assert info.value.problem.startswith(f"{key} ")


@given(documents())
@settings(deadline=None)
def test_what_fits_the_schema_parses(document: TomlDocument) -> None:
    """Every document that fits the schema parses, and laying it over itself changes nothing."""
    recipe = parse_recipe(document, "own.toml")
    assert recipe.name == document["name"]
    assert parse_recipe(overlay(document, document), "own.toml") == recipe


@given(documents() | st.just(FULL), st.data())
@settings(deadline=None, max_examples=300)
def test_any_change_parses_or_is_refused(document: TomlDocument, data: st.DataObject) -> None:
    """A document with any key dropped or replaced parses, or is refused as malformed in one printable line."""
    place = data.draw(st.sampled_from(list(places(document))))
    value = data.draw(ANYTHING)
    recipe = judged(changed(document, place, value))
    if value is ... and place[0] in {"format", "version", "name", "arithmetic"} and place[-1] != "stated":
        assert recipe is None


@given(documents() | st.just(FULL), st.text(max_size=12), st.data())
@settings(deadline=None)
def test_any_further_key_is_refused(document: TomlDocument, key: str, data: st.DataObject) -> None:
    """Unknown keys are refused in every table except ``files``."""
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


def test_the_document_names_every_key() -> None:
    """docs/recipes.md has every key of the schema in its tables."""
    cells = {line.split("|")[1] for line in DOCS.splitlines() if line.startswith("| `")}
    named = {key for cell in cells for key in re.findall("`([a-z_]+)`", cell)}
    tables = {"delta", "base", "arithmetic", "rules", "shapes", "checks"}
    keys = {place[-1] for place in places(FULL) if ".bin" not in "".join(place)} - tables
    assert keys | {"extends"} <= named
    assert all(f"**`[{table}]`**" in DOCS for table in tables)
