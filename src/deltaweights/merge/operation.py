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
    SUBTRACT = "subtract"
    SUBTRACT_BLOCK = "subtract_block"
    COPY = "copy"


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

    @property
    def block(self) -> Fate:
        """The fate of a tensor whose base meets only its top-left block."""
        return Fate.ADD_BLOCK if self is Operation.APPLY else Fate.SUBTRACT_BLOCK
