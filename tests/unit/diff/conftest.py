"""Fixtures of the tests of comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaweights import DiffReport, diff_checkpoints
from tests.support.pairs import Tensors, save


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., DiffReport]:
    """Save two checkpoints as one safetensors file each, and compare them."""

    def compare(one: Tensors, other: Tensors, **options: Any) -> DiffReport:
        a, b = (save(t, tmp_path / name, "safetensors", 1) for name, t in (("a", one), ("b", other)))
        return diff_checkpoints(a, b, **options)

    return compare
