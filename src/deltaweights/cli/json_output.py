"""JSON documents on stdout."""

from __future__ import annotations

import codecs
import json
import sys

import click

from deltaweights.errors import is_shown
from deltaweights.util.text import Json


def print_json(value: Json) -> None:
    """Print a value as one JSON document, in ASCII: a file name may hold bytes that are not text."""
    print_document(json_bytes(value))


def json_bytes(value: Json) -> bytes:
    """Return the document that ``print_json`` prints."""
    # The same document: what GitHub's runner acts on in a log occurs in strings only, in a hostile file name perhaps.
    return f"{json.dumps(value, indent=2)}\n".replace("##[", "##\\u005b").encode()


def print_document(document: bytes) -> None:
    """Print a JSON document in UTF-8; on a terminal, escape what it would act on or cannot show (it occurs only in strings)."""
    if not sys.stdout.isatty():
        click.echo(document, nl=False)
        return
    unicode = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    click.echo("".join(_shown(c, unicode=unicode) for c in document.decode()), nl=False)


def _shown(character: str, *, unicode: bool) -> str:
    if character == "\n" or (is_shown(character) and (unicode or character.isascii())):
        return character
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
