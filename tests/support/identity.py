"""Tiny pairs, recipes for them, made-up known files, and Hub caches that state hashes."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from deltaweights.checkpoint.files import LocalFile
from deltaweights.recipes.models import KnownFile, KnownModel, model
from tests.support.pairs import base_tensors, delta_tensors, save

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
    for user in ("recipes.identify", "jobs.input_checks"):
        monkeypatch.setattr(f"deltaweights.{user}.known_file", made.models.get)
    monkeypatch.setattr("deltaweights.recipes.identify.recipe_of_file", made.recipes.get)
    monkeypatch.setattr("deltaweights.jobs.recognised_recipe.recipe_of_file", made.recipes.get)
    return made


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


def archive_of(folder: Path, method: int) -> Path:
    """Zip a folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as target:
        for file in sorted(folder.iterdir()):
            target.write(file, f"{folder.name}/{file.name}")
    return path


CONFIGS = {
    "LLaMA-1": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-06},
    "LLaMA-2": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-05},
    None: {"max_position_embeddings": 4096, "rms_norm_eps": 1e-06},
}


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


def with_projector(folder: Path) -> Path:
    """Take the projector out of a delta's shards and lay it beside them."""
    projector = {name: tensor for name, tensor in DELTA.items() if "mm_projector" in name}
    save({name: tensor for name, tensor in DELTA.items() if name not in projector}, folder)
    torch.save(projector, folder / "mm_projector.bin")
    return folder
