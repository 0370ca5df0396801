"""``deltaweights check``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from deltaweights.cli.options import json_option
from deltaweights.cli.results import print_json
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import CheckFailed, printable
from deltaweights.util.name_groups import group_names
from deltaweights.util.text import counted

if TYPE_CHECKING:
    from deltaweights.inference.findings import Finding
    from deltaweights.inference.structure import StructureReport


@click.command("check")
@click.argument("folder", metavar="DIR")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when everything is as a library wants it.")
def command(folder: str, *, as_json: bool, quiet: bool) -> None:
    """Check that a library will load a checkpoint, from its headers.

    Current transformers is asked what it would miss, and what it would not know; then tokenizer, special ids, embeddings and image
    tokens are compared with each other. No weights are read. Exit 0: it loads; 6: it does not, or not within 120
    seconds of the processor.
    """
    from deltaweights.inference import time_limit  # noqa: PLC0415  (only who checks needs them)
    from deltaweights.inference.structure import check_structure  # noqa: PLC0415

    terminal = TerminalReport("deltaweights", quiet=quiet)
    time_limit.exit_after(time_limit.CPU_SECONDS, "deltaweights", folder)
    report = check_structure(folder)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        for warning in report.warnings:
            terminal.warn(f"{report.target}: {warning}")
        for note in report.notes:
            terminal.note(note)
        if not report.ok:
            for problem in _grouped(report.problems):
                click.echo(f"FAILED          {problem}")
        elif not quiet:
            click.echo("\n".join(map(printable, _lines(report))))
    if not report.ok:
        remedy = "make it again with deltaweights export, or with apply --layout transformers"
        raise CheckFailed(counted(len(report.problems), "problem"), where=folder, remedy=remedy)


def _lines(report: StructureReport) -> list[str]:
    lines = [
        f"checked         {report.target}",
        f"loads as        {report.model_class}, in {report.loads_in}",
        f"tensors         {report.tensors:,}, all that the model has and no other",
        f"parameters      {report.parameters:,}",
    ]
    if report.tokenizer_size is not None:
        lines.append(f"tokenizer       {report.tokenizer_size:,} tokens")
    return lines


def _grouped(problems: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the problems, those of tensors that are alike but for their numbers as one: hundreds may be missing at once."""
    alike: defaultdict[Finding, list[str]] = defaultdict(list)
    for problem in problems:
        alike[replace(problem, tensor=None)].append(problem.tensor or "")
    for problem, names in alike.items():
        for group in group_names(names):
            yield replace(problem, tensor=group.spelled(12) or None)
