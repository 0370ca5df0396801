"""How many requests run at a time: fewer while a server refuses some, more again while it does not."""

from __future__ import annotations

import threading

CONNECTIONS = 8
"""Requests at a time, unless the user or a server wants fewer."""


class TooManyConnections(Exception):
    """A request was refused while others run: what it was to fetch is to wait for its turn."""


class Connections:
    """The limit of one run, halved by a refusal and raised by one with each request that ends well. Thread-safe."""

    def __init__(self, most: int = CONNECTIONS) -> None:
        self.most, self.limit = most, most
        self.running, self.received = 0, 0
        self._lock = threading.Lock()

    @property
    def free(self) -> bool:
        """Whether another request may begin."""
        return self.running < self.limit

    def begin(self) -> None:
        """Count a request that begins."""
        with self._lock:
            self.running += 1

    def end(self, *, well: bool) -> None:
        """Count a request that ended, ``well`` or not."""
        with self._lock:
            self.running -= 1
            self.limit = min(self.most, self.limit + well)

    def progressed(self, nbytes: int) -> None:
        """Count bytes that arrived, of any file: while some do, the others have patience."""
        with self._lock:
            self.received += nbytes

    def refused(self) -> bool:
        """Lower the limit after a refusal; return whether there are now too many requests, of which this one should end."""
        with self._lock:
            if self.running <= 1:
                return False
            self.limit = max(1, min(self.limit, self.running) // 2)
            return self.running > self.limit
