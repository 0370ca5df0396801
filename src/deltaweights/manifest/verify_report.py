"""What verification found, in words and as values.

Enters: findings. Leaves: lines for people, a report for programs, an error. Never: a look at a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaweights.errors import CheckFailed, printable

FILE, TENSOR, CONTENT = "file", "tensor", "content digest"
"""What a problem may be about."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be. ``file`` names it: a file, a tensor, or, of the content digest, the folder."""

    file: str
    problem: str
    found: str | None = None
    expected: str | None = None
    about: str = FILE

    def __str__(self) -> str:
        facts = [f"found {self.found}"] * bool(self.found) + [f"expected {self.expected}"] * bool(self.expected)
        return printable(f"{self.file}: {self.problem}" + (": " + ", ".join(facts) if facts else ""))


@dataclass(frozen=True)
class VerifyReport:
    """What verification found. ``content_digest`` is what the manifest states, or, if ``recomputed``, what the bytes give.

    ``listed`` names all files that should be as the manifest says, and what says so; ``notes`` tell what was not looked at.
    """

    target: str
    content_digest: str | None
    recomputed: bool
    manifest_sha256: str | None
    files: int
    bytes: int
    problems: tuple[Problem, ...] = field(default=())
    listed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems

    def raise_if_failed(self) -> None:
        """Raise ``CheckFailed`` with the first problem when there is one."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise CheckFailed(f"{self.problems[0]}{more}", where=self.target)
