"""``deltaweights download``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.values import RecipeName
from deltaweights.util.interruption import GO_ON, advising
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

EXAMPLES = (
    "deltaweights download llava-med-7b",
    "deltaweights download microsoft/llava-med-7b-delta --dry-run",
    "deltaweights download ORG/NAME --include '*.json' --local-dir here",
)


@click.command("download", cls=Command, examples=EXAMPLES)
@click.argument("model", metavar="RECIPE|HUB_ID", type=RecipeName(models=True))
@click.argument("files", nargs=-1, metavar="[FILE]...")
@flag("Inputs", "--revision", metavar="REVISION", help="Branch, tag or commit.")
@flag(
    "Inputs",
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Only matching files, such as *.json; may be repeated.",
)
@flag("Inputs", "--exclude", multiple=True, metavar="PATTERN", help="No matching files; may be repeated.")
@flag(
    "Output",
    "--local-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put the files themselves into this folder, not into the cache.",
)
@flag(
    "Running", "--dry-run", is_flag=True, help="Show which files would be fetched, and how large they are; fetch none."
)
@flag("Running", "--force-download", is_flag=True, help="Fetch the files again that the cache has.")
@hub_options
@json_option
@flag("Logging", "-q", "--quiet", is_flag=True, help="Only the path of each model, and warnings.")
@log_format_option
def command(
    model: str,
    *,
    revision: str | None,
    files: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    local_dir: Path | None,
    dry_run: bool,
    force_download: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Download base and delta of a recipe, or a model of the Hub, into the Hub's cache, and verify them.

    Downloaded are the weights and all that belongs to them: configuration, tokenizer, manifest, sums, signature, licences,
    notices and cards; or the FILEs alone. Every file is compared with the hash that the Hub states. An interrupted or killed
    download is resumed. The cache is that of the hf command, and so is what --local-dir leaves; it replaces no file that was not
    downloaded.
    """
    from deltaweights.jobs.download import download  # noqa: PLC0415  (slow to load, so not for --help)

    given = f"{model}@{revision}" if revision else model
    report = report_for("deltaweights", quiet=quiet)
    with advising(GO_ON):
        found = download(
            given,
            files=files,
            include=include,
            exclude=exclude,
            local_dir=local_dir,
            dry_run=dry_run,
            force=force_download,
            options=hub_of(options),
            report=report,
        )
    lines = [one.path for one in found] if quiet else []  # as `hf download -q` does: for scripts
    for one in found if not quiet else ():
        size = f"{counted(len(one.files), 'file')}, {human_bytes(one.bytes)}"
        what = "to fetch" if dry_run else "of it fetched now"
        lines.append(f"{one.repo} at {one.commit}: {size}, {human_bytes(one.fetched)} {what}")
        if not dry_run:
            lines.append(f"verified        {one.path}")
    print_outcome([asdict(one) for one in found], lines, as_json=as_json)
