"""The records of what was written: fragments, index, manifest and SHA256SUMS. Frozen: docs/manifest-format.md.

Enters: values that were digested while they were written. Leaves: the bytes of the documents, and documents parsed and checked.
Never: an open file, or anything that depends on the machine, the path or the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltaweights.checkpoint.tensors import name_fault
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import Findings, size
from deltaweights.manifest.tally import Tally
from deltaweights.text import Items, Json, natural_key, readable_pieces, strict_json

MANIFEST, SUMS, INDEX = "manifest.json", "SHA256SUMS", "model.safetensors.index.json"

MANIFEST_FORMAT, FRAGMENT_FORMAT, VERSION = "deltaweights-manifest", "deltaweights-fragment", 1

MOST_OBJECTS = 400_000
"""Objects in a manifest of as many tensors as a checkpoint may have: each stands in the result and in both inputs."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Digests of one result tensor and of what it was made of; ``base`` is None when it was copied.

    ``delta`` is the digest of the delta, or of the target that a delta is made from. ``uniform`` names those of "result", "base"
    and "lead" that are matrices of one and the same number throughout.
    """

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
    def of(cls, document: Mapping[str, Json]) -> TensorRecord:
        """Return what ``document`` gave. Raises ``KeyError`` and ``TypeError`` when it is something else."""
        rest = dict(document)
        uniform = tuple(rest.pop("uniform", ()))
        name, digest, base, delta = (rest.pop(key) for key in ("name", "digest", "base", "delta"))
        digests = (digest, delta) if base is None else (digest, delta, base)
        if not isinstance(name, str) or not all(
            isinstance(text, str) and text.isascii() for text in (*digests, *uniform)
        ):
            raise TypeError("a tensor's record")
        return cls(name, digest, base, delta, Tally.of(rest), uniform)


@dataclass(frozen=True)
class Fragment:
    """The record of one finished shard of the plan ``plan``."""

    plan: str
    file: str
    record: FileRecord
    tensors: tuple[TensorRecord, ...]

    def pieces(self) -> Iterator[str]:
        """Yield the fragment as a JSON document."""
        return readable_pieces(
            {
                "format": FRAGMENT_FORMAT,
                "version": VERSION,
                "plan": self.plan,
                "file": self.file,
                **vars(self.record),
                "tensors": Items(lambda: (tensor.document() for tensor in self.tensors)),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Fragment:
        """Parse a fragment. Raises ``ValueError`` when it is not one."""
        document = _document(data, FRAGMENT_FORMAT)
        try:
            texts, size = [document[key] for key in ("plan", "file", "sha256")], document["size"]
        except KeyError as error:
            raise ValueError(f"fragment lacks {error}") from None
        if not all(isinstance(text, str) and text.isascii() for text in texts) or type(size) is not int:
            raise ValueError("fragment with another record than one of a shard")
        try:
            return cls(
                document["plan"],
                document["file"],
                FileRecord(document["size"], document["sha256"]),
                tuple(map(TensorRecord.of, document["tensors"])),
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


def sums_bytes(files: Mapping[str, FileRecord], manifest: str) -> bytes:
    """Return ``SHA256SUMS`` for ``files`` and the manifest, whose sha256 is ``manifest``.

    A line ``HASH  NAME`` each, sorted by the bytes of the name.
    """
    hashes = {name: record.sha256 for name, record in files.items()} | {MANIFEST: manifest}
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=str.encode)).encode()


def manifest_pieces(result: Json, inputs: Json) -> Iterator[str]:
    """Yield ``manifest.json`` for its two parts."""
    return readable_pieces({"format": MANIFEST_FORMAT, "version": VERSION, "result": result, "inputs": inputs})


LISTING = "listing"
"""The kind of a manifest that tells of a folder and not of how it was made."""

ROLES = ("base", "delta", "target", "merged", "vision_tower")
"""What inputs are called."""

ADDED = ("vision_tower", "identity", "zeros")
"""Fates of tensors that the layout of current transformers has besides those of the model."""

ORIGIN = ("repo", "commit", "tensors_digest")
"""What says where an input is from, and what it was."""


@dataclass(frozen=True)
class Manifest:
    """What is read back from a manifest; ``tensors`` holds (dtype, shape, digest), ``places`` each tensor's file.

    ``plan`` and ``recipe`` are empty when the manifest names none; ``kind`` is "merge", "delta", "copy" or, where there are no
    inputs, "listing". ``unverified`` names the input files without a sha256, ``streamed`` says that an input was read from the
    Hub and kept nowhere. ``origins`` has by role what the manifest says under ``ORIGIN``; ``compute_dtype`` is empty where it
    names none. ``folders`` are those that stand beside the files of a listing. ``original_content_digest`` is empty in the
    original layout; ``original_names`` are those that tensors of the model have there.
    """

    files: dict[str, FileRecord]
    tensors: dict[str, tuple[str, tuple[int, ...], str]]
    places: dict[str, str]
    content_digest: str
    plan: str
    findings: Findings
    recipe: str = ""
    kind: str = "merge"
    unverified: tuple[str, ...] = ()
    streamed: bool = False
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    compute_dtype: str = ""
    folders: tuple[str, ...] = ()
    original_content_digest: str = ""
    original_names: Mapping[str, str] = field(default_factory=dict)


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check ``manifest.json``; keys that version 1 does not know are ignored.

    Raises ``ValueError`` when it is not a manifest of version 1, or a field is missing or of the wrong kind.
    """
    document = _document(data, MANIFEST_FORMAT)
    try:
        result, inputs = document["result"], document["inputs"]
        files = {
            plain_name(name): FileRecord(size(f["size"]), _hex(f["sha256"])) for name, f in result["files"].items()
        }
        tensors = {
            _tensor_name(name): (_text(t["dtype"]), tuple(map(size, t["shape"])), _text(t["digest"]))
            for name, t in result["tensors"].items()
        }
        if {MANIFEST, SUMS} & set(files):
            raise ValueError(f"{MANIFEST} and {SUMS} are not among the files that a manifest lists")
        places = {name: plain_name(t["file"]) for name, t in result["tensors"].items()}
        plan = _text(inputs.get("plan", ""))
        recipe = _text(result.get("recipe", {}).get("name", ""))
        return Manifest(
            files,
            tensors,
            places,
            _text(result["content_digest"]),
            plan,
            Findings.of(result),
            recipe,
            _kind(inputs),
            tuple(_unverified(inputs)),
            any("verification" in inputs.get(role, {}) for role in ROLES),
            {
                role: {key: _text(inputs[role][key]) for key in ORIGIN if key in inputs[role]}
                for role in ROLES
                if role in inputs
            },
            _text(result.get("options", {}).get("compute_dtype", "")),
            tuple(map(plain_name, result.get("folders", ()))),
            _text(result.get("original_content_digest", "")),
            {n: _tensor_name(t.get("source", n)) for n, t in result["tensors"].items() if t.get("fate") not in ADDED},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest lacks or misuses a field: {error}") from None


def _kind(inputs: Json) -> str:
    if not any(role in inputs for role in ROLES):
        return LISTING
    return "merge" if "delta" in inputs else "delta" if "target" in inputs else "copy"


def original_digest(manifest: Manifest, rows: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Return the content digest that tensors, ``rows`` by name, have in the original layout."""
    names = manifest.original_names
    return content_digest((names[name], *row) for name, row in rows.items() if name in names)


def _unverified(inputs: Json) -> Iterator[str]:
    """Yield the input files whose sha256 nobody made or compared."""
    for role in ROLES:
        for name, file in inputs.get(role, {}).get("files", {}).items():
            if "sha256" not in file.get("checks", ()):
                yield f"{role}/{name}"


def _tensor_name(name: str) -> str:
    fault = name_fault(name)
    if fault:
        raise ValueError(f"tensor with {fault}")
    return name


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a string")
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
