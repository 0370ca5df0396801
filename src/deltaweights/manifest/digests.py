"""The digests of files, and of the tensors in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaweights.manifest.parse import TensorRow
from deltaweights.manifest.records import FileRecord


@dataclass(frozen=True)
class Digests:
    """The digests by name, without files and tensors that cannot be read."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    tensors: dict[str, TensorRow] = field(default_factory=dict)
