"""``deltaweights make``.

Enters: arguments. Leaves: the delta, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.job import make
from deltaweights.cli.options import make_options


@click.command("make")
@click.option("--base", required=True, metavar="PATH", help="The base: folder, index file, or weights file.")
@click.option("--target", required=True, metavar="PATH", help="The model that was fine-tuned from it.")
@click.option("--delta", required=True, metavar="PATH", help="The folder to create.")
@make_options
def command(base: str, target: str, delta: str, **options: Any) -> None:
    """Make a delta: subtract a base from a model that was fine-tuned from it.

    The rules of apply, backwards. The delta is applied as it is made, and the weights that do not come back bit for bit are
    counted.
    """
    make("deltaweights", base, target, delta, **options)
