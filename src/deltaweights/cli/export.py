"""``deltaweights export``.

Enters: arguments. Leaves: a merged model in the layout of current transformers, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.job import export
from deltaweights.cli.options import (
    DTYPE,
    check_option,
    hub_options,
    output_options,
    recipe_option,
    stream_option,
    tower_option,
)


@click.command("export")
@click.argument("merged", metavar="MERGED")
@click.option("--target", required=True, metavar="PATH", help="The folder to create.")
@recipe_option
@tower_option
@check_option
@click.option("--dtype", type=DTYPE, help="Dtype of the written weights [default: the one that they have].")
@hub_options
@stream_option
@output_options
def command(merged: str, target: str, **options: Any) -> None:
    """Write a merged model in the layout that current transformers loads.

    The weights are those that apply gives with --layout transformers: tensors renamed, the vision tower added for a model that
    sees, configuration and tokenizer repaired. What the manifest of MERGED states is held against its bytes on the way.
    """
    export(merged, target, **options)
