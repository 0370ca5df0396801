"""What the commands that write a checkpoint say of it at the end."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import click

from deltaweights.cli.log_report import keep_result
from deltaweights.cli.results import print_json
from deltaweights.errors import printable
from deltaweights.report import Report
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import Json, counted

if TYPE_CHECKING:
    from deltaweights.cluster.finish import FinishResult
    from deltaweights.jobs.result import Published

NOTICE = "research use only; LLaVA-Med: never for clinical use"


def print_published(
    published: Published, output: str, report: Report, *, as_json: bool, hub_repo_id: str | None = None
) -> dict[str, Json]:
    """Print what was published, ``output`` being what it is called, and return it."""
    from deltaweights.jobs.findings import proof_line  # noqa: PLC0415  (the rest does without)
    from deltaweights.manifest.findings import Findings  # noqa: PLC0415

    result = asdict(published)
    findings = {item.name: result.pop(item.name) for item in fields(Findings)}
    outcome = {output: result.pop(output), **result, **findings}
    if hub_repo_id is not None:
        outcome["upload"] = f"hf upload {hub_repo_id} {shlex.quote(outcome[output])}"
    print_outcome(outcome, _result_lines(outcome, output, proof_line(published.proof)), as_json=as_json)
    report.note(f"notice          {NOTICE} (see DELTAWEIGHTS_NOTICE.txt in it)")
    report.note(f"check it with   deltaweights verify {shlex.quote(outcome[output])}")
    return outcome


def print_finished(published: FinishResult | None, target: str, report: Report, *, as_json: bool) -> None:
    """Print what parts have made together, or that it was published before."""
    if published is not None:
        print_published(published, "target", report, as_json=as_json)
        return
    status = {"target": target, "status": "already complete"}
    print_outcome(status, [f"{'target':15} {target}", f"{'status':15} already complete"], as_json=as_json)


def print_outcome(outcome: dict[str, Json], lines: list[str], *, as_json: bool) -> None:
    """Print an outcome, as JSON or as ``lines``."""
    keep_result(outcome)
    if as_json:
        print_json(outcome)
    elif lines:  # no raw path: a file name may hold bytes that are no text, and they must not make a finished run fail
        click.echo("\n".join(map(printable, lines)))


def _result_lines(outcome: dict[str, Json], output: str, base: str | None) -> list[str]:
    size = (
        f"{outcome['parameters']:,} parameters, {human_bytes(outcome['bytes'])}, {counted(outcome['shards'], 'shard')}"
    )
    lines = [
        f"{output:15} {outcome[output]}",
        f"status          {outcome['status']} in {outcome['seconds']['total']:.1f} s",
        f"tensors         {outcome['tensors']} ({size})",
        f"content digest  {outcome['content_digest']}",
        f"manifest        sha256 {outcome['manifest_sha256']}",
    ]
    if base is not None:
        lines.append(f"base            {base}")
    if outcome["streamed"]:
        lines.append("inputs          not cryptographically verified: they were streamed")
    if outcome.get("inexact") is not None:
        lines += _round_trip_lines(outcome)
    if "upload" in outcome:
        lines.append(f"publish it with {outcome['upload']}")
    return lines


def _round_trip_lines(outcome: dict[str, Json]) -> list[str]:
    """Say what does not come back, under which options, and compared with what."""
    inexact, compute = outcome["inexact"], outcome["compute_dtype"]
    others = [dtype for dtype in outcome["target_dtypes"] if dtype != compute]
    rounded = f"; the target's {', '.join(others)} weights are compared as rounded to {compute}" if others else ""
    count, total = sum(inexact.values()), outcome["parameters"]
    how = f"applied in {compute}{rounded}"
    if not count:
        return [f"round trip      every weight comes back bit for bit ({how})"]
    share = f"{count:,} of {total:,} weights ({count / total:.2%})"
    most = sorted(inexact.items(), key=lambda item: (-item[1], item[0]))[:3]
    return [
        f"round trip      {share} in {counted(len(inexact), 'tensor')} do not come back bit for bit ({how})",
        *(f"  {number:>14,} in {name}" for name, number in most),
    ]


def plan_lines(outcome: dict[str, Json], output: str) -> list[str]:
    """Return what a dry run says."""
    shards = [
        f"  {shard['file']}  {human_bytes(shard['size'])}, {counted(shard['tensors'], 'tensor')}"
        for shard in outcome["shards"]
    ]
    return [
        f"{output:15} {outcome[output]}",
        f"tensors         {outcome['tensors']} ({human_bytes(outcome['bytes'])}), {counted(len(shards), 'shard')}",
        *shards,
        f"disk            {human_bytes(outcome['disk_needed'])} needed, {human_bytes(outcome['disk_free'])} free",
        f"memory          about {human_bytes(outcome['memory_needed'])}",
        f"plan            {outcome['plan']}",
    ]
