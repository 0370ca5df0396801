"""What the commands that write a checkpoint, and their drop-ins, have in common.

Enters: arguments. Leaves: a checkpoint or a delta, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deltaweights.cli.log_report import report_for
from deltaweights.cli.options import hub_of, part_of, recipe_of
from deltaweights.cli.outcome import plan_lines, print_finished, print_outcome, print_published
from deltaweights.cluster.launch import is_launched
from deltaweights.errors import UsageError
from deltaweights.util.interruption import Interrupted, signal_first
from deltaweights.util.text import counted

if TYPE_CHECKING:
    from deltaweights.cluster.part import PartResult
    from deltaweights.hub.locate import HubOptions
    from deltaweights.jobs.prepare import Prepared
    from deltaweights.jobs.request import Wanted
    from deltaweights.jobs.run import Published


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
    from deltaweights.jobs.apply import apply_delta, apply_part  # noqa: PLC0415  (only who merges needs it)
    from deltaweights.jobs.inputs import find_recipe, sources_of  # noqa: PLC0415
    from deltaweights.jobs.prepare import prepare  # noqa: PLC0415
    from deltaweights.merge.operation import Operation  # noqa: PLC0415

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
    how: dict[str, Any] = {"recipe": recipe, "recipe_file": recipe_file, "hub": hub}
    part = options.pop("part")
    if is_launched(os.environ) and not options["dry_run"]:
        if part is not None:
            raise UsageError(
                "--part is the launcher's business", remedy="leave it out, or do not launch several processes"
            )
        _together(name, partial(apply_part, base_at, delta_at, target, **how), target, **options)
        return
    if part is not None and not options["dry_run"]:
        _part(name, part, partial(apply_part, base_at, delta_at, target, **how), **options)
        return
    _run(name, "target", partial(apply_delta, base_at, delta_at, target, **how), plan, **options)


def _together(
    name: str,
    do: Callable[..., PartResult],
    target: str,
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    device: str,
    **options: Any,
) -> None:
    """Do the part of one of several processes that a launcher started; the main one publishes, and prints the outcome."""
    from deltaweights.cluster.finish import finish_parts  # noqa: PLC0415
    from deltaweights.cluster.launch import rank  # noqa: PLC0415  (seconds, for those who are launched)

    del dry_run
    at_the_end = {key: options.pop(key) for key in ("strict", "check", "read_back")}
    by_default = click.get_current_context().get_parameter_source("device") is ParameterSource.DEFAULT
    with rank("auto" if by_default else device) as here:
        report = report_for(name, quiet=quiet or not here.is_main)
        do(part=here.part, device=here.device, report=report, **options)
        here.wait()
        if here.is_main:
            at_the_end |= {key: options[key] for key in ("overwrite", "allow_unproved_base")}
            print_finished(finish_parts(target, report=report, **at_the_end), target, report, as_json=as_json)
        here.wait()


def _part(
    name: str, part: str, do: Callable[..., PartResult], *, as_json: bool, quiet: bool, dry_run: bool, **options: Any
) -> None:
    """Do one part of a merge, and print what it did."""
    del dry_run
    of_the_whole = [options.pop(key) for key in ("strict", "check", "read_back")]
    if any(of_the_whole):
        problem = "--strict, --check and --read-back look at the whole result"
        raise UsageError(problem, remedy="give them to deltaweights finish")
    report = report_for(name, quiet=quiet)
    done = do(part=part_of(part), report=report, **options)
    lines = [
        f"part            {done.part}: {done.status}, {counted(len(done.made), 'shard')} made in {done.seconds['total']:.1f} s",
        f"shards          {', '.join(done.shards) or 'none: there are more parts than shards'}",
        f"plan            {done.plan}: {done.finished} of {done.total} shards are finished",
    ]
    print_outcome(asdict(done), lines, as_json=as_json)
    if done.finished == done.total and done.status == "finished":
        report.note(f"publish it with deltaweights finish --target {shlex.quote(done.target)}")


def make(name: str, base: str, target: str, delta: str, **options: Any) -> None:
    """Subtract the base from the target, or show the plan, and print the outcome."""
    from deltaweights.jobs.make import make_delta  # noqa: PLC0415  (only who makes deltas needs it)
    from deltaweights.jobs.prepare import prepare  # noqa: PLC0415
    from deltaweights.merge.operation import Operation  # noqa: PLC0415

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
    from deltaweights.jobs.convert import convert_checkpoint, prepare_copy  # noqa: PLC0415  (only who converts needs it)
    from deltaweights.merge.operation import Operation  # noqa: PLC0415

    hub, wanted = _hub(options), _wanted(options, "dtype", "weights")
    plan = partial(prepare_copy, Operation.CONVERT, base, target, wanted, hub=hub, hash_workers=_hash_workers(options))
    _run("deltaweights", "target", partial(convert_checkpoint, base, target, hub=hub), plan, **options)


def export(merged: str, target: str, *, recipe_option: str | None = None, **options: Any) -> None:
    """Write a merged checkpoint in the layout of current transformers, or show the plan, and print the outcome."""
    from deltaweights.jobs.convert import export_checkpoint, prepare_copy  # noqa: PLC0415  (only who exports needs it)
    from deltaweights.jobs.inputs import find_recipe  # noqa: PLC0415
    from deltaweights.merge.operation import Operation  # noqa: PLC0415

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
    from deltaweights.jobs.request import Wanted  # noqa: PLC0415  (see above)

    return Wanted(**{name: options[name] for name in ("max_shard_size", *names)}, **others)


def _hash_workers(options: dict[str, Any]) -> int | None:
    from deltaweights.util.workers import resolve_workers  # noqa: PLC0415  (see above)

    return resolve_workers(options["workers"]) if options["hash_inputs"] else None


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
    from deltaweights.jobs.summary import describe, say  # noqa: PLC0415  (see above)
    from deltaweights.util.workers import resolve_workers  # noqa: PLC0415

    report = report_for(name, quiet=quiet)
    if dry_run:
        with plan(report=report) as job:
            say(job, report)
            outcome = describe(job, resolve_workers(options["workers"]), options.get("device", "cpu"))
        print_outcome(outcome, plan_lines(outcome, output), as_json=as_json)
        return
    try:
        with signal_first():
            published = do(report=report, **options)
    except Interrupted as error:
        raise Interrupted(error.number, "the same command goes on from what is finished") from None
    outcome = print_published(published, output, report, as_json=as_json, hub_repo_id=hub_repo_id)
    if outcome.get("compute_dtype", "F16") != "F16":
        flags = f"--compute-dtype {options['compute_dtype']}"
        report.note(f"apply it with   {flags}, and --dtype if the target's dtype is another: the default is float16")
