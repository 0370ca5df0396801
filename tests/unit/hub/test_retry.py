"""How long a retry waits."""

from __future__ import annotations

import email.utils
import threading
import time
from pathlib import Path

import pytest

from deltaweights.hub import retry
from deltaweights.hub.retry import LONGEST_WAIT, MAX_RETRIES, RetryPolicy
from tests.support.hub_checkpoint import (
    BASE,
    ONE,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import Fault, HubServer

WAITS: dict[str, tuple[dict[str, str], list[float]]] = {
    "nothing asked": ({}, [0.5, 1, 2, 4, 8, 16]),
    "Retry-After": ({"retry-after": "7"}, [7] * MAX_RETRIES),
    "Retry-After of an hour": ({"retry-after": "3600"}, [LONGEST_WAIT] * MAX_RETRIES),
    "a date that is over": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, [0] * MAX_RETRIES),
    "words": ({"retry-after": "soon"}, [0.5, 1, 2, 4, 8, 16]),
    "RateLimit, used up": ({"ratelimit": '"api";r=0;t=3'}, [3] * MAX_RETRIES),
    "RateLimit, not used up": ({"ratelimit": '"api";r=2999;t=172'}, [0.5, 1, 2, 4, 8, 16]),
    "both": ({"retry-after": "1", "ratelimit": '"api";r=0;t=9'}, [1] * MAX_RETRIES),
}


@pytest.mark.parametrize(("headers", "expected"), WAITS.values(), ids=WAITS.keys())
def test_how_long_is_waited(headers: dict[str, str], expected: list[float]) -> None:
    """Waits double, with jitter, or are what the server asks for, until the retries are used up."""
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    policy = RetryPolicy(Stop())
    assert [policy.wait(headers) for _ in range(MAX_RETRIES + 1)] == [True] * MAX_RETRIES + [False]
    assert all(low <= found <= 1.25 * low for found, low in zip(waits, expected, strict=True))
    policy.reset()
    assert policy.wait(headers)
    assert waits[-1] <= 1.25 * expected[0]


def test_a_date_to_come() -> None:
    """Retry-After can be a date."""
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < (retry.requested_wait({"retry-after": soon}) or 0) <= 30


def test_waits_are_told(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Retries are noted once, not by every connection."""
    hub.faults += [
        Fault("status", on="api", status=503, times=2),
        Fault("status", ONE, on="files", status=503, times=2),
    ]
    machine.fetch(BASE)
    assert [note for note in machine.said.notes if note.endswith(": trying again")] == [
        f"{hub.endpoint}: the Hub answered 503: trying again"
    ]
