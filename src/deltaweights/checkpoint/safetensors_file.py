"""Read the header of a safetensors file, and check that it is unambiguous and that its tensors tile the file exactly.

The rules are those of the format (README of huggingface/safetensors, "Format") and some that its library does
not check: duplicate keys, unknown fields, control characters in names.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from blake3 import blake3

from deltaweights.checkpoint.checksums import with_whole_file_checksum
from deltaweights.checkpoint.file_type import A_TEXT, code_of_type, detect_file_type
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.malformed import MalformedAt
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
from deltaweights.error_codes import ErrorCode
from deltaweights.util.interruption import check
from deltaweights.util.limits import HEADER, MOST_TENSORS
from deltaweights.util.text import Json, strict_json

MAX_AXES = 64
"""The most axes that numpy and torch can handle."""

FETCH_AGAIN = "the file is damaged or cut: fetch it again"


def open_safetensors(file: InputFile) -> WeightsFile:
    """Read the header of ``file``, and close it if that fails. Raises ``MalformedInput``, ``InputOutputError``."""
    try:
        malformed = MalformedAt(file.path, FETCH_AGAIN)
        header = _header(file, malformed)
        tensors = _tensors(file, malformed, header, data_start=8 + len(header))
    except BaseException:
        file.close()
        raise
    digest = blake3(len(header).to_bytes(8, "little") + header).hexdigest()
    return with_whole_file_checksum(WeightsFile(file, "safetensors", f"blake3:{digest}", tensors))


def _header(file: InputFile, malformed: MalformedAt) -> bytes:
    head = file.read(0, min(file.size, 1024))
    other = detect_file_type(head)
    if other is None and len(head) >= 8 and head.isascii() and head.decode().replace("\n", " ").isprintable():
        other = A_TEXT  # no length of a header is spelled so
    if other is not None:
        raise malformed("not a safetensors file", other[0], remedy=other[1], code=code_of_type(other[0]))
    if file.size < 8:
        raise malformed("too short for a safetensors file", f"{file.size} bytes", "at least 8")
    length = int.from_bytes(head[:8], "little")
    if length > file.size - 8:
        found = f"a header of {length} bytes in a file of {file.size}"
        raise malformed("header runs past the end of the file", found, code=ErrorCode.INCOMPLETE)
    if length > HEADER.size:
        raise malformed("header is too long", f"{length} bytes", f"at most {HEADER.size}")
    return file.read(8, length)


def _tensors(file: InputFile, malformed: MalformedAt, header: bytes, data_start: int) -> dict[str, LazyTensor]:
    try:
        document = strict_json(header, HEADER)
    except ValueError as error:
        raise malformed("header is not strict JSON", error) from None
    if not isinstance(document, dict) or not header.startswith(b"{"):
        raise malformed("header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata.keys(), *metadata.values()))):
        raise malformed("__metadata__ is not a map from strings to strings")
    if len(document) > MOST_TENSORS:
        raise malformed("too many tensors", len(document), f"at most {MOST_TENSORS}")
    entries = [_entry(malformed, name, fields) for name, fields in document.items()]
    _check_tiling(malformed, entries, file.size - data_start)
    name = file.path.name
    tensors = {}
    for spec, begin, _ in entries:
        offset = data_start + begin
        storage = Storage(name, offset, 0, row_major(spec.shape))
        tensors[spec.name] = LazyTensor(spec, ContiguousSource(file, offset), file.path, storage)
    return tensors


def _entry(malformed: MalformedAt, name: str, fields: Json) -> tuple[TensorSpec, int, int]:
    """Check one entry of the header, and return the tensor's spec, begin and end."""
    check()
    fault = name_fault(name)
    if fault:
        raise malformed("unusable tensor name", fault)
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        keys = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise malformed("header entry has the wrong fields", keys, "dtype, shape, data_offsets", tensor=name)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise malformed("unknown dtype", dtype, "one of " + " ".join(ITEM_SIZES), tensor=name)
    if not _is_sizes(shape):
        raise malformed("shape is not a list of sizes", shape, "whole numbers from 0 on", tensor=name)
    if len(shape) > MAX_AXES:
        raise malformed("too many axes", len(shape), f"at most {MAX_AXES}", tensor=name)
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise malformed("data_offsets is not a pair of sizes", offsets, "whole numbers from 0 on", tensor=name)
    begin, end = offsets
    if begin > end:
        raise malformed("begins after its end", f"data_offsets {offsets}", tensor=name)
    nbytes = ITEM_SIZES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > MAX_BYTES:  # also before a size of 0: a reader with 64-bit numbers overflows here
            raise malformed("shape is too large", f"{dtype} {shape}", f"at most {MAX_BYTES} bytes", tensor=name)
    if nbytes != end - begin:
        expected = f"{nbytes} for {dtype} {shape}"
        raise malformed("shape and data_offsets disagree", f"{end - begin} bytes", expected, tensor=name)
    # The inputs, the index and the result mostly have the same names and shapes: keep one copy of each.
    return TensorSpec(sys.intern(name), sys.intern(dtype), _shared(tuple(shape))), begin, end


@lru_cache(maxsize=1024)
def _shared(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _is_text(value: Json) -> bool:
    # JSON can spell half a surrogate pair, which other readers reject.
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_sizes(value: Json) -> bool:
    if not isinstance(value, list):
        return False
    for size in value:  # noqa: SIM110  (all() takes twice as long, for two lists of two numbers a tensor)
        if type(size) is not int or not 0 <= size <= MAX_BYTES:  # bool is a subclass of int, and true is not a size
            return False
    return True


def _check_tiling(malformed: MalformedAt, entries: list[tuple[TensorSpec, int, int]], data_size: int) -> None:
    """Refuse overlaps, holes, and bytes that belong to no tensor."""
    place = 0
    for spec, begin, end in sorted(entries, key=lambda entry: entry[1:]):
        if begin < place:
            raise malformed("overlaps the tensor before it", f"begin at {begin}", place, tensor=spec.name)
        if begin > place:
            raise malformed("leaves a hole before it", f"begin at {begin}", place, tensor=spec.name)
        if end > data_size:
            found = f"{data_size} bytes of data"
            expected, code = f"at least {end}", ErrorCode.INCOMPLETE
            raise malformed("runs past the end of the file", found, expected, tensor=spec.name, code=code)
        place = end
    if place != data_size:
        raise malformed("bytes after the last tensor", f"{data_size} bytes of data", place)
