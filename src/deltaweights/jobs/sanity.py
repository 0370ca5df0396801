"""Refuse to publish what cannot be a model, or warn of what only looks wrong: by names, shapes, manifests and sizes of weights."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import DeltaweightsError, MalformedInput
from deltaweights.export.sanity import oddities
from deltaweights.jobs.inputs import Inputs
from deltaweights.jobs.request import Request
from deltaweights.jobs.swapped import not_a_model
from deltaweights.merge.choices import ORIGINAL
from deltaweights.merge.operation import Operation
from deltaweights.recipes.identify import Identity, config_of
from deltaweights.report import Report

OUT_OF_SCALE = 5
"""How many times larger the weights of one input are from which on the other, if it is as small as a delta, is one."""

REMEDY = "fetch or save it again, all of it, or correct config.json if that is wrong"


def check_sanity(request: Request, inputs: Inputs, report: Report) -> None:
    """Check the result, whose names and shapes are those of the primary, and each input that should be a model.

    Raises ``MalformedInput`` for what cannot be a model, and ``Mismatch`` for a delta that is given as one; warns of the rest.
    """
    primary = inputs.primary
    for oddity in oddities(inputs.matching.primary_specs, config_of(primary)):
        where = f"{primary.role} {primary.path}"
        problem, tensor, found, expected = oddity.problem, oddity.tensor, oddity.found, oddity.expected
        if oddity.impossible:
            raise MalformedInput(problem, where=where, tensor=tensor, found=found, expected=expected, remedy=REMEDY)
        report.warn(str(DeltaweightsError(problem, where=where, tensor=tensor, found=found, expected=expected)))
    prefix = inputs.matching.naming.prefix
    if prefix and request.options.layout == ORIGINAL:
        report.warn(
            f"{primary.path}: all names begin with {prefix}, and so do the result's: a library may want them without"
        )
    for checkpoint in (inputs.base, primary):
        is_model = checkpoint is not None and (request.operation is not Operation.APPLY or checkpoint is inputs.base)
        if checkpoint is not None and is_model:
            identities = inputs.identities
            other = next((each for role, each in identities.items() if role != checkpoint.role), None)
            _check_model(checkpoint, identities[checkpoint.role], other, request, report)


def _is_out_of_scale(identity: Identity, other: Identity | None) -> bool:
    """Return whether weights as small as a delta's meet such of another size: no fine-tuning makes them so."""
    small, large = identity.typical, None if other is None else other.typical
    return small is not None and large is not None and large > OUT_OF_SCALE * small


def _check_model(
    checkpoint: Checkpoint, identity: Identity, other: Identity | None, request: Request, report: Report
) -> None:
    """Refuse, or name, a delta in the place of a model. A copy keeps it as it is, so there it is only named."""
    problem = identity.no_model
    if problem is None:
        return
    allow = request.inputs.allow_other_base
    if (
        (identity.is_delta or _is_out_of_scale(identity, other))
        and request.operation is not Operation.CONVERT
        and not allow
    ):
        raise not_a_model(checkpoint, identity, allow)
    report.warn(f"{checkpoint.role} {checkpoint.path}: {problem}")
