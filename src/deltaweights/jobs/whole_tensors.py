"""Find tensors that are stored whole in a delta, not as a difference: those that it replaces, mostly embedding and head.

Few elements are read, and few tensors: one of each kind, and more only where that one is as large as the base's. Size alone does
not tell, since an embedding may be changed strongly. A whole tensor is either like the base's, as no difference is, or it violates
the round trip everywhere while the rest of the delta does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import BlockCombiner, Task
from deltaweights.merge.blocks import Run
from deltaweights.merge.device import kernels_on
from deltaweights.merge.operation import Operation
from deltaweights.merge.rules import GROWN, Matching
from deltaweights.recipes.weight_scale import AS_LARGE, numbers_of

PLACE, PLACES = 256, 8
"""Elements that are read at one place, and the most places of a tensor: evenly spaced, so each in another row of a real matrix."""

NEARLY_ALL = 7 / 8  # of the places

ALIKE = 0.5
"""The cosine of delta and base from which on the delta's tensor is one of the base's kind. Of 2 million weights: 0.98 to 1 where a
tensor was tuned by up to 20 %, 0 where it is unrelated; of a difference between unrelated tensors -0.7."""

EVIDENCE = 1000  # sampled elements of the rest that must have moved before it says anything

KINDS, OF_A_KIND = 64, 256
"""The most kinds of names that are looked at, and the most tensors of one."""


@dataclass(frozen=True)
class _Pair:
    """A tensor of the delta, and what it is added to, whose elements are where its first ones are."""

    base: LazyTensor
    delta: LazyTensor

    @property
    def places(self) -> list[int]:
        """Where each sample begins, in elements: within the base, which may have fewer rows."""
        count = self.base.spec.count
        last, places = count - PLACE, min(PLACES, count // PLACE)
        return [last * (2 * k + 1) // (2 * places) for k in range(places)]

    def likeness(self, start: int) -> tuple[float, float]:
        """Return how large the delta is, relative to the base, at a place, and their cosine; 0 where one has only zeros."""
        one, other = (numbers_of(tensor, start, PLACE) for tensor in (self.base, self.delta))
        squares = [sum(x * x for x in each) for each in (one, other)]
        if not all(squares):
            return 0.0, 0.0
        product = sum(x * y for x, y in zip(one, other, strict=True))
        return (squares[1] / squares[0]) ** 0.5, product / (squares[0] ** 0.5 * squares[1] ** 0.5)

    @property
    def looks_large(self) -> bool:
        """Whether the delta is as large as the base at one place, of which samples are read anyway (``checkpoint.samples``)."""
        return self.likeness((self.base.spec.count - PLACE) // 3)[0] >= AS_LARGE

    @property
    def is_large(self) -> bool:
        """Whether the delta is as large as the base at nearly all places."""
        return self._nearly_everywhere(self.likeness(start)[0] >= AS_LARGE for start in self.places)

    @property
    def is_alike(self) -> bool:
        """Whether it is also like the base."""
        at_places = (self.likeness(start) for start in self.places)
        return self._nearly_everywhere(size >= AS_LARGE and cosine >= ALIKE for size, cosine in at_places)

    def fails(self, combiner: BlockCombiner) -> bool:
        """Return whether the round trip is violated at nearly all places."""
        return self._nearly_everywhere(proof.violations > 0 for proof in self.proofs(combiner))

    def _nearly_everywhere(self, found: Iterable[bool]) -> bool:
        return sum(found) >= NEARLY_ALL * len(self.places)

    def proofs(self, combiner: BlockCombiner) -> Iterator[Proof]:
        """Yield the round trip of each place."""
        for start in self.places:
            for tensor, buffer in ((self.base, combiner.base), (self.delta, combiner.primary)):
                item = tensor.spec.item_size
                tensor.source.read_into(buffer[: PLACE * item], start * item)
            runs = (Run(0, PLACE, 0),)
            yield combiner.combine(PLACE, self.delta.spec.dtype, self.base.spec.dtype, runs).tally.proof or Proof()


def whole_tensors(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching, compute: str
) -> tuple[str, ...]:
    """Return the names of tensors that are surely stored whole in a delta most of which is small; ``compute`` is a dtype.

    Not all are found: ``merge.base_proof.stored_whole`` has the counts of all elements. Raises ``InputOutputError``.
    """
    kinds: dict[str, list[_Pair]] = {}
    for match in sorted(matching.matches, key=lambda match: match.primary.name not in GROWN):
        if match.base is None or match.base.count < PLACE or match.base.shape[1:] != match.primary.shape[1:]:
            continue
        kinds.setdefault(re.sub("[0-9]+", "#", match.primary.name), []).append(
            _Pair(base[match.base.name], delta[match.primary.name])
        )
    looked_at = list(islice(kinds.values(), KINDS))
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
