"""Fixtures of the tests of staging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaweights.errors import CheckFailed
from deltaweights.staging.location import TargetLocation, locate_target
from tests.support.merges import Pair, files_of, finished_shards, merge_small, small_pair
from tests.support.pairs import base_tensors, delta_tensors, save


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    """Make two results of different pairs; return the folders of the old one and the new one."""
    merge_small(*small_pair(tmp_path, 1), tmp_path / "old", dtype="float32")
    merge_small(*small_pair(tmp_path, 2), tmp_path / "new")
    return tmp_path / "old", tmp_path / "new"


@pytest.fixture
def staged(tmp_path: Path) -> tuple[TargetLocation, Pair, dict[str, bytes]]:
    """Leave all shards of a pair in staging, since the run was strict; return the place, the pair, the files it should give."""
    tensors = base_tensors(layers=1, vocabulary=20, hidden=16)
    delta = delta_tensors(tensors)
    delta["model.norm.weight"][0] = torch.nan
    pair = save(tensors, tmp_path / "base"), save(delta, tmp_path / "delta")
    place = locate_target(tmp_path / "merged")
    with pytest.raises(CheckFailed):
        merge_small(*pair, place.target, strict=True)
    assert len(finished_shards(place)) >= 4
    return place, pair, files_of(Path(merge_small(*pair, tmp_path / "expected").target))
