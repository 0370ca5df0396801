"""Small files that are read whole: configuration, tokenizers, indexes."""

from __future__ import annotations

import codecs
from contextlib import closing
from pathlib import Path

from deltaweights.checkpoint.file_type import HEAD_BYTES, code_of_type, detect_wrong_content
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.util.text import MARKED, SAVE_UNMARKED, UTF8_MARK, Json, strict_json


def read_small(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Read at most ``most`` bytes: a regular file, without ``follow`` no link. Raises ``MalformedInput``, ``InputOutputError``."""
    with closing(LocalFile(path, follow=follow)) as file:
        return read_all(file, most)


def read_all(file: InputFile, most: int) -> bytes:
    """Return the contents of a file. Raises ``MalformedInput`` when it has more than ``most`` bytes."""
    refuse_long(file, most)
    return file.read(0, file.size)


def refuse_long(file: InputFile, most: int) -> None:
    """Raise ``MalformedInput`` when a file has more than ``most`` bytes."""
    if file.size > most:
        malformed = MalformedAt(file.path, "the file is damaged, or a different file has this name: fetch it again")
        raise malformed("file is too long", f"{file.size} bytes", f"at most {most}")


def refuse_wrong_content(data: bytes, where: Path) -> None:
    """Raise ``MalformedInput`` when ``data``, the contents of ``where``, are known not to be what the name says."""
    other = detect_wrong_content(where.name, data[:HEAD_BYTES])
    if other is not None:
        raise MalformedAt(where, other[1])("not what its name says", other[0], code=code_of_type(other[0]))


def json_object(data: bytes, where: Path, *, as_transformers: bool = False) -> dict[str, Json]:
    """Parse ``data``, the contents of ``where``, as a JSON object. Raises ``MalformedInput``.

    A byte-order mark, which some editors put at the beginning, is skipped, and with ``as_transformers`` refused, as there.
    """
    refuse_wrong_content(data, where)
    if data.startswith(UTF8_MARK) and as_transformers:
        raise MalformedAt(where, SAVE_UNMARKED)("not strict JSON", MARKED)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MalformedAt(where, SAVE_UNMARKED)("not strict JSON", "UTF-16, in which some editors save")
    data = data.removeprefix(UTF8_MARK)
    malformed = MalformedAt(where, "fetch it again")
    try:
        document = strict_json(data)
    except ValueError as error:
        raise malformed("not strict JSON", error) from None
    if not isinstance(document, dict):
        raise malformed("not a JSON object")
    return document
