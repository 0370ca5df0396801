"""``deltaweights manifest``."""

from __future__ import annotations

from pathlib import Path

import click

from deltaweights.checkpoint.small_files import read_small
from deltaweights.cli.options import json_option, quiet_option
from deltaweights.cli.results import print_document, print_json
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import DeltaweightsError, TargetBusy, printable
from deltaweights.manifest.listing import Listing, list_checkpoint
from deltaweights.manifest.parse import LISTING, parse_manifest
from deltaweights.util import limits
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted


@click.command("manifest")
@click.argument("folder", metavar="DIR")
@click.option("--output", metavar="FILE", help="Write the manifest there [default: to stdout].")
@click.option("--workers", type=click.IntRange(min=1), help="Files read at once [default: one per processor, 2 to 8].")
@json_option
@quiet_option
def command(folder: str, *, output: str | None, workers: int | None, as_json: bool, quiet: bool) -> None:
    """Make a manifest of any checkpoint, for `verify --manifest`.

    DIR holds weights in any form that is read here: safetensors, torch files, or Meta's. All files are read once. Keep FILE where
    the weights are not: in git, say. Without --output, stdout is the manifest itself; on a terminal, what it would not show is
    escaped.
    """
    kept = None if output is None else Path(output)
    if kept is not None:
        _refuse_other(kept)
    listing = list_checkpoint(folder, apart=kept, workers=workers, report=TerminalReport("deltaweights", quiet=quiet))
    if kept is None:
        print_document(listing.document)
        return
    replace_file(kept, listing.document)
    if as_json:
        print_json({"output": output, **_facts(listing)})
    elif not quiet:
        click.echo("\n".join(map(printable, _lines(listing, kept))))


def _refuse_other(path: Path) -> None:
    """Raise ``TargetBusy`` when ``path`` is anything but free, an empty file, or a listing: weights are easily named by mistake."""
    if not path.exists():
        return
    try:
        data = read_small(path, limits.MANIFEST.size)
        found = "a manifest that tells of a merge" if data and parse_manifest(data).kind != LISTING else None
    except (DeltaweightsError, ValueError):
        found = "something else"
    if found is not None:
        expected, remedy = "a manifest of the same sort, or nothing", "move it away, or name another file"
        raise TargetBusy("is not replaced", where=path, found=found, expected=expected, remedy=remedy)


def _facts(listing: Listing) -> dict[str, object]:
    return {key: value for key, value in vars(listing).items() if key != "document"}


def _lines(listing: Listing, kept: Path) -> list[str]:
    lines = [
        f"listed          {listing.folder}",
        f"files           {listing.files} ({human_bytes(listing.bytes)})",
        f"tensors         {counted(listing.tensors, 'tensor')}, {counted(listing.parameters, 'element')}",
        f"content digest  {listing.content_digest} (recomputed from the bytes)",
        f"manifest        {kept}, sha256 {listing.manifest_sha256}",
    ]
    if listing.folders:
        lines.insert(2, f"not looked into {', '.join(listing.folders)}")
    return lines
