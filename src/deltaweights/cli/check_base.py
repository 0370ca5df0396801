"""``deltaweights check-base``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.options import (
    hub_of,
    hub_options,
    json_option,
    option,
    quiet_option,
    recipe_of,
    recipe_option,
    stream_option,
)
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import BASE_MODEL, MODEL, RecipeName
from deltaweights.errors import UsageError


def _share(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 < value <= 1:
        raise UsageError("--sample is not a share", found=value, expected="more than 0, at most 1")
    return value


EXAMPLES = (
    "deltaweights check-base llava-med-7b --base llama-7b --sample 0.05",
    "deltaweights check-base --base llama-7b --delta my-delta",
)


@click.command("check-base", cls=Command, examples=EXAMPLES)
@click.argument("recipe", metavar="[RECIPE]", type=RecipeName(), required=False)
@flag("Inputs", "--base", required=True, metavar="PATH|HUB_ID", type=BASE_MODEL, help="The base that you hold.")
@flag("Inputs", "--delta", metavar="PATH|HUB_ID", type=MODEL, help="The delta [default: the recipe's].")
@recipe_option
@flag(
    "Running",
    "--sample",
    metavar="SHARE",
    type=float,
    default=1.0,
    show_default=True,
    callback=_share,
    help="Share of the weights to read.",
)
@option("compute_dtype", help="Dtype that the delta was computed in [default: the recipe's, or float16].")
@hub_options
@stream_option
@option("device")
@option("workers")
@json_option
@quiet_option
def command(recipe: str | None, base: str, delta: str | None, *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Prove from a delta that a base is the one that it was made from.

    Where a sum lies within one exponent step of its base, their difference must give the delta again; with another base it does not
    (docs/design.md). Checksums that files record are compared, but not with --sample. Exit 0: proved; 3: file damaged; 4: another
    base; 6: neither proved nor refuted.
    """
    from deltaweights.jobs.check_base import check_base  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.manifest.proof_text import proof_line  # noqa: PLC0415

    name, file = recipe_of(recipe, options.pop("recipe_option"))
    report = TerminalReport("deltaweights", quiet=quiet)
    found = check_base(base, delta, recipe=name, recipe_file=file, hub=hub_of(options), report=report, **options)
    unproved = f"NOT proved: {found.powerless}" if found.powerless else "nothing is added to it"
    line = f"base            {proof_line(found.proof) or unproved}"
    print_outcome({**asdict(found), "proved": found.proved}, [line], as_json=as_json)
    found.raise_unless_proved()
