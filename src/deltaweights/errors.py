"""The exceptions that the program raises on purpose: ``str`` gives one printable line, ``exit_code`` the command's exit status."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltaweights.error_codes import OF_ERRNO, ErrorCode

LONGEST_FACT = 300
"""Characters of a value from a file that a message shows: a hostile one may have millions."""

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks without a glyph, which make two different names look alike."""


_CI_COMMAND = "##["
"""What GitHub's runner acts on anywhere in a line of output, as in ``##[set-output name=...]``."""


def is_shown(character: str) -> bool:
    """Return whether a terminal only displays the character: it is no control, change of direction or line break."""
    return character.isprintable() and not _INVISIBLE.match(character)


def printable(text: str) -> str:
    r"""Return ``text`` on one line, escaping what a terminal or the log of a CI job would act on, hide, or fail to encode.

    Bytes of a file name that the locale cannot decode, which Python keeps as surrogates, are shown as the text that they are in
    UTF-8, else as ``\xNN``.
    """
    text = text.replace(_CI_COMMAND, "##\\x5b")
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(c if is_shown(c) else _escaped(c) for c in decoded(text))


def decoded(text: str) -> str:
    """Return ``text`` with surrogates that stand for bytes of UTF-8 decoded: under ``LC_ALL=C`` every other letter is such."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


FIELDS = ("problem", "where", "tensor", "found", "expected", "remedy")
"""The parts of a message, in their order."""


class DeltaweightsError(Exception):
    """Base class of all errors; never raised itself.

    The message is ``where: tensor NAME: problem: found X, expected Y; remedy``, without the parts that are not given. All parts
    are kept as attributes, and so is the code, by default that of the class; it is not in the message.
    """

    exit_code = 1
    default_code = ErrorCode.BUG

    def __init__(
        self,
        problem: str,
        *,
        where: str | Path | None = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
        code: ErrorCode | None = None,
    ) -> None:
        self.code = code or self.default_code
        self.problem, self.where, self.tensor = problem, where, tensor
        self.found, self.expected, self.remedy = found, expected, remedy
        facts = [
            f"{label} {_short(fact)}" for label, fact in (("found", found), ("expected", expected)) if fact is not None
        ]
        parts = [] if where is None else [str(where)]
        if tensor is not None:
            parts.append(f"tensor {_short(tensor)}")
        parts.append(problem)
        if facts:
            parts.append(", ".join(facts))
        line = ": ".join(parts)
        super().__init__(printable(f"{line}; {remedy}" if remedy else line))

    def fields(self) -> dict[str, str | None]:
        """Return the parts, by the names in ``FIELDS``, as text for a document."""
        parts = {name: getattr(self, name) for name in FIELDS}
        return {name: None if part is None else printable(_short(part)) for name, part in parts.items()}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]} and so on"


class UsageError(DeltaweightsError):
    """The command line, or an argument of the Python API, makes no sense."""

    exit_code = 2
    default_code = ErrorCode.USAGE


class MalformedInput(DeltaweightsError):
    """An input breaks its format's rules, or looks hostile."""

    exit_code = 3
    default_code = ErrorCode.MALFORMED


class Mismatch(DeltaweightsError):
    """The inputs do not belong together."""

    exit_code = 4
    default_code = ErrorCode.MISMATCH


class InputOutputError(DeltaweightsError):
    """The system refused, or failed: not found, unreadable, no space, truncated or changed while being read."""

    exit_code = 5
    default_code = ErrorCode.INPUT_OUTPUT

    @classmethod
    def from_os(cls, error: OSError, where: str | Path, doing: str, remedy: str | None = None) -> InputOutputError:
        """Convert an ``error`` that occurred while ``doing`` something with ``where``; its ``errno`` tells the code."""
        if error.errno == errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            remedy = f"only {limit:,} may be open at once: allow more, with ulimit -n {max(4 * limit, 1024)}"
        code = OF_ERRNO.get(error.errno or 0)
        return cls(f"cannot {doing}: {error.strerror or error}", where=where, remedy=remedy, code=code)


@contextmanager
def wrap_os_errors(where: str | Path, doing: str) -> Iterator[None]:
    """Convert each ``OSError`` in the body, which is ``doing`` something with ``where``, to an ``InputOutputError``."""
    try:
        yield
    except OSError as error:
        raise InputOutputError.from_os(error, where, doing) from error


class CheckFailed(DeltaweightsError):
    """A check that was asked for (verify, --strict, --expect) failed."""

    exit_code = 6
    default_code = ErrorCode.CHECK_FAILED


class TargetBusy(DeltaweightsError):
    """The target is in use by another run, is one of the inputs, or holds something else."""

    exit_code = 7
    default_code = ErrorCode.TARGET
