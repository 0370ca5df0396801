"""Strict reading of JSON that other programs read with protobuf.

Protobuf's readers accept ``messageSignature`` and ``message_signature`` for the same field. If a document has both, which one wins
depends on the reader, so such documents are refused.
"""

from __future__ import annotations

from deltaweights.util.limits import Limit
from deltaweights.util.text import Json, strict_json


def parse_protobuf_json(data: bytes, limit: Limit) -> Json:
    """Parse a document. Raises ``ValueError``, also when an object in it has one key in two spellings."""
    document = strict_json(data, limit)
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            seen: dict[str, str] = {}
            for key in value:
                other = seen.setdefault(normalized_key(key), key)
                if other != key:
                    raise ValueError(f"one key in two spellings: {other} and {key}")
            pending += value.values()
    return document


def normalized_key(key: str) -> str:
    """Return the same string for all spellings of a key."""
    return key.replace("_", "").casefold()
