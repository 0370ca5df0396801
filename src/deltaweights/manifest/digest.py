"""The digests of tensors and checkpoints. Frozen: docs/manifest-format.md states them, with golden vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Protocol

from blake3 import blake3

from deltaweights.checkpoint.checksums import refuse_damage
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.util.text import compact_json, compact_pieces, in_chunks


class Hasher(Protocol):
    """What BLAKE3 and hashlib's digests have in common."""

    def update(self, data: memoryview, /) -> object:
        """Add ``data`` to what is digested."""

    def hexdigest(self) -> str:
        """Return the digest of all data so far."""


def tensor_hasher() -> Hasher:
    """Return a new hasher for the row-major little-endian bytes of one tensor."""
    return blake3()


def tensor_digest(hasher: Hasher) -> str:
    """Return the tensor digest: ``blake3:`` and 64 hex digits."""
    return f"blake3:{hasher.hexdigest()}"


class SourceDigest:
    """The digest of an input tensor whose bytes are added in order, together with the checksum that its container records."""

    def __init__(self, tensor: LazyTensor, *, verify_checksum: bool = True) -> None:
        self._tensor, self._hasher = tensor, tensor_hasher()
        self._checksum = tensor.checksum.start() if tensor.checksum is not None and verify_checksum else None

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the tensor."""
        self._hasher.update(data)
        if self._checksum is not None:
            self._checksum.update(data)

    def finish(self) -> str:
        """Return the tensor digest. Raises ``MalformedInput`` when the bytes do not match the recorded checksum."""
        refuse_damage(self._tensor, self._checksum)
        return tensor_digest(self._hasher)


def digested(chunks: Iterable[bytes | memoryview], hasher: Hasher) -> Iterator[bytes | memoryview]:
    """Yield ``chunks``, adding each to ``hasher`` first."""
    for chunk in chunks:
        hasher.update(memoryview(chunk))
        yield chunk


def json_digest(prefix: str, value: object) -> str:
    """Return ``prefix``, a colon, and the BLAKE3 of the compact JSON of ``value``, which may hold lazy objects."""
    hasher = blake3()
    for chunk in in_chunks(compact_pieces(value)):
        hasher.update(chunk)
    return f"{prefix}:{hasher.hexdigest()}"


def content_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Return the content digest of a checkpoint, given (name, dtype, shape, tensor digest) of each tensor in any order.

    ``dw1:`` and the BLAKE3 of one line ``[name,dtype,[shape],digest]`` per tensor, as compact UTF-8 JSON, sorted by the bytes of
    the name. It does not depend on sharding, container, order or metadata, and does not cover configuration files.
    """
    hasher = blake3()
    in_order = sorted(tensors, key=itemgetter(0))  # sorting by code point is sorting by the bytes of UTF-8
    for chunk in in_chunks(f"{compact_json(line)}\n" for line in in_order):
        hasher.update(chunk)
    return f"dw1:{hasher.hexdigest()}"
