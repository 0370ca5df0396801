"""The cache as the oldest client that we support leaves it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import foreign
from tests.support.hub_checkpoint import ONE, key
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, local, results, serve
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE

OLDEST = "huggingface_hub==0.34.6"

pytestmark = pytest.mark.slow


def test_what_the_oldest_hf_fetched_is_merged_offline(
    machine: Machine, hub: HubServer, large_torch: Pair, tmp_path: Path
) -> None:
    """Nothing is fetched again, every hash is known, and the result is that of the local folders."""
    hf = foreign.install(tmp_path / "venv", OLDEST) / "hf"
    serve(hub, large_torch)
    for role in ("base", "delta"):
        subprocess.run([hf, "download", f"acme/{role}"], check=True, capture_output=True, timeout=PATIENCE)
    asked = len(hub.requests)
    out = tmp_path / "out"
    inputs = ("--base", "acme/base", "--delta", "acme/delta")
    done = machine.run("apply", "--offline", *inputs, "--target", out, "--require-verified")
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == asked
    local(large_torch, tmp_path / "other")
    assert results(out) == results(tmp_path / "other")


def test_it_uses_what_we_fetched(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Our cache is one that the oldest client takes files from without asking for them again."""
    hf = foreign.install(tmp_path / "venv", OLDEST) / "hf"
    done = machine.fetch("acme/base")
    sent = hub.sent[f"acme/base/{ONE}"]
    found = subprocess.run(
        [hf, "download", "acme/base", ONE], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert found.stdout.strip().endswith(f"{done.commit}/{ONE}")
    assert Path(found.stdout.strip()).readlink().name == key(folder / ONE)
    assert hub.sent[f"acme/base/{ONE}"] < sent + 1000
