"""A mirror of the Hub that others wrote and many use: olah."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hub_checkpoint import BASE, ONE, TWO, key
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, local, results, serve
from tests.support.hub_server import HubServer
from tests.support.olah import install, mirror

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def olah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("olah") / "venv")


def test_a_merge_through_olah(machine: Machine, hub: HubServer, olah: Path, large_torch: Pair, tmp_path: Path) -> None:
    """``apply`` through the mirror gives what it gives from local folders; every hash is known."""
    serve(hub, large_torch)
    with mirror(olah, hub.endpoint, tmp_path) as address:
        machine.turn_to(address)
        command = ("apply", "--base", "acme/base", "--delta", "acme/delta", "--target", tmp_path / "out")
        done = machine.run(*command, "--require-verified")
        assert done.returncode == 0, done.stderr
        assert "hashes not stated" not in done.stderr
        again = machine.run(*command[:-1], tmp_path / "again", "--offline")
        assert again.returncode == 0, again.stderr
    local(large_torch, tmp_path / "other")
    assert results(tmp_path / "out") == results(tmp_path / "other") == results(tmp_path / "again")


def test_a_download_through_olah(machine: Machine, hub: HubServer, olah: Path, folder: Path, tmp_path: Path) -> None:
    """``download`` leaves what ``hf`` would, under the hashes of the Hub."""
    with mirror(olah, hub.endpoint, tmp_path) as address:
        machine.turn_to(address)
        done = machine.fetch(BASE)
        for name in (ONE, TWO):
            assert (Path(done.path) / name).readlink().name == key(folder / name)
        assert machine.hf("download", BASE, ONE, HF_ENDPOINT=address).returncode == 0
    assert machine.said.warnings == []
