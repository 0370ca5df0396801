"""Tests of the self-test: its expected results are torch's, and kernels for every kind of processor pass it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deltaweights.merge.self_test import EXPECTED_DIGEST, results_digest
from tests.support.kernels import WITHOUT, older_processors, torch_kernels
from tests.support.limits import PATIENCE


def test_the_expected_digest_is_torchs() -> None:
    """The expected digest is the one that torch gives."""
    assert results_digest(torch_kernels()) == EXPECTED_DIGEST


@pytest.mark.sampled(3)
@pytest.mark.parametrize("left_out", older_processors(), ids=lambda names: f"without-{'-'.join(names) or 'none'}")
def test_every_kind_of_processor_passes(left_out: tuple[str, ...]) -> None:
    """The kernels for older processors pass the self-test, too."""
    program = f"""{WITHOUT}
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.self_test import passes_self_test
print(passes_self_test(CpuKernels()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *left_out], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "True\n"
