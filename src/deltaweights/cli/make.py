"""``deltaweights make``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from deltaweights.cli.command import flag
from deltaweights.cli.options import make_options, recipe_of
from deltaweights.cli.original_flags import CommandWithDropIn
from deltaweights.cli.values import BASE_MODEL, FOLDER, MODEL
from deltaweights.cli.writing import write_checkpoint

EXAMPLES = (
    "deltaweights make --base llama-7b --target tuned --delta my-delta",
    "deltaweights make --base llama-7b --target tuned --delta my-delta \\",
    "    --hub-repo-id ORG/NAME",
)


@click.command("make", cls=CommandWithDropIn, examples=EXAMPLES)
@flag(
    "Inputs",
    "--base",
    required=True,
    metavar="PATH|HUB_ID",
    type=BASE_MODEL,
    help="The base: folder, index file, or weights file.",
)
@flag(
    "Inputs",
    "--target",
    required=True,
    metavar="PATH|HUB_ID",
    type=MODEL,
    help="The model that was fine-tuned from it.",
)
@flag("Output", "--delta", required=True, metavar="PATH", type=FOLDER, help="The folder to create.")
@make_options
def command(base: str, target: str, delta: str, **options: Any) -> None:
    """Make a delta: subtract a base from a model that was fine-tuned from it.

    The reverse of apply, with the rules of a recipe, too. The delta is applied as it is made, and the weights that do not come back
    bit for bit are counted.
    """
    make("deltaweights", base, target, delta, **options)


def make(name: str, base: str, target: str, delta: str, *, recipe_option: str | None, **options: Any) -> None:
    """Subtract the base from the target, or show the plan; print the outcome."""
    from deltaweights.jobs import make as job  # noqa: PLC0415  (slow to load, so not for --help)

    recipe, recipe_file = recipe_of(None, recipe_option)
    request = partial(job.make_delta_request, base, target, delta, recipe=recipe, recipe_file=recipe_file)
    write_checkpoint(name, request, job.make, **options)
