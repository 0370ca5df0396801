"""The ``deltaweights`` command group. Each command is a module, imported when it is used."""

from __future__ import annotations

from importlib import import_module

import click

from deltaweights import __version__

COMMANDS = {
    "apply": "Add a delta to its base and write the merged checkpoint.",
    "finish": "Publish what `apply --part` has made, from any number of machines.",
    "download": "Download base and delta, or a model of the Hub, and verify them.",
    "verify": "Check a checkpoint against its manifest or a pinned digest.",
    "pin": "Pin models, for `verify --lock`.",
    "manifest": "Make a manifest of any checkpoint, to be kept elsewhere.",
    "sign": "Sign a result, so that others can tell that it is yours.",
    "export": "Write a merged model in the layout of current transformers.",
    "check": "Check that a library will load a checkpoint, from its headers.",
    "try": "Load a checkpoint with transformers and print its answer to one question.",
    "make": "Make a delta: subtract a base from a model fine-tuned from it.",
    "inspect": "Show what a checkpoint holds, from its headers.",
    "diff": "Compare two checkpoints, tensor by tensor.",
    "check-base": "Prove from a delta that a base is the one that it was made from.",
    "convert": "Write a base in Meta's format, or any other, as a Hugging Face folder.",
    "recipes": "List the known pairs of base and delta, or show one.",
    "clean": "Remove what a killed run left beside a target.",
    "demo": "Run the whole job on a tiny generated pair.",
}
"""Commands and their one-line help, so that listing them imports none; the module has the name of the command."""


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def deltaweights() -> None:
    """Rebuild models that were published as delta weights.

    \b
    deltaweights apply --base LLAMA --delta DELTA --target OUT
    deltaweights verify OUT
    deltaweights make --base LLAMA --target TUNED --delta OUT

    Results go to stdout, everything else to stderr. Exit codes: 0 done; 2 usage; 3 malformed input; 4 the inputs do not belong
    together; 5 input/output; 6 a check failed; 7 target busy; 130, 143 interrupted; 1 a bug.
    """  # noqa: D301  (click wants the backspace character itself)
