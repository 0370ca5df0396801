"""The options of the verbs that write a checkpoint; each is declared only here.

The command line makes its flags from the fields of ``Options`` (``cli/options.py``); the Python functions take the keyword
arguments of their verb's ``TypedDict``. Imports nothing slow, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from deltaweights.merge.choices import DTYPES, LAYOUTS, ORIGINAL

if TYPE_CHECKING:
    from deltaweights.hub.ids import ModelLocation, PathLike
    from deltaweights.hub.locate import HubOptions


def _option(
    default: object, section: str, flag: str, text: str, *, choices: Sequence[str] = (), metavar: str | None = None
) -> Any:
    """Return a field with its flag, its help and the section that lists it; ``--a/--no-a`` is a pair of switches."""
    about = {"section": section, "flag": flag, "help": text, "choices": tuple(choices), "metavar": metavar}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of all verbs that write a checkpoint; each verb has some of them. Checked by ``make_request``.

    Fields without a flag have other forms on the command line: the recipe may be an argument, the Hub has several options.
    """

    recipe: str | None = None
    recipe_file: PathLike | None = None
    compute_dtype: str | None = _option(
        None,
        "Running",
        "--compute-dtype",
        "Dtype of the arithmetic [default: the recipe's, or float16].",
        choices=tuple(DTYPES),
    )
    dtype: str | None = _option(
        None, "Output", "--dtype", "Dtype of the written weights [default: the compute dtype].", choices=tuple(DTYPES)
    )
    max_shard_size: str | int = _option(
        "5GB", "Output", "--max-shard-size", "Most bytes of tensors per shard, with a unit.", metavar="SIZE"
    )
    layout: str = _option(
        ORIGINAL,
        "Output",
        "--layout",
        "Tensor names as in the original scripts, or as transformers loads them.",
        choices=LAYOUTS,
    )
    weights: str = _option(
        "safetensors",
        "Output",
        "--format",
        "bin: torch files, for loaders of 2023 without safetensors; original layout only.",
        choices=("safetensors", "bin"),
    )
    vision_tower: ModelLocation | None = _option(  # noqa: RUF009  (it returns a field)
        None,
        "Inputs",
        "--vision-tower",
        "CLIP vision tower, for vision-language models in layout transformers [default: the recipe's].",
        metavar="PATH|HUB_ID",
    )
    device: str = _option(
        "cpu", "Running", "--device", "cpu, cuda, cuda:N or auto; the bits are the same.", metavar="DEVICE"
    )
    workers: int | None = _option(
        None, "Running", "--workers", "Threads [default: one per processor, 2 to 8].", metavar="N"
    )
    overwrite: bool = _option(False, "Output", "--overwrite", "Replace a checkpoint that is there.")
    strict: bool = _option(
        False, "Checks", "--strict", "Fail (6) when the result has NaN, infinite or uniform weights."
    )
    hash_inputs: bool = _option(
        False, "Checks", "--hash-inputs", "Record the sha256 of every input file; reads them once more."
    )
    prove: bool = _option(True, "Checks", "--prove/--no-prove", "Prove from the sums that the base is the right one.")
    allow_unproved_base: bool = _option(
        False, "Checks", "--allow-unproved-base", "Publish also when the proof fails; it is recorded."
    )
    require_verified: bool = _option(
        False, "Checks", "--require-verified", "Fail (6) unless all input files are compared with a sha256."
    )
    check: bool = _option(
        False, "Checks", "--check", "Publish only what a library would load: as `deltaweights check` does."
    )
    read_back: bool = _option(
        False, "Checks", "--read-back", "Read the finished shards from the disk and hash them once more."
    )
    hub: HubOptions | None = None


FLAGS = {item.name: item for item in fields(Options) if item.metadata}
"""The options that have a flag, by name."""


class OutputOptions(TypedDict, total=False):
    """The options of every verb."""

    dtype: str | None
    max_shard_size: str | int
    workers: int | None
    overwrite: bool
    strict: bool
    hash_inputs: bool
    hub: HubOptions | None


class MergeOptions(TypedDict, total=False):
    """The options of a merge, whatever becomes of its tensors."""

    recipe: str | None
    recipe_file: PathLike | None
    compute_dtype: str | None
    dtype: str | None
    layout: str
    vision_tower: ModelLocation | None
    device: str
    prove: bool
    allow_unproved_base: bool
    require_verified: bool
    strict: bool
    hash_inputs: bool
    hub: HubOptions | None


class ApplyOptions(MergeOptions, OutputOptions, total=False):
    """The options of ``apply_delta`` and ``apply_part``."""

    weights: str
    check: bool
    read_back: bool


class MakeOptions(OutputOptions, total=False):
    """The options of ``make_delta``; with ``check`` the delta is applied as it is made."""

    recipe: str | None
    recipe_file: PathLike | None
    compute_dtype: str | None
    weights: str
    device: str
    check: bool


class ConvertOptions(OutputOptions, total=False):
    """The options of ``convert_checkpoint``."""

    weights: str


class ExportOptions(OutputOptions, total=False):
    """The options of ``export_checkpoint``."""

    recipe: str | None
    recipe_file: PathLike | None
    allow_unproved_base: bool
    vision_tower: ModelLocation | None
    check: bool
