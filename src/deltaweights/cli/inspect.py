"""``deltaweights inspect``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.options import hub_of, hub_options
from deltaweights.cli.results import print_json
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import printable
from deltaweights.jobs.inspect import InspectReport, group_tensors, inspect_checkpoint
from deltaweights.merge.rules import is_buffer
from deltaweights.util.name_groups import group_names
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

MOST_RANGES = 12
"""Numbers and ranges that a pair of braces shows; ``--json`` has every name."""


@click.command("inspect")
@click.argument("path", metavar="PATH")
@click.option("--hash-inputs", is_flag=True, help="Make the sha256 of every file, to tell what it is; reads all of it.")
@hub_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every tensor.")
def command(path: str, *, hash_inputs: bool, as_json: bool, **options: Any) -> None:
    """Show what a checkpoint holds: tensors, dtypes, shapes, sizes, parameters.

    PATH is a folder (Hugging Face's or Meta's), an index.json, a weights file, a zip archive, or ORG/NAME on the Hub. Only
    headers and some samples are read. Tensors that are alike but for the numbers in their names share a line: layers.{0-31}.
    """
    terminal = TerminalReport("deltaweights", quiet=False)
    report = inspect_checkpoint(path, hash_inputs=hash_inputs, hub=hub_of(options), report=terminal)
    for note in report.notes:
        terminal.warn(note)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo("\n".join(map(printable, _lines(report))))


def _lines(report: InspectReport) -> list[str]:
    lines = [f"checkpoint      {report.path}", f"identity        {report.identity.text}"]
    if report.model_type is not None or report.architectures:
        architectures = f"({', '.join(report.architectures)})" if report.architectures else ""
        lines.append(f"model           {' '.join(filter(None, [report.model_type, architectures]))}")
    files = report.files[0].name if len(report.files) == 1 else counted(len(report.files), "file")
    lines += [
        f"container       {report.container}, {files} ({human_bytes(report.bytes_on_disk)})",
        f"tensors         {len(report.tensors):,} ({human_bytes(report.bytes)})",
        f"parameters      {report.parameters:,}",
    ]
    if report.buffers.tensors:
        size = f"{counted(report.buffers.elements, 'element')}, not counted as parameters"
        lines.append(f"buffers         {report.buffers.tensors:,} ({size})")
    dtypes = (f"{name} {total.elements:,} ({human_bytes(total.bytes)})" for name, total in report.dtypes.items())
    lines.append(f"dtypes          {', '.join(dtypes) or 'none'}")
    if report.manifest is not None:
        how = "as the manifest states, not verified" if report.manifest.fits else "the manifest's, of other tensors"
        lines.append(f"content digest  {report.manifest.content_digest} ({how})")
    lines += _table(report)
    if report.shared:
        lines += ["", "shared storage"]
    for storage in report.shared:
        names = ", ".join(group.spelled(MOST_RANGES) for group in group_names(storage.tensors))
        how = "tied " if storage.tied else "views"
        lines.append(f"  {how}  {names} ({counted(storage.elements, 'element')})")
    if len(report.files) > 1 or report.files[0].sha256:
        width = max(len(printable(file.name)) for file in report.files)
        lines += ["", "files"]
        lines += [
            f"  {printable(file.name):{width}}  {human_bytes(file.size):>9}  {counted(file.tensors, 'tensor')}"
            + (f"  sha256 {file.sha256}" if file.sha256 else "")
            for file in report.files
        ]
    return lines


def _table(report: InspectReport) -> list[str]:
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
    lines = [
        # The last two columns, numbers, are flush right; a column in which nothing stands takes no room.
        "".join(
            f"  {cell:{'>' if k > 2 else '<'}{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        )
        for row in rows
    ]
    table = []
    for title, wanted in (("weights", False), ("buffers", True)):
        part = [line for line, (group, _) in zip(lines, groups, strict=True) if is_buffer(group.first) is wanted]
        table += ["", title, *part] if part else []
    return table
