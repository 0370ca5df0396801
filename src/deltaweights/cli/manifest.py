"""``deltaweights manifest``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from deltaweights.checkpoint.small_files import read_small
from deltaweights.cli.command import Command, flag
from deltaweights.cli.json_output import print_document
from deltaweights.cli.options import json_option, option, quiet_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import FILE, FOLDER
from deltaweights.errors import DeltaweightsError, TargetBusy
from deltaweights.manifest.listing import Listing, list_checkpoint
from deltaweights.manifest.parse import LISTING, parse_manifest
from deltaweights.util import limits
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

EXAMPLES = (
    "deltaweights manifest llama-7b --output llama-7b.json",
    "deltaweights verify llama-7b --manifest llama-7b.json",
)


@click.command("manifest", cls=Command, examples=EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@flag("Output", "--output", metavar="FILE", type=FILE, help="Write the manifest there [default: to stdout].")
@option("workers")
@json_option
@quiet_option
def command(folder: str, *, output: str | None, workers: int | None, as_json: bool, quiet: bool) -> None:
    """Make a manifest of any checkpoint, for `verify --manifest`.

    DIR holds weights in any supported format: safetensors, torch files, or Meta's. All files are read once. Keep FILE apart from
    the weights: in git, say. Without --output, stdout is the manifest itself; on a terminal, unprintable characters are escaped.
    """
    kept = None if output is None else Path(output)
    if kept is not None:
        _refuse_other(kept)
    listing = list_checkpoint(folder, apart=kept, workers=workers, report=TerminalReport("deltaweights", quiet=quiet))
    if kept is None:
        print_document(listing.document)
        return
    replace_file(kept, listing.document)
    facts = {key: value for key, value in vars(listing).items() if key != "document"}
    print_outcome({"output": output, **facts}, [] if quiet else _lines(listing, kept), as_json=as_json)


def _refuse_other(path: Path) -> None:
    """Raise ``TargetBusy`` unless ``path`` is free, an empty file, or a listing: weights are easily named by mistake."""
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


def _lines(listing: Listing, kept: Path) -> Iterator[str]:
    yield f"listed          {listing.folder}"
    yield f"files           {listing.files} ({human_bytes(listing.bytes)})"
    if listing.folders:
        yield f"not looked into {', '.join(listing.folders)}"
    yield f"tensors         {counted(listing.tensors, 'tensor')}, {counted(listing.parameters, 'element')}"
    yield f"content digest  {listing.content_digest} (recomputed from the bytes)"
    yield f"manifest        {kept}, sha256 {listing.manifest_sha256}"
