"""The operations, and what can become of a tensor in them; the values are written into manifests.

Apply and make have a base and a *primary*, the input whose tensors are those of the result: the delta that is added to the base,
or the fine-tuned target from which the base is subtracted.
"""

from __future__ import annotations

from enum import Enum

VISION_TOWER = "vision_tower"  # the role of the third input, for layouts that include the CLIP vision tower


class Fate(str, Enum):
    """What a tensor of the result is made of. The last three occur in layouts that hold more tensors than the primary.

    ``add_mean_rows`` is taken: earlier releases wrote it where the mean was summed in float64.
    """

    ADD = "add"
    ADD_BLOCK = "add_block"
    ADD_ZERO_ROWS = "add_zero_rows"
    ADD_MEAN_ROWS = "add_float32_mean_rows"
    SUBTRACT = "subtract"
    SUBTRACT_BLOCK = "subtract_block"
    SUBTRACT_ZERO_ROWS = "subtract_zero_rows"
    SUBTRACT_MEAN_ROWS = "subtract_float32_mean_rows"
    COPY = "copy"
    VISION_TOWER = "vision_tower"
    IDENTITY = "identity"
    ZEROS = "zeros"

    @property
    def is_constant(self) -> bool:
        """Whether the tensor is in no input: it is the same for every model of its size."""
        return self in {Fate.IDENTITY, Fate.ZEROS}


ZERO_ROWS = frozenset({Fate.ADD_ZERO_ROWS, Fate.SUBTRACT_ZERO_ROWS})
MEAN_ROWS = frozenset({Fate.ADD_MEAN_ROWS, Fate.SUBTRACT_MEAN_ROWS})


class NewRows(str, Enum):
    """What new rows are combined with: nothing (copied), zeros (adding them turns -0 into +0), or the mean of the base's rows."""

    COPY = "copy"
    ZERO = "zero"
    MEAN = "mean"


class Operation(Enum):
    """What is done with base and primary; ``primary`` and ``output`` are roles, the other attributes verbs for messages."""

    APPLY = ("delta", "target", "add", "added", "merging", "merged")
    MAKE = ("target", "delta", "subtract", "subtracted", "making the delta", "made")
    CONVERT = ("base", "target", "copy", "copied", "converting", "converted")
    EXPORT = ("merged", "target", "copy", "copied", "exporting", "exported")

    def __init__(self, primary: str, output: str, verb: str, past: str, doing: str, status: str) -> None:
        self.primary, self.output = primary, output
        self.verb, self.past, self.doing, self.status = verb, past, doing, status

    def fate(self, *, grown: bool, new_rows: NewRows = NewRows.COPY) -> Fate:
        """Return the fate of a tensor that has a base; ``grown``: the base covers only its top-left block."""
        making = self is Operation.MAKE
        if not grown:
            return Fate.SUBTRACT if making else Fate.ADD
        adding, subtracting = {
            NewRows.COPY: (Fate.ADD_BLOCK, Fate.SUBTRACT_BLOCK),
            NewRows.ZERO: (Fate.ADD_ZERO_ROWS, Fate.SUBTRACT_ZERO_ROWS),
            NewRows.MEAN: (Fate.ADD_MEAN_ROWS, Fate.SUBTRACT_MEAN_ROWS),
        }[new_rows]
        return subtracting if making else adding

    def source(self, fate: Fate) -> str | None:
        """Return the role of the input that tensors of a fate are from; None for constant tensors."""
        if fate.is_constant:
            return None
        return VISION_TOWER if fate is Fate.VISION_TOWER else self.primary

    @property
    def usual_fates(self) -> tuple[Fate, ...]:
        """Fates that are counted even when no tensor has them."""
        combined = (self.fate(grown=False), self.fate(grown=True)) if self in {Operation.APPLY, Operation.MAKE} else ()
        return *combined, Fate.COPY
