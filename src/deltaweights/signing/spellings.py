"""Keys that readers of protobuf's JSON take for one.

Enters: a parsed document. Leaves: nothing, or a ``ValueError``. Never: a choice of which of two values counts.

Such a reader takes ``messageSignature`` and ``message_signature`` for the same field, and which of the two wins when both are there
depends on the reader.
"""

from __future__ import annotations

from deltaweights.util.text import Json


def spelled(key: str) -> str:
    """Return what all spellings of a key have in common."""
    return key.replace("_", "").casefold()


def refuse_second_spellings(document: Json) -> None:
    """Raise ``ValueError`` when an object anywhere in ``document`` has one key in two spellings."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            seen: dict[str, str] = {}
            for key in value:
                other = seen.setdefault(spelled(key), key)
                if other != key:
                    raise ValueError(f"one key in two spellings: {other} and {key}")
            waiting += value.values()
