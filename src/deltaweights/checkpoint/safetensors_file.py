"""Read the header of a safetensors file, and check that it is unambiguous and that its tensors tile the file exactly.

The rules are those of the format (README of huggingface/safetensors, "Format") and some that its library does
not check: duplicate keys, unknown fields, control characters in names.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import NoReturn

from blake3 import blake3

from deltaweights.checkpoint.checksums import with_whole_file_checksum
from deltaweights.checkpoint.file_type import detect_file_type
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.tensors import (
    ITEM_SIZES,
    MAX_BYTES,
    ContiguousSource,
    LazyTensor,
    Storage,
    TensorSpec,
    WeightsFile,
    name_fault,
    row_major,
)
from deltaweights.errors import MalformedInput
from deltaweights.util.interruption import check
from deltaweights.util.limits import HEADER, MOST_TENSORS
from deltaweights.util.text import Json, strict_json

MAX_AXES = 64
"""The most axes that numpy and torch can handle."""

FETCH_AGAIN = "the file is damaged or cut: fetch it again"


def open_safetensors(file: InputFile) -> WeightsFile:
    """Read the header of ``file``, and close it if that fails.

    Raises ``MalformedInput`` when the file breaks a rule of the format, ``InputOutputError`` when it cannot be read.
    """
    try:
        header = _header(file)
        tensors = _tensors(file, header, data_start=8 + len(header))
    except BaseException:
        file.close()
        raise
    digest = blake3(len(header).to_bytes(8, "little") + header).hexdigest()
    return with_whole_file_checksum(WeightsFile(file, "safetensors", f"blake3:{digest}", tensors))


def _refuse(
    file: InputFile, problem: str, found: object = None, expected: object = None, tensor: str | None = None
) -> NoReturn:
    raise MalformedInput(problem, where=file.path, tensor=tensor, found=found, expected=expected, remedy=FETCH_AGAIN)


def _header(file: InputFile) -> bytes:
    head = file.read(0, min(file.size, 1024))
    other = detect_file_type(head)
    if other is not None:
        what, remedy = other
        raise MalformedInput("not a safetensors file", where=file.path, found=what, remedy=remedy)
    if file.size < 8:
        _refuse(file, "too short for a safetensors file", f"{file.size} bytes", "at least 8")
    length = int.from_bytes(head[:8], "little")
    if length > file.size - 8:
        _refuse(file, "header runs past the end of the file", f"a header of {length} bytes in a file of {file.size}")
    if length > HEADER.size:
        _refuse(file, "header is too long", f"{length} bytes", f"at most {HEADER.size}")
    return file.read(8, length)


def _tensors(file: InputFile, header: bytes, data_start: int) -> dict[str, LazyTensor]:
    try:
        document = strict_json(header, HEADER)
    except ValueError as error:
        _refuse(file, "header is not strict JSON", error)
    if not isinstance(document, dict) or not header.startswith(b"{"):
        _refuse(file, "header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata.keys(), *metadata.values()))):
        _refuse(file, "__metadata__ is not a map from strings to strings")
    if len(document) > MOST_TENSORS:
        _refuse(file, "too many tensors", len(document), f"at most {MOST_TENSORS}")
    entries = [_entry(file, name, fields) for name, fields in document.items()]
    _check_tiling(file, entries, file.size - data_start)
    name = file.path.name
    tensors = {}
    for spec, begin, _ in entries:
        offset = data_start + begin
        storage = Storage(name, offset, 0, row_major(spec.shape))
        tensors[spec.name] = LazyTensor(spec, ContiguousSource(file, offset), file.path, storage)
    return tensors


def _entry(file: InputFile, name: str, fields: Json) -> tuple[TensorSpec, int, int]:
    """Check one entry of the header, and return the tensor's spec, begin and end."""
    check()
    fault = name_fault(name)
    if fault:
        _refuse(file, "unusable tensor name", fault)
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        keys = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        _refuse(file, "header entry has the wrong fields", keys, "dtype, shape, data_offsets", name)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        _refuse(file, "unknown dtype", dtype, "one of " + " ".join(ITEM_SIZES), name)
    if not _is_sizes(shape):
        _refuse(file, "shape is not a list of sizes", shape, "whole numbers from 0 on", name)
    if len(shape) > MAX_AXES:
        _refuse(file, "too many axes", len(shape), f"at most {MAX_AXES}", name)
    if not _is_sizes(offsets) or len(offsets) != 2:
        _refuse(file, "data_offsets is not a pair of sizes", offsets, "whole numbers from 0 on", name)
    begin, end = offsets
    if begin > end:
        _refuse(file, "begins after its end", f"data_offsets {offsets}", None, name)
    nbytes = ITEM_SIZES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > MAX_BYTES:  # also before a size of 0: a reader with 64-bit numbers overflows here
            _refuse(file, "shape is too large", f"{dtype} {shape}", f"at most {MAX_BYTES} bytes", name)
    if nbytes != end - begin:
        _refuse(file, "shape and data_offsets disagree", f"{end - begin} bytes", f"{nbytes} for {dtype} {shape}", name)
    # The inputs, the index and the result mostly have the same names and shapes: keep one copy of each.
    return TensorSpec(sys.intern(name), sys.intern(dtype), _shared(tuple(shape))), begin, end


@lru_cache(maxsize=1024)
def _shared(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _is_text(value: Json) -> bool:
    # JSON can spell half a surrogate pair, which other readers reject.
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_sizes(value: Json) -> bool:
    # bool is a subclass of int, and JSON's true is not a size.
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= MAX_BYTES for size in value)


def _check_tiling(file: InputFile, entries: list[tuple[TensorSpec, int, int]], data_size: int) -> None:
    """Refuse overlaps, holes, and bytes that belong to no tensor."""
    place = 0
    for spec, begin, end in sorted(entries, key=lambda entry: entry[1:]):
        if begin < place:
            _refuse(file, "overlaps the tensor before it", f"begin at {begin}", place, spec.name)
        if begin > place:
            _refuse(file, "leaves a hole before it", f"begin at {begin}", place, spec.name)
        if end > data_size:
            _refuse(file, "runs past the end of the file", f"{data_size} bytes of data", f"at least {end}", spec.name)
        place = end
    if place != data_size:
        _refuse(file, "bytes after the last tensor", f"{data_size} bytes of data", place)
