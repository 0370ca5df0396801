"""``apply-delta`` and ``make-delta``: the command lines of the original scripts, with our options added."""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.apply import apply
from deltaweights.cli.command import flag
from deltaweights.cli.log_report import report_for
from deltaweights.cli.make import make
from deltaweights.cli.options import apply_options, make_options
from deltaweights.cli.original_flags import AbbreviatedCommand
from deltaweights.cli.values import BASE_MODEL, FOLDER, MODEL

HELP = {"help_option_names": ["-h", "--help"]}


@click.command("apply-delta", cls=AbbreviatedCommand, context_settings=HELP)
@flag(
    "Inputs",
    "--base-model-path",
    "--base",
    "base",
    required=True,
    metavar="PATH|HUB_ID",
    type=BASE_MODEL,
    help="The original LLaMA.",
)
@flag(
    "Output",
    "--target-model-path",
    "--target",
    "target",
    required=True,
    metavar="PATH",
    type=FOLDER,
    help="The folder to create.",
)
@flag("Inputs", "--delta-path", "--delta", "delta", required=True, metavar="PATH|HUB_ID", type=MODEL, help="The delta.")
@flag("Running", "--low-cpu-mem", is_flag=True, help="Accepted for old scripts: memory is always low.")
@apply_options
@click.version_option(package_name="deltaweights")
def apply_delta(base: str, target: str, delta: str, *, low_cpu_mem: bool, **options: Any) -> None:
    """Add a delta to its base, with the flags of the original apply_delta scripts.

    Flags may be shortened as there: --base, --base-model, --target, --delta. See also: deltaweights apply --help.
    """
    if low_cpu_mem:
        report = report_for("apply-delta", quiet=options["quiet"])
        report.note("--low-cpu-mem: memory is always low here; the flag changes nothing")
    apply("apply-delta", base, delta, target, **options)


@click.command("make-delta", cls=AbbreviatedCommand, context_settings=HELP)
@flag(
    "Inputs",
    "--base-model-path",
    "--base",
    "base",
    required=True,
    metavar="PATH|HUB_ID",
    type=BASE_MODEL,
    help="The base.",
)
@flag(
    "Inputs",
    "--target-model-path",
    "--target",
    "target",
    required=True,
    metavar="PATH|HUB_ID",
    type=MODEL,
    help="The fine-tuned model.",
)
@flag(
    "Output",
    "--delta-path",
    "--delta",
    "delta",
    required=True,
    metavar="PATH",
    type=FOLDER,
    help="The folder to create.",
)
@make_options
@click.version_option(package_name="deltaweights")
def make_delta(base: str, target: str, delta: str, **options: Any) -> None:
    """Subtract a base from a model that was fine-tuned from it, with the flags of the original make_delta scripts.

    Flags may be shortened as there: --base, --target, --delta, --hub. See also: deltaweights make --help.
    """
    make("make-delta", base, target, delta, **options)
