"""docs/bad-inputs.md against the tests: every row once, in order, with the exit codes that are asserted."""

from __future__ import annotations

import re

from tests.conftest import DOCUMENT, ROWS
from tests.trust import (
    test_archive_rows,
    test_layout_rows,
    test_links_of_others,
    test_output_rows,
    test_safetensors_rows,
    test_torch_rows,
)
from tests.trust.harness import Case

GETS = {int(row): gets for row, gets in re.findall(r"^\| (\d+) \| .*? \| (.*?) \| .* \|$", DOCUMENT, re.MULTILINE)}

CASES: dict[str, Case] = {
    **test_safetensors_rows.CASES,
    **test_torch_rows.CASES,
    **test_archive_rows.CASES,
    **test_layout_rows.CASES,
    **test_links_of_others.CASES,
    **test_output_rows.TAMPERED,
}


def test_every_row_stands_there_once() -> None:
    """The table has each of its rows once, whole, in their order."""
    assert list(GETS) == list(ROWS) == sorted(set(ROWS))
    assert len(ROWS) > 77


def test_exit_codes_are_those_of_the_document() -> None:
    """What a case asserts is what the document says of its row."""
    stated = {name: re.findall(r"\b\d+\b", GETS[int(name[3:5])]) for name in CASES}
    assert {name for name, case in CASES.items() if str(case.exit_code) not in stated[name]} == set()
