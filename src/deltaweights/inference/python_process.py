"""Runs another Python process of this package and waits for it; a signal ends both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import deltaweights.errors
from deltaweights.errors import wrap_os_errors
from deltaweights.util.interruption import POLL, check

TERMINATION_SECONDS = 10.0  # how long a process may take to end after SIGTERM, before it is killed


def run_python(
    arguments: list[str], doing: str, *, stdin: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of this Python with ``arguments``, which never outlives this call.

    Raises ``InputOutputError`` when the process cannot be started.
    """
    # Run in the package's parent folder, so that nothing is imported from the user's or a model's folder.
    home, pipe = Path(deltaweights.errors.__file__).parents[1], subprocess.PIPE
    command = [sys.executable, *arguments]
    with wrap_os_errors(sys.executable, doing):
        process = subprocess.Popen(command, cwd=home, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    with process:
        try:
            pending: str | None = stdin
            while True:
                try:
                    output, errors = process.communicate(pending, timeout=POLL)
                except subprocess.TimeoutExpired:
                    pending = None  # communicate keeps what it could not write yet
                    check()
                else:
                    check()  # a terminal's Ctrl-C reaches both
                    return process.returncode, output, errors
        except BaseException:
            process.terminate()
            try:
                process.wait(TERMINATION_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
