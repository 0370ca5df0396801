"""``deltaweights apply``.

Enters: arguments. Leaves: the merged checkpoint, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.job import apply, common_options


@click.command("apply")
@click.option("--base", required=True, metavar="PATH", help="The original LLaMA: folder, index file, or weights file.")
@click.option("--delta", required=True, metavar="PATH", help="The delta: folder, index file, or weights file.")
@click.option("--target", required=True, metavar="PATH", help="The folder to create.")
@common_options
def command(base: str, delta: str, target: str, **options: Any) -> None:
    """Add a delta to its base and write the merged checkpoint.

    The target appears when it is complete and flushed to the disk, with manifest.json and SHA256SUMS. A killed run is finished by
    the same command.
    """
    apply("deltaweights", base, delta, target, **options)
