"""How many files this process may hold open at once.

Enters: nothing. Leaves: a limit that is as high as the system lets it be, and what to do where that is too low.
"""

from __future__ import annotations

import resource
from contextlib import suppress

ENOUGH = 65_536
"""What is asked for where the system names no limit, or grants less than it names."""


def allow_most() -> None:
    """Raise this process's limit as far as it may be raised without rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, ENOUGH, 10_240):  # macOS says "unlimited", and grants 10,240 at times
        if wanted == resource.RLIM_INFINITY or soft < wanted:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def most_open() -> int | None:
    """Return the limit, None where there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
