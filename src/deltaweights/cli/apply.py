"""``deltaweights apply``.

Enters: arguments. Leaves: the merged checkpoint, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.job import apply
from deltaweights.cli.options import apply_options


@click.command("apply")
@click.argument("recipe", metavar="[RECIPE]", required=False)
@click.option(
    "--base", metavar="PATH", help="The original LLaMA: folder (Hugging Face's or Meta's), index, file or zip."
)
@click.option("--delta", metavar="PATH", help="The delta: folder, index, weights file, or zip archive.")
@click.option("--target", required=True, metavar="PATH", help="The folder to create.")
@apply_options
def command(recipe: str | None, base: str | None, delta: str | None, target: str, **options: Any) -> None:
    """Add a delta to its base and write the merged checkpoint.

    RECIPE names a known pair (deltaweights recipes): its rules are used, and base and delta are held against what is known of
    them. The target appears when it is complete and flushed to the disk, with manifest.json and SHA256SUMS. A killed run is
    finished by the same command.
    """
    apply("deltaweights", base, delta, target, recipe=recipe, **options)
