"""``deltaweights apply``: in one process, as one part of several, or started by a launcher."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deltaweights.cli.command import flag
from deltaweights.cli.log_report import report_for
from deltaweights.cli.options import apply_options, hub_of, part_of, recipe_of, target_option
from deltaweights.cli.original_flags import CommandWithDropIn
from deltaweights.cli.output import print_finished, print_outcome
from deltaweights.cli.values import BASE_MODEL, MODEL, RecipeName
from deltaweights.cli.writing import write_checkpoint
from deltaweights.errors import UsageError
from deltaweights.util.interruption import GO_ON, advising
from deltaweights.util.sizes import human_seconds
from deltaweights.util.text import counted, finished_of, shell_quoted

if TYPE_CHECKING:
    from deltaweights.jobs.request import Request


EXAMPLES = (
    "deltaweights apply llava-med-7b --target llava-med-7b",
    "deltaweights apply --base llama-7b --delta my-delta --target merged",
    "deltaweights apply llava-med-7b --base llama-7b --target merged --dry-run",
)


@click.command("apply", cls=CommandWithDropIn, examples=EXAMPLES)
@click.argument("recipe", metavar="[RECIPE]", type=RecipeName(), required=False)
@flag(
    "Inputs",
    "--base",
    metavar="PATH|HUB_ID",
    type=BASE_MODEL,
    help="The original LLaMA: folder (Hugging Face's or Meta's), index, file or zip [default: the recipe's].",
)
@flag(
    "Inputs",
    "--delta",
    metavar="PATH|HUB_ID",
    type=MODEL,
    help="The delta: folder, index, weights file, or zip archive [default: the recipe's].",
)
@target_option
@apply_options
def command(recipe: str | None, base: str | None, delta: str | None, target: str, **options: Any) -> None:
    """Add a delta to its base and write the merged checkpoint.

    RECIPE names a known pair (deltaweights recipes): its rules are used, and base and delta are compared with what is known of
    them. The target appears when it is complete and flushed to the disk, with manifest.json and SHA256SUMS. Run the same command
    again to continue a killed run.
    """
    apply("deltaweights", base, delta, target, recipe=recipe, **options)


def apply(
    name: str,
    base: str | None,
    delta: str | None,
    target: str,
    *,
    recipe: str | None = None,
    recipe_option: str | None,
    part: str | None,
    **options: Any,
) -> None:
    """Add the delta to its base, or write one part of the merge, or show the plan; print the outcome."""
    from deltaweights.cluster.launch import is_launched  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.jobs import apply as job  # noqa: PLC0415

    recipe, recipe_file = recipe_of(recipe, recipe_option)
    request = partial(job.apply_request, base, delta, target, recipe=recipe, recipe_file=recipe_file)
    if options["dry_run"]:
        write_checkpoint(name, request, job.apply, **options)
    elif is_launched(os.environ):
        if part is not None:
            raise UsageError("--part is set by the launcher", remedy="leave it out, or do not launch several processes")
        _apply_launched(name, request, **options)
    elif part is not None:
        _apply_part(name, partial(request, part=part_of(part)), **options)
    else:
        write_checkpoint(name, request, job.apply, **options)


def _apply_launched(
    name: str,
    make_request: Callable[..., Request],
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    device: str,
    **options: Any,
) -> None:
    """Write the part of this process, one of several that a launcher started; the main one publishes and prints the outcome."""
    from deltaweights.cluster.finish import finish_parts  # noqa: PLC0415  (slow to load)
    from deltaweights.cluster.launch import rank  # noqa: PLC0415
    from deltaweights.cluster.part import run_part  # noqa: PLC0415

    finish_options = {key: options.pop(key) for key in ("strict", "check", "read_back")}
    finish_options |= {key: options[key] for key in ("overwrite", "allow_unproved_base")}
    by_default = click.get_current_context().get_parameter_source("device") is ParameterSource.DEFAULT
    options["hub"] = hub_of(options)
    with rank("auto" if by_default else device) as here:
        report = report_for(name, quiet=quiet or not here.is_main)
        request = make_request(dry_run=dry_run, part=here.part, device=here.device, **options)
        run_part(request, report)
        here.wait()
        if here.is_main:
            target = os.fspath(request.target)
            print_finished(finish_parts(target, report=report, **finish_options), target, report, as_json=as_json)
        here.wait()


def _apply_part(name: str, make_request: Callable[..., Request], *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write one part of a merge, and print the outcome."""
    from deltaweights.cluster.part import run_part  # noqa: PLC0415  (slow to load)

    options["hub"] = hub_of(options)
    request = make_request(**options)
    report = report_for(name, quiet=quiet)
    with advising(GO_ON):
        done = run_part(request, report)
    seconds = human_seconds(done.seconds["total"])
    lines = [
        f"part            {done.part}: {done.status}, {counted(len(done.made), 'shard')} made in {seconds}",
        f"shards          {', '.join(done.shards) or 'none: there are more parts than shards'}",
        f"plan            {done.plan}: {finished_of(done.finished, done.total, 'shard')}",
    ]
    print_outcome(asdict(done), lines, as_json=as_json)
    if done.finished == done.total and done.status == "finished":
        report.note(f"publish it with deltaweights finish --target {shell_quoted(done.target)}")
