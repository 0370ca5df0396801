"""Run the scripts that our pages and recipes show, as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.limits import PATIENCE

OUR_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""A PATH on which our commands come first."""


def run_script(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder with bash, up to its first command that fails."""
    return subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
