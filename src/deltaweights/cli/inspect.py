"""``deltaweights inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.options import hub_of, hub_options, json_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import MODEL
from deltaweights.errors import printable
from deltaweights.jobs.inspect import InspectReport, group_tensors, inspect_checkpoint
from deltaweights.merge.rules import is_buffer
from deltaweights.util.name_groups import group_names
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

MOST_RANGES = 12
"""Numbers and ranges that a pair of braces shows; ``--json`` has every name."""


EXAMPLES = (
    "deltaweights inspect merged",
    "deltaweights inspect ORG/NAME",
)


@click.command("inspect", cls=Command, examples=EXAMPLES)
@click.argument("path", metavar="PATH|HUB_ID", type=MODEL)
@flag("Checks", "--hash-inputs", is_flag=True, help="Identify the files by their sha256; reads all of them.")
@hub_options
@json_option
def command(path: str, *, hash_inputs: bool, as_json: bool, **options: Any) -> None:
    """Show what a checkpoint holds: tensors, dtypes, shapes, sizes, parameters.

    PATH is a folder (Hugging Face's or Meta's), an index.json, a weights file, a zip archive, or ORG/NAME on the Hub. Only headers
    and some samples are read. Tensors whose names differ only in numbers share a line: layers.{0-31}.
    """
    terminal = TerminalReport("deltaweights", quiet=False)
    report = inspect_checkpoint(path, hash_inputs=hash_inputs, hub=hub_of(options), report=terminal)
    for note in report.notes:
        terminal.warn(note)
    claim = report.manifest.base if report.manifest is not None else None
    if claim is not None and claim.warning is not None:
        terminal.warn(f"{path}: {claim.warning}")
    print_outcome(asdict(report), _lines(report), as_json=as_json)


def _lines(report: InspectReport) -> Iterator[str]:
    yield f"checkpoint      {report.path}"
    yield f"identity        {report.identity.text}"
    if report.model_type is not None or report.architectures:
        architectures = f"({', '.join(report.architectures)})" if report.architectures else ""
        yield f"model           {' '.join(filter(None, [report.model_type, architectures]))}"
    files = report.files[0].name if len(report.files) == 1 else counted(len(report.files), "file")
    yield f"container       {report.container}, {files} ({human_bytes(report.bytes_on_disk)})"
    yield f"tensors         {len(report.tensors):,} ({human_bytes(report.bytes)})"
    if report.naming.text:
        yield f"names           {report.naming.text}"
    yield f"parameters      {report.parameters:,}"
    if report.buffers.tensors:
        size = f"{counted(report.buffers.elements, 'element')}, not counted as parameters"
        yield f"buffers         {report.buffers.tensors:,} ({size})"
    dtypes = (f"{name} {total.elements:,} ({human_bytes(total.bytes)})" for name, total in report.dtypes.items())
    yield f"dtypes          {', '.join(dtypes) or 'none'}"
    if report.manifest is not None:
        how = "as the manifest states, not verified" if report.manifest.fits else "the manifest's, of other tensors"
        yield f"content digest  {report.manifest.content_digest} ({how})"
        if report.manifest.base is not None:
            yield f"base            {report.manifest.base.text} ({how})"
    yield from _table(report)
    if report.shared:
        yield from ("", "shared storage")
    for storage in report.shared:
        names = ", ".join(group.spelled(MOST_RANGES) for group in group_names(storage.tensors))
        how = "tied " if storage.tied else "views"
        yield f"  {how}  {names} ({counted(storage.elements, 'element')})"
    if len(report.files) > 1 or report.files[0].sha256:
        yield from ("", "files")
        width = max(len(printable(file.name)) for file in report.files)
        for file in report.files:
            sha256 = f"  sha256 {file.sha256}" if file.sha256 else ""
            size = f"{human_bytes(file.size):>9}  {counted(file.tensors, 'tensor')}"
            yield f"  {printable(file.name):{width}}  {size}{sha256}"


def _table(report: InspectReport) -> Iterator[str]:
    """Yield the tables of weights and buffers, which share their columns; an empty column is left out."""
    groups = group_tensors(report.tensors)
    rows = [
        (
            printable(group.spelled(MOST_RANGES)),
            tensor.dtype,
            str(list(tensor.shape)),
            f"x{group.count}" if group.count > 1 else "",
            human_bytes(group.count * tensor.bytes),
        )
        for group, tensor in groups
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    alignments = "<<<>>"
    tables: dict[str, list[str]] = {"weights": [], "buffers": []}
    for row, (group, _) in zip(rows, groups, strict=True):
        cells = (
            f"  {cell:{alignment}{width}}"
            for cell, alignment, width in zip(row, alignments, widths, strict=True)
            if width
        )
        tables["buffers" if is_buffer(group.first) else "weights"].append("".join(cells))
    for title, lines in tables.items():
        if lines:
            yield from ("", title, *lines)
