"""What manifest, recipe and samples say of a base before its weights are added: how the sums are judged."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.jobs.arithmetic_evidence import arithmetic_evidence
from deltaweights.jobs.findings import ORIGINAL_DELTA, BaseFacts
from deltaweights.jobs.request import InputRequest, or_allow
from deltaweights.jobs.stated_facts import MadeDelta, stated_base
from deltaweights.merge.rules import Matching
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class SampledInputs:
    """Base and delta, how their tensors meet, and the safetensors dtype in which they are added."""

    base: Checkpoint
    delta: Checkpoint
    matching: Matching
    compute: str


def facts_of_base(
    pair: SampledInputs, made: MadeDelta | None, request: InputRequest, report: Report, *, stated: bool
) -> tuple[BaseFacts, str]:
    """Return how the sums are judged, and why they prove no base, empty where they do; ``stated``: a recipe says how they are made.

    Raises ``Mismatch`` for a base that is not the one of the delta's manifest, and where a recipe states another arithmetic than
    that of the delta's numbers, unless the user allows it.
    """
    facts = BaseFacts(stated=stated)
    if made is not None:
        digest = stated_base(made, pair.base, pair.matching, request, report)
        facts = BaseFacts(stated=True, digest=digest, origin=made.origin)
        if made.stored != made.compute:
            powerless = f"the delta was computed in {made.compute} and stored in {made.stored}, which rounds it"
            return replace(facts, stated=False), powerless
    insisted = False
    found = arithmetic_evidence(pair.base.tensors, pair.delta.tensors, pair.matching, pair.compute)
    if found.contradicts and made is None:
        problem, where = f"the base cannot be proved: {found.powerless}", pair.delta.path
        if stated and not request.allow_other_base:
            remedy = f"{ORIGINAL_DELTA}{or_allow(request.allow_other_base)}"
            raise Mismatch(problem, where=where, remedy=remedy, code=ErrorCode.BASE_NOT_PROVED)
        insisted = stated
        report.warn(f"{where}: {problem}; {found.remedy}")
    elif found.powerless:
        report.note(f"the base is neither proved nor refuted by sums: {found.powerless}")
    return replace(facts, rounded=found.rounded, insisted=insisted), found.powerless
