"""``deltaweights clean``."""

from __future__ import annotations

import click

from deltaweights.errors import printable
from deltaweights.staging.clean import clean


@click.command("clean")
@click.argument("target", metavar="TARGET")
def command(target: str) -> None:
    """Remove what a killed run left beside a target.

    Its finished shards are deleted, too; to use them, run the same apply command again instead. An interrupted publication is
    completed first.
    """
    for line in clean(target):
        click.echo(printable(line))
