"""How long tests wait. No test states a time of its own: that a machine is busy is no fault of the program's.

The suite passes on a machine with ten times as much to do as it can; a limit on work is one on processor time.
"""

from __future__ import annotations

HANG = 600
"""Seconds after which a test is stopped: ``timeout`` in pyproject.toml."""

PATIENCE = 480
"""Seconds after which what a test waits for, a child mostly, is not coming any more: less than ``HANG``, so that it is named."""

AT_ONCE = 30
"""Seconds by the clock that are at once: what else would end the waiting, in the same tests, takes twice as long or longer."""

MOMENT = 10.0
"""Seconds of processor time that are no wait; a busy machine takes twice those of an idle one for the same work."""

LONG = 3600
"""``HANG`` of proofs that go through all 2^32 cases: minutes, on a machine with nothing else to do."""
