"""Rows 1 to 18 of the table: safetensors files.

The files are made in ``tests/unit/checkpoint/test_safetensors_file.py``, which tests many more; here
some of each row go through a merge.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.util.limits import HEADER
from tests.trust.harness import Case, case, hold, merging, with_file
from tests.unit.checkpoint.test_companions import REPLACED
from tests.unit.checkpoint.test_safetensors_file import BAD

SHARD = "model-00001-of-00002.safetensors"

ROWS = """
    row01-empty row01-seven-bytes row02-header-past-the-end row02-header-length-2-63 row04-not-utf-8 row04-byte-order-mark
    row04-list row04-nested row05-duplicate-key row05-duplicate-key-escaped row06-overlap row06-inside row07-hole
    row08-begin-after-end row08-far-past-the-end row09-trailing-byte row10-one-byte-short row11-shape-too-long row11-dtype
    row12-negative-size row12-fraction row12-2-64 row12-product-2-64 row12-endless-axes row13-unknown-dtype
    row14-metadata-number row15-extra-field row16-empty-name row16-nul row16-escape-sequence row16-endless-name
    row17-too-many-tensors row18-git-lfs-pointer row18-html row18-zip
"""


def with_long_header(_: Path, delta: Path) -> None:
    """Put a file in place whose header would be 100 MB and a byte; no disk is used for it."""
    with (delta / SHARD).open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(8 + 100_000_001)


CASES: dict[str, Case] = {
    **{row: case(with_file(SHARD, BAD[row].content), 3, SHARD, *BAD[row].parts) for row in ROWS.split()},
    "row03-long-header": case(
        merging(with_long_header),
        3,
        SHARD,
        f"header is too long: found 100000001 bytes, expected at most {HEADER.size}",
    ),
    **{
        row: case(with_file(name, content.encode()), 3, name, f"found {found}")
        for row, (name, content, found) in list(REPLACED.items())[:2]
    },
}


@pytest.mark.sampled(8)
@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_a_bad_safetensors_file_is_refused(subject: Case, tmp_path: Path, normal: float) -> None:
    """A bad safetensors file ends the run with one line and exit code 3, and nothing is touched."""
    hold(subject, tmp_path, normal)
