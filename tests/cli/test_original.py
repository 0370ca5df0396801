"""scripts/original, which needs an environment of 2023, says so in one line where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE

SCRIPT = Path(__file__).parents[2] / "scripts" / "original.py"

pytestmark = pytest.mark.fidelity


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be run (No such file or directory)"),
        ("exit 1", "not the environment of 2023 (no message)"),
        ("echo 'No module named llava' >&2; exit 1", "not the environment of 2023 (No module named llava)"),
        ("echo 4.31.0 True", "transformers 4.31.0, not 4.28.1"),
        ("echo 4.28.1 False", "llava is another package than LLaVA-Med v1.0.0's"),
    ],
)
def test_a_missing_environment_is_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    """It ends with 2, and names the interpreter, what it lacks and the page that helps."""
    python = tmp_path / "python"
    if content is not None:
        python.write_text(f"#!/bin/sh\n{content}\n")
        python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, SCRIPT, "--python", python], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"scripts/original: {python}: {said}; docs/original.md says how to install it\n"
