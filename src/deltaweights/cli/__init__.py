"""The command line: ``deltaweights COMMAND``, and the drop-ins ``apply-delta`` and ``make-delta``."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # Ctrl-C ends in a traceback until ``_start`` handles it, so nothing is imported before that
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
    # A shell completes (cli.complete, which is not loaded yet): a broken environment must not speak into its command line.
    if f"_{name.replace('-', '_').upper()}_COMPLETE" in os.environ:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        from deltaweights.util import interruption  # noqa: PLC0415

        interruption.listen()
    except KeyboardInterrupt:
        os._exit(130)
    code = _run(module, command, name)
    interruption.ignore_signals()
    streams = sys.modules.get("deltaweights.cli.streams")
    if streams is not None:
        streams.drop_unwritten()
    if interruption.signalled():  # skip the interpreter's shutdown, which may crash in a half-imported library
        os._exit(code)
    sys.exit(code)


def _run(module: str, command: str, name: str) -> int:
    from deltaweights.util.interruption import Interrupted, force_quit_on_repeat  # noqa: PLC0415  (not before signals are handled)

    try:
        import gc  # noqa: PLC0415
        from importlib import import_module  # noqa: PLC0415

        from deltaweights.cli.streams import open_standard_streams  # noqa: PLC0415

        open_standard_streams()
        force_quit_on_repeat()
        from deltaweights.cli.run import run  # noqa: PLC0415

        gc.disable()  # a tenth faster on headers of 10,000 tensors; there are no reference cycles to collect
        return run(getattr(import_module(module), command), name)
    except Interrupted as error:  # before ``run`` could handle it
        from deltaweights.cli.failure import interrupted_failure  # noqa: PLC0415
        from deltaweights.cli.log_report import Console  # noqa: PLC0415

        return Console(name).fail(interrupted_failure(error))
