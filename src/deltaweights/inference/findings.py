"""What a check found, each thing on one line.

Enters: what is wrong, where, and what was expected. Leaves: problems, warnings and notes, in the order in which they were found.
Never: a decision what to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaweights.errors import printable

LONGEST_FACT = 300
"""Characters of a value from a file that a line shows."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be: in which file, of which tensor, what was found and what was expected."""

    file: str
    problem: str
    tensor: str | None = None
    found: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        parts = [self.file, *([f"tensor {self.tensor}"] if self.tensor is not None else []), self.problem]
        facts = [f"found {_short(self.found)}"] if self.found is not None else []
        facts += [f"expected {_short(self.expected)}"] if self.expected is not None else []
        return printable(": ".join(map(_short, parts)) + (f": {', '.join(facts)}" if facts else ""))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]} and so on"


@dataclass
class Findings:
    """What was found so far. ``strict`` says that the folder claims to be one that current transformers runs as it stands."""

    strict: bool
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(
        self, file: str, problem: str, *, tensor: str | None = None, found: object = None, expected: object = None
    ) -> None:
        """Add what makes the folder useless to whoever loads it."""
        self.problems.append(Problem(file, problem, tensor, _text(found), _text(expected)))

    def doubt(self, file: str, problem: str, *, found: object = None, expected: object = None) -> None:
        """Add what is wrong in a folder that is made to run, and in any other only what its publisher wrote: a warning."""
        target = self.problems if self.strict else self.warnings
        target.append(Problem(file, problem, None, _text(found), _text(expected)))

    def warn(self, file: str, problem: str, *, found: object = None, expected: object = None) -> None:
        """Add what is not as it should be, and hurts nobody who loads the folder."""
        self.warnings.append(Problem(file, problem, None, _text(found), _text(expected)))

    def note(self, text: str) -> None:
        """Add a remark."""
        self.notes.append(text)


def _text(fact: object) -> str | None:
    return None if fact is None else str(fact)
