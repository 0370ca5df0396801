"""Colour, sparingly: on a terminal, unless ``NO_COLOR`` is set; with ``FORCE_COLOR`` everywhere."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

import click

VERDICTS = {
    "green": re.compile(r"verified(?=  )|identical(?=:)|(?<=^base            )proved(?=:)"),
    "red": re.compile(r"FAILED(?=  )|different(?=:)|(?<=^base            )NOT proved(?=:)"),
}
"""What is coloured at the beginning of a result's line, after its label if it has one."""


def coloured(stream: TextIO) -> bool:
    """Return whether to write colours to ``stream``."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def echo_message(name: str, kind: str, text: str) -> None:
    """Print an error or a warning to stderr; ``text`` is printable already."""
    colours = coloured(sys.stderr)
    label = click.style(f"{kind}:", fg="red" if kind == "error" else "yellow", bold=True) if colours else f"{kind}:"
    click.echo(f"{name}: {label} {text}", err=True, color=colours)


def echo_result(lines: list[str]) -> None:
    """Print the lines of a result, which are printable already, to stdout, with their verdicts in colour."""
    colours = coloured(sys.stdout)
    click.echo("\n".join(map(_verdict_in_colour, lines) if colours else lines), color=colours)


def _verdict_in_colour(line: str) -> str:
    for colour, verdict in VERDICTS.items():
        found = verdict.match(line) or verdict.match(line, 16)
        if found is not None:
            return f"{line[: found.start()]}{click.style(found[0], fg=colour)}{line[found.end() :]}"
    return line
