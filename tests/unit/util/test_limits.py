"""Limits on documents are consistent."""

from __future__ import annotations

from deltaweights.util import limits


def test_limits_fit_each_other() -> None:
    """A manifest may hold every tensor that a checkpoint may have, thrice, and whatever is found in it."""
    assert limits.MANIFEST.objects > 4 * limits.MOST_TENSORS
    assert limits.MOST_STEPS > 11 * limits.MOST_TENSORS
    assert limits.HEADER.objects > limits.MOST_TENSORS
