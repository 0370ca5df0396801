"""What the rows are held against: the memory of a run in which all is well."""

from __future__ import annotations

import pytest

from tests.support.pairs import make_pair
from tests.trust.harness import run_command


@pytest.fixture(scope="session")
def normal(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return the peak, in MiB, of a merge of a sound pair."""
    folder = tmp_path_factory.mktemp("normal")
    base, delta = make_pair(folder)
    outcome = run_command(["apply", "--base", base, "--delta", delta, "--target", folder / "merged"])
    assert outcome.code == 0, outcome.err
    return outcome.peak
