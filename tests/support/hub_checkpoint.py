"""A checkpoint's repository on the loopback Hub, and checks of the cache."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer

BASE = "acme/base"

INDEX = "model.safetensors.index.json"

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

NEEDED = ("LICENSE", "README.md", "config.json", ONE, TWO, INDEX, "tokenizer.model", "vocab.txt")

OTHERS = ("optimizer.pt", "training_args.bin", "sub/vocab.txt")

GOOD = "hf_good"
"""A token."""

PIECE = 1 << 20


def key(path: Path) -> str:
    """Return the name of a file's blob: the sha256 of what the loopback Hub keeps in LFS, else git's hash."""
    content = path.read_bytes()
    lfs = path.suffix in {".safetensors", ".bin", ".model"}
    return hashlib.sha256(content).hexdigest() if lfs else git_hash(content)


def assert_whole(machine: Machine, folder: Path, commit: str, names: tuple[str, ...] = NEEDED) -> None:
    """Assert that the cache has these files of a commit as ``hf`` would have them, and nothing else."""
    repository = machine.repository(BASE)
    snapshot = repository / "snapshots" / commit
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(names)
    for name in names:
        assert (snapshot / name).readlink() == Path("../../blobs") / key(folder / name)
        assert (snapshot / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(machine.blobs(BASE)) == sorted(key(folder / name) for name in names)


def sent(hub: HubServer, name: str) -> int:
    return hub.sent[f"{BASE}/{name}"]


def snapshot_file(machine: Machine, commit: str, name: str) -> Path:
    return machine.repository(BASE) / "snapshots" / commit / name


FOREVER = math.inf


def key_of_blob(blob: Path) -> str:
    """Return a blob's hash, of the kind that its name is."""
    content = blob.read_bytes()
    return hashlib.sha256(content).hexdigest() if len(blob.name) == 64 else git_hash(content)


LOG_IN = "log in with: hf auth login, or set HF_TOKEN"
