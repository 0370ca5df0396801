"""Errors asserted by their fields; how a message is put together is asserted in ``tests/unit/test_errors.py`` alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from deltaweights.errors import DeltaweightsError

E = TypeVar("E", bound=DeltaweightsError)


@contextmanager
def refused(kind: type[E], **fields: object) -> Iterator[pytest.ExceptionInfo[E]]:
    """Expect an error of exactly this class, with the given attributes.

    Fields compare as text, so that a path is equal to its string; None must be None.
    """
    with pytest.raises(kind) as info:
        yield info
    assert type(info.value) is kind
    for name, expected in fields.items():
        actual = getattr(info.value, name)
        assert (None if actual is None else str(actual)) == (None if expected is None else str(expected)), info.value


def facts(error: DeltaweightsError) -> str:
    """Return the line of an error without ``where`` and ``remedy``."""
    return str(DeltaweightsError(error.problem, tensor=error.tensor, found=error.found, expected=error.expected))
