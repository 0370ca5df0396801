"""target - base = delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.jobs.options import Options
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.request import Request, make_request
from deltaweights.jobs.result import Published
from deltaweights.jobs.run import run
from deltaweights.merge.operation import Operation
from deltaweights.report import Report

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import MakeOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class MakeResult(Published):
    """A delta in the folder ``delta``.

    ``inexact`` counts, by tensor, the weights that do not come back bit for bit when the delta is applied in ``compute_dtype``;
    None when that was not tried. A target of another dtype (``target_dtypes``) is rounded to it before the comparison; then
    ``not_restored`` counts those that differ from the target itself when ``apply_delta`` has stored them in ``restored_dtype``.
    """

    delta: str
    compute_dtype: str
    target_dtypes: tuple[str, ...]
    restored_dtype: str


def make_delta(
    base: ModelLocation,
    target: ModelLocation,
    delta: PathLike,
    *,
    report: Report | None = None,
    **options: Unpack[MakeOptions],
) -> MakeResult:
    """Subtract ``base`` from the fine-tuned ``target`` and publish the delta at ``delta``.

    Rules and options are those of ``apply_delta``, in reverse. A ``recipe`` or ``recipe_file`` is the one to apply the delta with:
    the base must be its base, and the target have its sizes. With ``check`` (the default) each block of the delta is applied as it
    is made, in ``compute_dtype``, and the weights of the target that do not come back are counted: differences are rounded, in
    float16 mostly those of 0.1 to 3 % of the weights (docs/design.md, "Making a delta").

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``).

    >>> from deltaweights import make_delta
    >>> made = make_delta("base", "tuned", "delta")
    >>> made.status
    'made'
    """
    return make(make_delta_request(base, target, delta, **options), report or Report())


def make_delta_request(
    base: ModelLocation,
    target: ModelLocation,
    delta: PathLike,
    *,
    dry_run: bool = False,
    **options: Unpack[MakeOptions],
) -> Request:
    """Return the checked request of ``make_delta``. Raises as ``make_request`` does."""
    prove = options.pop("check", True)
    return make_request(Operation.MAKE, base, target, delta, Options(prove=prove, **options), dry_run=dry_run)


def make(request: Request, report: Report) -> MakeResult:
    """Run a request of ``make_delta_request``."""
    return run(request, report, _result)


def _result(prepared: Prepared, published: Published) -> MakeResult:
    return MakeResult(
        delta=str(prepared.location.target),
        compute_dtype=prepared.plan.options.compute_dtype,
        target_dtypes=tuple(sorted({tensor.match.primary.dtype for tensor in prepared.plan.tensors})),
        restored_dtype=prepared.plan.restored_dtype,
        **vars(published),
    )
