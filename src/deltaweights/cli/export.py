"""``deltaweights export``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from deltaweights.cli.command import Command
from deltaweights.cli.options import (
    copied_dtype_option,
    hub_options,
    option,
    output_options,
    recipe_of,
    recipe_option,
    stream_option,
    target_option,
)
from deltaweights.cli.values import MODEL
from deltaweights.cli.writing import write_checkpoint

EXAMPLES = (
    "deltaweights export merged --target merged-hf",
    "deltaweights try merged-hf --image cell.png",
)


@click.command("export", cls=Command, examples=EXAMPLES)
@click.argument("merged", metavar="MERGED", type=MODEL)
@target_option
@recipe_option
@option("vision_tower")
@option("allow_unproved_base")
@option("check")
@copied_dtype_option
@hub_options
@stream_option
@output_options
def command(merged: str, target: str, recipe_option: str | None, **options: Any) -> None:
    """Write a merged model in the layout that current transformers loads.

    The weights are those that apply gives with --layout transformers: tensors renamed, the vision tower added to a vision-language
    model, configuration and tokenizer repaired. The weights are compared with what the manifest of MERGED states.
    """
    from deltaweights.jobs.convert import copy, export_request  # noqa: PLC0415  (slow to load, so not for --help)

    recipe, recipe_file = recipe_of(None, recipe_option)
    request = partial(export_request, merged, target, recipe=recipe, recipe_file=recipe_file)
    write_checkpoint("deltaweights", request, copy, **options)
