"""The records of what was written: fragments, index, manifest and SHA256SUMS. Frozen: docs/manifest-format.md.

Enters: values that were digested while they were written. Leaves: the bytes of the documents, and documents parsed and checked.
Never: an open file, or anything that depends on the machine, the path or the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltaweights.checkpoint.tensors import name_fault
from deltaweights.text import Json, natural_key, readable_json, strict_json

MANIFEST, SUMS, INDEX = "manifest.json", "SHA256SUMS", "model.safetensors.index.json"

MANIFEST_FORMAT, FRAGMENT_FORMAT, VERSION = "deltaweights-manifest", "deltaweights-fragment", 1

MOST_OBJECTS = 400_000
"""Objects in a manifest of as many tensors as a checkpoint may have: each stands in the result and in both inputs."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """Digests of one result tensor and of what it was made of; ``base`` is None when it was copied.

    ``delta`` is the digest of the delta, or of the target that a delta is made from. ``nonfinite`` counts NaN and infinite
    elements, ``inexact`` those that do not come back when the delta is applied; None when nobody tried.
    """

    name: str
    digest: str
    base: str | None
    delta: str
    nonfinite: int
    inexact: int | None = None


@dataclass(frozen=True)
class Fragment:
    """The record of one finished shard of the plan ``plan``."""

    plan: str
    file: str
    record: FileRecord
    tensors: tuple[TensorRecord, ...]

    def to_bytes(self) -> bytes:
        """Return the fragment as a JSON document."""
        return readable_json(
            {
                "format": FRAGMENT_FORMAT,
                "version": VERSION,
                "plan": self.plan,
                "file": self.file,
                **vars(self.record),
                "tensors": [
                    {key: value for key, value in vars(tensor).items() if (key, value) != ("inexact", None)}
                    for tensor in self.tensors
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Fragment:
        """Parse a fragment. Raises ``ValueError`` when it is not one."""
        document = _document(data, FRAGMENT_FORMAT)
        try:
            return cls(
                document["plan"],
                document["file"],
                FileRecord(document["size"], document["sha256"]),
                tuple(TensorRecord(**tensor) for tensor in document["tensors"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"fragment lacks or misnames a field: {error}") from None


def _document(data: bytes, expected_format: str) -> dict[str, Any]:
    document = strict_json(data, MOST_OBJECTS)
    if not isinstance(document, dict) or document.get("format") != expected_format:
        raise ValueError(f"not a {expected_format} document")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise ValueError(f"{expected_format} version {document.get('version')}; this program reads version {VERSION}")
    return document


def index_bytes(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> bytes:
    """Return ``model.safetensors.index.json``, with the keys and the spacing of Hugging Face's writers, in natural order."""
    ordered = dict(sorted(weight_map.items(), key=lambda item: natural_key(item[0])))
    metadata = {"total_parameters": total_parameters, "total_size": total_size}
    return (json.dumps({"metadata": metadata, "weight_map": ordered}, ensure_ascii=False, indent=2) + "\n").encode()


def sums_bytes(files: Mapping[str, FileRecord], manifest: FileRecord) -> bytes:
    """Return ``SHA256SUMS`` for ``files`` and the manifest: a line ``HASH  NAME`` each, sorted by the bytes of the name."""
    ordered = sorted([*files.items(), (MANIFEST, manifest)], key=lambda item: item[0].encode())
    return "".join(f"{record.sha256}  {name}\n" for name, record in ordered).encode()


def manifest_bytes(result: Json, inputs: Json) -> bytes:
    """Return ``manifest.json`` for its two parts."""
    return readable_json({"format": MANIFEST_FORMAT, "version": VERSION, "result": result, "inputs": inputs})


@dataclass(frozen=True)
class Manifest:
    """What is read back from a manifest; ``tensors`` holds (dtype, shape, digest), ``places`` each tensor's file.

    ``plan`` is empty when the manifest names none; ``nonfinite`` counts NaN and infinities, ``inexact`` the weights of a delta
    that do not come back, None when nobody tried.
    """

    files: dict[str, FileRecord]
    tensors: dict[str, tuple[str, tuple[int, ...], str]]
    places: dict[str, str]
    content_digest: str
    plan: str
    nonfinite: dict[str, int]
    inexact: dict[str, int] | None = None


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check ``manifest.json``; keys that version 1 does not know are ignored.

    Raises ``ValueError`` when it is not a manifest of version 1, or a field is missing or of the wrong kind.
    """
    document = _document(data, MANIFEST_FORMAT)
    try:
        result, inputs = document["result"], document["inputs"]
        files = {
            plain_name(name): FileRecord(_size(f["size"]), _hex(f["sha256"])) for name, f in result["files"].items()
        }
        tensors = {
            _tensor_name(name): (_text(t["dtype"]), tuple(map(_size, t["shape"])), _text(t["digest"]))
            for name, t in result["tensors"].items()
        }
        if {MANIFEST, SUMS} & set(files):
            raise ValueError(f"{MANIFEST} and {SUMS} are not among the files that a manifest lists")
        places = {name: plain_name(t["file"]) for name, t in result["tensors"].items()}
        nonfinite = {name: _size(count) for name, count in result.get("nonfinite", {}).items()}
        counted = result.get("inexact")
        inexact = None if counted is None else {name: _size(count) for name, count in counted.items()}
        plan = _text(inputs.get("plan", ""))
        return Manifest(files, tensors, places, _text(result["content_digest"]), plan, nonfinite, inexact)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest lacks or misuses a field: {error}") from None


def _tensor_name(name: str) -> str:
    fault = name_fault(name)
    if fault:
        raise ValueError(f"tensor with {fault}")
    return name


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a string")
    return value


def _size(value: Json) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def _hex(value: Json) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r:.80} is not a sha256")
    return value


def plain_name(name: Json) -> str:
    """Return ``name`` if it can neither leave the folder nor break a line of SHA256SUMS. Raises ``ValueError``."""
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r:.80} is not a plain file name")
    return name
