"""What a manifest claims of the base of its weights: proved, refuted and published all the same, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.manifest.findings import ProofRecord, Verdict
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.proof_text import proof_line

NO_PROOF = "not checked: its manifest has no proof of it"


@dataclass(frozen=True)
class BaseClaim:
    """The claim. ``verdict`` is a value of ``Verdict``, or of a later version.

    ``refuted``: it is the wrong base; ``allowed``: the user insisted on what would have been refused. ``of_source``: the weights
    are a copy, and it is what the manifest of their source said. ``text`` is all that in one line.
    """

    verdict: str
    refuted: bool
    allowed: bool
    of_source: bool
    text: str

    @property
    def warning(self) -> str | None:
        """What to say wherever these weights are used; None where nothing was refused."""
        if not (self.refuted or self.allowed):
            return None
        what = "the base is refuted" if self.refuted else "the base is not proved, and was accepted all the same"
        return f"{what}: these are likely not the weights that the delta was published for ({self.text})"


def claim_of(proof: ProofRecord | None, source: ProofRecord | None = None) -> BaseClaim | None:
    """Return the claim that these records make: of the weights themselves, or else of the ``source`` that they are a copy of."""
    found = proof or source
    if found is None:
        return None
    of_source = proof is None
    text = f"{proof_line(found)}{' (of the source, by its manifest)' if of_source else ''}"
    return BaseClaim(found.verdict, found.refuted, found.allowed, of_source, text)


def base_claim(manifest: Manifest) -> BaseClaim | None:
    """Return what a manifest claims of the base; None where there is no base, as in a delta or the copy of any model."""
    claim = claim_of(manifest.findings.proof, manifest.source_proof)
    if claim is None and manifest.kind == "merge":
        return BaseClaim(Verdict.NOT_CHECKED.value, False, False, False, NO_PROOF)
    return claim
