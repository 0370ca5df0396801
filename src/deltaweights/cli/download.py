"""``deltaweights download``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option, quiet_option
from deltaweights.cli.output import print_outcome
from deltaweights.util.interruption import GO_ON, advising
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted


@click.command("download")
@click.argument("model", metavar="RECIPE|ORG/NAME[@REVISION]")
@click.option("--revision", help="Branch, tag or commit.")
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Only matching files, such as *.json; may be repeated."
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="No matching files; may be repeated.")
@click.option(
    "--local-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put the files themselves into this folder, not into the cache.",
)
@hub_options
@json_option
@quiet_option
@log_format_option
def command(
    model: str,
    *,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    local_dir: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Download base and delta of a recipe, or a model of the Hub, into the Hub's cache, and verify them.

    Downloaded are the weights and all that belongs to them: configuration, tokenizer, manifest, sums, signature, licences,
    notices and cards. Every file is compared with the hash that the Hub states. An interrupted or killed download is resumed.
    The cache is that of the hf command, and so is what --local-dir leaves; it replaces no file that was not downloaded.
    """
    from deltaweights.jobs.download import download  # noqa: PLC0415  (slow to load, so not for --help)

    given = f"{model}@{revision}" if revision else model
    report = report_for("deltaweights", quiet=quiet)
    with advising(f"what has arrived is kept; {GO_ON}"):
        found = download(
            given,
            include=include,
            exclude=exclude,
            local_dir=local_dir,
            options=hub_of(options),
            report=report,
        )
    lines = []
    for one in found:
        size = f"{counted(len(one.files), 'file')}, {human_bytes(one.bytes)}"
        lines.append(f"{one.repo} at {one.commit}: {size}, {human_bytes(one.fetched)} of it fetched now")
        lines.append(f"verified        {one.path}")
    print_outcome([asdict(one) for one in found], lines, as_json=as_json)
