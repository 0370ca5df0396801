"""Strict and bounded parsing of TOML documents from strangers, and laying one over another."""

from __future__ import annotations

import sys
from typing import Any

from deltaweights.errors import MalformedInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlDocument = dict[str, Any]

MAX_SIZE = 1024 * 1024  # bytes of a recipe; real ones have a few kilobytes
# A dotted key of 20,000 parts takes the parser seconds and gigabytes. Real recipes have a few hundred.
MAX_DOTS = 2000


def parse_toml(data: bytes, where: str) -> TomlDocument:
    """Parse a TOML document; ``where`` is for messages.

    Raises ``MalformedInput`` for more than ``MAX_SIZE`` bytes or ``MAX_DOTS`` dots, invalid UTF-8 or TOML, and duplicate keys.
    """
    if len(data) > MAX_SIZE:
        found, remedy = f"more than {MAX_SIZE:,} bytes", "give the recipe, not the weights"
        raise MalformedInput("too long for a recipe", where=where, found=found, remedy=remedy)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise MalformedInput("not UTF-8", where=where, found=found, remedy="save it as UTF-8") from None
    dots = text.count(".")
    if dots > MAX_DOTS:
        expected = f"at most {MAX_DOTS}"
        raise MalformedInput(
            "too many dots for a recipe", where=where, found=dots, expected=expected, remedy="shorten it"
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        fault = "nested too deeply"
    except ValueError as error:  # not only TOMLDecodeError: also for a number of thousands of digits, or February 31
        fault = str(error)
    raise MalformedInput("not TOML", where=where, found=fault, remedy="correct it there")


def overlay(below: TomlDocument, above: TomlDocument) -> TomlDocument:
    """Return ``below`` with the keys of ``above`` replaced; tables that are in both are merged in the same way, one level deep."""
    tables = {
        key: {**below[key], **above[key]}
        for key in below
        if isinstance(below[key], dict) and isinstance(above.get(key), dict)
    }
    return {**below, **above, **tables}
