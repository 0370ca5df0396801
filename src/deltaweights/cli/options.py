"""Options that commands share: those of ``jobs.options`` as click options, and those that only the command line has."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.command import flag
from deltaweights.cli.log_report import log_format_option
from deltaweights.cli.values import FILE, FOLDER, MODEL, RecipeName
from deltaweights.errors import UsageError
from deltaweights.hub.ids import hub_id
from deltaweights.jobs.options import FLAGS
from deltaweights.merge.choices import check_device_name
from deltaweights.util.text import shell_quoted

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions
    from deltaweights.merge.parts import Part

Function = Callable[..., Any]


def _device(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    check_device_name(value)  # fail fast on a typo
    return value


def _hub_repo_id(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and "://" in value:
        found = hub_id(value)
        value = value if found is None else found.repo
    if value is not None and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", value, re.ASCII):
        raise UsageError("not a Hub id", found=value, expected="ORG/NAME")
    return value


CLICK_ARGUMENTS: dict[str, dict[str, Any]] = {
    "workers": {"type": click.IntRange(min=1)},
    "vision_tower": {"type": MODEL},
    "device": {"callback": _device},
}
"""Arguments of ``click.option`` that a field does not imply."""


def option(name: str, **changes: Any) -> Callable[[Function], Function]:
    """Return the click option of a field of ``Options``; ``changes`` replace arguments of ``click.option``, such as ``help``."""
    default, metadata = FLAGS[name].default, FLAGS[name].metadata
    arguments: dict[str, Any] = {"help": metadata["help"], "metavar": metadata["metavar"]}
    section = metadata["section"]
    if isinstance(default, bool) and "/" not in metadata["flag"]:
        arguments["is_flag"] = True
    elif default is not None:
        arguments |= {"default": default, "show_default": True}
    if metadata["choices"]:
        arguments["type"] = click.Choice(metadata["choices"])
    return flag(section, metadata["flag"], name, **{**arguments, **CLICK_ARGUMENTS.get(name, {}), **changes})


def group(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return a decorator that adds ``options``, which the help lists in this order."""

    def add(function: Function) -> Function:
        for each in reversed(options):
            function = each(function)
        return function

    return add


json_option = flag("Logging", "--json", "as_json", is_flag=True, help="Print one JSON object.")

quiet_option = flag("Logging", "-q", "--quiet", is_flag=True, help="Only results and warnings.")

silent_option = flag("Logging", "-q", "--quiet", is_flag=True, help="Print nothing when the check passes.")

trust_config_option = flag(
    "Checks",
    "--trust-config",
    metavar="FILE",
    type=FILE,
    help="The services and keys of another instance of Sigstore's than the public one (a client trust configuration).",
)

target_option = flag("Output", "--target", required=True, metavar="PATH", type=FOLDER, help="The folder to create.")

recipe_option = flag(
    "Inputs",
    "--recipe",
    "recipe_option",
    metavar="NAME|FILE",
    type=RecipeName(files=True),
    help="A known pair by name, or a recipe of your own (docs/recipes.md).",
)

part_option = flag(
    "Running",
    "--part",
    metavar="K/N",
    help="Write only this part of the shards, into staging; or slurm, for the part of this array task. Then: finish.",
)

copied_dtype_option = option("dtype", help="Dtype of the written weights [default: that of the input].")

hub_options = group(
    flag("Hub", "--offline", is_flag=True, help="Use only what is in the Hub's cache; also HF_HUB_OFFLINE=1."),
    flag("Hub", "--token", metavar="TOKEN", help="A Hub token [default: HF_TOKEN, or that of `hf auth login`]."),
    flag(
        "Hub",
        "--cache-dir",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="The Hub's cache [default: HF_HUB_CACHE, or that of `hf`].",
    ),
    flag(
        "Hub",
        "--max-workers",
        metavar="N",
        type=click.IntRange(1, 64),
        default=8,
        show_default=True,
        help="Connections to the Hub at a time, at most; fewer where it refuses some.",
    ),
    flag("Hub", "--recheck", is_flag=True, help="Hash cached files again that were verified before."),
)
"""For commands that read models of the Hub."""

stream_option = flag(
    "Hub",
    "--stream",
    is_flag=True,
    help="Read models of the Hub by ranges, without keeping them; their hashes are not checked.",
)

HUB = ("offline", "token", "cache_dir", "recheck", "stream", "max_workers")

output_options = group(
    option("max_shard_size"),
    option("workers"),
    option("overwrite"),
    option("strict"),
    option("hash_inputs"),
    flag(
        "Running", "--dry-run", is_flag=True, help="Show the plan and what it needs; writes only what must be unpacked."
    ),
    json_option,
    quiet_option,
    log_format_option,
)
"""For all commands that write a checkpoint."""

arithmetic_options = group(option("compute_dtype"), option("dtype"), option("device"))
"""For commands that compute."""

make_options = group(
    recipe_option,
    hub_options,
    stream_option,
    option("weights"),
    flag("Output", "--hub-repo-id", metavar="ORG/NAME", callback=_hub_repo_id, help="Print the upload command, too."),
    flag(
        "Checks",
        "--check/--no-check",
        default=True,
        show_default=True,
        help="Apply the delta as it is made, and count.",
    ),
    arithmetic_options,
    output_options,
)
"""For ``make`` and ``make-delta``."""

apply_options = group(
    recipe_option,
    option("layout"),
    option("vision_tower"),
    option("weights"),
    option("check"),
    part_option,
    hub_options,
    stream_option,
    option("require_verified"),
    option("prove"),
    option("allow_unproved_base"),
    option("read_back"),
    arithmetic_options,
    output_options,
)
"""For ``apply`` and ``apply-delta``."""


def hub_of(options: dict[str, Any]) -> HubOptions:
    """Remove the options of the Hub from ``options``, and return them as one value."""
    from deltaweights.hub.locate import HubOptions  # noqa: PLC0415  (slow to load)

    return HubOptions(**{name: options.pop(name) for name in HUB if name in options})


def part_of(text: str) -> Part:
    """Return the part that ``--part`` names. Raises ``UsageError``."""
    from deltaweights.cluster.slurm import part_of_slurm  # noqa: PLC0415  (only for parts)
    from deltaweights.merge.parts import parse_part  # noqa: PLC0415

    return part_of_slurm(text, os.environ) if text.partition(":")[0] == "slurm" else parse_part(text)


def recipe_of(recipe: str | None, option: str | None) -> tuple[str | None, str | None]:
    """Return the name of a recipe and the path of a recipe file, from the argument and the option, which may be either.

    Raises ``UsageError`` when both are names, or the argument is a path.
    """
    if recipe is not None and Path(recipe).is_dir():
        remedy = f"give it as --delta {shell_quoted(recipe)} or --base {shell_quoted(recipe)}"
        raise UsageError("a folder, not the name of a recipe", found=recipe, remedy=remedy)
    if recipe is not None and _is_file(recipe):
        raise UsageError(
            "a recipe in a file is given as an option", found=recipe, remedy=f"--recipe {shell_quoted(recipe)}"
        )
    if option is None or _is_file(option):
        return recipe, option
    if recipe is not None:
        raise UsageError("two recipes are named", found=f"{recipe} and {option}", expected="one, or one and a file")
    return option, None


def _is_file(recipe: str) -> bool:
    """Return whether this is a path rather than the name of a recipe; an id of the Hub is told of as a name."""
    if recipe.endswith(".toml") or Path(recipe).is_file():
        return True
    return "/" in recipe and "://" not in recipe and hub_id(recipe) is None
