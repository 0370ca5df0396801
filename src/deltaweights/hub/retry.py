"""How long to wait before a request is made again.

Enters: the headers of an answer that said "later", if there was one. Leaves: the wait. Never: a wait that a stop does not end.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Mapping

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be others the next time."""

TRIES, FIRST, LONGEST = 6, 0.5, 60.0
"""Waits in a row without a byte between them; the first one in seconds, which doubles; the longest that a server may ask for."""


EVERY = 10.0
"""Seconds between two remarks on waits: several connections wait at once."""


class ThrottledNotes:
    """Says what is waited for, but not all the time. Safe in threads."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._lock, self._last = note, threading.Lock(), -EVERY

    def say(self, text: str) -> None:
        """Pass a remark on, unless one was a moment ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < EVERY:
                return
            self._last = now
        self._note(text)


class RetryPolicy:
    """Waits ever longer, as often as is sensible; ``renew`` when there was progress."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._waits = stop, 0

    def renew(self) -> None:
        """Begin anew: something came."""
        self._waits = 0

    def wait(self, headers: Mapping[str, str] | None = None, tries: int | None = None) -> bool:
        """Wait, as long as ``headers`` ask for if they do; return False when it is time to give up, or to stop."""
        if self._waits >= (TRIES if tries is None else tries) or self._stop.is_set():
            return False
        asked = _asked(headers or {})
        # Not all at the same moment: several connections fail together.
        grown = FIRST * 2**self._waits * (1 + random.random() / 4)  # noqa: S311  (no secret)
        self._waits += 1
        return not self._stop.wait(min(grown if asked is None else asked, LONGEST))


def _asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait: Retry-After (RFC 9110), else the RateLimit header that the Hub sends."""
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,6}", after):
        return float(after)
    with contextlib.suppress(ValueError, OverflowError):  # of a date that is none
        date = email.utils.parsedate_tz(after)
        if date is not None:
            return max(0.0, email.utils.mktime_tz(date) - time.time())
    limit = re.search(r"\br=0\b.*\bt=([0-9]{1,6})", headers.get("ratelimit", ""))
    return float(limit.group(1)) if limit else None
