"""Fixtures of the tests of staging."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from deltaweights.errors import CheckFailed
from deltaweights.staging.location import TargetLocation, locate_target
from tests.support.killed_merges import Pair, finished_shards, merge_small, small_pair
from tests.support.merging import files_of
from tests.support.pairs import base_tensors, delta_tensors, save


@pytest.fixture(scope="package")
def two_merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge two different pairs; return the folder that holds the pairs and their results, "old" and "new"."""
    folder = tmp_path_factory.mktemp("two merges")
    merge_small(*small_pair(folder, 1), folder / "old", dtype="float32")
    merge_small(*small_pair(folder, 2), folder / "new")
    return folder


@pytest.fixture
def results(two_merges: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copy two results of different pairs, and the pairs; return the folders of the old result and the new one."""
    shutil.copytree(two_merges, tmp_path, dirs_exist_ok=True)
    return tmp_path / "old", tmp_path / "new"


@pytest.fixture
def staged(tmp_path: Path) -> tuple[TargetLocation, Pair, dict[str, bytes]]:
    """Leave all shards of a pair in staging, since the run was strict; return the location, the pair, the files it should give."""
    tensors = base_tensors(layers=1, vocabulary=20, hidden=16)
    delta = delta_tensors(tensors)
    delta["model.norm.weight"][0] = torch.nan
    pair = save(tensors, tmp_path / "base"), save(delta, tmp_path / "delta")
    location = locate_target(tmp_path / "merged")
    with pytest.raises(CheckFailed):
        merge_small(*pair, location.target, strict=True)
    assert len(finished_shards(location)) >= 4
    return location, pair, files_of(Path(merge_small(*pair, tmp_path / "expected").target))
