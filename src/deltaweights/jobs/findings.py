"""Report what was found in the weights, and decide which of it is an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, Mismatch
from deltaweights.manifest.findings import Findings, ProofRecord, Verdict
from deltaweights.manifest.proof_text import rate_text, untested_text
from deltaweights.manifest.records import TensorRecord
from deltaweights.manifest.tally import Proof
from deltaweights.merge.base_proof import DELTA_CHANGED, WIDER, likely_cause, local_cause
from deltaweights.merge.operation import Operation
from deltaweights.merge.record import is_refused
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.util.text import counted

ANYWAY = "check the inputs; run without --strict to publish it"

PUBLISH_ANYWAY = "--allow-unproved-base publishes it anyway"
ORIGINAL_SCRIPT = "no recipe can state this yet: merge this delta with its publisher's script"
ORIGINAL_DELTA = "fetch the delta as it was published"
ADD_ANYWAY = "--allow-unproved-base adds the base to them all the same, which gives wrong weights"


def report_numbers(findings: Findings, operation: Operation, report: Report, *, strict: bool) -> None:
    """Report NaN, infinite and uniform weights; when ``strict``, raise ``CheckFailed`` for the first problem."""
    untuned = [name for name, roles in findings.uniform.items() if "lead" in roles]
    if untuned and operation is Operation.APPLY:
        others = f" and {counted(len(untuned) - 1, 'more tensor')}" if len(untuned) > 1 else ""
        report.note(f"{untuned[0]}{others} of the delta: all elements equal: not fine-tuned, or missing from its file")
    for problem in _problems(findings, operation):
        if strict:
            raise CheckFailed(problem, remedy=ANYWAY, code=ErrorCode.WEIGHTS_SUSPECT)
        report.warn(problem)


def _problems(findings: Findings, operation: Operation) -> list[str]:
    """Return one line per kind of problem."""
    problems = []
    if findings.nonfinite:
        first = next(iter(findings.nonfinite))
        causes = [
            f"{sum(counts.values())} {what}{'' if first in counts else f', as in {next(iter(counts))}'}"
            for counts, what in (
                (findings.nonfinite_base, "of the base"),
                (findings.nonfinite_lead, f"of the {operation.primary}"),
                (findings.overflow, "too large for the dtype"),
            )
            if counts
        ]
        number, tensors = sum(findings.nonfinite.values()), counted(len(findings.nonfinite), "tensor")
        found = f"{counted(number, 'NaN or infinite weight')} in {tensors}"
        why = f" ({', '.join(causes)})" if causes else ""
        problems.append(f"tensor {first}: result is not finite: found {found}{why}")
    # Zero weights in a delta only mean that they were not fine-tuned.
    for role in ("base", "lead" if operation is Operation.MAKE else "result"):
        what = f"the {operation.primary if role == 'lead' else role}"
        names = [name for name, roles in findings.uniform.items() if role in roles]
        if names:
            others = f" and {counted(len(names) - 1, 'more tensor')}" if len(names) > 1 else ""
            problems.append(f"tensor {names[0]}{others}: all elements of {what} are equal, where weights are expected")
    return problems


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What is known of base and delta before their weights are added, and decides how the sums are judged.

    ``stated``: recipe or manifest state the arithmetic in which the delta was made. ``digest`` is the content digest that the base
    must have, ``origin`` where the delta's manifest says that it is from; ``rounded`` is how the delta seems to have been rounded.
    None and empty where nothing is known. ``not_checked`` is why no sum is looked at, where that is so; ``insisted``: the user gave
    ``--allow-unproved-base`` where a recipe states another arithmetic than that of the delta's numbers.
    """

    stated: bool = False
    digest: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    rounded: str = ""
    not_checked: str = ""
    insisted: bool = False


def judge_base(proof: ProofRecord | None, report: Report, *, stated: bool, allowed: bool) -> None:
    """Report a base that is not proved.

    Raises ``Mismatch`` when it is refuted, tensors are stored whole in the delta, or it is known how the delta was computed
    (``stated``), unless the user ``allowed`` it.
    """
    if proof is None or proof.verdict in {Verdict.PROVED, Verdict.NOT_CHECKED}:
        return
    if proof.verdict == Verdict.NO_EVIDENCE:
        report.note(f"the base is neither proved nor refuted: only {proof.evidence:,} weights of the sum moved")
        return
    if is_refused(proof, stated=stated) and not allowed:
        raise refused_base(proof)
    report.warn(doubt_of(proof))


def refused_base(proof: ProofRecord, where: object = None, *, sampled: bool = False) -> Mismatch:
    """Return the error for a base that is not proved where it must be; ``sampled``: its counts are of samples."""
    right = f"{ORIGINAL_DELTA}, or use the right base" if proof.rounded not in {"", WIDER} else "use the right base"
    right = "give --compute-dtype float32" if proof.rounded == WIDER else right
    remedy = f"{ORIGINAL_SCRIPT}; {ADD_ANYWAY}" if proof.whole else f"{right}; {PUBLISH_ANYWAY}"
    doubt = f"{doubt_of(proof)} (of a sample: nothing was written)" if sampled else doubt_of(proof)
    return Mismatch(doubt, where=None if where is None else str(where), remedy=remedy, code=code_of_doubt(proof))


def code_of_doubt(proof: ProofRecord) -> ErrorCode:
    """Return the code for a base that is not proved: only violations that nothing else explains refute it."""
    if proof.whole:
        return ErrorCode.STORED_WHOLE
    return ErrorCode.WRONG_BASE if proof.refuted else ErrorCode.BASE_NOT_PROVED


def doubt_of(proof: ProofRecord) -> str:
    """Return why a base with evidence is not proved: the counts, the tensors, the likely cause, and the one after it."""
    if proof.whole:
        return f"{are_whole(proof.whole)}: {_not_back(proof)}, and all other tensors prove the base"
    if proof.verdict == Verdict.PARTIAL:
        part = f"the base is proved in part only: {untested_text(proof)}"
        return f"{part}; likely holes in the base, or whole tensors in place of differences"
    problems = {
        Verdict.VIOLATED: "the base is not the one that the delta was made from",
        Verdict.OTHER_ARITHMETIC: "the base cannot be proved",
    }
    counts = Proof(proof.weights, proof.region, proof.violations, proof.evidence)
    if proof.rounded:
        found = f"{_not_back(proof)}, most in {worst(proof.tensors)}"
        return f"the base cannot be proved: {found}; likely {proof.rounded}; or {likely_cause(counts)}"
    if local_cause(proof.tensors, counts) is not None or likely_cause(counts) == DELTA_CHANGED:
        return f"base and delta do not belong together: {_violations(proof)}"
    return f"{problems[Verdict(proof.verdict)]}: {_violations(proof)}"


def _violations(proof: ProofRecord) -> str:
    counts = Proof(proof.weights, proof.region, proof.violations, proof.evidence)
    local = local_cause(proof.tensors, counts)
    likely = likely_cause(counts) if local is None else f"{local}; or {likely_cause(counts)}"
    return f"{_not_back(proof)}, most in {worst(proof.tensors)}; likely {likely}"


def _not_back(proof: ProofRecord) -> str:
    return f"{proof.violations:,} of {proof.region:,} weights do not come back ({rate_text(proof)})"


def are_whole(names: Sequence[str]) -> str:
    """Return what is wrong with tensors that are stored whole in a delta."""
    first, *others = names
    if not others:
        return f"{first} is stored whole in this delta, not as a difference"
    more = others[0] if len(others) == 1 else counted(len(others), "more tensor")
    return f"{first} and {more} are stored whole in this delta, not as a difference"


def worst(violations: Mapping[str, int]) -> str:
    """Return the names of the three tensors with the most violations."""
    return ", ".join(sorted(violations, key=lambda name: (-violations[name], name))[:3])


@dataclass(frozen=True, kw_only=True)
class SumFound:
    """The sum of all elements of the merged checkpoint (None when it is not finite), and the published one."""

    found: float | None
    published: float
    tolerance: float
    agrees: bool


def check_sum(records: Iterable[TensorRecord], recipe: Recipe | None, report: Report) -> SumFound | None:
    """Compare the sum of all elements with the recipe's, and report it; None where the recipe has none.

    Where the published sum includes rotary buffers, theirs is added: 1 / 10000^(2i/d) for i < d/2 in each layer, d the size of a
    head. A difference is no error: the published sum was accumulated in float32, in an unknown order.
    """
    if recipe is None or recipe.checks is None:
        return None
    checks, shapes = recipe.checks, recipe.shapes
    tallies = [record.tally for record in records]
    parts = [tally.sum or 0.0 for tally in tallies]
    if any(tally.nonfinite for tally in tallies):
        report.warn("the sum of all elements cannot be compared: not all of them are finite")
        return SumFound(found=None, published=checks.sum, tolerance=checks.tolerance, agrees=False)
    if checks.with_buffers and shapes.hidden_size and shapes.heads and shapes.layers:
        head = shapes.hidden_size // shapes.heads
        parts += [shapes.layers / 10000 ** (2 * i / head) for i in range(head // 2)]
    total = math.fsum(parts)
    agrees = abs(total - checks.sum) <= checks.tolerance
    line = f"sum of all elements {total:.4f}, published {checks.sum} (within {checks.tolerance})"
    if agrees:
        report.note(f"sum             agrees: {line}")
    else:
        report.warn(f"sum does not agree: {line}; base or delta may be another, or damaged")
    return SumFound(found=total, published=checks.sum, tolerance=checks.tolerance, agrees=agrees)
