"""Rows 44 to 49 of the table: zip archives of checkpoints.

The archives are made in ``tests/unit/checkpoint/test_zip_format.py``, which tests many more; here some of
each row go through a merge.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pairs import make_pair
from tests.support.zips import MODEL
from tests.trust.harness import TARGET, Case, Make, case, hold
from tests.unit.checkpoint.test_zip_format import DAMAGED, REFUSED

ROWS = """
    row44-way-up row44-absolute row44-backslash row44-nul row44-control row45-link row45-fifo row46-twice row46-case
    row46-folder-case row47-ratio-impossible row47-ratio-of-weights row47-member row47-members row48-overlap row48-into-the-next
    row48-second-archive-as-comment row48-local-name row49-nested-zip row49-encrypted row49-truncated
"""


def with_archive(content: bytes) -> Make:
    """Return what makes a base, and a delta in the archive ``x.zip``."""

    def make(folder: Path) -> list[str | Path]:
        base, _ = make_pair(folder)
        (folder / "x.zip").write_bytes(content)
        return ["apply", "--base", base, "--delta", folder / "x.zip", "--target", TARGET]

    return make


CASES: dict[str, Case] = {
    **{row: case(with_archive(REFUSED[row][0]), 3, f"x.zip: {REFUSED[row][1]}") for row in ROWS.split()},
    **{row: case(with_archive(content), 3, f"x.zip/{MODEL}: {says}") for row, (content, says) in DAMAGED.items()},
}


@pytest.mark.sampled(6)
@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_a_bad_archive_is_refused(subject: Case, tmp_path: Path, normal: float) -> None:
    """A bad archive ends the run with one line and exit code 3; nothing is unpacked, and nothing is touched."""
    hold(subject, tmp_path, normal)
    for made in ("inputs-absent", "inputs-standing"):
        assert {path.name for path in (tmp_path / made).iterdir()} == {"base", "delta", "x.zip"}
