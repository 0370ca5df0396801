"""Programs that others wrote, from the registry, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE


def install(folder: Path, requirement: str) -> Path:
    """Return the folder of the commands of a package; skip the test, or fail it where CI needs it, when it cannot be installed."""
    python = folder / "bin/python"
    made: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
    ]
    for command in made:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            problem = f"{requirement} cannot be installed: {done.stderr.strip()[-300:]}"
            if "CI" in os.environ:
                pytest.fail(problem)
            pytest.skip(problem)
    return folder / "bin"
