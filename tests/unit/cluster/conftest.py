"""A tiny pair, and its merge by one process, for the tests of merges in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights import ApplyResult, apply_delta
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.unit.cluster import SIZE, Pair


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair whose merge has more than ten shards of ``SIZE`` bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    base = base_tensors()
    return save(base, folder / "base"), save(delta_tensors(base), folder / "delta")


@pytest.fixture(scope="module")
def whole(tiny: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ApplyResult]:
    """Merge the pair in one process."""
    target = tmp_path_factory.mktemp("whole") / "out"
    return target, apply_delta(*tiny, target, max_shard_size=SIZE)
