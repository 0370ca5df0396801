"""Facts about the recipes of the package, and documents to write others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaweights.recipes.table import TomlDocument

ROOT = Path(__file__).parents[2]

DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("recipe-format.md", "recipes.md"))

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


DROP = "correct it, or leave it out"
