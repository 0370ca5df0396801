"""How many files this process may have open at once."""

from __future__ import annotations

import resource
from contextlib import suppress

ENOUGH = 65_536  # requested where the system states no limit, or grants less than it states


def allow_most() -> None:
    """Raise this process's limit as far as possible without privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, ENOUGH, 10_240):  # macOS says "unlimited", and sometimes grants 10,240
        if wanted == resource.RLIM_INFINITY or soft < wanted:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def most_open() -> int | None:
    """Return the limit, None where there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
