"""How large the weights of a checkpoint are said to be."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.recipes.weight_scale import SMALL
from tests.support.pairs import Tensors, save


def typical(folder: Path, tensors: Tensors) -> float | None:
    save(tensors, folder, "safetensors", 1)
    return inspect_checkpoint(folder).identity.typical


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_typical_weight_is_the_median_of_root_mean_squares(tmp_path: Path, dtype: torch.dtype) -> None:
    """In every floating-point dtype it is what numpy computes; vectors and integers do not count."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(20, 30, generator=generator, dtype=torch.float64) * scale for scale in (0.5, 0.02, 1e-3, 7)]
    tensors = {f"m{number}": matrix.to(dtype) for number, matrix in enumerate(matrices)}
    squares = [float(np.mean(tensor.double().numpy() ** 2)) for tensor in tensors.values()]
    others = {"norm": torch.full((600,), 99.0), "steps": torch.full((20, 30), 99), "none": torch.zeros(0, 9)}
    assert typical(tmp_path, tensors | others) == pytest.approx(statistics.median(squares) ** 0.5, rel=1e-12)


def test_the_typical_weight_takes_a_part_of_large_tensors(tmp_path: Path) -> None:
    """Of a large matrix, 1,024 elements starting at a third are sampled."""
    large = torch.full((100, 100), 8.0)
    large.view(-1)[(10_000 - 1024) // 3 :][:1024] = 0.5
    assert typical(tmp_path, {"m": large}) == 0.5


def test_what_has_no_typical_weight(tmp_path: Path) -> None:
    """Without a finite matrix there is no typical weight; matrices that are not finite are left out of the median."""
    bad = torch.full((4, 4), math.nan)
    assert typical(tmp_path / "nothing", {"v": torch.ones(3), "i": torch.ones(3, 3, dtype=torch.int8)}) is None
    assert typical(tmp_path / "nan", {"a": bad, "b": torch.full((4, 4), math.inf)}) is None
    assert typical(tmp_path / "some", {"a": bad, "b": torch.full((4, 4), 0.25)}) == 0.25
    save({"model.embed_tokens.weight": bad}, tmp_path / "words", "safetensors", 1, config=False)
    text = "0 layers, hidden size 4, 4 rows: no model that is known by its shapes"
    assert inspect_checkpoint(tmp_path / "words").identity.text == text


@pytest.mark.parametrize(("size", "kind"), [(SMALL * 0.99, "as small as a delta's"), (SMALL, "as large as a model's")])
def test_deltas_are_small(tmp_path: Path, size: float, kind: str) -> None:
    """Weights below the threshold are as small as a delta's, others as large as a model's."""
    save(
        {"model.embed_tokens.weight": torch.full((4, 4), size, dtype=torch.float64)},
        tmp_path,
        "safetensors",
        1,
        config=False,
    )
    assert f"weights {kind} (typically {size:.2g})" in inspect_checkpoint(tmp_path).identity.text
