"""Servers that limit connections, refuse ranges, or let bytes trickle."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.hub import transfer
from deltaweights.hub.connections import Connections
from tests.support.errors import refused
from tests.support.hub_checkpoint import BASE, FOREVER, ONE, assert_whole
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, local, results, serve
from tests.support.hub_server import Fault, HubServer
from tests.support.hub_wire import text


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("most", [1, 3])
def test_a_host_that_takes_few_connections(
    machine: Machine, hub: HubServer, folder: Path, most: int, status: int
) -> None:
    """What is refused waits for its turn, as long as something arrives; every file comes."""
    machine.ask_for_little(1 << 16, 1 << 18)
    hub.refusal = text(status, "Too many connections", {"Retry-After": "0", "Content-Length": "20"})
    hub.allow(most)
    commit = machine.fetch(BASE).commit
    assert_whole(machine, folder, commit)
    assert machine.said.warnings == []


def test_a_merge_from_a_host_that_takes_one(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """A merge reads two inputs at once over the one connection that there is."""
    serve(hub, large_torch)
    hub.allow(1)
    done = machine.run("apply", "--base", "acme/base", "--delta", "acme/delta", "--target", machine.folder / "out")
    assert done.returncode == 0, done.stderr
    local(large_torch, machine.folder / "other")
    assert results(machine.folder / "out") == results(machine.folder / "other")


@pytest.mark.parametrize("most", [1, 2])
def test_max_workers(machine: Machine, hub: HubServer, folder: Path, most: int) -> None:
    """--max-workers is the number of requests at a time."""
    machine.ask_for_little(1 << 16, 1 << 17)
    hub.allow(most)
    done = machine.run("download", BASE, "--max-workers", str(most))
    assert done.returncode == 0, done.stderr
    assert not [request for request in hub.requests if request.status == 429]
    assert machine.run("download", BASE, "--max-workers", "0").returncode == 2


def test_a_host_that_refuses_ranges(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After 403 for ranges at fresh addresses, whole files are asked for."""
    hub.refuses_ranges = True
    commit = machine.fetch(BASE).commit
    assert_whole(machine, folder, commit)


def test_an_address_that_expires_costs_no_wait(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new address is asked for at once."""
    waits: list[object] = []
    monkeypatch.setattr(transfer._Attempt, "wait", lambda *of: not waits.append(of))  # type: ignore[func-returns-value]
    hub.faults += [Fault("drop", ONE, at=1_500_000), Fault("expire", ONE)]
    assert_whole(machine, folder, machine.fetch(BASE).commit)
    assert machine.said.warnings == []
    assert len(waits) == 1  # for the drop


def test_a_trickle_is_ended(machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes too slowly is dropped, and asked for again from where it was."""
    monkeypatch.setattr(transfer, "LONG_ENOUGH", 0.3)
    hub.faults.append(Fault("trickle", ONE, at=1_000_000, seconds=0.2))
    assert_whole(machine, folder, machine.fetch(BASE).commit)


@pytest.mark.slow
def test_what_trickles_for_ever_is_an_error(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes with each try are no progress."""
    monkeypatch.setattr(transfer, "LONG_ENOUGH", 0.1)
    hub.faults += [Fault("trickle", ONE, at=at, seconds=0.15, times=FOREVER) for at in range(1_000_000, 1_100_000, 100)]
    with refused(InputOutputError, problem="the server sends less than 1024 bytes a second"):
        machine.fetch(BASE)


def test_the_limit_falls_with_refusals_and_rises_again() -> None:
    """Half with each refusal, never below one; one more with each request that ends well, never above the most."""
    connections = Connections(8)
    for _ in range(8):
        connections.begin()
    assert not connections.free
    assert connections.refused()
    assert connections.limit == 4
    for _ in range(7):
        connections.end(well=False)
    assert connections.free
    assert not connections.refused()  # the only one that runs must not end
    for _ in range(10):
        connections.begin()
        connections.end(well=True)
    assert connections.limit == 8
