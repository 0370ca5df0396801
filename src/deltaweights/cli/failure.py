"""Why a command ends, as scripts read it: the object ``error`` of docs/errors.md, and the keys of an event of a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import FIELDS, DeltaweightsError, InputOutputError, UsageError, printable
from deltaweights.util.interruption import Interrupted
from deltaweights.util.text import Json

FORMAT, VERSION = "deltaweights-error", 1


@dataclass(frozen=True)
class Failure:
    """Why the process ends with ``exit_code``; ``kind`` is the class of the error, ``parts`` those of its message."""

    message: str
    exit_code: int
    code: ErrorCode
    kind: str
    parts: Mapping[str, str | None] = field(default_factory=dict)

    def keys(self) -> dict[str, Json]:
        """Return all as JSON; parts that are not known are null."""
        about = {"code": self.code.text, "class": self.kind, "exit_code": self.exit_code}
        return {**about, "message": printable(self.message), **{name: self.parts.get(name) for name in FIELDS}}

    def document(self) -> dict[str, Json]:
        """Return the value of ``error`` on stdout."""
        return {"format": FORMAT, "version": VERSION, **self.keys()}


def failure_of(error: DeltaweightsError) -> Failure:
    """Return the failure of an error of ours; its class is one of the six that docs/errors.md lists."""
    kind = next(each for each in type(error).__mro__ if each.__base__ is DeltaweightsError)
    return Failure(str(error), error.exit_code, error.code, kind.__name__, error.fields())


def usage_failure(problem: str, help_command: str) -> Failure:
    """Return the failure of a command line that does not parse."""
    remedy = f"see {help_command} --help"
    parts = {"problem": printable(problem), "remedy": printable(remedy)}
    return Failure(f"{problem} ({remedy})", UsageError.exit_code, ErrorCode.USAGE, UsageError.__name__, parts)


def interrupted_failure(error: Interrupted) -> Failure:
    """Return the failure of a command that a signal ended."""
    parts = {"problem": error.problem, "remedy": error.remedy}
    return Failure(str(error), error.exit_code, ErrorCode.INTERRUPTED, Interrupted.__name__, parts)


def system_failure(problem: str, code: ErrorCode, where: str | None = None) -> Failure:
    """Return the failure of a call of the system that nothing converted."""
    message = f"{where}: {problem}" if where else problem
    parts = {"problem": printable(problem), "where": None if where is None else printable(where)}
    return Failure(message, InputOutputError.exit_code, code, InputOutputError.__name__, parts)


def json_requested(arguments: Sequence[str]) -> bool:
    """Return whether a command line, which perhaps cannot be parsed, asks for JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options
