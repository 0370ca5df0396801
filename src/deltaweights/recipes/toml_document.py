"""TOML documents, read strictly and laid over each other.

Enters: the bytes of a file that a stranger may have written. Leaves: a dictionary, or ``MalformedInput``. Never: a duplicate key
that wins in silence, or a document that takes the parser seconds.
"""

from __future__ import annotations

import sys
from typing import Any

from deltaweights.errors import MalformedInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlDocument = dict[str, Any]
"""What TOML can represent: strings, numbers, booleans, dates, lists and tables."""

MAX_SIZE = 1024 * 1024
"""A recipe has some kilobytes."""

MOST_DOTS = 2000
"""A dotted key of 20,000 parts takes the parser seconds and gigabytes; a recipe has some hundred dots, prose included."""


def parse_toml(data: bytes, where: str) -> TomlDocument:
    """Parse one TOML document; ``where`` is for messages.

    Raises ``MalformedInput`` for more than ``MAX_SIZE`` bytes, what is not UTF-8, what is not TOML, a key that is given twice, and
    more than ``MOST_DOTS`` dots.
    """
    if len(data) > MAX_SIZE:
        raise MalformedInput(
            "too long for a recipe",
            where=where,
            found=f"more than {MAX_SIZE:,} bytes",
            remedy="give the recipe, not the weights",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedInput(
            "not UTF-8",
            where=where,
            found=f"byte 0x{data[error.start]:02x} at {error.start}",
            remedy="save it as UTF-8",
        ) from None
    if text.count(".") > MOST_DOTS:
        raise MalformedInput(
            "too many dots for a recipe",
            where=where,
            found=text.count("."),
            expected=f"at most {MOST_DOTS}",
            remedy="shorten it",
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        fault = "nested too deeply"
    except ValueError as error:  # also a number of thousands of digits, and the 31st of February
        fault = str(error)
    raise MalformedInput("not TOML", where=where, found=fault, remedy="correct it there")


def overlay(below: TomlDocument, above: TomlDocument) -> TomlDocument:
    """Return ``below`` with the keys of ``above`` in their place; where both have a table, with the keys of that table."""
    both = {key: {**below[key], **above[key]} for key in below if _is_table(below[key]) and _is_table(above.get(key))}
    return {**below, **above, **both}


def _is_table(value: object) -> bool:
    return isinstance(value, dict)
