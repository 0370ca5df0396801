"""What is read back from a manifest: ``manifest.json``, member by member.

Enters: a document of anybody's, or its chunks. Leaves: what it states, checked, or ``ValueError``. Never: more of the document in
memory than what is kept of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltaweights.checkpoint.tensors import name_fault
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import Findings, size
from deltaweights.manifest.records import (
    MANIFEST,
    MANIFEST_FORMAT,
    SUMS,
    Document,
    FileRecord,
    check_format,
    plain_name,
)
from deltaweights.util import limits
from deltaweights.util.json_reader import JsonReader
from deltaweights.util.text import Json

MOST_DIGEST = 128
"""Characters of a digest, the name of its algorithm included."""

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
    original layout; ``original_names`` are those that tensors of the model have there. ``layout`` is empty where none is named.
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
    layout: str = ""


def parse_manifest(document: Document) -> Manifest:
    """Parse and check ``manifest.json``, or its chunks; keys that version 1 does not know are ignored.

    Raises ``ValueError`` when it is not a manifest of version 1, or a field is missing or of the wrong kind.
    """
    reader = JsonReader(document, limits.MANIFEST)
    found: dict[str, Any] = {}
    try:
        for key in reader.members():
            if key == "result":
                found[key] = _read_result(reader)
            elif key == "inputs":
                found[key] = _read_inputs(reader)
            elif key in {"format", "version"}:
                found[key] = reader.value()
            else:
                reader.skip()
        reader.end()
        check_format(found, MANIFEST_FORMAT)
        result, inputs = found["result"], found["inputs"]
        if {MANIFEST, SUMS} & set(result["files"]):
            raise ValueError(f"{MANIFEST} and {SUMS} are not among the files that a manifest lists")
        tensors = result["tensors"]
        options, roles = result.get("options", {}), [role for role in ROLES if role in inputs]
        return Manifest(
            result["files"],
            tensors.rows,
            tensors.places,
            _text(result["content_digest"]),
            _text(inputs.get("plan", "")),
            Findings.of(result),
            _text(result.get("recipe", {}).get("name", "")),
            _kind(inputs),
            tuple(f"{role}/{name}" for role in roles for name in inputs[role].unverified),
            any(inputs[role].streamed for role in roles),
            {role: inputs[role].origin for role in roles},
            _text(options.get("compute_dtype", "")),
            result.get("folders", ()),
            _text(result.get("original_content_digest", "")),
            tensors.originals,
            _text(options.get("layout", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest lacks or misuses a field: {error}") from None


COUNTS = ("nonfinite", "nonfinite_base", "nonfinite_lead", "overflow", "inexact")
"""Of a result: numbers by tensor."""


def _read_result(reader: JsonReader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in reader.members():
        if key == "files":
            found[key] = {plain_name(name): _file(reader.value()) for name in reader.members(2 * limits.MOST_TENSORS)}
        elif key == "tensors":
            found[key] = _read_tensors(reader)
        elif key in COUNTS:
            found[key] = _read_sizes(reader)
        elif key == "uniform":
            found[key] = {name: [reader.kept(role) for role in reader.value()] for name in reader.members()}
        elif key == "proof":
            found[key] = _read_proof(reader)
        elif key == "folders":
            found[key] = tuple(plain_name(reader.value()) for _ in reader.items())
        elif key in {"content_digest", "original_content_digest", "options", "recipe"}:
            found[key] = reader.value()
        else:
            reader.skip()
    return found


@dataclass
class _Tensors:
    rows: dict[str, tuple[str, tuple[int, ...], str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)


def _read_tensors(reader: JsonReader) -> _Tensors:
    found = _Tensors()
    for name in reader.members():
        tensor = reader.value()
        digest = _text(tensor["digest"])
        if len(digest) > MOST_DIGEST:
            raise ValueError(f"{digest!r:.40} is not a digest")
        found.rows[_tensor_name(name)] = reader.kept(tensor["dtype"]), tuple(map(size, tensor["shape"])), digest
        found.places[name] = reader.kept(plain_name(tensor["file"]))
        if tensor.get("fate") not in ADDED:
            found.originals[name] = reader.kept(_tensor_name(tensor.get("source", name)))
    return found


def _read_sizes(reader: JsonReader) -> dict[str, int]:
    return {name: size(reader.value()) for name in reader.members()}


def _read_proof(reader: JsonReader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in reader.members():
        if key == "tensors":
            found[key] = _read_sizes(reader)
        elif key == "untested":
            found[key] = [reader.kept(reader.value()) for _ in reader.items()]
        else:
            found[key] = reader.value()
    return found


@dataclass
class _Input:
    origin: dict[str, str] = field(default_factory=dict)
    unverified: list[str] = field(default_factory=list)
    streamed: bool = False


def _read_inputs(reader: JsonReader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in reader.members():
        if key in ROLES:
            found[key] = _read_input(reader)
        elif key == "plan":
            found[key] = reader.value()
        else:
            reader.skip()
    return found


def _read_input(reader: JsonReader) -> _Input:
    found = _Input()
    for key in reader.members():
        if key == "files":
            found.unverified = [name for name in reader.members() if "sha256" not in reader.value().get("checks", ())]
        elif key in ORIGIN:
            found.origin[key] = _text(reader.value())
        elif key in {"tensors", "dropped"}:  # they are many, and each is small
            for _ in reader.members():
                reader.value()
        else:
            found.streamed |= key == "verification"
            reader.skip()
    return found


def _file(document: Json) -> FileRecord:
    return FileRecord(size(document["size"]), _hex(document["sha256"]))


def _kind(inputs: Json) -> str:
    if not any(role in inputs for role in ROLES):
        return LISTING
    return "merge" if "delta" in inputs else "delta" if "target" in inputs else "copy"


def original_digest(manifest: Manifest, rows: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Return the content digest that tensors, ``rows`` by name, have in the original layout."""
    names = manifest.original_names
    return content_digest((names[name], *row) for name, row in rows.items() if name in names)


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
