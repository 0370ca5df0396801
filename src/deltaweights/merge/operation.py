"""The two operations, and what can become of a tensor in them.

Enters: nothing. Leaves: names; the values are written into manifests. Never: a rule.

Both take a base and a *lead*, the input whose tensors are those of the result: the delta that is added to the base, or the
fine-tuned target from which the base is subtracted.
"""

from __future__ import annotations

from enum import Enum


class Fate(str, Enum):
    """What becomes of a tensor of the lead."""

    ADD = "add"
    ADD_BLOCK = "add_block"
    ADD_ZERO_ROWS = "add_zero_rows"
    ADD_MEAN_ROWS = "add_mean_rows"
    SUBTRACT = "subtract"
    SUBTRACT_BLOCK = "subtract_block"
    COPY = "copy"


class NewRows(str, Enum):
    """What rows of the delta that the base has not are added to, where the vocabulary was extended: nothing, zeros, or a mean.

    Adding zeros differs from adding nothing in one bit: -0 becomes +0. The mean is that of the base's rows.
    """

    COPY = "copy"
    ZERO = "zero"
    MEAN = "mean"


class Operation(Enum):
    """What is made of base and lead."""

    APPLY = "apply"
    MAKE = "make"

    @property
    def lead(self) -> str:
        """What the lead is called."""
        return "delta" if self is Operation.APPLY else "target"

    @property
    def output(self) -> str:
        """What the result is called."""
        return "target" if self is Operation.APPLY else "delta"

    @property
    def if_equal(self) -> str:
        """What to say when base and lead hold the same weights."""
        return "is this really the delta?" if self is Operation.APPLY else "the delta is zero"

    @property
    def done(self) -> str:
        """What has happened to the base."""
        return "added" if self is Operation.APPLY else "subtracted"

    @property
    def whole(self) -> Fate:
        """The fate of a tensor of one shape in both inputs."""
        return Fate.ADD if self is Operation.APPLY else Fate.SUBTRACT

    def grown(self, new_rows: NewRows) -> Fate:
        """Return the fate of a tensor whose base meets only its top-left block."""
        if self is Operation.MAKE:
            return Fate.SUBTRACT_BLOCK
        return {
            NewRows.COPY: Fate.ADD_BLOCK,
            NewRows.ZERO: Fate.ADD_ZERO_ROWS,
            NewRows.MEAN: Fate.ADD_MEAN_ROWS,
        }[new_rows]
