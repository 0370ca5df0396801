"""The result of a verification, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, printable
from deltaweights.manifest.base_claim import BaseClaim
from deltaweights.util.text import short_repr

FILE, TENSOR, CONTENT = "file", "tensor", "content digest"  # what a problem may be about


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. ``file`` names a file, a tensor, or, for the content digest, the folder."""

    file: str
    problem: str
    found: str | None = None
    expected: str | None = None
    about: str = FILE

    def __str__(self) -> str:
        facts = [f"{what} {fact}" for what, fact in (("found", self.found), ("expected", self.expected)) if fact]
        return printable(": ".join([self.file, self.problem, *([", ".join(facts)] if facts else [])]))


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification; ``content_digest`` is that of the bytes if ``recomputed``, else what the manifest states."""

    target: str
    content_digest: str | None
    recomputed: bool
    manifest_sha256: str | None
    files: int
    bytes: int
    problems: tuple[Problem, ...] = ()
    listed: tuple[str, ...] = ()  # the files that were checked, the manifest included
    notes: tuple[str, ...] = ()  # what was ignored
    base: BaseClaim | None = None  # what the manifest claims of the base

    def __repr__(self) -> str:
        base = {} if self.base is None else {"base": self.base.text}
        first = {"first": str(self.problems[0])} if self.problems else {}
        facts = {"ok": self.ok, "problems": len(self.problems), **first, **base}
        return short_repr(self, target=self.target, **facts, content_digest=self.content_digest)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def raise_if_failed(self) -> None:
        """Raise ``CheckFailed`` with the first problem, if there is one."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            problem, code = f"{self.problems[0]}{more}", ErrorCode.NOT_AS_RECORDED
            raise CheckFailed(problem, where=self.target, code=code)
