"""Checkpoints of every format to list, and what their listings must say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from deltaweights.manifest.listing import Listing, list_checkpoint
from tests.support.pairs import Tensors, save

ROOT = Path(__file__).parents[2]

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"

DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def kept(folder: Path, to: Path, **options: Any) -> Listing:
    """Write the listing of a folder to ``to``."""
    listing = list_checkpoint(folder, **options)
    to.write_bytes(listing.document)
    return listing


def digest_of(tensor: torch.Tensor) -> str:
    """Return the tensor digest, from the bytes that torch gives."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return f"blake3:{blake3(data).hexdigest()}"


def content_of(tensors: Tensors) -> str:
    """Return the content digest as defined in docs/manifest-format.md."""
    rows = [[name, DTYPES[t.dtype], list(t.shape), digest_of(t)] for name, t in tensors.items()]
    rows.sort(key=lambda row: str(row[0]).encode())
    lines = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    return f"dw1:{blake3(lines.encode()).hexdigest()}"


def files_of(folder: Path) -> dict[str, dict[str, object]]:
    """Return size and sha256 of the regular files in a folder, computed by hashlib."""
    return {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.is_file()
    }


def save_legacy(tensors: Tensors, folder: Path) -> Path:
    """Save a checkpoint as torch did before 1.6, in one file with an arbitrary name."""
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "weights.pth", _use_new_zipfile_serialization=False)
    return folder


def small() -> Tensors:
    """Return tensors of several dtypes and shapes: empty ones, scalars, and one longer than a read."""
    torch.manual_seed(3)
    return {
        "long": torch.randn(700, 900).half(), "a.10": torch.randn(3, 4), "a.9": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5).double(), "bits": torch.tensor([True, False]),
    }  # fmt: skip


FORMS: dict[str, Callable[[Tensors, Path], Path]] = {
    "safetensors": lambda tensors, folder: save(tensors, folder, "safetensors", 1),
    "shards": lambda tensors, folder: save(tensors, folder, "safetensors", 3),
    "torch": lambda tensors, folder: save(tensors, folder, "torch", 2),
    "legacy": save_legacy,
}
