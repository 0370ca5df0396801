"""The memory of a merge that streams its inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.hub_client import Machine
from tests.support.hub_pair import arrived, local, results, serve, weights_of
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.pairs import save

SHARDS, COLUMNS = 33, 4096

PROGRAM = """
from deltaweights import apply_delta
from deltaweights.hub.locate import HubOptions
apply_delta("acme/base", "acme/delta", {target!r}, hub=HubOptions(stream=True), workers={workers}, allow_unproved_base=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("workers", [2, 8])
def test_many_streamed_files(machine: Machine, hub: HubServer, tmp_path: Path, workers: int) -> None:
    """33 shards of 8 MB of each input are streamed in less than 150 MB, and little is fetched twice."""
    random = np.random.default_rng(3)
    bits = {f"model.layers.{n}.w.weight": random.integers(0, 1 << 15, (1024, COLUMNS), np.int16) for n in range(SHARDS)}
    base = {name: torch.from_numpy(each % 0x3C00).view(torch.float16) for name, each in bits.items()}
    delta = {name: tensor / 1024 for name, tensor in base.items()}
    made = save(base, tmp_path / "base", "safetensors", SHARDS), save(delta, tmp_path / "delta", "safetensors", SHARDS)
    serve(hub, made)
    program = PROGRAM.format(target=str(tmp_path / "out"), workers=workers)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    peak = int(done.stdout) * 1024

    assert peak < 150_000_000
    # Samples of files as small as these are a good part of them, and are fetched again when their turn comes.
    assert arrived(hub) < 1.5 * weights_of(made)
    local(made, tmp_path / "local", allow_unproved_base=True)
    assert results(tmp_path / "out") == results(tmp_path / "local")
