"""Run a command: exceptions and exit codes, in one place."""

from __future__ import annotations

import os
import signal
import sys

import click

from deltaweights.cli.complete import complete, completion_variable
from deltaweights.cli.failure import Failure, failure_of, interrupted_failure, system_failure, usage_failure
from deltaweights.cli.log_report import Console
from deltaweights.cli.streams import drop_unwritten
from deltaweights.error_codes import OF_ERRNO, ErrorCode
from deltaweights.errors import DeltaweightsError
from deltaweights.util.interruption import Interrupted, signal_first
from deltaweights.util.open_files import allow_most


def run(command: click.Command, name: str) -> int:
    """Run ``command`` on this process's arguments; return the exit code."""
    asked = os.environ.get(completion_variable(name))
    if asked is not None:
        return complete(command, name, asked)
    console = Console(name)
    allow_most()
    try:
        with signal_first():
            status = command.main(prog_name=name, standalone_mode=False, obj=console)
            console.print_outcome()
            sys.stdout.flush()
            console.finish()
        return status if isinstance(status, int) else 0
    except Interrupted as error:
        return console.fail(interrupted_failure(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = context.command_path if context else name
        failure = usage_failure(error.format_message().replace("\n\t", " ").rstrip("."), where)
        return console.fail(failure, command=context.command if context else None)
    except DeltaweightsError as error:
        return console.fail(failure_of(error))
    except (KeyboardInterrupt, click.Abort):
        return console.fail(interrupted_failure(Interrupted(signal.SIGINT)))
    except MemoryError:
        return console.fail(system_failure("out of memory; run with fewer --workers", ErrorCode.OUT_OF_MEMORY))
    except (BrokenPipeError, SystemExit):  # click turns the first into the second, with 1, the exit code of a bug
        # The reader of stdout has gone; without this the interpreter would report that once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
        failure = Failure("whoever read stdout has left", code, ErrorCode.STDOUT_CLOSED, Interrupted.__name__)
        return console.fail(failure) if console.events else code
    except OSError as error:
        drop_unwritten()
        kind, where = OF_ERRNO.get(error.errno or 0, ErrorCode.INPUT_OUTPUT), error.filename
        return console.fail(system_failure(str(error.strerror or error), kind, str(where) if where else None))
    except Exception as error:  # a bug, of which scripts and logs must be told, too
        import traceback  # noqa: PLC0415  (for bugs alone)

        last = traceback.format_exception_only(error)[-1].strip()
        failure = Failure(f"a bug: {last}", 1, ErrorCode.BUG, type(error).__name__)
        if console.events is None:
            console.print_failure(failure)
            raise
        return console.fail(failure, traceback=traceback.format_exc())
