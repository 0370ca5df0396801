"""How long to wait before a request is sent again."""

from __future__ import annotations

import contextlib
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Mapping

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

MAX_RETRIES = 6  # in a row without receiving a byte

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds. The first wait doubles with each retry; no server can ask for more than the longest."""

NOTE_INTERVAL = 10.0  # seconds between two notes on retries: several connections wait at once


class ThrottledNotes:
    """Passes on notes on retries, at most one in ``NOTE_INTERVAL``. Thread-safe."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._lock, self._last = note, threading.Lock(), -NOTE_INTERVAL

    def note(self, text: str) -> None:
        """Pass a note on, or drop it when the last one is recent."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < NOTE_INTERVAL:
                return
            self._last = now
        self._note(text)


class RetryPolicy:
    """Waits with exponential backoff, or as long as the server asks; a stop ends every wait."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._retries = stop, 0

    def reset(self) -> None:
        """Start over, since there was progress."""
        self._retries = 0

    def wait(self, headers: Mapping[str, str] | None = None, retries: int | None = None) -> bool:
        """Wait for the next attempt; return False when there should be none. ``headers`` are those of the response."""
        if self._retries >= (MAX_RETRIES if retries is None else retries) or self._stop.is_set():
            return False
        requested = requested_wait(headers or {})
        # With jitter, since several connections fail together.
        backoff = FIRST_WAIT * 2**self._retries * (1 + random.random() / 4)  # noqa: S311  (no secret)
        self._retries += 1
        return not self._stop.wait(min(backoff if requested is None else requested, LONGEST_WAIT))


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds the server asks to wait: Retry-After (RFC 9110), else the RateLimit header that the Hub sends."""
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,6}", after):
        return float(after)
    with contextlib.suppress(ValueError, OverflowError):  # an impossible date
        date = email.utils.parsedate_tz(after)
        if date is not None:
            return max(0.0, email.utils.mktime_tz(date) - time.time())
    limit = re.search(r"\br=0\b.*\bt=([0-9]{1,6})", headers.get("ratelimit", ""))
    return float(limit.group(1)) if limit else None
