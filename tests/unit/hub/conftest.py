"""A checkpoint's repository on the loopback Hub, and a machine that uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.hub_checkpoint import INDEX, ONE, PIECE, TWO
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_pair import (
    BASE,
    Pair,
    make,
    make_large,
)
from tests.support.hub_server import HubServer
from tests.support.pairs import base_tensors, delta_tensors


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint's repository: two shards, what travels with them, and files that nobody needs."""
    made = tmp_path_factory.mktemp("repository")
    bytes_of = np.random.default_rng(5).bytes
    (made / "sub").mkdir()
    (made / "sub/vocab.txt").write_text("the\n")
    (made / "optimizer.pt").write_bytes(bytes_of(1000))
    (made / "training_args.bin").write_bytes(bytes_of(1000))
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    (made / "LICENSE").write_text("Do as you like.\n" * 100)
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "about": "words " * 300}))
    (made / "vocab.txt").write_text("")
    (made / "tokenizer.model").write_bytes(bytes_of(1000))
    (made / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": ONE, "b": TWO}}))
    (made / ONE).write_bytes(bytes_of(3 * PIECE + 400_000))
    (made / TWO).write_bytes(bytes_of(PIECE + 1))
    return made


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    """Serve the repository."""
    with HubServer({BASE: folder}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub."""
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


@pytest.fixture(scope="session", params=["torch-1", "torch-2", "safetensors-1", "safetensors-2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a tiny pair in each format, of one shard and of several."""
    container, shards = request.param.split("-")
    base = base_tensors()
    return make(tmp_path_factory.mktemp("pair"), base, delta_tensors(base), container, int(shards))


@pytest.fixture(scope="session", params=["torch", "safetensors"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair of which each file has many pieces, some 4 MB each."""
    return make_large(tmp_path_factory.mktemp("large"), request.param)


@pytest.fixture(scope="session")
def large_torch(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair as above, in torch's format."""
    return make_large(tmp_path_factory.mktemp("large_torch"), "torch")
