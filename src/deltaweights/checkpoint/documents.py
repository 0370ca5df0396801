"""Small files that are read whole, taken for what their names say.

Enters: the content of a file, and its path. Leaves: the JSON object that it is, or a refusal that says what the file is instead.
Never: a git-LFS pointer or a page taken for a configuration or a tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from deltaweights.checkpoint.sniff import HEAD_BYTES, what_stands_for
from deltaweights.errors import MalformedInput
from deltaweights.util.text import Json, strict_json


def refuse_another(data: bytes, where: Path) -> None:
    """Raise ``MalformedInput`` when ``data``, the content of the file ``where``, is known to stand in place of it."""
    other = what_stands_for(where.name, data[:HEAD_BYTES])
    if other is not None:
        raise MalformedInput("not what its name says", where=where, found=other[0], remedy=other[1])


def json_object(data: bytes, where: Path) -> dict[str, Json]:
    """Return the JSON object that ``data``, the content of the file ``where``, is. Raises ``MalformedInput``."""
    refuse_another(data, where)
    try:
        document = strict_json(data)
    except ValueError as error:
        raise MalformedInput("not strict JSON", where=where, found=error, remedy="fetch it again") from None
    if not isinstance(document, dict):
        raise MalformedInput("not a JSON object", where=where, remedy="fetch it again")
    return document
