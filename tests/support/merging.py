"""Merge pairs in tests, and look at what was written and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deltaweights.jobs.apply import ApplyResult, apply_delta
from deltaweights.manifest.records import Fragment
from deltaweights.merge import stream
from deltaweights.staging.staged_shards import StagedShards
from tests.support.pairs import Tensors, base_tensors, load, save
from tests.support.reports import RecordingReport


@contextmanager
def block_size(elements: int) -> Iterator[None]:
    """Make the stream work in blocks of so many elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltaweights.jobs.request.Resources", partial(stream.Resources, block=elements))
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def model_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files that must not depend on how the inputs were stored."""
    return {name: data for name, data in files_of(folder).items() if name not in {"manifest.json", "SHA256SUMS"}}


def merge_tensors(folder: Path, base: Tensors, delta: Tensors, container: str = "torch", **options: Any) -> Merged:
    """Save a pair with one shard each, merge it, and return the outcome. The numbers need not be those of a pair."""
    save(base, folder / "base", container, 1)
    save(delta, folder / "delta", container, 1)
    return merge_and_load(folder, **{"allow_unproved_base": True, **options})


class Merged:
    """A result and its tensors, as the safetensors library reads them."""

    def __init__(self, result: ApplyResult) -> None:
        self.result = result
        self.folder = Path(result.target)
        self.tensors = load(self.folder)


def merge_and_load(folder: Path, name: str = "merged", **options: Any) -> Merged:
    """Merge ``folder/base`` and ``folder/delta`` into ``folder/name``."""
    return Merged(apply_delta(folder / "base", folder / "delta", folder / name, **options))


small_base = partial(base_tensors, layers=1, vocabulary=20, hidden=16)
"""A base of 5,000 elements, for proofs that need many runs or tiny blocks."""

EMBEDDING, PROJECTOR = "model.embed_tokens.weight", "model.mm_projector.weight"


def without_card(folder: Path) -> dict[str, bytes]:
    """Return the files of the model without the card, which names the recipe and says whether the base is proved."""
    return {name: data for name, data in model_of(folder).items() if name != "README.md"}


def missing_facts(text: str, *facts: str) -> list[str]:
    """Return the facts that a message does not state."""
    return [fact for fact in facts if fact not in text]


def save_pair(folder: Path, base: Tensors, delta: Tensors) -> None:
    """Save a pair without configuration, one file each."""
    save(base, folder / "base", "torch", 1, config=False)
    save(delta, folder / "delta", "torch", 1, config=False)


def merge(folder: Path, name: str = "merged", **options: Any) -> tuple[ApplyResult, RecordingReport]:
    """Merge ``folder/base`` and ``folder/delta`` into ``folder/name``; return the result and the report."""
    told = RecordingReport()
    return apply_delta(folder / "base", folder / "delta", folder / name, report=told, **options), told


def merge_pair(folder: Path, base: Tensors, delta: Tensors, **options: Any) -> tuple[ApplyResult, RecordingReport]:
    """Save a pair and merge it."""
    save_pair(folder, base, delta)
    return merge(folder, **options)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return ``result`` of the manifest in ``folder``."""
    result: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())["result"]
    return result


def recipe_file(folder: Path, dtype: str = "float16", *, stated: bool = True, more: str = "") -> Path:
    """Write a recipe without files, shapes or base."""
    head = 'format = "deltaweights-recipe"\nversion = 1\nname = "own"\n'
    path = folder / "own.toml"
    path.write_text(f'{head}[arithmetic]\ncompute_dtype = "{dtype}"\nstated = {str(stated).lower()}\n{more}')
    return path


class Killed(BaseException):
    """Ends a run in these tests."""


@contextmanager
def killed_after(finished: int) -> Iterator[None]:
    """End runs when so many shards are finished."""
    number, really_keep = count(), StagedShards.keep

    def keep(self: StagedShards, fragment: Fragment) -> None:
        if next(number) >= finished:
            raise Killed
        really_keep(self, fragment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedShards, "keep", keep)
        yield
