"""How errors put their parts into one line."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from deltaweights.errors import (
    CheckFailed,
    DeltaweightsError,
    InputOutputError,
    MalformedInput,
    Mismatch,
    TargetBusy,
    UsageError,
)

CODES = {UsageError: 2, MalformedInput: 3, Mismatch: 4, InputOutputError: 5, CheckFailed: 6, TargetBusy: 7}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "wrong"),
        ({"where": Path("a/b")}, "a/b: wrong"),
        ({"tensor": "w"}, "tensor w: wrong"),
        ({"found": 0}, "wrong: found 0"),
        ({"expected": "[2]"}, "wrong: expected [2]"),
        ({"remedy": "do this"}, "wrong; do this"),
        (
            {"where": "f", "tensor": "w", "found": "[1]", "expected": "[2]", "remedy": "do this"},
            "f: tensor w: wrong: found [1], expected [2]; do this",
        ),
        ({"found": "x" * 301}, f"wrong: found {'x' * 300} and so on"),
        ({"tensor": "a\x1b[2J\nb"}, r"tensor a\x1b[2J\nb: wrong"),
    ],
)
def test_a_message_is_one_printable_line(fields: dict[str, Any], line: str) -> None:
    """File, tensor, problem, found, expected and remedy stand in this order, and stay as attributes."""
    error = MalformedInput("wrong", **fields)
    assert str(error) == line
    assert error.problem == "wrong"
    for name in ("where", "tensor", "found", "expected", "remedy"):
        assert getattr(error, name) == fields.get(name)


def test_exit_codes() -> None:
    """Each kind of error has the exit code that docs/design.md states; the base class has that of a bug."""
    assert {kind: kind.exit_code for kind in DeltaweightsError.__subclasses__()} == CODES
    assert DeltaweightsError.exit_code == 1


def test_errors_of_the_system() -> None:
    """They keep the system's words; where too many files are open, the remedy is another limit."""
    missing = InputOutputError.from_os(FileNotFoundError(errno.ENOENT, "No such file or directory"), "a", "open")
    assert str(missing) == "a: cannot open: No such file or directory"
    many = InputOutputError.from_os(
        OSError(errno.EMFILE, "Too many open files"), "a", "open", "a remedy that does not help"
    )
    assert many.remedy is not None
    assert "ulimit -n" in many.remedy
