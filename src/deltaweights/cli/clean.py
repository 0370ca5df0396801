"""``deltaweights clean``."""

from __future__ import annotations

import click

from deltaweights.cli.command import Command
from deltaweights.cli.values import FOLDER
from deltaweights.errors import printable
from deltaweights.staging.clean import clean

EXAMPLES = ("deltaweights clean merged",)


@click.command("clean", cls=Command, examples=EXAMPLES)
@click.argument("target", metavar="TARGET", type=FOLDER)
def command(target: str) -> None:
    """Remove what a killed run left beside a target.

    Its finished shards are deleted, too; to use them, run the same apply command again instead. An interrupted publication is
    completed first.
    """
    for line in clean(target):
        click.echo(printable(line))
