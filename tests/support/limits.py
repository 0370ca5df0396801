"""How long tests wait. No test states a time of its own, so that the suite passes on a busy machine.

A limit on work is one on processor time.
"""

from __future__ import annotations

HANG = 600
"""Seconds after which a test is stopped: ``timeout`` in pyproject.toml."""

PATIENCE = 480
"""Seconds to wait for something, mostly a child process: less than ``HANG``, so that the test says what it waited for."""

AT_ONCE = 30
"""Seconds by the clock that count as at once: anything else that ends the wait in the same tests takes at least twice as long."""

MOMENT = 10.0
"""Seconds of processor time that count as no wait; a busy machine needs twice as many as an idle one for the same work."""

LONG = 3600
"""``HANG`` for proofs of all 2^32 cases, which take minutes on an idle machine."""
