"""What a structure check found: problems, warnings and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deltaweights.errors import DeltaweightsError


@dataclass(frozen=True)
class Finding:
    """One problem or warning: of a file, or of one tensor in it."""

    file: str
    problem: str
    tensor: str | None = None
    found: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        """Return one printable line, in the form of error messages."""
        return str(
            DeltaweightsError(
                self.problem, where=self.file, tensor=self.tensor, found=self.found, expected=self.expected
            )
        )


def first_of(problems: Sequence[Finding]) -> str:
    """Return the first problem, and how many more there are."""
    return f"{problems[0]} (and {len(problems) - 1} more)" if len(problems) > 1 else str(problems[0])


@dataclass
class CheckFindings:
    """Findings so far. ``strict`` is for a folder that claims to run in current transformers: its doubts are problems."""

    strict: bool
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(
        self, file: str, problem: str, *, tensor: str | None = None, found: object = None, expected: object = None
    ) -> None:
        """Add what makes loading fail or answers wrong."""
        self.problems.append(Finding(file, problem, tensor, _text(found), _text(expected)))

    def doubt(self, file: str, problem: str, *, found: object = None, expected: object = None) -> None:
        """Add a problem if ``strict``, else a warning: the publisher left it that way."""
        findings = self.problems if self.strict else self.warnings
        findings.append(Finding(file, problem, None, _text(found), _text(expected)))

    def warn(self, file: str, problem: str, *, found: object = None, expected: object = None) -> None:
        """Add something that is wrong but does no harm."""
        self.warnings.append(Finding(file, problem, None, _text(found), _text(expected)))


def _text(fact: object) -> str | None:
    return None if fact is None else str(fact)
