"""A second user of this machine; needs root, without which such tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE

OTHER = 65534
"""The user nobody."""

needs_other_user = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="a second user needs root, and setpriv"
)


def start_as_other(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a Python program as the other user."""
    user = [f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    python = shutil.which("python3", path=os.defpath) or "python3"
    command = ["setpriv", *user, python, "-I", "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")


def do_as_other(program: str, *arguments: str | Path) -> str:
    """Run a Python program as the other user, and return its stdout."""
    with start_as_other(program, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def give_to_other(folder: Path) -> Path:
    """Give a folder and everything in it to the other user, including links themselves."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    return folder


@contextmanager
def common_folder() -> Iterator[Path]:
    """Make a folder that others can enter; pytest's own are for one user."""
    with tempfile.TemporaryDirectory(prefix="deltaweights-common-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
