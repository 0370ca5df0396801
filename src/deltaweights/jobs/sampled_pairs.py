"""Samples of tensors of a delta, beside what they are added to: few elements of few tensors, mostly one of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import BlockCombiner
from deltaweights.merge.blocks import Run
from deltaweights.merge.rules import GROWN, Matching
from deltaweights.recipes.weight_scale import AS_LARGE, numbers_of

PLACE, PLACES = 256, 8
"""Elements that are read at one place, and the most places of a tensor: evenly spaced, so each in another row of a real matrix."""

NEARLY_ALL = 7 / 8  # of the places

ALIKE = 0.5
"""The cosine of delta and base from which on the delta's tensor is one of the base's kind. Of 2 million weights: 0.98 to 1 where a
tensor was tuned by up to 20 %, 0 where it is unrelated; of a difference between unrelated tensors -0.7."""

KINDS, OF_A_KIND = 64, 256
"""The most kinds of names that are looked at, and the most tensors of one."""

EVIDENCE = 1000  # sampled elements that must have moved before they say anything


@dataclass(frozen=True)
class SampledPair:
    """A tensor of the delta, and what it is added to, whose elements are where its first ones are."""

    base: LazyTensor
    delta: LazyTensor

    @property
    def places(self) -> list[int]:
        """Where each sample begins, in elements: within the base, which may have fewer rows."""
        count = self.base.spec.count
        last, places = count - PLACE, min(PLACES, count // PLACE)
        return [last * (2 * k + 1) // (2 * places) for k in range(places)]

    def numbers(self, start: int, count: int = PLACE) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return elements of base and delta at a place. Raises ``InputOutputError``."""
        return numbers_of(self.base, start, count), numbers_of(self.delta, start, count)

    def likeness(self, start: int) -> tuple[float, float]:
        """Return how large the delta is, relative to the base, at a place, and their cosine; 0 where one has only zeros."""
        return likeness(*self.numbers(start))

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


def likeness(base: tuple[float, ...], delta: tuple[float, ...]) -> tuple[float, float]:
    """Return how large ``delta`` is, relative to ``base``, and their cosine; 0 where one has only zeros."""
    squares = [sum(x * x for x in each) for each in (base, delta)]
    if not all(squares):
        return 0.0, 0.0
    product = sum(x * y for x, y in zip(base, delta, strict=True))
    return (squares[1] / squares[0]) ** 0.5, product / (squares[0] ** 0.5 * squares[1] ** 0.5)


def kinds_of_pairs(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching
) -> list[list[SampledPair]]:
    """Return the pairs of tensors that are large enough, by kind: names that differ in numbers alone. Embeddings are first."""
    kinds: dict[str, list[SampledPair]] = {}
    for match in sorted(matching.matches, key=lambda match: match.model_name not in GROWN):
        if match.base is None or match.base.count < PLACE or match.base.shape[1:] != match.primary.shape[1:]:
            continue
        kinds.setdefault(re.sub("[0-9]+", "#", match.model_name), []).append(
            SampledPair(base[match.base.name], delta[match.primary.name])
        )
    return list(islice(kinds.values(), KINDS))
