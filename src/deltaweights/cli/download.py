"""``deltaweights download``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.log_report import keep_result, log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option, quiet_option
from deltaweights.cli.results import print_json
from deltaweights.errors import printable
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted


@click.command("download")
@click.argument("model", metavar="RECIPE|ORG/NAME[@REVISION]")
@click.option("--revision", help="Branch, tag or commit.")
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Only files of such names, as *.json; may be repeated."
)
@hub_options
@json_option
@quiet_option
@log_format_option
def command(
    model: str, *, revision: str | None, include: tuple[str, ...], as_json: bool, quiet: bool, **options: Any
) -> None:
    """Fetch base and delta of a recipe, or a model of the Hub, into the Hub's cache, and check what arrived.

    Every file is held against the hash that the Hub states. What is interrupted, or killed, goes on where it was. The cache is
    that of the hf command.
    """
    from deltaweights.jobs.download import download  # noqa: PLC0415  (only who downloads needs it)

    given = f"{model}@{revision}" if revision else model
    report = report_for("deltaweights", quiet=quiet)
    found = download(given, include=include, options=hub_of(options), report=report)
    outcome = [asdict(one) for one in found]
    keep_result(outcome)
    if as_json:
        print_json(outcome)
        return
    for one in found:
        size = (
            f"{counted(len(one.files), 'file')}, {human_bytes(one.bytes)}, {human_bytes(one.fetched)} of it fetched now"
        )
        click.echo(printable(f"{one.repo} at {one.commit}: {size}"))
        click.echo(printable(f"verified        {one.path}"))
