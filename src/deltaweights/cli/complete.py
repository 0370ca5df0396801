"""Answer a shell that completes a command line, as click's scripts ask: ``_DELTAWEIGHTS_COMPLETE=bash_complete deltaweights``."""

from __future__ import annotations

import click


def completion_variable(name: str) -> str:
    """Return the variable by which a shell asks the program ``name``."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def complete(command: click.Command, name: str, asked: str) -> int:
    """Print the answer, and return the exit code; where anything is wrong, print nothing: nobody has asked for messages."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415  (only for completion)

    shell, _, instruction = asked.partition("_")
    found = get_completion_class(shell)
    if found is None or instruction != "complete":
        return 1
    try:
        answer = found(command, {}, name, completion_variable(name)).complete()
    except Exception:  # noqa: BLE001  (whatever it is, a traceback would be in the middle of the user's command line)
        return 1
    if answer:
        click.echo(answer)
    return 0
