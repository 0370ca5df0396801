"""Rows 1 to 18 of the table: safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pairs import make_pair
from tests.trust.harness import TARGET, Case, case, hold

SHARD = "model-00001-of-00002.safetensors"


def with_bytes(data: bytes) -> Callable[[Path], list[str | Path]]:
    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        (delta / SHARD).write_bytes(data)
        return ["apply", "--base", base, "--delta", delta, "--target", TARGET]

    return make


CASES: dict[str, Case] = {"row01-empty": case(with_bytes(b""), 3, SHARD, "an empty file", "download it again")}


@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_a_bad_safetensors_file_is_refused(subject: Case, tmp_path: Path, normal: float) -> None:
    """A bad safetensors file ends the run with one line and exit code 3, and nothing is touched."""
    hold(subject, tmp_path, normal)
