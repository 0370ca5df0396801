"""The ``deltaweights`` command group. Each command is a module, imported when it is used."""

from __future__ import annotations

from importlib import import_module

import click
from click.shell_completion import CompletionItem

from deltaweights import __version__

GROUPS = {
    "Merge": {
        "apply": "Add a delta to its base and write the merged checkpoint.",
        "make": "Make a delta: subtract a base from a model tuned from it.",
        "check-base": "Prove from a delta that a base is the right one.",
        "recipes": "List the known pairs of base and delta, or show one.",
        "download": "Download a recipe's models, or any of the Hub; verify them.",
        "finish": "Publish what `apply --part` made, on one machine or many.",
    },
    "Verify and publish": {
        "verify": "Check a checkpoint against its manifest or a digest.",
        "pin": "Pin models, for `verify --lock`.",
        "manifest": "Make a manifest of any checkpoint, to keep elsewhere.",
        "sign": "Sign a result, so that others can tell that it is yours.",
    },
    "Look": {
        "inspect": "Show what a checkpoint holds, from its headers.",
        "diff": "Compare two checkpoints, tensor by tensor.",
    },
    "Convert and run": {
        "convert": "Write a base in Meta's format as a Hugging Face folder.",
        "export": "Write a merged model in the layout of transformers.",
        "check": "Check that a library will load a checkpoint.",
        "try": "Load a checkpoint, and print its answer to a question.",
    },
    "Maintain": {
        "clean": "Remove what a killed run left beside a target.",
        "demo": "Run the whole job on a tiny generated pair.",
        "completion": "Print the script that completes commands in your shell.",
    },
}
"""Commands and their one-line help, so that listing them imports none; the module has the name of the command."""

COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = "try_" if cmd_name == "try" else cmd_name.replace("-", "_")  # try is a keyword
        command: click.Command = import_module(f"deltaweights.cli.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {args[0]!r}.{_meant(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands with their one-line help, without importing them."""
        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _meant(given: str) -> str:
    """Return what was probably meant by an unknown command, as a question; empty when nothing is near."""
    from difflib import get_close_matches  # noqa: PLC0415  (only for a typo)

    from deltaweights.hub.ids import is_repo  # noqa: PLC0415
    from deltaweights.recipes.catalogue import names, recipe_of_repo  # noqa: PLC0415

    recipe = given.lower() if given.lower() in names() else recipe_of_repo(given) if is_repo(given) else None
    near = [f"apply {recipe}"] if recipe else get_close_matches(given, COMMANDS, n=1)
    return f" Did you mean 'deltaweights {near[0]}'?" if near else ""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def deltaweights() -> None:
    """Rebuild models that were published as delta weights.

    \b
    deltaweights apply llava-med-7b --target OUT
    deltaweights apply --base LLAMA --delta DELTA --target OUT
    deltaweights verify OUT

    `deltaweights COMMAND --help` shows the options of a command, with examples. Results go to stdout, everything else to stderr.
    Exit codes: 0 done; 2 usage; 3 malformed input; 4 the inputs do not belong together; 5 input/output; 6 a check failed; 7 target
    busy; 130, 143 interrupted; 1 a bug.
    """  # noqa: D301  (click wants the backspace character itself)
