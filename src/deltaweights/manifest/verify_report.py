"""The result of a verification, as values and as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, printable
from deltaweights.manifest.file_parts import EXTRAS, LOADER_FILES, WEIGHTS
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

FILE, TENSOR, CONTENT = "file", "tensor", "content digest"  # what a problem may be about

NOT_PINNED = "intact, but not what you pinned"

MOST_NAMED = 5  # other files that a verdict names


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
class Verdict:
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
    weights: Verdict
    loader_files: Verdict
    extras: Verdict
    compared_with: str
    unread: int = 0  # files whose bytes were not read: the Hub states the hashes of the manifest
    problems: tuple[Problem, ...] = ()
    listed: tuple[str, ...] = ()  # the files that were checked, the manifest included
    notes: tuple[str, ...] = ()  # what was ignored

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def only_pins(self) -> bool:
        """Whether all is intact, but not what was pinned."""
        return bool(self.problems) and all(problem.is_pin for problem in self.problems)

    def verdicts(self) -> Iterator[tuple[str, Verdict]]:
        """Yield what each part is called in print, and its verdict."""
        yield from (("weights", self.weights), ("loader files", self.loader_files), ("other files", self.extras))

    def raise_if_failed(self, *, weights_only: bool = False) -> None:
        """Raise ``CheckFailed`` with the first problem, if there is one; with ``weights_only`` only if the weights have one."""
        problems = [problem for problem in self.problems if not weights_only or problem.part == WEIGHTS]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CheckFailed(f"{problems[0]}{more}", where=self.target, code=ErrorCode.NOT_AS_RECORDED)


def verdict_of(
    part: str,
    sizes: Collection[int],
    problems: Collection[Problem],
    compared_with: str,
    others: Collection[str] = (),
    unread: int = 0,
) -> Verdict:
    """Return the verdict on ``part``, given the sizes of its files and all problems; ``others`` are harmless files to name.

    ``unread`` counts the files that were not read, but only listed.
    """
    found = [problem for problem in problems if problem.part == part]
    ok, total = not found and bool(compared_with), sum(sizes)
    files = f"{counted(len(sizes), 'file')} ({human_bytes(total)})"
    if ok:
        sentence = f"intact: {files}, compared with {compared_with}" if sizes else "none"
        if unread:
            sentence = f"as listed: {files}; the Hub states the hashes of {compared_with}, {unread:,} not read"
        sentence = f"intact: {_named(others)}" if others and not sizes else sentence
        sentence += f"; {_named(others)}" if others and sizes else ""
    elif not compared_with:
        sentence = "not compared: nothing here states their hashes"
    elif all(problem.is_pin for problem in found):
        sentence = f"{NOT_PINNED}: {files}"
    else:
        sentence = f"{counted(len(found), 'problem')}: {_CONSEQUENCES[part]}"
    return Verdict(ok, len(sizes), total, len(found), sentence)


_CONSEQUENCES = {
    WEIGHTS: "do not use these weights",
    LOADER_FILES: "what a loader makes of the weights is not what was recorded",
    EXTRAS: "no loader reads them",
}


def _named(names: Collection[str]) -> str:
    """Return a phrase about files that are neither stated nor read by any loader."""
    shown = ", ".join(printable(name) for name in sorted(names)[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"beside them, read by no loader: {shown}{more}"
