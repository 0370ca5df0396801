"""target - base = delta.

Enters: paths and options. Leaves: a folder with the delta's weights, manifest and checksums. Never: more than names for the job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.prepare import prepare
from deltaweights.jobs.request import Wanted
from deltaweights.jobs.run import Published, Settings, perform
from deltaweights.merge.operation import Operation
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class MakeResult(Published):
    """The delta in the folder ``delta``.

    ``inexact`` counts, by tensor, the weights that do not come back bit for bit when the delta is applied in ``compute_dtype``;
    None when nobody tried. Where a dtype of the target, in ``target_dtypes``, is another, the target rounded to it is meant.
    """

    delta: str
    compute_dtype: str
    target_dtypes: tuple[str, ...]


def make_delta(
    base: ModelLocation,
    target: ModelLocation,
    delta: PathLike,
    *,
    compute_dtype: str = "float16",
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    weights: str = "safetensors",
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    check: bool = True,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> MakeResult:
    """Subtract ``base`` from the fine-tuned ``target`` and publish the delta at ``delta``.

    The rules are those of ``apply_delta`` backwards; so are all options. With ``check`` the delta is applied block by block as
    it is made, in ``compute_dtype``, and the weights of the target that do not come back are counted: differences are rounded,
    in float16 mostly those of 0.1 to 3 % of the weights (docs/design.md, "Making a delta").

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``).
    """
    began = time.monotonic()
    report = Report() if report is None else report
    settings = Settings(device, workers, overwrite, strict)
    opener = partial(
        prepare,
        Operation.MAKE,
        base,
        target,
        delta,
        Wanted(compute_dtype, dtype, max_shard_size, weights=weights),
        hub=hub,
        check=check,
        hash_workers=settings.threads if hash_inputs else None,
        overwrite=overwrite,
        report=report,
    )
    job, published = perform(opener, settings, report, began)
    used = {tensor.match.primary.dtype for tensor in job.plan.tensors}
    return MakeResult(
        delta=str(job.place.target),
        compute_dtype=job.plan.options.compute_dtype,
        target_dtypes=tuple(sorted(used)),
        **vars(published),
    )
