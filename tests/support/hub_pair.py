"""A base and a delta on the loopback Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.apply import ApplyResult, apply_delta
from tests.support.hub_server import HubServer
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

BASE, DELTA = "acme/base", "acme/delta"

STREAM = HubOptions(stream=True)

Pair = tuple[Path, Path]


def make(folder: Path, base: Tensors, delta: Tensors, container: str, shards: int) -> Pair:
    """Save a pair, with a tokenizer in both."""
    made = save(base, folder / "base", container, shards), save(delta, folder / "delta", container, shards)
    for number, path in enumerate(made):
        (path / "tokenizer.model").write_bytes(bytes(range(100 + number)))
    return made


def make_large(folder: Path, container: str) -> Pair:
    base = base_tensors(layers=3, vocabulary=2000, hidden=256)
    return make(folder, base, delta_tensors(base), container, 2)


def serve(hub: HubServer, pair: Pair) -> dict[str, str]:
    """Push a pair to the Hub; return the commits by role."""
    return {role: hub.push(f"acme/{role}", path) for role, path in zip(("base", "delta"), pair, strict=True)}


def results(folder: Path) -> dict[str, bytes]:
    """Return the files of a result that do not depend on where its inputs are from."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: data for name, data in files.items() if name not in {"manifest.json", "SHA256SUMS", "README.md"}}


def local(pair: Pair, target: Path, **options: Any) -> ApplyResult:
    """Merge the local folders."""
    return apply_delta(*pair, target, **options)


def arrived(hub: HubServer) -> int:
    """Return how many bytes of weights were sent."""
    return sum(count for name, count in hub.sent.items() if name.endswith((".bin", ".safetensors")))


def weights_of(pair: Pair) -> int:
    return sum(p.stat().st_size for folder in pair for p in folder.iterdir() if p.suffix in {".bin", ".safetensors"})
