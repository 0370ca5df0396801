"""Model folders for the tests of this package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltaweights.inference import rendering
from tests.support.fork_server import run_python_in_fork
from tests.support.tiny_llava import (
    make_llava,
)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA, not to be changed."""
    return make_llava(tmp_path_factory.mktemp("whole") / "llava")


@pytest.fixture
def llava(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of a LLaVA, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "llava"))


@pytest.fixture(autouse=True)
def _forked_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render chat templates in forks: a new interpreter takes a second. ``tests/cli`` renders as users do."""
    monkeypatch.setattr(rendering, "run_python", run_python_in_fork)
