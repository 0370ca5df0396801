"""The result of a verification, as values and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, printable
from deltaweights.manifest.base_claim import BaseClaim
from deltaweights.manifest.file_parts import EXTRAS, WEIGHTS
from deltaweights.util.text import short_repr

FILE, TENSOR, CONTENT = "file", "tensor", "content digest"  # what a problem may be about

EXTRA_FILE = "an extra file"
"""``found`` of a problem: a file that nothing states, and that a loader may read."""

NOT_PINNED = "intact, but not what you pinned"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. ``file`` names a file, a tensor, or, for the content digest, the folder.

    ``part`` is the part of the checkpoint that it belongs to (``file_parts``). ``is_pin`` says that nothing is damaged, but a pin
    names something else.
    """

    file: str
    problem: str
    found: str | None = None
    expected: str | None = None
    about: str = FILE
    part: str = field(default=EXTRAS, compare=False)
    is_pin: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        facts = [f"{what} {fact}" for what, fact in (("found", self.found), ("expected", self.expected)) if fact]
        return printable(": ".join([self.file, self.problem, *([", ".join(facts)] if facts else [])]))


@dataclass(frozen=True)
class PartVerdict:
    """What is known of one part: ``files`` and ``bytes`` of it that were compared, the number of its ``problems``, a sentence."""

    ok: bool
    files: int
    bytes: int
    problems: int
    sentence: str


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification; ``content_digest`` is that of the bytes if ``recomputed``, else what the manifest states.

    ``weights`` is about every tensor and shard, ``loader_files`` about what loaders read beside them (configuration, tokenizer,
    code), ``extras`` about all other files. ``compared_with`` says what states the hashes: "the manifest", "SHA256SUMS", ...;
    it is empty where nothing does.
    """

    target: str
    content_digest: str | None
    recomputed: bool
    manifest_sha256: str | None
    files: int
    bytes: int
    weights: PartVerdict
    loader_files: PartVerdict
    extras: PartVerdict
    compared_with: str
    unread: int = 0  # files whose bytes were not read: the Hub states the hashes of the manifest
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
        """Whether there is no problem, and something was compared."""
        return not self.problems and self.weights.ok

    @property
    def only_pins(self) -> bool:
        """Whether all is intact, but not what was pinned."""
        return bool(self.problems) and all(problem.is_pin for problem in self.problems)

    def verdicts(self) -> Iterator[tuple[str, PartVerdict]]:
        """Yield what each part is called in print, and its verdict."""
        yield from (("weights", self.weights), ("loader files", self.loader_files), ("other files", self.extras))

    def raise_if_failed(self, *, weights_only: bool = False) -> None:
        """Raise ``CheckFailed`` with the first problem, if there is one; with ``weights_only`` only if the weights have one."""
        if self.weights.ok if weights_only else self.ok:
            return
        problems = [problem for problem in self.problems if not weights_only or problem.part == WEIGHTS]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        problem = f"{problems[0]}{more}" if problems else "nothing was compared"
        raise CheckFailed(problem, where=self.target, code=ErrorCode.NOT_AS_RECORDED)
