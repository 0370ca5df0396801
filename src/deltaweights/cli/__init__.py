"""The command line: ``deltaweights COMMAND``, and the drop-ins ``apply-delta`` and ``make-delta``.

Enters: arguments. Leaves: results on stdout, everything else on stderr, and an exit code from docs/design.md. Never: a traceback
for something a user can cause, or an import of torch before a command needs it.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run ``deltaweights``, and exit."""
    _start("deltaweights.cli.group", "deltaweights", "deltaweights")


def apply_delta() -> NoReturn:
    """Run ``apply-delta``, and exit."""
    _start("deltaweights.cli.drop_in", "apply_delta", "apply-delta")


def make_delta() -> NoReturn:
    """Run ``make-delta``, and exit."""
    _start("deltaweights.cli.drop_in", "make_delta", "make-delta")


def _start(module: str, command: str, name: str) -> NoReturn:
    _open_standard_streams()
    try:
        from importlib import import_module  # noqa: PLC0415  (so that a Ctrl-C in the first moments ends quietly, too)

        from deltaweights.cli.run import run  # noqa: PLC0415

        gc.disable()  # headers of 10,000 tensors are walked a tenth faster, and nothing here makes garbage in circles
        code = run(getattr(import_module(module), command), name)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open what was closed before we began: else the first files that we open would get its numbers, and our messages."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # foreign names may have characters that a terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
