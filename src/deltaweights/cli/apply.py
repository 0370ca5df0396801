"""``deltaweights apply``.

Enters: arguments. Leaves: the merged checkpoint, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import UsageError
from deltaweights.sizes import human_bytes
from deltaweights.text import Json, counted, printable

DTYPE = click.Choice(["float16", "bfloat16", "float32"])

NOTICE = "research use only; LLaVA-Med: never for clinical use (see DELTAWEIGHTS_NOTICE.txt in the target)"


def _device(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    # Whether this machine has it is known only once torch is loaded; a slip of the pen need not wait for that.
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", value):
        raise UsageError("no such device", found=value, expected="cpu, cuda, cuda:N or auto")
    return value


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``deltaweights apply`` and ``apply-delta`` share."""
    options = (
        click.option(
            "--compute-dtype", type=DTYPE, default="float16", show_default=True, help="Dtype of the addition."
        ),
        click.option("--dtype", type=DTYPE, help="Dtype of the written weights [default: the compute dtype]."),
        click.option("--max-shard-size", default="5GB", show_default=True, help="Most bytes of tensors per shard."),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            callback=_device,
            help="cpu, cuda, cuda:N or auto; the bits are the same.",
        ),
        click.option("--workers", type=click.IntRange(min=1), help="Threads [default: one per processor, 2 to 8]."),
        click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands in the target."),
        click.option("--strict", is_flag=True, help="Fail (6) when the result has NaN or infinite weights."),
        click.option(
            "--hash-inputs", is_flag=True, help="Record the sha256 of every input file; reads them once more."
        ),
        click.option("--dry-run", is_flag=True, help="Show the plan and what it needs; write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("-q", "--quiet", is_flag=True, help="Only results and warnings."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command("apply")
@click.option("--base", required=True, metavar="PATH", help="The original LLaMA: folder, index file, or weights file.")
@click.option("--delta", required=True, metavar="PATH", help="The delta: folder, index file, or weights file.")
@click.option("--target", required=True, metavar="PATH", help="The folder to create.")
@common_options
def command(base: str, delta: str, target: str, **options: Any) -> None:
    """Add a delta to its base and write the merged checkpoint.

    The target appears when it is complete and flushed to the disk, with manifest.json and SHA256SUMS. A killed run is finished by
    the same command.
    """
    apply("deltaweights", base, delta, target, **options)


def apply(
    name: str,
    base: str,
    delta: str,
    target: str,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run the job, or show its plan, and print the outcome."""
    from deltaweights.apply import apply_delta, default_workers  # noqa: PLC0415  (only this command needs it)
    from deltaweights.prepare import describe, prepare, say  # noqa: PLC0415

    report = TerminalReport(name, quiet=quiet)
    if dry_run:
        plan_options = {key: options[key] for key in ("compute_dtype", "dtype", "max_shard_size")}
        with prepare(base, delta, target, report=report, **plan_options) as job:
            say(job, report)
            outcome = describe(job, options["workers"] or default_workers(), options["device"])
        _print(outcome, as_json, _plan_lines(outcome))
        return
    outcome = asdict(apply_delta(base, delta, target, report=report, **options))
    _print(outcome, as_json, _result_lines(outcome))
    report.note(f"notice          {NOTICE}")
    report.note(f"check it with   deltaweights verify {outcome['target']}")


def _print(outcome: dict[str, Json], as_json: bool, lines: list[str]) -> None:
    # ASCII, and no raw path: a file name may hold bytes that are no text, and they must not make a finished run fail.
    click.echo(json.dumps(outcome, indent=2) if as_json else "\n".join(map(printable, lines)))


def _result_lines(outcome: dict[str, Json]) -> list[str]:
    size = (
        f"{outcome['parameters']:,} parameters, {human_bytes(outcome['bytes'])}, {counted(outcome['shards'], 'shard')}"
    )
    return [
        f"target          {outcome['target']}",
        f"status          {outcome['status']} in {outcome['seconds']['total']:.1f} s",
        f"tensors         {outcome['tensors']} ({size})",
        f"content digest  {outcome['content_digest']}",
        f"manifest        sha256 {outcome['manifest_sha256']}",
    ]


def _plan_lines(outcome: dict[str, Json]) -> list[str]:
    shards = [
        f"  {shard['file']}  {human_bytes(shard['size'])}, {counted(shard['tensors'], 'tensor')}"
        for shard in outcome["shards"]
    ]
    return [
        f"target          {outcome['target']}",
        f"tensors         {outcome['tensors']} ({human_bytes(outcome['bytes'])}), {counted(len(shards), 'shard')}",
        *shards,
        f"disk            {human_bytes(outcome['disk_needed'])} needed, {human_bytes(outcome['disk_free'])} free",
        f"memory          about {human_bytes(outcome['memory_needed'])}",
        f"plan            {outcome['plan']}",
    ]
