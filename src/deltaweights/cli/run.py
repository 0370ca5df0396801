"""Running a command: signals, exceptions and exit codes, in one place.

Enters: a click command. Leaves: its exit code, and one line on stderr when it is not 0. Never: a traceback, unless it is a bug.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from deltaweights.errors import DeltaweightsError, InputOutputError, Interrupted
from deltaweights.text import printable


def run(command: click.Command, name: str) -> int:
    """Run ``command`` on this process's arguments; return the exit code."""
    signal.signal(signal.SIGTERM, _interrupted)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as nohup and background jobs of scripts have it
        signal.signal(signal.SIGINT, _interrupted)  # click would print an empty line
    try:
        status = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
        return _fail(name, f"{error.format_message().rstrip('.')} (see {where} --help)", 2)
    except DeltaweightsError as error:
        return _fail(name, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail(name, "interrupted", 130)
    except MemoryError:
        return _fail(name, "out of memory; run with fewer --workers", InputOutputError.exit_code)
    except (BrokenPipeError, SystemExit):  # click turns the one into the other, with 1, the exit code of a bug
        # Whoever read our output has left; without this the interpreter would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(name, f"{where}{error.strerror or error}", InputOutputError.exit_code)


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    downloads = sys.modules.get("deltaweights.hub.downloads")
    if downloads is not None:  # readers that wait for bytes would not hear of it
        downloads.stop_all()
    raise Interrupted(number, "interrupted" if number == signal.SIGINT else "terminated")


def _fail(name: str, message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the code says it too
        click.echo(f"{name}: error: {printable(message)}", err=True)
    return code
