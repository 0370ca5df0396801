"""Read ``manifest.json`` member by member, so that no more of it is in memory than what is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from deltaweights.checkpoint.tensors import ITEM_SIZES, name_fault
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import Findings, ProofRecord, check_size
from deltaweights.manifest.records import MANIFEST, MANIFEST_FORMAT, SUMS, FileRecord, check_file_name, check_format
from deltaweights.util import limits
from deltaweights.util.json_reader import Document, JsonReader
from deltaweights.util.text import Json, compact_json

MAX_DIGEST = 128  # characters of a digest, including the name of its algorithm
LISTING = "listing"  # the kind of a manifest that lists a folder and names no inputs
ROLES = ("base", "delta", "target", "merged", "vision_tower")

ADDED_FATES = ("vision_tower", "identity", "zeros")
"""Fates of tensors that are only in the layout of current transformers, not in the original one."""

ORIGIN = ("repo", "commit", "tensors_digest")  # the keys that say what an input is and where it is from
TensorRow = tuple[str, tuple[int, ...], str]  # dtype, shape and digest of a tensor

SMALL, MOST_SMALL = 64 * 1024, 16
"""Bytes of a tensor that is read to compare an input with a manifest, and how many such tensors are remembered of each input."""


@dataclass(frozen=True)
class InputTensors:
    """What a manifest states of the tensors of one input that have a part in the result.

    ``dtypes`` are theirs, ``specs`` is the digest of their names, dtypes and shapes (``specs_digest``), ``small`` has a few of at
    most ``SMALL`` bytes.
    """

    dtypes: frozenset[str]
    specs: str
    small: Mapping[str, TensorRow]


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest; ``places`` holds the file of each tensor.

    ``plan``, ``recipe`` and its ``recipe_digest``, ``compute_dtype``, ``dtype`` and ``layout`` are empty when the manifest has
    none. ``fates`` are those that its tensors have, ``read`` has what it states of the tensors of each input. ``kind`` is "merge",
    "delta", "copy" or, without inputs, "listing". ``unverified`` names the input files without a sha256; ``streamed`` says that an
    input was read from the Hub without being stored. ``origins`` maps a role to what the manifest has under ``ORIGIN``.
    ``folders`` are the subfolders of a listing. In the layout of current transformers, ``original_names`` maps tensors of the model
    to their names in the original layout, and ``original_content_digest`` is the content digest there; else it is empty.
    ``source_proof`` is what the manifest of the checkpoint that was copied said of its base.
    """

    files: dict[str, FileRecord]
    tensors: dict[str, TensorRow]
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
    recipe_digest: str = ""
    dtype: str = ""
    fates: frozenset[str] = frozenset()
    read: Mapping[str, InputTensors] = field(default_factory=dict)
    source_proof: ProofRecord | None = None


def parse_manifest(document: Document) -> Manifest:
    """Parse and check ``manifest.json``; unknown keys are ignored. Raises ``ValueError`` when it is not a manifest of version 1."""
    reader = JsonReader(document, limits.MANIFEST)
    try:
        found = _read_members(reader, _TOP)
        reader.end()
        check_format(found, MANIFEST_FORMAT)
        return _manifest(found["result"], found["inputs"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest lacks a field, or has a wrong one: {error}") from None


def _manifest(result: dict[str, Any], inputs: dict[str, Any]) -> Manifest:
    if {MANIFEST, SUMS} & set(result["files"]):
        raise ValueError(f"{MANIFEST} and {SUMS} must not be among the files that a manifest lists")
    rows, places, original_names, fates = result["tensors"]
    options = result.get("options", {})
    roles = {role: inputs[role] for role in ROLES if role in inputs}
    return Manifest(
        files=result["files"],
        tensors=rows,
        places=places,
        content_digest=_text(result["content_digest"]),
        plan=_text(inputs.get("plan", "")),
        findings=Findings.from_document(result),
        recipe=_text(result.get("recipe", {}).get("name", "")),
        kind=_kind(roles),
        unverified=tuple(f"{role}/{name}" for role, found in roles.items() for name in found.get("files", ())),
        streamed=any("verification" in found for found in roles.values()),
        origins={role: {key: found[key] for key in ORIGIN if key in found} for role, found in roles.items()},
        compute_dtype=_text(options.get("compute_dtype", "")),
        folders=result.get("folders", ()),
        original_content_digest=_text(result.get("original_content_digest", "")),
        original_names=original_names,
        layout=_text(options.get("layout", "")),
        recipe_digest=_text(result.get("recipe", {}).get("digest", "")),
        dtype=_text(options.get("dtype", "")),
        fates=fates,
        read={role: found["tensors"] for role, found in roles.items() if "tensors" in found},
        source_proof=_source_proof(roles),
    )


def _kind(roles: Collection[str]) -> str:
    if not roles:
        return LISTING
    return "merge" if "delta" in roles else "delta" if "target" in roles else "copy"


def _source_proof(roles: Mapping[str, dict[str, Any]]) -> ProofRecord | None:
    found = [roles[role]["proof"] for role in ("base", "merged") if "proof" in roles.get(role, {})]
    return ProofRecord.from_document(found[0]) if found and _kind(roles) == "copy" else None


Read = Callable[[JsonReader], Any]  # reads the value that comes next


def _read_members(reader: JsonReader, readers: Mapping[str, Read]) -> dict[str, Any]:
    """Read the next object, each member with the reader of its key; members without one are skipped."""
    found: dict[str, Any] = {}
    for key in reader.members():
        if key in readers:
            found[key] = readers[key](reader)
        else:
            reader.skip()
    return found


def _read_files(reader: JsonReader) -> dict[str, FileRecord]:
    return {check_file_name(name): _file(reader.value()) for name in reader.members(2 * limits.MOST_TENSORS)}


def _file(document: Json) -> FileRecord:
    size, sha256 = check_size(document["size"]), document["sha256"]
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r:.80} is not a sha256")
    return FileRecord(size, sha256)


def _read_tensors(
    reader: JsonReader,
) -> tuple[dict[str, TensorRow], dict[str, str], dict[str, str], frozenset[str]]:
    """Return dtype, shape and digest of each tensor, its file, for tensors of the model its original name, and all fates."""
    rows: dict[str, TensorRow] = {}
    places: dict[str, str] = {}
    original_names: dict[str, str] = {}
    fates: set[str] = set()
    for name in reader.members():
        tensor = reader.value()
        digest = _text(tensor["digest"])
        if len(digest) > MAX_DIGEST:
            raise ValueError(f"{digest!r:.40} is not a digest")
        shape = tuple(map(check_size, tensor["shape"]))
        rows[_tensor_name(name)] = reader.interned(tensor["dtype"]), shape, digest
        places[name] = reader.interned(check_file_name(tensor["file"]))
        if "fate" in tensor:
            fates.add(reader.interned(_text(tensor["fate"])))
        if tensor.get("fate") not in ADDED_FATES:
            original_names[name] = reader.interned(_tensor_name(tensor.get("source", name)))
    return rows, places, original_names, frozenset(fates)


def _read_sizes(reader: JsonReader) -> dict[str, int]:
    return {name: check_size(reader.value()) for name in reader.members()}


def _read_uniform(reader: JsonReader) -> dict[str, list[str]]:
    return {name: [reader.interned(role) for role in reader.value()] for name in reader.members()}


def _read_unverified(reader: JsonReader) -> list[str]:
    """Return the names of the input files that have no sha256."""
    return [name for name in reader.members() if "sha256" not in reader.value().get("checks", ())]


def _pass_over(reader: JsonReader) -> None:
    """Skip an object of many small members: each is parsed at once, which is faster than ``skip``."""
    for _ in reader.members():
        reader.value()


def specs_digest(specs: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """Return the BLAKE3 of (name, dtype, shape) of tensors in this order, which for an input is that of the names."""
    hasher = blake3()
    for name, dtype, shape in specs:
        hasher.update(f"{compact_json([name, dtype, list(shape)])}\n".encode())
    return hasher.hexdigest()


def _read_input_tensors(reader: JsonReader) -> InputTensors:
    """Read the tensors of an input one by one; of most of them only a digest is kept."""
    dtypes: set[str] = set()
    small: dict[str, TensorRow] = {}

    def specs() -> Iterable[tuple[str, str, tuple[int, ...]]]:
        for name in reader.members():
            tensor = reader.value()
            dtype, shape = reader.interned(tensor["dtype"]), tuple(map(check_size, tensor["shape"]))
            dtypes.add(dtype)
            nbytes = math.prod(shape) * ITEM_SIZES.get(dtype, SMALL + 1)
            if len(small) < MOST_SMALL and 0 < nbytes <= SMALL:
                small[name] = dtype, shape, _text(tensor["digest"])
            yield name, dtype, shape

    digest = specs_digest(specs())
    return InputTensors(frozenset(dtypes), digest, small)


_VALUE: Read = JsonReader.value

_PROOF: dict[str, Read] = {
    **dict.fromkeys(("weights", "region", "violations", "evidence", "verdict", "rounded", "reason", "allowed"), _VALUE),
    "tensors": _read_sizes,
    **dict.fromkeys(("untested", "whole"), lambda reader: [reader.interned(reader.value()) for _ in reader.items()]),
}

_RESULT: dict[str, Read] = {
    **dict.fromkeys(("content_digest", "original_content_digest", "options", "recipe"), _VALUE),
    **dict.fromkeys(
        ("nonfinite", "nonfinite_base", "nonfinite_lead", "overflow", "inexact", "not_restored"), _read_sizes
    ),
    "files": _read_files,
    "tensors": _read_tensors,
    "uniform": _read_uniform,
    "proof": lambda reader: _read_members(reader, _PROOF),
    "folders": lambda reader: tuple(check_file_name(reader.value()) for _ in reader.items()),
}

_INPUT: dict[str, Read] = {
    **dict.fromkeys(ORIGIN, lambda reader: _text(reader.value())),
    "files": _read_unverified,
    "tensors": _read_input_tensors,
    "dropped": _pass_over,
    "proof": lambda reader: _read_members(reader, _PROOF),
    "verification": JsonReader.skip,  # that it is there counts
}

_INPUTS: dict[str, Read] = {"plan": _VALUE, **dict.fromkeys(ROLES, lambda reader: _read_members(reader, _INPUT))}

_TOP: dict[str, Read] = {
    "format": _VALUE,
    "version": _VALUE,
    "result": lambda reader: _read_members(reader, _RESULT),
    "inputs": lambda reader: _read_members(reader, _INPUTS),
}


def original_digest(manifest: Manifest, rows: Mapping[str, TensorRow]) -> str:
    """Return the content digest that the tensors ``rows``, by name, have in the original layout."""
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
