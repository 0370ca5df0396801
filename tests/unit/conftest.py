"""Inputs that the tests of several packages share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.identity import archive_of
from tests.support.pairs import load, reference, same_bits, save
from tests.support.whole_runs import BARE, BASE, DEFLATED, DELTA, merge, weights_in


@pytest.fixture(scope="session")
def merged_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make read-only safetensors folders: ``base``, ``delta``, ``bare`` (no projector), and the results ``out``, ``out-bare``."""
    folder = tmp_path_factory.mktemp("plain")
    save(BASE, folder / "base", "safetensors", 1)
    save(DELTA, folder / "delta", "safetensors", 1)
    save(BARE, folder / "bare", "safetensors", 1)
    merge(folder / "base", folder / "delta", folder / "out")
    merge(folder / "base", folder / "bare", folder / "out-bare")
    assert same_bits(load(folder / "out"), reference(BASE, DELTA))
    assert len(weights_in(folder / "out")) > 4
    return folder


@pytest.fixture
def deflated_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Make deflated archives of base and delta, in a folder with nothing else in it."""
    base = archive_of(save(BASE, tmp_path / "base", "torch", 2), DEFLATED)
    delta = archive_of(save(DELTA, tmp_path / "delta", "safetensors", 2), DEFLATED)
    for folder in (tmp_path / "base", tmp_path / "delta"):
        shutil.rmtree(folder)
    return base, delta


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder, and use it for temporary files of this process and its children."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
