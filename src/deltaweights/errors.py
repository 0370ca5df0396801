"""The one tree of exceptions that the program raises on purpose.

Enters: what was wrong, where, and what to do about it. Leaves: an exception whose ``str`` is one printable line and whose
``exit_code`` is what the command line returns. Never: a traceback for something a user can cause.
"""

from __future__ import annotations

import errno
import re
import resource
from pathlib import Path

LONGEST_FACT = 300
"""Characters of a value from a file that a message shows: a hostile one may have millions."""


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that nothing is seen of: two names that differ in one of them look alike."""


def is_shown(character: str) -> bool:
    """Return whether a terminal shows the character, and does nothing else: no control, no change of direction, no line break."""
    return character.isprintable() and not _UNSEEN.match(character)


def printable(text: str) -> str:
    """Return ``text`` on one line; escaped is what a terminal could act on or would not show, and what cannot be encoded."""
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(c if is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


class DeltaweightsError(Exception):
    """Base of all; never raised itself.

    The message is assembled as ``where: tensor NAME: problem: found X, expected Y; remedy`` from the parts that are given, which
    stay as attributes.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: str | Path | None = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.where, self.tensor = problem, where, tensor
        self.found, self.expected, self.remedy = found, expected, remedy
        facts = [f"found {_short(found)}"] if found is not None else []
        facts += [f"expected {_short(expected)}"] if expected is not None else []
        line = ": ".join(
            [str(where)] * (where is not None)
            + [f"tensor {_short(tensor)}"] * (tensor is not None)
            + [problem]
            + [", ".join(facts)] * bool(facts)
        )
        super().__init__(printable(f"{line}; {remedy}" if remedy else line))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]} and so on"


class UsageError(DeltaweightsError):
    """The command line, or an argument of the Python API, makes no sense."""

    exit_code = 2


class MalformedInput(DeltaweightsError):
    """An input breaks its format's rules, or tries something hostile."""

    exit_code = 3


class Mismatch(DeltaweightsError):
    """The inputs do not belong together."""

    exit_code = 4


class InputOutputError(DeltaweightsError):
    """The system said no: not found, unreadable, no space, cut short or changed while being read."""

    exit_code = 5

    @classmethod
    def from_os(cls, error: OSError, where: str | Path, doing: str, remedy: str | None = None) -> InputOutputError:
        """Convert ``error``, met while ``doing`` something with ``where``."""
        if error.errno == errno.EMFILE:
            remedy = _allow_more_files()
        return cls(f"cannot {doing}: {error.strerror or error}", where=where, remedy=remedy)


class CheckFailed(DeltaweightsError):
    """A check that was asked for (verify, --strict, --expect) failed."""

    exit_code = 6


class TargetBusy(DeltaweightsError):
    """The target is in use by another run, is one of the inputs, or holds something else."""

    exit_code = 7


def _allow_more_files() -> str:
    """Return what to do where too few files may be open at once."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"only {limit:,} may be open at once: allow more, with ulimit -n {max(4 * limit, 1024)}"
