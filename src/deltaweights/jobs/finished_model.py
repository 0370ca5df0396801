"""Tell a finished model that is given as a delta from a delta whose differences are large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.jobs.sampled_pairs import ALIKE, EVIDENCE, likeness
from deltaweights.merge.rules import Match, Matching
from deltaweights.recipes.weight_scale import AS_LARGE, ELEMENTS, SAMPLED, numbers_of

NORM = "norm.weight"  # of a model all positive, of a delta around zero

OPPOSED = -0.3
"""The cosine of delta and base below which the delta takes the base away: -0.7 where it leads to an unrelated model."""

NORMS_ALIKE = 0.9  # the cosine; the norms of any two models point the same way


def is_finished_model(base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching) -> bool:
    """Return whether a delta whose weights are as large as the base's is surely a model.

    Its matrices are like the base's, as no difference is; or, where it is an unrelated model, its norms are. Raises
    ``InputOutputError``.
    """
    added = [
        m for m in matching.matches if m.base is not None and m.base.count and m.base.shape[1:] == m.primary.shape[1:]
    ]
    of_matrices = [m for m in added if len(m.primary.shape) == 2]
    matrices = _likeness_of(of_matrices, base, delta)
    if sum(min(ELEMENTS, m.base.count) for m in of_matrices if m.base is not None) < EVIDENCE:
        return False
    cosine = median(cosine for _, cosine in matrices)
    if cosine >= ALIKE:
        return True
    norms = _likeness_of((m for m in added if len(m.primary.shape) == 1 and m.model_name.endswith(NORM)), base, delta)
    alike = [size >= AS_LARGE and cosine >= NORMS_ALIKE for size, cosine in norms]
    return cosine > OPPOSED and bool(alike) and sum(alike) > len(alike) / 2


def _likeness_of(
    matches: Iterable[Match], base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor]
) -> list[tuple[float, float]]:
    """Return size and cosine of some elements of some tensors."""
    found, listed = [], list(matches)
    for match in listed[:: max(1, len(listed) // SAMPLED)][:SAMPLED]:
        if match.base is not None:
            count = min(ELEMENTS, match.base.count)
            start = (match.base.count - count) // 3
            numbers = (
                numbers_of(tensor, start, count) for tensor in (base[match.base.name], delta[match.primary.name])
            )
            found.append(likeness(*numbers))
    return found
