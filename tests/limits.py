"""How long tests wait for what may hang. No test states a time of its own: a busy machine is no fault of the program's."""

from __future__ import annotations

HANG = 600
"""Seconds after which a test is stopped: ``timeout`` in pyproject.toml."""

PATIENCE = 480
"""Seconds after which a child of a test is: before the test itself, so that it is the child that is told of."""
