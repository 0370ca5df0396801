"""The proof that a checkpoint which is copied has in its own manifest: it travels with weights that are what was proved."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import Mismatch
from deltaweights.jobs.findings import code_of_doubt, doubt_of
from deltaweights.manifest.base_claim import NO_PROOF, base_claim
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import Manifest
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import Plan
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class SourceProof:
    """A ``proof`` in the manifest of a checkpoint, and the content ``digest`` that it states of the tensors that are copied."""

    proof: ProofRecord
    digest: str

    def carried(self, found: str, report: Report) -> ProofRecord | None:
        """Return the proof if ``found``, the content digest of what was read, is the stated one; else warn."""
        if found == self.digest:
            return self.proof
        report.warn(
            "the proof in the source's manifest is not carried over: its weights are not those that were proved"
        )
        return None


def source_proof(manifest: Manifest | None, plan: Plan) -> SourceProof | None:
    """Return the proof in the manifest of the primary of ``plan``, a copy; None where it is no merge.

    That a merge has none travels, too: its copy must not look better than it does.
    """
    proof = None if manifest is None else manifest.findings.proof or manifest.source_proof
    if proof is None and manifest is not None and manifest.kind == "merge":
        proof = ProofRecord.not_checked(NO_PROOF)
    if manifest is None or proof is None or plan.operation not in {Operation.CONVERT, Operation.EXPORT}:
        return None
    record = plan.inputs[plan.operation.primary]
    dropped = {each.spec.name for each in record.dropped}
    names = (spec.name for spec in record.tensors if spec.name not in dropped)
    return SourceProof(proof=proof, digest=content_digest((name, *manifest.tensors[name]) for name in names))


def judge_source(
    source: Checkpoint, stated: Manifest | None, operation: Operation, report: Report, *, same: bool, allowed: bool
) -> None:
    """Report what the manifest of a checkpoint that is copied claims of its base; ``same``: it lists exactly its tensors.

    Raises ``Mismatch`` where a model whose base is refuted would be exported, unless the user ``allowed`` it.
    """
    claim = None if stated is None else base_claim(stated)
    proof = None if stated is None else stated.findings.proof or stated.source_proof
    if claim is None:
        return
    if not same:
        report.warn(
            f"{source.path}: what its manifest says of the base is not carried over: it is that of other tensors"
        )
        return
    if claim.refuted and proof is not None and operation is Operation.EXPORT and not allowed:
        raise Mismatch(
            f"its manifest says: {doubt_of(proof)}",
            where=source.path,
            remedy="merge the delta with the right base; --allow-unproved-base exports it as it is",
            code=code_of_doubt(proof),
        )
    if claim.warning is not None:
        report.warn(f"{source.path}: {claim.warning}")
    else:
        report.note(f"{'base':15} {claim.text}")
