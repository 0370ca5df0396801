"""``deltaweights check``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from deltaweights.cli.command import Command
from deltaweights.cli.failure import failure_of
from deltaweights.cli.json_output import json_bytes
from deltaweights.cli.options import json_option, silent_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import FOLDER
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed
from deltaweights.util.name_groups import group_names
from deltaweights.util.text import counted

if TYPE_CHECKING:
    from deltaweights.inference.findings import Finding
    from deltaweights.inference.structure import StructureReport

AGAIN = "make a merge again with deltaweights export, or with apply --layout transformers; fetch or save another model again"
GIVE_THE_MODEL = "check the model itself: deltaweights apply makes it of the delta and its base"


EXAMPLES = ("deltaweights check merged-hf",)


@click.command("check", cls=Command, examples=EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@json_option
@silent_option
def command(folder: str, *, as_json: bool, quiet: bool) -> None:
    """Check that a library will load a checkpoint, from its headers.

    Current transformers lists the tensors that it would miss or ignore; then tokenizer, special ids, embeddings and image tokens
    are compared with each other. Of weights, only a few samples are read, which tell a delta from a model. Exit 0: it loads; 6: it
    does not, or the check took more than 120 seconds of processor time.
    """
    from deltaweights.inference import time_limit  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.inference.structure import check_structure  # noqa: PLC0415

    terminal = TerminalReport("deltaweights", quiet=quiet)
    too_long = (lambda error: json_bytes({"error": failure_of(error).document()})) if as_json else (lambda _: b"")
    time_limit.exit_after(time_limit.CPU_SECONDS, "deltaweights", folder, too_long)
    report = check_structure(folder)
    if not as_json:
        for warning in report.warnings:
            terminal.warn(f"{report.target}: {warning}")
        for note in report.notes:
            terminal.note(note)
    outcome = {"ok": report.ok, **asdict(report)}
    print_outcome(outcome, [] if report.ok and quiet else _lines(report), as_json=as_json)
    if not report.ok:
        remedy = GIVE_THE_MODEL if report.is_delta else AGAIN
        problem, code = counted(len(report.problems), "problem"), ErrorCode.DOES_NOT_LOAD
        raise CheckFailed(problem, where=folder, remedy=remedy, code=code)


def _lines(report: StructureReport) -> Iterator[str]:
    if not report.ok:
        yield from (f"FAILED          {problem}" for problem in _grouped(report.problems))
        return
    yield f"checked         {report.target}"
    yield f"loads as        {report.model_class}, in {report.loads_in}"
    yield f"tensors         {report.tensors:,}, all that the model has and no other"
    yield f"parameters      {report.parameters:,}"
    if report.tokenizer_size is not None:
        yield f"tokenizer       {report.tokenizer_size:,} tokens"


def _grouped(problems: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the problems, with tensors whose names differ only in numbers as one: hundreds may be missing at once."""
    alike: defaultdict[Finding, list[str]] = defaultdict(list)
    for problem in problems:
        alike[replace(problem, tensor=None)].append(problem.tensor or "")
    for problem, names in alike.items():
        for group in group_names(names):
            yield replace(problem, tensor=group.spelled(12) or None)
