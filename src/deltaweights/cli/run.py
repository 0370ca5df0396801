"""Run a command: exceptions and exit codes, in one place."""

from __future__ import annotations

import os
import signal
import sys

import click

from deltaweights.cli.log_report import Console
from deltaweights.cli.streams import drop_unwritten
from deltaweights.errors import DeltaweightsError, InputOutputError
from deltaweights.util.interruption import Interrupted, signal_first
from deltaweights.util.open_files import allow_most


def run(command: click.Command, name: str) -> int:
    """Run ``command`` on this process's arguments; return the exit code."""
    console = Console(name)
    allow_most()
    try:
        with signal_first():
            status = command.main(prog_name=name, standalone_mode=False, obj=console)
            sys.stdout.flush()
            console.finish()
        return status if isinstance(status, int) else 0
    except Interrupted as error:
        return console.fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = context.command_path if context else name
        message = f"{error.format_message().rstrip('.')} (see {where} --help)"
        return console.fail(message, 2, command=context.command if context else None)
    except DeltaweightsError as error:
        return console.fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return console.fail("interrupted", 130)
    except MemoryError:
        return console.fail("out of memory; run with fewer --workers", InputOutputError.exit_code)
    except (BrokenPipeError, SystemExit):  # click turns the first into the second, with 1, the exit code of a bug
        # The reader of stdout has gone; without this the interpreter would report that once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
        return console.fail("whoever read stdout has left", code) if console.events else code
    except OSError as error:
        drop_unwritten()
        where = f"{error.filename}: " if error.filename else ""
        return console.fail(f"{where}{error.strerror or error}", InputOutputError.exit_code)
    except Exception as error:  # a bug, which must be an event, too
        if console.events is None:
            raise
        import traceback  # noqa: PLC0415  (for bugs alone)

        last = traceback.format_exception_only(error)[-1].strip()
        return console.fail(f"a bug: {last}", 1, traceback=traceback.format_exc())
