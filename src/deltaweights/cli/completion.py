"""``deltaweights completion``."""

from __future__ import annotations

import click

from deltaweights.cli.command import Command
from deltaweights.cli.complete import completion_variable

PROGRAM = "deltaweights"

EXAMPLES = (
    'eval "$(deltaweights completion bash)"          # in ~/.bashrc',
    'eval "$(deltaweights completion zsh)"           # in ~/.zshrc',
    "deltaweights completion fish | source           # in config.fish",
)

CALLS = {
    "bash": "bash_complete $1",
    "zsh": "zsh_complete %(prog_name)s",
    "fish": "(commandline -t) %(prog_name)s",
}
"""How the script of each shell ends its call of the program."""


@click.command("completion", cls=Command, examples=EXAMPLES)
@click.argument("shell", type=click.Choice(list(CALLS)))
def command(shell: str) -> None:
    """Print the script that completes commands, options and their values in your shell.

    Completed are also the names of recipes, and the ids of models in the Hub's cache. Bash must be 4.4 or later.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415  (only for completion)

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  (this tells mypy)
    script = found(click.Command(PROGRAM), {}, PROGRAM, completion_variable(PROGRAM))
    # Without the program, the shell would complain in the middle of a command line.
    quiet = script.source_template.replace(CALLS[shell], f"{CALLS[shell]} 2>/dev/null")
    click.echo(quiet % script.source_vars())
