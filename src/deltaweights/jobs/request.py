"""A request: parsed and checked once, then passed through the pipeline as one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import UsageError
from deltaweights.hub.ids import ModelLocation, ModelSource, PathLike, model_source
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.options import Options
from deltaweights.merge.choices import CONTAINERS, DTYPES, LAYOUTS, ORIGINAL, TORCH
from deltaweights.merge.operation import Operation
from deltaweights.merge.parts import Part
from deltaweights.merge.stream import Resources
from deltaweights.recipes.catalogue import load, load_file
from deltaweights.recipes.hub_sources import base_source, delta_source
from deltaweights.recipes.recipe import Recipe
from deltaweights.util.extras import WITHOUT_GPU, require
from deltaweights.util.sizes import parse_size
from deltaweights.util.workers import resolve_workers

Place = Path | ModelSource
"""Where a checkpoint is: a path on this machine, or a repository on the Hub."""

UNSET = "is a variable unset?"


@dataclass(frozen=True, kw_only=True)
class InputRequest:
    """What to read, and how. ``base`` is None when the primary is only copied.

    Dtypes are torch's names, None for those of the recipe or the inputs. ``hash_workers``: threads that hash the inputs; None not
    to hash. ``allow_other_base`` accepts a base that is known to be another model; None where the caller has no such option.
    ``allow_refuted_source`` copies a merge whose manifest says that its base is refuted.
    """

    operation: Operation
    base: Place | None
    primary: Place
    recipe: Recipe | None = None
    compute_dtype: str | None = None
    dtype: str | None = None
    hub: HubOptions | None = None
    hash_workers: int | None = None
    allow_other_base: bool | None = False
    allow_refuted_source: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checkpoint to write at ``target``, or one ``part`` of it; a dry run only plans."""

    inputs: InputRequest
    target: PathLike
    options: Options
    vision_tower: Place | None = None
    part: Part | None = None
    dry_run: bool = False

    def at(self, target: Path) -> Request:
        """Return the same request for another target."""
        return replace(self, target=target)

    @property
    def operation(self) -> Operation:
        """What to do with the inputs."""
        return self.inputs.operation

    @property
    def threads(self) -> int:
        """The number of workers."""
        return resolve_workers(self.options.workers)

    @property
    def resources(self) -> Resources:
        """Device and workers for the stream."""
        return Resources(self.options.device, self.options.workers)

    @property
    def shard_limit(self) -> int:
        """Maximum bytes of tensors per shard."""
        return parse_size(self.options.max_shard_size, "max shard size")

    @property
    def container(self) -> str:
        """The container of the weights, as manifests name it."""
        return CONTAINERS[self.options.weights]

    @property
    def paths(self) -> list[Path]:
        """The inputs that are local paths."""
        places = (self.inputs.base, self.inputs.primary, self.vision_tower)
        return [place for place in places if isinstance(place, Path)]


def make_request(
    operation: Operation,
    base: ModelLocation | None,
    primary: ModelLocation | None,
    target: PathLike,
    options: Options,
    *,
    part: Part | None = None,
    dry_run: bool = False,
) -> Request:
    """Check arguments and options and return the request; inputs that are not given are those of the recipe.

    Raises ``UsageError``, ``MalformedInput`` for a recipe file, and ``InputOutputError`` for one that cannot be read, or a recipe
    whose delta is a repository without weights.
    """
    check_options(options)
    recipe = find_recipe(options.recipe, options.recipe_file)
    if operation is Operation.APPLY:
        base = base_source(needed_recipe(recipe, "base")) if base is None else base
        primary = delta_source(needed_recipe(recipe, "delta")) if primary is None else primary
    if not os.fspath(target):
        raise UsageError(f"{operation.output} is an empty path", remedy=UNSET)
    compute_dtype_of(options.compute_dtype, recipe)
    hub = options.hub or HubOptions()
    inputs = InputRequest(
        operation=operation,
        base=None if base is None else parse_place("base", base),
        primary=parse_place(operation.primary, primary),
        recipe=recipe,
        compute_dtype=options.compute_dtype,
        dtype=options.dtype,
        # A dry run reads only headers and samples: a small part of a model, not worth keeping.
        hub=replace(hub, stream=True) if dry_run and not options.hash_inputs else hub,
        hash_workers=resolve_workers(options.workers) if options.hash_inputs else None,
        allow_other_base=options.allow_unproved_base if operation is Operation.APPLY else None,
        allow_refuted_source=options.allow_unproved_base,
    )
    tower = options.vision_tower
    return Request(
        inputs=inputs,
        target=target,
        options=options,
        vision_tower=None if tower is None else parse_place("--vision-tower", tower),
        part=part,
        dry_run=dry_run,
    )


def check_options(options: Options) -> None:
    """Fail fast on a typo, before any input is opened. Raises ``UsageError``."""
    for what, given, known in (
        ("dtype", options.compute_dtype, DTYPES),
        ("dtype", options.dtype, DTYPES),
        ("layout", options.layout, LAYOUTS),
        ("format", options.weights, CONTAINERS),
    ):
        if given is not None and given not in known:
            raise UsageError(f"unknown {what}", found=given, expected=", ".join(known))
    if options.layout != ORIGINAL and CONTAINERS[options.weights] == TORCH:
        raise UsageError("layout transformers is written as safetensors only", remedy="leave --format out")
    if options.layout == ORIGINAL and options.vision_tower is not None:
        remedy = "give --layout transformers, or leave --vision-tower out"
        raise UsageError("the original layout has no vision tower", remedy=remedy)
    parse_size(options.max_shard_size, "max shard size")
    resolve_workers(options.workers)
    check_extras(options)


def check_extras(options: Options) -> None:
    """Raise ``UsageError`` where a package that the options need is not installed."""
    if options.check:
        require("transformers", "--check", ", or leave it out and run deltaweights check elsewhere")
    if options.device != "cpu":
        require("gpu", f"device {options.device}", WITHOUT_GPU)


def parse_place(role: str, given: ModelLocation | None) -> Place:
    """Return a path or a Hub repository. Raises ``UsageError`` for an empty path, and for a malformed id."""
    if isinstance(given, ModelSource):
        return given
    if given is None or not os.fspath(given):
        raise UsageError(f"{role} is an empty path", remedy=UNSET)
    return model_source(given) or Path(given)


def find_recipe(name: str | None, file: PathLike | None) -> Recipe | None:
    """Return the recipe of this name, or that in ``file``, which overrides the named one; None without both.

    Raises ``UsageError``, ``MalformedInput`` and ``InputOutputError``.
    """
    if file is not None:
        return load_file(file, over=name)
    return load(name) if name is not None else None


def or_allow(allow: bool | None) -> str:
    """Return how to let another base pass, where the caller has such an option."""
    return "; --allow-unproved-base lets it pass" if allow is not None else ""


def needed_recipe(recipe: Recipe | None, role: str) -> Recipe:
    """Return the recipe that says where the input ``role`` is. Raises ``UsageError`` when there is none."""
    if recipe is None:
        remedy = "give it, or name a recipe: deltaweights recipes"
        raise UsageError(f"--{role} is missing", remedy=remedy, code=ErrorCode.NO_INPUT_GIVEN)
    return recipe


def compute_dtype_of(given: str | None, recipe: Recipe | None) -> str:
    """Return the dtype of the arithmetic: the recipe's, else the given one, else float16.

    Raises ``UsageError`` for an unknown dtype, and for another one than the recipe's.
    """
    if given is not None and given not in DTYPES:
        raise UsageError("unknown dtype", found=given, expected=", ".join(DTYPES))
    if recipe is None:
        return given or "float16"
    if given not in {None, recipe.compute_dtype}:
        remedy = "leave --compute-dtype out, or give the recipe in a file of your own"
        raise UsageError(
            f"recipe {recipe.name} adds in another dtype",
            found=given,
            expected=recipe.compute_dtype,
            remedy=remedy,
            code=ErrorCode.OTHER_DTYPE,
        )
    return recipe.compute_dtype
