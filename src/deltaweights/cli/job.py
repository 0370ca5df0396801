"""What ``apply`` and ``make``, and the drop-ins for both, have in common.

Enters: arguments. Leaves: a checkpoint or a delta, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import Interrupted, UsageError
from deltaweights.sizes import human_bytes
from deltaweights.text import Json, counted, printable

if TYPE_CHECKING:
    from deltaweights.job import Published
    from deltaweights.recipes.recipe import Recipe

DTYPE = click.Choice(["float16", "bfloat16", "float32"])

NOTICE = "research use only; LLaVA-Med: never for clinical use"


def _device(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    # Whether this machine has it is known only once torch is loaded; a slip of the pen need not wait for that.
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", value):
        raise UsageError("no such device", found=value, expected="cpu, cuda, cuda:N or auto")
    return value


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all of them share."""
    options = (
        click.option(
            "--compute-dtype", type=DTYPE, help="Dtype of the arithmetic [default: the recipe's, or float16]."
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
        click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there."),
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


def _hub_repo_id(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", value, re.ASCII):
        raise UsageError("not a Hub id", found=value, expected="ORG/NAME")
    return value


def make_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that those who make deltas share."""
    hub = click.option(
        "--hub-repo-id",
        metavar="ORG/NAME",
        callback=_hub_repo_id,
        help="Print the upload command, too.",
    )
    check = click.option(
        "--check/--no-check", default=True, show_default=True, help="Apply the delta as it is made, and count."
    )
    return hub(check(function))


def apply_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that those who apply deltas share."""
    prove = click.option(
        "--prove/--no-prove",
        default=True,
        show_default=True,
        help="Prove from the sums that the base is the right one.",
    )
    allow = click.option(
        "--allow-unproved-base", is_flag=True, help="Publish also when the proof fails; it is recorded."
    )
    recipe = click.option(
        "--recipe",
        "recipe_option",
        metavar="NAME|FILE",
        help="A known pair by name, or a recipe of your own (docs/recipes.md).",
    )
    return recipe(prove(allow(function)))


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
    from deltaweights.pair import find_recipe  # noqa: PLC0415

    recipe_file = recipe_option if _is_file(recipe_option) else None
    if recipe_option is not None and recipe_file is None:
        if recipe is not None:
            raise UsageError(
                "two recipes are named", found=f"{recipe} and {recipe_option}", expected="one, or one and a file"
            )
        recipe = recipe_option
    found = find_recipe(recipe, recipe_file)
    if base is None or delta is None:
        role = "base" if base is None else "delta"
        raise UsageError(f"--{role} is missing", remedy=_where_to_get(role, found))
    options |= {"recipe": recipe, "recipe_file": recipe_file}
    _run(name, "apply", partial(apply_delta, base, delta, target), (base, delta, target), **options)


def _is_file(recipe: str | None) -> bool:
    """Tell whether what was given is a path rather than a name of ours."""
    return recipe is not None and (recipe.endswith(".toml") or "/" in recipe or Path(recipe).is_file())


def _where_to_get(role: str, recipe: Recipe | None) -> str:
    """Say what to give, and where a recipe has it from."""
    from deltaweights.recipes.models import model  # noqa: PLC0415  (see above)

    if recipe is None:
        return "give its path, or name a recipe: deltaweights recipes"
    repo = recipe.delta.repo
    if role == "base":
        repo = model(recipe.base_model).repo if recipe.base_model else None
    elif not recipe.delta.has_weights:
        return f"{repo} holds no weights; give the archive, if you hold it: {', '.join(recipe.delta.archives)}"
    return f"run: hf download {repo} --local-dir {role}, then give that folder" if repo else "give its path"


def make(name: str, base: str, target: str, delta: str, **options: Any) -> None:
    """Subtract the base from the target, or show the plan, and print the outcome."""
    from deltaweights.make import make_delta  # noqa: PLC0415  (only who makes deltas needs it)

    _run(name, "make", partial(make_delta, base, target, delta), (base, target, delta), **options)


def _run(
    name: str,
    operation: str,
    do: Callable[..., Published],
    paths: tuple[str, str, str],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    hub_repo_id: str | None = None,
    **options: Any,
) -> None:
    from deltaweights.health import proof_line  # noqa: PLC0415  (see above)
    from deltaweights.job import workers_of  # noqa: PLC0415  (see above)
    from deltaweights.manifest.findings import Findings  # noqa: PLC0415
    from deltaweights.merge.operation import Operation  # noqa: PLC0415
    from deltaweights.pair import find_recipe  # noqa: PLC0415
    from deltaweights.prepare import describe, prepare, say  # noqa: PLC0415

    report = TerminalReport(name, quiet=quiet)
    output = Operation(operation).output
    if dry_run:
        plan_options = {key: options[key] for key in ("compute_dtype", "dtype", "max_shard_size")}
        plan_options["check"] = options["check" if operation == "make" else "prove"]
        if operation == "apply":
            plan_options["recipe"] = find_recipe(options["recipe"], options["recipe_file"])
            plan_options["allow_unproved_base"] = options["allow_unproved_base"]
        with prepare(Operation(operation), *paths, report=report, **plan_options) as job:
            say(job, report)
            outcome = describe(job, workers_of(options["workers"]), options["device"])
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
