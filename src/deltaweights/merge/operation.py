"""The operations, and what can become of a tensor in them.

Enters: nothing. Leaves: names; the values are written into manifests. Never: a rule.

Both take a base and a *primary*, the input whose tensors are those of the result: the delta that is added to the base, or the
fine-tuned target from which the base is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

VISION_TOWER = "vision_tower"
"""What the third input is called, where a layout holds the model that sees."""


class Fate(str, Enum):
    """What a tensor of the result is made of. The last three are of layouts that hold more than the primary does."""

    ADD = "add"
    ADD_BLOCK = "add_block"
    ADD_ZERO_ROWS = "add_zero_rows"
    ADD_MEAN_ROWS = "add_mean_rows"
    SUBTRACT = "subtract"
    SUBTRACT_BLOCK = "subtract_block"
    COPY = "copy"
    VISION_TOWER = "vision_tower"
    IDENTITY = "identity"
    ZEROS = "zeros"

    @property
    def is_made(self) -> bool:
        """Whether the tensor stands in no input: it is the same for every model of its size."""
        return self in {Fate.IDENTITY, Fate.ZEROS}


class NewRows(str, Enum):
    """What rows of the delta that the base has not are added to, where the vocabulary was extended: nothing, zeros, or a mean.

    Adding zeros differs from adding nothing in one bit: -0 becomes +0. The mean is that of the base's rows.
    """

    COPY = "copy"
    ZERO = "zero"
    MEAN = "mean"


@dataclass(frozen=True)
class Words:
    """How an operation is described: its primary input, its output, and the verbs for progress and status."""

    primary: str
    output: str
    verb: str
    past: str
    doing: str
    status: str


class Operation(Enum):
    """What is made of base and primary. To convert or to export is to copy a primary that has no base."""

    APPLY = Words("delta", "target", "add", "added", "merging", "merged")
    MAKE = Words("target", "delta", "subtract", "subtracted", "making the delta", "made")
    CONVERT = Words("base", "target", "copy", "copied", "converting", "converted")
    EXPORT = Words("merged", "target", "copy", "copied", "exporting", "exported")

    @property
    def primary(self) -> str:
        """What the primary is called."""
        return self.value.primary

    @property
    def output(self) -> str:
        """What the result is called."""
        return self.value.output

    def fate(self, *, grown: bool, new_rows: NewRows = NewRows.COPY) -> Fate:
        """Return the fate of a tensor that has a base; ``grown`` says that the base meets only its top-left block."""
        if self is Operation.MAKE:
            return Fate.SUBTRACT_BLOCK if grown else Fate.SUBTRACT
        if not grown:
            return Fate.ADD
        return {
            NewRows.COPY: Fate.ADD_BLOCK,
            NewRows.ZERO: Fate.ADD_ZERO_ROWS,
            NewRows.MEAN: Fate.ADD_MEAN_ROWS,
        }[new_rows]

    def source(self, fate: Fate) -> str | None:
        """Return what the input is called that the tensors of a fate are those of; None when they are made."""
        if fate.is_made:
            return None
        return VISION_TOWER if fate is Fate.VISION_TOWER else self.primary

    @property
    def usual_fates(self) -> tuple[Fate, ...]:
        """Those that are counted even when no tensor has them."""
        if self in {Operation.CONVERT, Operation.EXPORT}:
            return (Fate.COPY,)
        return self.fate(grown=False), self.fate(grown=True), Fate.COPY
