"""The mean of rows, held against torch: every bit, at every width, for every number of rows, pieces and threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.mean_rows import RowMean
from deltaweights.merge.new_rows import mean_row
from tests.support.float_bits import DTYPES

pytestmark = pytest.mark.fidelity

ROWS = (1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097)
EVEN_WIDTHS, ODD_WIDTHS = (32, 64, 96, 512), (2, 3, 4, 5, 7, 8, 9, 31, 33, 63, 65, 100, 127)
ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}
only_x86 = pytest.mark.skipif(not ON_X86, reason="torch groups columns by other numbers on other processors")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differences(rows: int, columns: int, piece: int) -> int:
    """Return how many columns of a random matrix have another mean here than in torch, if given in pieces of so many rows."""
    numbers = np.random.default_rng(rows * columns).standard_normal((rows, columns), dtype="f4") * np.float32(0.02)
    numbers[: (rows + 1) // 2, ::5] = -0.0
    ours = RowMean(rows, columns)
    for first in range(0, rows, piece):
        ours.add(numbers[first : first + piece])
    wanted = torch.from_numpy(numbers).mean(dim=0).numpy()
    return int(np.count_nonzero(ours.mean().view("<u4") != wanted.view("<u4")))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("columns", [*EVEN_WIDTHS, *(pytest.param(width, marks=only_x86) for width in ODD_WIDTHS)])
def test_the_mean_is_torchs(columns: int, threads: int) -> None:
    """No bit differs from torch's mean of float32, however few rows and columns, whole or left over."""
    with torch_threads(threads):
        found = {(rows, piece): differences(rows, columns, piece) for rows in ROWS for piece in (4, 64, 8192)}
    assert not any(found.values()), {key: count for key, count in found.items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [31_999, 32_000, 32_001])
@pytest.mark.parametrize("columns", [64, 4096, 5120, *(pytest.param(width, marks=only_x86) for width in (7, 63, 1021))])
def test_the_mean_of_real_sizes_is_torchs(rows: int, columns: int) -> None:
    """Nor does any at the sizes of the published models."""
    with torch_threads(2):
        assert differences(rows, columns, 64) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [70_001, (1 << 20) + 3])
def test_the_mean_of_more_rows_than_any_model_has_is_torchs(rows: int) -> None:
    """Nor does any beyond the steps of the last accumulator, nor where, from 2^20 rows on, steps are of 32 rows."""
    assert differences(rows, 32, 4096) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_mean_of_a_vocabulary_is_quick_and_cast_as_torch_casts(tmp_path: Path, dtype: str) -> None:
    """32,000 rows of 4096 numbers of any dtype, cast to float32 and averaged: torch's bits, in about 0.12 s of processor time."""
    stored = (torch.randn(32_000, 4096, generator=torch.Generator().manual_seed(3)) * 0.02).to(getattr(torch, dtype))
    save_file({"w": stored}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path, "base") as checkpoint:
        began = time.process_time()
        found = mean_row(checkpoint.tensors["w"], CpuKernels())
        seconds = time.process_time() - began
    assert found == stored.float().mean(dim=0).numpy().tobytes()
    assert seconds < 1, "five times the limit that it is to keep on an idle machine"
