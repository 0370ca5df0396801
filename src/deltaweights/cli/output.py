"""What commands print on stdout: JSON, or lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from deltaweights.cli.colour import echo_result
from deltaweights.cli.log_report import keep_result
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import printable
from deltaweights.merge.choices import ORIGINAL, TRANSFORMERS
from deltaweights.report import Report
from deltaweights.util.sizes import human_bytes, human_seconds
from deltaweights.util.text import Json, counted, shell_quoted

if TYPE_CHECKING:
    from deltaweights.cluster.finish import FinishResult
    from deltaweights.jobs.result import Published

NOTICE = "research use only; LLaVA-Med: never for clinical use"


def print_outcome(outcome: Json, lines: Iterable[str], *, as_json: bool) -> None:
    """Print an outcome, as JSON (once the command has ended) or as ``lines``, which may be none."""
    keep_result(outcome, as_json=as_json)
    if as_json:
        return
    # Escaped: a file name may hold bytes that are not text, and printing it must not make a finished run fail.
    shown = [printable(line) for line in lines]
    if shown:
        echo_result(shown)


def print_published(
    published: Published,
    output: str,
    report: Report,
    *,
    as_json: bool,
    layout: str | None = None,
    hub_repo_id: str | None = None,
) -> dict[str, Json]:
    """Print what was published, and return it; ``output`` is the option that names the folder, "target" or "delta".

    ``layout`` is that of a model; without it, there is no second command to type next.
    """
    from deltaweights.manifest.base_claim import claim_of  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.manifest.findings import Findings  # noqa: PLC0415
    from deltaweights.recipes.catalogue import names  # noqa: PLC0415

    result = asdict(published)
    findings = {item.name: result.pop(item.name) for item in fields(Findings)}
    outcome = {output: result.pop(output), **result, **findings}
    if hub_repo_id is not None:
        outcome["upload"] = f"hf upload {hub_repo_id} {shell_quoted(outcome[output])}"
    claim = claim_of(published.proof, published.source_proof)
    base = None if claim is None else claim.text
    report.note(f"notice          {NOTICE} (see DELTAWEIGHTS_NOTICE.txt in it)")
    if isinstance(report, TerminalReport):
        report.separate()
    print_outcome(outcome, _result_lines(outcome, output, base), as_json=as_json)
    folder = shell_quoted(outcome[output])
    report.note(f"check it with   deltaweights verify {folder}")
    if layout == TRANSFORMERS:
        report.note(f"use it with     deltaweights try {folder}")
    elif layout == ORIGINAL and published.recipe in names():
        report.note(f"use it with     deltaweights export {folder} --target {shell_quoted(outcome[output] + '-hf')}")
    elif layout == ORIGINAL:  # export would ask for more where the model is a LLaVA
        report.note(f"look at it with deltaweights inspect {folder}")
    return outcome


def print_finished(published: FinishResult | None, target: str, report: Report, *, as_json: bool) -> None:
    """Print the result of a merge in parts; ``published`` is None when it was published before."""
    if published is not None:
        print_published(published, "target", report, as_json=as_json)
        return
    status = {"target": target, "status": "already complete"}
    print_outcome(status, [f"target          {target}", "status          already complete"], as_json=as_json)


def _result_lines(outcome: dict[str, Json], output: str, base: str | None) -> Iterator[str]:
    shards = counted(outcome["shards"], "shard")
    yield f"{output:15} {outcome[output]}"
    yield f"status          {_status(outcome)}"
    size = f"{outcome['parameters']:,} parameters, {human_bytes(outcome['bytes'])}, {shards}"
    yield f"tensors         {outcome['tensors']} ({size})"
    yield f"content digest  {outcome['content_digest']}"
    yield f"manifest        sha256 {outcome['manifest_sha256']}"
    if base is not None:
        yield f"base            {base}"
    if outcome["streamed"]:
        yield "inputs          not cryptographically verified: they were streamed, or no hash of them is stated"
    if outcome.get("inexact") is not None:
        yield from _round_trip_lines(outcome)
    if "upload" in outcome:
        yield f"publish it with {outcome['upload']}"


def _status(outcome: dict[str, Json]) -> str:
    from deltaweights.jobs.result import ALREADY_COMPLETE  # noqa: PLC0415  (slow to load, so not for --help)

    status, took = outcome["status"], human_seconds(outcome["seconds"]["total"])
    if status == ALREADY_COMPLETE:
        return f"{status}; looked at in {took}"
    # ``finish`` streams nothing: its time is not that of the merge.
    return f"{status} in {took}" if "stream" in outcome["seconds"] else f"{status} in parts; published in {took}"


def _round_trip_lines(outcome: dict[str, Json]) -> Iterator[str]:
    """Yield how many weights do not come back, under which options, and compared with what; then what that leaves of the target."""
    inexact, compute = outcome["inexact"], outcome["compute_dtype"]
    others = [dtype for dtype in outcome["target_dtypes"] if dtype != compute]
    rounded = f"; the target's {', '.join(others)} weights are compared as rounded to {compute}" if others else ""
    how = f"applied in {compute}{rounded}"
    if inexact:
        yield f"round trip      {_share(inexact, outcome)} do not come back bit for bit ({how})"
        yield from _worst(inexact)
    else:
        yield f"round trip      every weight comes back bit for bit ({how})"
    other = outcome["not_restored"]
    if other:
        yield f"rounding        {_share(other, outcome)} of the result, in {outcome['restored_dtype']}, are not the target's"
        yield from _worst(other)
    elif other is not None:
        yield f"rounding        every weight of the result, in {outcome['restored_dtype']}, is the target's"


def _share(counts: dict[str, int], outcome: dict[str, Json]) -> str:
    count, total = sum(counts.values()), outcome["parameters"]
    return f"{count:,} of {total:,} weights ({count / total:.2%}) in {counted(len(counts), 'tensor')}"


def _worst(counts: dict[str, int]) -> Iterator[str]:
    for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]:
        yield f"  {number:>14,} in {name}"


def plan_lines(plan: dict[str, Json], output: str) -> Iterator[str]:
    """Yield what a dry run prints."""
    yield f"{output:15} {plan[output]}"
    yield f"tensors         {plan['tensors']} ({human_bytes(plan['bytes'])}), {counted(len(plan['shards']), 'shard')}"
    for shard in plan["shards"]:
        yield f"  {shard['file']}  {human_bytes(shard['size'])}, {counted(shard['tensors'], 'tensor')}"
    yield f"disk            {human_bytes(plan['disk_needed'])} needed, {human_bytes(plan['disk_free'])} free"
    yield f"memory          about {human_bytes(plan['memory_needed'])}"
    yield f"plan            {plan['plan']}"
