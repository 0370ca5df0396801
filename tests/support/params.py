"""Parameters of which the fast suite takes a few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], quick: int) -> list[Any]:
    """Return ``values``, of several arguments if they are tuples, as parameters; all but the first ``quick`` are slow."""
    parameters = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*each, marks=[pytest.mark.slow] if number >= quick else [])
        for number, each in enumerate(parameters)
    ]
