"""The documents that are written, frozen by docs/manifest-format.md: they depend on no machine, path or time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltaweights.manifest.tally import Tally
from deltaweights.util import limits
from deltaweights.util.json_reader import Document, JsonReader
from deltaweights.util.text import Json, LazyList, natural_key, readable_pieces

MANIFEST, SUMS, INDEX = "manifest.json", "SHA256SUMS", "model.safetensors.index.json"
MANIFEST_FORMAT, FRAGMENT_FORMAT, VERSION = "deltaweights-manifest", "deltaweights-fragment", 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Digests of a result tensor, its ``base`` (None if copied), its primary (``delta``); ``uniform``: which have one number."""

    name: str
    digest: str
    base: str | None
    delta: str
    tally: Tally
    uniform: tuple[str, ...] = ()

    def document(self) -> dict[str, Json]:
        """Return the record as JSON."""
        digests = {"name": self.name, "digest": self.digest, "base": self.base, "delta": self.delta}
        return digests | self.tally.document() | ({"uniform": list(self.uniform)} if self.uniform else {})

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> TensorRecord:
        """Reverse ``document``. Raises ``KeyError`` or ``TypeError`` when it is malformed."""
        rest = dict(document)
        uniform = tuple(rest.pop("uniform", ()))
        name, digest, base, delta = (rest.pop(key) for key in ("name", "digest", "base", "delta"))
        texts = [digest, delta, *uniform, *([] if base is None else [base])]
        if not isinstance(name, str) or not all(map(_is_ascii, texts)):
            raise TypeError("a tensor's record")
        return cls(name, digest, base, delta, Tally.from_document(rest), uniform)


@dataclass(frozen=True)
class Fragment:
    """The record of one finished shard of the plan ``plan``."""

    plan: str
    file: str
    record: FileRecord
    tensors: tuple[TensorRecord, ...]

    def pieces(self) -> Iterator[str]:
        """Yield the fragment as a JSON document."""
        head = {"format": FRAGMENT_FORMAT, "version": VERSION, "plan": self.plan, "file": self.file}
        tensors = LazyList(lambda: (tensor.document() for tensor in self.tensors))
        return readable_pieces({**head, **vars(self.record), "tensors": tensors})

    @classmethod
    def from_bytes(cls, document: Document) -> Fragment:
        """Parse a fragment. Raises ``ValueError`` when it is malformed."""
        reader = JsonReader(document, limits.FRAGMENT)
        found: dict[str, Any] = {}
        try:
            for key in reader.members():
                if key == "tensors":
                    found[key] = tuple(TensorRecord.from_document(reader.value()) for _ in reader.items())
                else:
                    found[key] = reader.value()
            reader.end()
            check_format(found, FRAGMENT_FORMAT)
            plan, file, sha256, size = (found[key] for key in ("plan", "file", "sha256", "size"))
            if not all(map(_is_ascii, (plan, file, sha256))) or type(size) is not int:
                raise ValueError("fragment with a malformed file record")
            return cls(plan, file, FileRecord(size, sha256), found["tensors"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"fragment lacks a field, or has a wrong one: {error}") from None


def _is_ascii(value: Json) -> bool:
    return isinstance(value, str) and value.isascii()


def check_format(found: Mapping[str, Json], expected: str) -> None:
    """Raise ``ValueError`` when a document has another format or version."""
    if found.get("format") != expected:
        raise ValueError(f"not a {expected} document")
    if type(found.get("version")) is not int or found["version"] != VERSION:
        raise ValueError(f"{expected} version {found.get('version')}; this program reads version {VERSION}")


def index_bytes(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> bytes:
    """Return ``model.safetensors.index.json``, with the keys and the spacing of Hugging Face's writers, in natural order."""
    ordered = dict(sorted(weight_map.items(), key=lambda item: natural_key(item[0])))
    metadata = {"total_parameters": total_parameters, "total_size": total_size}
    return (json.dumps({"metadata": metadata, "weight_map": ordered}, ensure_ascii=False, indent=2) + "\n").encode()


def sums_bytes(files: Mapping[str, FileRecord], manifest_sha256: str) -> bytes:
    """Return ``SHA256SUMS`` for ``files`` and the manifest: a line ``HASH  NAME`` each, sorted by the bytes of the name."""
    hashes = {name: record.sha256 for name, record in files.items()} | {MANIFEST: manifest_sha256}
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=str.encode)).encode()


def manifest_pieces(result: Json, inputs: Json) -> Iterator[str]:
    """Yield ``manifest.json`` with these two parts."""
    return readable_pieces({"format": MANIFEST_FORMAT, "version": VERSION, "result": result, "inputs": inputs})


def check_file_name(name: Json) -> str:
    """Return ``name`` if it can neither leave its folder nor break a line of SHA256SUMS. Raises ``ValueError``."""
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r:.80} is not a plain file name")
    return name
