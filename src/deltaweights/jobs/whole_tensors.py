"""Find tensors that are stored whole in a delta, not as a difference: those that it replaces, mostly embedding and head.

Size alone does not tell, since an embedding may be changed strongly. A whole tensor is either like the base's, as no difference is,
or it violates the round trip everywhere while the rest of the delta does not.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.jobs.sampled_pairs import EVIDENCE, OF_A_KIND, PLACE, kinds_of_pairs
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import BlockCombiner, Task
from deltaweights.merge.device import kernels_on
from deltaweights.merge.operation import Operation
from deltaweights.merge.rules import Matching


def whole_tensors(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching, compute: str
) -> tuple[str, ...]:
    """Return the names of tensors that are surely stored whole in a delta most of which is small; ``compute`` is a dtype.

    Not all are found: ``merge.base_proof.stored_whole`` has the counts of all elements. Raises ``InputOutputError``.
    """
    looked_at = kinds_of_pairs(base, delta, matching)
    large = [pair for pairs in looked_at if pairs[0].looks_large for pair in pairs[:OF_A_KIND] if pair.is_large]
    if not large:
        return ()
    rest = [pairs[0] for pairs in looked_at if not pairs[0].looks_large]
    whole = [pair for pair in large if pair.is_alike]
    if len(whole) < len(large):
        with kernels_on("cpu") as make_kernels:
            combiner = BlockCombiner(make_kernels(), Task(Operation.APPLY, compute, compute, check=True), PLACE)
            proof = sum((proof for pair in rest for proof in pair.proofs(combiner)), Proof())
            if proof.evidence >= EVIDENCE and not proof.violations:
                whole += [pair for pair in large if pair not in whole and pair.fails(combiner)]
    found = {pair.delta.spec.name for pair in whole}
    return tuple(match.primary.name for match in matching.matches if match.primary.name in found)


def sums_fail(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching, compute: str
) -> bool:
    """Return whether samples of what is small in the delta refute the base. Raises ``InputOutputError``."""
    small = [pairs[0] for pairs in kinds_of_pairs(base, delta, matching) if not pairs[0].looks_large]
    with kernels_on("cpu") as make_kernels:
        combiner = BlockCombiner(make_kernels(), Task(Operation.APPLY, compute, compute, check=True), PLACE)
        return any(proof.violations for pair in small for proof in pair.proofs(combiner))
