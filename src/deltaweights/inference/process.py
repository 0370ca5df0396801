"""Another process of ours, waited for.

Enters: the arguments of a Python of ours, and its stdin. Leaves: its exit code, and what it wrote. Never: a wait that a signal does
not end, or a process that outlives it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import deltaweights.errors
from deltaweights.errors import InputOutputError
from deltaweights.util.interruption import POLL, check

PATIENCE = 10.0
"""Seconds that a process has to end by itself when it is told to."""


def finished(
    arguments: list[str], doing: str, *, stdin: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run this Python with ``arguments``; return exit code, stdout and stderr. However this is left, the process has ended then.

    Raises ``InputOutputError`` when it cannot be started, which it is for ``doing``.
    """
    # From the folder of the package: what stands where the user does, or in a model's folder, is never imported.
    home, pipe = Path(deltaweights.errors.__file__).parents[1], subprocess.PIPE
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=home, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
    except OSError as error:
        raise InputOutputError.from_os(error, sys.executable, doing) from error
    with process:
        try:
            given: str | None = stdin
            while True:
                try:
                    output, errors = process.communicate(given, timeout=POLL)
                except subprocess.TimeoutExpired:
                    given = None  # it has been taken
                    check()
                else:
                    check()  # a terminal's Ctrl-C reaches both
                    return process.returncode, output, errors
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
