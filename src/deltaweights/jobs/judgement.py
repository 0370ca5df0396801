"""What was found in the weights of a result: whether it may be published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltaweights.jobs.findings import BaseFacts, judge_base, report_numbers
from deltaweights.jobs.options import Options
from deltaweights.jobs.planned_result import PlannedResult
from deltaweights.jobs.stated_facts import other_base, refuse_changed_inputs
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.manifest.records import TensorRecord
from deltaweights.merge.base_proof import wider_tensors
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import Plan
from deltaweights.merge.record import digests_of, findings_of
from deltaweights.report import Report


def judge_records(
    planned: PlannedResult, records: Mapping[str, TensorRecord], options: Options, report: Report
) -> tuple[Findings, Mapping[str, str]]:
    """Report what was found in the tensors; return it, with the content digests of the inputs by role where they are needed.

    Raises ``CheckFailed`` or ``Mismatch`` for a result that must not be published.
    """
    plan, of_base, source = planned.plan, planned.of_base, planned.source
    needs_digests = bool(planned.digests) or of_base.digest is not None or source is not None
    digests = digests_of(plan, records).inputs if needs_digests else {}
    refuse_changed_inputs(planned.digests, digests)
    found = digests["base"] if of_base.digest is not None else None
    is_right = found is not None and found == of_base.digest
    findings = findings_of(
        records,
        other_dtype=plan.rounded,
        stated=of_base.stated and not is_right,
        rounded=of_base.rounded,
        allowed=options.allow_unproved_base and not is_right,
        wider=wider_tensors((tensor.match for tensor in plan.tensors), plan.options.compute_dtype),
    )
    if findings.proof is None and of_base.not_checked:
        by_digest = "; it is the one that the delta's manifest names, by its content digest" if is_right else ""
        not_checked = ProofRecord.not_checked(
            of_base.not_checked + by_digest, allowed=of_base.insisted and not is_right
        )
        findings = replace(findings, proof=not_checked)
    if options.allow_unproved_base and found is not None and not is_right and findings.proof is not None:
        # Refused by its digest, whatever the sums say.
        findings = replace(findings, proof=replace(findings.proof, allowed=True))
    judge(plan, findings, options, report, of_base, found)
    return findings, digests


def judge(
    plan: Plan, findings: Findings, options: Options, report: Report, of_base: BaseFacts, found: str | None
) -> None:
    """Report the findings; ``found`` is the content digest of the base, where it is known.

    Raises ``CheckFailed`` or ``Mismatch`` for a result that must not be published.
    """
    report_numbers(findings, plan.operation, report, strict=options.strict)
    allowed = options.allow_unproved_base
    if found is not None and found == of_base.digest:
        report.note("the base is the one that the delta was made from, by the digest in the delta's manifest")
        return
    if found is not None and of_base.digest is not None:
        error = other_base("base", of_base.origin, allow=allowed)
        if not allowed:
            raise error
        report.warn(error.problem)
    judge_base(findings.proof, report, stated=of_base.stated, allowed=allowed)
    if of_base.stated and not options.prove and plan.operation is Operation.APPLY:
        report.warn("the base was not checked (--no-prove)")
