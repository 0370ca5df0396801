"""Fixtures for the tests of archives."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """Make the empty folder that archives are unpacked into."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder
