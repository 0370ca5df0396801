"""In what a result that is already in the target differs from the planned one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import TargetBusy
from deltaweights.manifest.parse import Manifest
from deltaweights.merge.choices import ORIGINAL, TORCH_NAMES
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import Plan
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.target_state import published_result

KINDS = {Operation.APPLY: "merge", Operation.MAKE: "delta", Operation.CONVERT: "copy", Operation.EXPORT: "copy"}
"""What manifests call the results of the operations."""

TITLES = {"merge": "a merged model", "delta": "a delta", "copy": "a converted or exported model"}


def refuse_other_result(staging: OpenStaging, plan: Plan, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when the target holds what may not be replaced; of a result of ours, say in what it differs."""
    try:
        staging.refuse_content(overwrite=overwrite)
    except TargetBusy as error:
        there = None if overwrite else published_result(staging.location)
        if there is None:
            raise
        raise TargetBusy(
            error.problem,
            where=error.where,
            found="; ".join(differences(there[0], plan)),
            remedy=error.remedy,
            code=ErrorCode.TARGET_NOT_EMPTY,
        ) from None


def differences(there: Manifest, plan: Plan) -> Iterator[str]:
    """Yield in what the result of a manifest differs from that of a plan, at least one thing."""
    kind, options = KINDS[plan.operation], plan.options
    if there.kind != kind:
        yield f"{TITLES.get(there.kind, 'a listing')}, not {TITLES[kind]}"
        return
    planned = [tensor.spec for tensor in plan.tensors]
    pairs = {
        "layout": (there.layout or ORIGINAL, options.layout),
        "dtype": (_dtypes(row[0] for row in there.tensors.values()), _dtypes(spec.dtype for spec in planned)),
        "compute dtype": (_dtypes([there.compute_dtype or options.compute_dtype]), _dtypes([options.compute_dtype])),
        "format": (_suffixes(there.places.values()), _suffixes(shard.file for shard in plan.shards)),
        "recipe": (there.recipe or "none", plan.recipe.name if plan.recipe else "none"),
    }
    found = [f"{what} {old}, not {new}" for what, (old, new) in pairs.items() if old != new]
    if there.layout == options.layout or not there.layout:
        shapes = {name: row[1] for name, row in there.tensors.items()}
        if shapes != {spec.name: spec.shape for spec in planned}:
            found.append("other tensors")
    if not found and set(there.places.values()) != {shard.file for shard in plan.shards}:
        found.append("shards of another size")
    yield from found or ["the result of other inputs"]


def _dtypes(names: Iterable[str]) -> str:
    return " and ".join(sorted({TORCH_NAMES.get(name, name) for name in names}))


def _suffixes(files: Iterable[str]) -> str:
    return " and ".join(sorted({Path(file).suffix.removeprefix(".") for file in files}))
