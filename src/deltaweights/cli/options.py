"""The options that commands share.

Enters: functions that click makes commands of. Leaves: the same with options. Never: a command.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.log_report import log_format_option
from deltaweights.errors import UsageError

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions
    from deltaweights.merge.parts import Part

DTYPE = click.Choice(["float16", "bfloat16", "float32"])

LAYOUTS = ("original", "transformers")

Function = Callable[..., Any]


def _device(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    # Whether this machine has it is known only once torch is loaded; a slip of the pen need not wait for that.
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", value):
        raise UsageError("no such device", found=value, expected="cpu, cuda, cuda:N or auto")
    return value


def _hub_repo_id(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", value, re.ASCII):
        raise UsageError("not a Hub id", found=value, expected="ORG/NAME")
    return value


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_device,
    help="cpu, cuda, cuda:N or auto; the bits are the same.",
)

workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Threads [default: one per processor, 2 to 8]."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only results and warnings.")

recipe_option = click.option(
    "--recipe",
    "recipe_option",
    metavar="NAME|FILE",
    help="A known pair by name, or a recipe of your own (docs/recipes.md).",
)


tower_option = click.option(
    "--vision-tower",
    metavar="PATH|ID",
    help="CLIP, for a model that sees, in layout transformers [default: the recipe's].",
)

format_option = click.option(
    "--format",
    "weights",
    type=click.Choice(["safetensors", "bin"]),
    default="safetensors",
    show_default=True,
    help="bin: torch files, for loaders of 2023 that know no safetensors; in the original layout only.",
)

check_option = click.option(
    "--check", is_flag=True, help="Publish only what a library would load: as `deltaweights check` does."
)


read_back_option = click.option(
    "--read-back", is_flag=True, help="Read the finished shards from the disk and hash them once more."
)

part_option = click.option(
    "--part",
    metavar="K/N",
    help="Make only this part of the shards, into staging; or slurm, for the part of this array task. Then: finish.",
)


def part_of(text: str) -> Part:
    """Return the part that an option names. Raises ``UsageError``."""
    if text.partition(":")[0] == "slurm":
        from deltaweights.cluster.slurm import part_of_slurm  # noqa: PLC0415  (only who does parts needs it)

        return part_of_slurm(text, os.environ)
    from deltaweights.merge.parts import parse_part  # noqa: PLC0415  (see above)

    return parse_part(text)


def _all(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return what adds ``options``, in their order in the help."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


hub_options = _all(
    click.option("--offline", is_flag=True, help="Use only what is in the Hub's cache; also HF_HUB_OFFLINE=1."),
    click.option("--token", help="A token of the Hub [default: HF_TOKEN, or that of `hf auth login`]."),
    click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="The Hub's cache [default: HF_HUB_CACHE, or that of `hf`].",
    ),
    click.option("--recheck", is_flag=True, help="Hash files of the cache also when that was done before."),
)
"""Those of commands that take models of the Hub."""

stream_option = click.option(
    "--stream",
    is_flag=True,
    help="Read models of the Hub by ranges, and keep nothing of them; their hashes are not checked.",
)

HUB = ("offline", "token", "cache_dir", "recheck", "stream")


def hub_of(options: dict[str, Any]) -> HubOptions:
    """Take the options of the Hub out of ``options``."""
    from deltaweights.hub.locate import HubOptions  # noqa: PLC0415  (the rest of the package does without)

    return HubOptions(**{name: options.pop(name) for name in HUB if name in options})


output_options = _all(
    click.option("--max-shard-size", default="5GB", show_default=True, help="Most bytes of tensors per shard."),
    workers_option,
    click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there."),
    click.option("--strict", is_flag=True, help="Fail (6) when the result has NaN, infinite or uniform weights."),
    click.option("--hash-inputs", is_flag=True, help="Record the sha256 of every input file; reads them once more."),
    click.option("--dry-run", is_flag=True, help="Show the plan and what it needs; writes only what must be unpacked."),
    json_option,
    quiet_option,
    log_format_option,
)
"""Those of all commands that write a checkpoint."""

arithmetic_options = _all(
    click.option("--compute-dtype", type=DTYPE, help="Dtype of the arithmetic [default: the recipe's, or float16]."),
    click.option("--dtype", type=DTYPE, help="Dtype of the written weights [default: the compute dtype]."),
    device_option,
)
"""Those of commands that compute."""

make_options = _all(
    hub_options,
    stream_option,
    format_option,
    click.option("--hub-repo-id", metavar="ORG/NAME", callback=_hub_repo_id, help="Print the upload command, too."),
    click.option(
        "--check/--no-check", default=True, show_default=True, help="Apply the delta as it is made, and count."
    ),
    arithmetic_options,
    output_options,
)
"""Those of ``make`` and ``make-delta``."""

apply_options = _all(
    recipe_option,
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default=LAYOUTS[0],
        show_default=True,
        help="How the result is laid out: as the original scripts do, or so that current transformers loads it.",
    ),
    tower_option,
    format_option,
    check_option,
    part_option,
    hub_options,
    stream_option,
    click.option(
        "--require-verified", is_flag=True, help="Fail (6) unless all input files are compared with a sha256."
    ),
    click.option(
        "--prove/--no-prove",
        default=True,
        show_default=True,
        help="Prove from the sums that the base is the right one.",
    ),
    click.option("--allow-unproved-base", is_flag=True, help="Publish also when the proof fails; it is recorded."),
    read_back_option,
    arithmetic_options,
    output_options,
)
"""Those of ``apply`` and ``apply-delta``."""


def recipe_of(recipe: str | None, option: str | None) -> tuple[str | None, str | None]:
    """Return the name of a recipe and the path of one, given the argument and the option, which may be either.

    Raises ``UsageError`` when both are names, or the argument is a path.
    """
    if recipe is not None and _is_file(recipe):
        raise UsageError(
            "a recipe in a file is given as an option", found=recipe, remedy=f"--recipe {shlex.quote(recipe)}"
        )
    if option is None or _is_file(option):
        return recipe, option
    if recipe is not None:
        raise UsageError("two recipes are named", found=f"{recipe} and {option}", expected="one, or one and a file")
    return option, None


def _is_file(recipe: str) -> bool:
    """Tell whether what was given is a path rather than a name of ours."""
    return recipe.endswith(".toml") or "/" in recipe or Path(recipe).is_file()
