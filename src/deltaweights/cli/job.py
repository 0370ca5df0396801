"""What the commands that write a checkpoint, and their drop-ins, have in common.

Enters: arguments. Leaves: a checkpoint or a delta, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.options import hub_of, recipe_of
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import Interrupted
from deltaweights.sizes import human_bytes
from deltaweights.text import Json, counted, printable

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions
    from deltaweights.job import Published
    from deltaweights.prepare import Prepared
    from deltaweights.wanted import Wanted

NOTICE = "research use only; LLaVA-Med: never for clinical use"


def apply(
    name: str,
    base: str | None,
    delta: str | None,
    target: str,
    *,
    recipe: str | None = None,
    recipe_option: str | None = None,
    **options: Any,
) -> None:
    """Add the delta to its base, or show the plan, and print the outcome."""
    from deltaweights.apply import apply_delta  # noqa: PLC0415  (only who merges needs it)
    from deltaweights.merge.operation import Operation  # noqa: PLC0415
    from deltaweights.pair import find_recipe, sources_of  # noqa: PLC0415
    from deltaweights.prepare import prepare  # noqa: PLC0415

    recipe, recipe_file = recipe_of(recipe, recipe_option)
    found = find_recipe(recipe, recipe_file)
    hub = _hub(options)
    base_at, delta_at = sources_of(found, base, delta)
    plan = partial(
        prepare,
        Operation.APPLY,
        base_at,
        delta_at,
        target,
        _wanted(options, "compute_dtype", "dtype", "layout", "weights", "vision_tower"),
        recipe=found,
        hub=hub,
        check=options["prove"],
        allow_unproved_base=options["allow_unproved_base"],
        hash_workers=_hash_workers(options),
    )
    do = partial(apply_delta, base_at, delta_at, target, recipe=recipe, recipe_file=recipe_file, hub=hub)
    _run(name, "target", do, plan, **options)


def make(name: str, base: str, target: str, delta: str, **options: Any) -> None:
    """Subtract the base from the target, or show the plan, and print the outcome."""
    from deltaweights.make import make_delta  # noqa: PLC0415  (only who makes deltas needs it)
    from deltaweights.merge.operation import Operation  # noqa: PLC0415
    from deltaweights.prepare import prepare  # noqa: PLC0415

    hub = _hub(options)
    plan = partial(
        prepare,
        Operation.MAKE,
        base,
        target,
        delta,
        _wanted(options, "compute_dtype", "dtype", "weights"),
        hub=hub,
        check=options["check"],
        hash_workers=_hash_workers(options),
    )
    _run(name, "delta", partial(make_delta, base, target, delta, hub=hub), plan, **options)


def convert(base: str, target: str, **options: Any) -> None:
    """Copy a checkpoint into another layout, or show the plan, and print the outcome."""
    from deltaweights.convert import convert_checkpoint, prepare_copy  # noqa: PLC0415  (only who converts needs it)
    from deltaweights.merge.operation import Operation  # noqa: PLC0415

    hub, wanted = _hub(options), _wanted(options, "dtype", "weights")
    plan = partial(prepare_copy, Operation.CONVERT, base, target, wanted, hub=hub, hash_workers=_hash_workers(options))
    _run("deltaweights", "target", partial(convert_checkpoint, base, target, hub=hub), plan, **options)


def export(merged: str, target: str, *, recipe_option: str | None = None, **options: Any) -> None:
    """Write a merged checkpoint in the layout of current transformers, or show the plan, and print the outcome."""
    from deltaweights.convert import export_checkpoint, prepare_copy  # noqa: PLC0415  (only who exports needs it)
    from deltaweights.merge.operation import Operation  # noqa: PLC0415
    from deltaweights.pair import find_recipe  # noqa: PLC0415

    recipe, recipe_file = recipe_of(None, recipe_option)
    hub, wanted = _hub(options), _wanted(options, "dtype", "vision_tower", layout="transformers")
    plan = partial(
        prepare_copy,
        Operation.EXPORT,
        merged,
        target,
        wanted,
        recipe=find_recipe(recipe, recipe_file),
        hub=hub,
        hash_workers=_hash_workers(options),
    )
    do = partial(export_checkpoint, merged, target, recipe=recipe, recipe_file=recipe_file, hub=hub)
    _run("deltaweights", "target", do, plan, **options)


def _hub(options: dict[str, Any]) -> HubOptions:
    """Take the options of the Hub out of ``options``; a dry run keeps nothing: headers and samples are little of a model."""
    hub = hub_of(options)
    return replace(hub, stream=True) if options["dry_run"] and not options["hash_inputs"] else hub


def _wanted(options: dict[str, Any], *names: str, **others: Any) -> Wanted:
    """Return what the result is to be; ``names`` are the options that the command has besides the size of shards."""
    from deltaweights.wanted import Wanted  # noqa: PLC0415  (see above)

    return Wanted(**{name: options[name] for name in ("max_shard_size", *names)}, **others)


def _hash_workers(options: dict[str, Any]) -> int | None:
    from deltaweights.work import workers_of  # noqa: PLC0415  (see above)

    return workers_of(options["workers"]) if options["hash_inputs"] else None


def _run(
    name: str,
    output: str,
    do: Callable[..., Published],
    plan: Callable[..., AbstractContextManager[Prepared]],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    hub_repo_id: str | None = None,
    **options: Any,
) -> None:
    from deltaweights.health import proof_line  # noqa: PLC0415  (see above)
    from deltaweights.manifest.findings import Findings  # noqa: PLC0415
    from deltaweights.outlook import describe, say  # noqa: PLC0415
    from deltaweights.work import workers_of  # noqa: PLC0415

    report = TerminalReport(name, quiet=quiet)
    if dry_run:
        with plan(report=report) as job:
            say(job, report)
            outcome = describe(job, workers_of(options["workers"]), options.get("device", "cpu"))
        _print(outcome, as_json, _plan_lines(outcome, output))
        return
    try:
        published = do(report=report, **options)
    except Interrupted as error:
        remedy = "the same command goes on from what is finished"
        raise Interrupted(error.exit_code - 128, str(error), remedy) from None
    result = asdict(published)
    findings = {item.name: result.pop(item.name) for item in fields(Findings)}
    outcome = {output: result.pop(output), **result, **findings}
    if hub_repo_id is not None:
        outcome["upload"] = f"hf upload {hub_repo_id} {shlex.quote(outcome[output])}"
    _print(outcome, as_json, _result_lines(outcome, output, proof_line(published.proof)))
    report.note(f"notice          {NOTICE} (see DELTAWEIGHTS_NOTICE.txt in it)")
    report.note(f"check it with   deltaweights verify {shlex.quote(outcome[output])}")
    if outcome.get("compute_dtype", "F16") != "F16":
        flags = f"--compute-dtype {options['compute_dtype']}"
        report.note(f"apply it with   {flags}, and --dtype if the target's dtype is another: the default is float16")


def _print(outcome: dict[str, Json], as_json: bool, lines: list[str]) -> None:
    # ASCII, and no raw path: a file name may hold bytes that are no text, and they must not make a finished run fail.
    click.echo(json.dumps(outcome, indent=2) if as_json else "\n".join(map(printable, lines)))


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


def _plan_lines(outcome: dict[str, Json], output: str) -> list[str]:
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
