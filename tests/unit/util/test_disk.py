"""Operations on files and folders by their paths."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.util.disk import exchange_names, free_bytes, make_folder
from tests.support.errors import refused


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    """It may exist already."""
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Where a file has the name, that is an error, not a loop."""
    (tmp_path / "a").touch()
    with refused(InputOutputError, where=tmp_path / "a"):
        make_folder(tmp_path / "a")


def test_free_bytes_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    """The disk of its first parent that exists is asked."""
    (tmp_path / "a").mkdir()
    expected = shutil.disk_usage(tmp_path).total
    assert 0 < free_bytes(tmp_path / "a" / "b" / "c") <= expected


def test_an_exchange_is_offered_on_linux_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nothing is tried, and nothing changes."""
    (tmp_path / "one").touch()
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(sys, "platform", "darwin")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not exchange_names(fd, "one", fd, "other")
    finally:
        os.close(fd)
    assert (tmp_path / "one").is_file()
