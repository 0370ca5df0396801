"""Broken connections, refused requests and wrong ranges: retried, or reported in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.hub.retry import MAX_RETRIES
from tests.support.errors import refused
from tests.support.hub_checkpoint import (
    BASE,
    FOREVER,
    ONE,
    PIECE,
    assert_whole,
    key_of_blob,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import Fault, HubServer

MENDED: dict[str, list[Fault]] = {
    "short body": [Fault("short", ONE, at=2_000_000)],
    "dropped": [Fault("drop", ONE, at=2_000_000)],
    "dropped at once": [Fault("drop", ONE, at=0)],
    "dropped again and again": [Fault("drop", ONE, at=at) for at in range(100_000, 3_400_000, 300_000)],
    "reset": [Fault("reset", ONE, at=2_000_000)],
    "hang-up": [Fault("hang-up", times=4)],
    "stall": [Fault("stall", ONE, at=2_000_000, seconds=60)],
    "503 of the api": [Fault("status", on="api", times=MAX_RETRIES)],
    "503 of resolve": [Fault("status", ONE, on="resolve", times=MAX_RETRIES)],
    "503 of the file host": [Fault("status", ONE, on="files", times=MAX_RETRIES)],
    "500, 502, 504": [Fault("status", ONE, status=status) for status in (500, 502, 504)],
    "429, Retry-After": [Fault("status", ONE, status=429, headers={"Retry-After": "0"}, times=MAX_RETRIES)],
    "429, RateLimit": [
        Fault("status", on="api", status=429, headers={"RateLimit": '"api";r=0;t=0'}, times=MAX_RETRIES)
    ],
    "429, a date": [
        Fault("status", ONE, status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, times=MAX_RETRIES)
    ],
    "no ranges": [Fault("no-range", times=FOREVER)],
    "no ranges, and dropped": [Fault("no-range", ONE, times=FOREVER), Fault("drop", ONE, at=2_000_000)],
    "signed address expired": [Fault("drop", ONE, at=1_500_000), Fault("expire", ONE)],
    "redirected elsewhere": [Fault("redirect", times=FOREVER)],
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("faults", MENDED.values(), ids=MENDED.keys())
def test_mended_on_the_way(machine: Machine, hub: HubServer, folder: Path, faults: list[Fault]) -> None:
    """Broken, late or temporarily refused connections, and a server without ranges, give the same files."""
    hub.faults.extend(faults)
    commit = machine.fetch(BASE).commit
    assert all(fault.served for fault in faults)
    assert_whole(machine, folder, commit)
    assert machine.said.warnings == []


def test_a_dropped_connection_goes_on_where_it_was(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After a drop, at most one chunk is requested again."""
    hub.faults.append(Fault("drop", ONE, at=2_000_000))
    machine.fetch(BASE)
    ranges = [request.range for request in hub.requests if request.file.endswith(ONE) and request.host == "files"]
    size = (folder / ONE).stat().st_size
    assert ranges[0] == f"bytes=0-{size - 1}"
    assert ranges[1] is not None
    assert 1_700_000 < int(ranges[1].removeprefix("bytes=").partition("-")[0]) <= 2_000_000


SIZE = 3 * PIECE + 400_000

Fields = dict[str, object]

OTHER_SIZE, KEPT = "has another size than the Hub states", "run again: what has arrived is kept"

LASTING: dict[str, tuple[Fault, str, Fields]] = {
    "size of a large file": (Fault("size", ONE), ONE, {"problem": OTHER_SIZE, "found": SIZE, "expected": SIZE + 1}),
    "size, one less": (Fault("size", ONE, value=SIZE - 1), ONE, {"found": SIZE, "expected": SIZE - 1}),
    "size of a small file": (Fault("size", "README.md"), "README.md", {"found": 21, "expected": 22}),
    "size of an empty file": (Fault("size", "vocab.txt"), "vocab.txt", {"found": None, "expected": 1}),
    "Content-Range": (
        Fault("content-range", ONE, times=FOREVER),
        ONE,
        {"problem": f"the server sends another range, bytes 1-{SIZE}/{SIZE}, than bytes 0-{SIZE - 1}/{SIZE}"},
    ),
    "short": (
        Fault("short", ONE, at=2_000_000, times=FOREVER),
        ONE,
        {"problem": "the connection ended at byte 2000000", "remedy": KEPT},
    ),
    "503 of the api": (Fault("status", on="api", times=FOREVER), "", {"problem": "the Hub answered 503"}),
    "503 of the file host": (
        Fault("status", ONE, on="files", times=FOREVER),
        ONE,
        {"problem": "the server answered 503", "remedy": KEPT},
    ),
    "never a valid address": (
        Fault("expire", ONE, times=FOREVER),
        ONE,
        {"problem": "the server answered 403", "remedy": KEPT},
    ),
    "redirected to nowhere": (Fault("redirect", ONE, location="http://[", times=FOREVER), ONE, {"found": "http://["}),
    "redirected to another protocol": (
        Fault("redirect", ONE, location="file:///etc/passwd", times=FOREVER),
        ONE,
        {"found": "file:///etc/passwd"},
    ),
    "redirected to itself": (
        Fault("headers", ONE, on="resolve", headers={"Location": f"/{BASE}/resolve/COMMIT/{ONE}"}, times=FOREVER),
        ONE,
        {"problem": "too many redirects"},
    ),
    "418": (Fault("status", ONE, status=418, times=FOREVER), ONE, {"problem": "the Hub answered 418"}),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("fault", "name", "fields"), LASTING.values(), ids=LASTING.keys())
def test_lasting_errors(
    machine: Machine, hub: HubServer, folder: Path, fault: Fault, name: str, fields: Fields
) -> None:
    """False metadata and lasting errors end the download with 5, and nothing damaged is published."""
    commit = hub.push(BASE, folder)
    if "Location" in fault.headers:
        fault.headers = {"Location": str(fault.headers["Location"]).replace("COMMIT", commit)}
    hub.faults.append(fault)
    where = f"hf://{BASE}@{commit}/{name}" if name else f"hf://{BASE}"
    with refused(InputOutputError, where=where, **fields):
        machine.fetch(BASE)
    hub.faults.clear()
    for blob_name, blob in machine.blobs(BASE).items():
        assert "deltaweights" in blob_name or key_of_blob(blob) == blob_name
    assert_whole(machine, folder, machine.fetch(BASE).commit)
