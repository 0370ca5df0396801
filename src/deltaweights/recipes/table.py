"""Strict and bounded reading of TOML from strangers: every key is checked, unknown keys are refused, booleans are not numbers."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deltaweights.errors import MalformedInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlDocument = dict[str, Any]

MAX_SIZE = 1024 * 1024  # bytes of a recipe; real ones have a few kilobytes
# Real recipes have a few hundred, prose included; a dotted key of 20,000 parts takes the parser seconds and gigabytes.
MAX_DOTS = 2000
MAX_COMPARED = 80  # characters of a name that are compared with known ones: the time is quadratic in them


@dataclass(frozen=True)
class TextFormat:
    """A format of strings: its description for messages, and a test whether a string has it."""

    expected: str
    accepts: Callable[[str], object]


def _one_line(text: str) -> bool:
    return text != "" and text.isprintable()


def _file_name(text: str) -> bool:
    return _one_line(text) and text not in {".", ".."} and not {"/", "\\"} & {*text} and len(text) <= 255


LINE = TextFormat("one line of printable text", _one_line)
TEXT = TextFormat("printable text", lambda text: text.replace("\n", "").isprintable())
FILE_NAME = TextFormat("the name of a file, without folders", _file_name)
ARCHIVE = TextFormat("the name of a zip file", lambda text: _file_name(text) and text.lower().endswith(".zip"))
_NAME, _REPO_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"), r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
NAME = TextFormat("at most 64 lower-case letters, digits, '.', '_' and '-'", _NAME.fullmatch)
REPO = TextFormat("an id of the Hub, ORG/NAME", re.compile(rf"(?!.*\.\.){_REPO_PART}/{_REPO_PART}").fullmatch)
REVISION = TextFormat("7 to 40 lower-case hex digits of a commit id", re.compile("[0-9a-f]{7,40}").fullmatch)
SHA256 = TextFormat("64 lower-case hex digits", re.compile("[0-9a-f]{64}").fullmatch)
URL = TextFormat("an address that begins with https:// or http://", re.compile("https?://[!-~]+").fullmatch)


def parse_toml(data: bytes, where: str, kind: str = "recipe") -> TomlDocument:
    """Parse a TOML document. Raises ``MalformedInput`` when it is too large, not UTF-8, not TOML, or has duplicate keys."""
    if len(data) > MAX_SIZE:
        found, remedy = f"more than {MAX_SIZE:,} bytes", f"give the {kind}, not the weights"
        raise MalformedInput(f"too long for a {kind}", where=where, found=found, remedy=remedy)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise MalformedInput("not UTF-8", where=where, found=found, remedy="save it as UTF-8") from None
    dots = text.count(".")
    if dots > MAX_DOTS:
        problem, expected = f"too many dots for a {kind}", f"at most {MAX_DOTS}"
        raise MalformedInput(problem, where=where, found=dots, expected=expected, remedy="shorten it")
    try:
        return tomllib.loads(text)
    except RecursionError:
        fault = "nested too deeply"
    except ValueError as error:  # not only TOMLDecodeError: also for a number of thousands of digits, or February 31
        fault = str(error)
    raise MalformedInput("not TOML", where=where, found=fault, remedy="correct it there")


def overlay(below: TomlDocument, above: TomlDocument) -> TomlDocument:
    """Return ``below`` with the keys of ``above`` replaced; tables that are in both are merged in the same way, one level deep."""
    laid = {**below, **above}
    for key, value in below.items():
        if isinstance(value, dict) and isinstance(laid[key], dict):
            laid[key] = {**value, **laid[key]}
    return laid


class Table:
    """A table of the document ``where``; ``path`` is its name there, empty for the document itself.

    The methods return None for a missing key unless they say otherwise, and raise ``MalformedInput`` for a value of another kind.
    So does the constructor when ``values`` is not a table, or has a key that is not among ``keys``; None allows all keys.
    """

    def __init__(self, values: object, where: str, path: str = "", keys: Sequence[str] | None = None) -> None:
        self.where, self._path, self._required = where, path, frozenset[str]()
        if not isinstance(values, dict):
            raise self._unusable(path, values, "a table")
        self._values = values
        unknown = [] if keys is None else [key for key in self if key not in keys]
        if keys is not None and unknown:
            guesses, expected = nearest(unknown[0], keys), f"one of {', '.join(keys)}"
            remedy = f"did you mean {guesses[0]}?" if guesses else "leave it out"
            problem = f"unknown key {self.name(unknown[0])}"
            raise MalformedInput(problem, where=self.where, expected=expected, remedy=remedy)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def name(self, key: str) -> str:
        """Return the full name of a key for messages, quoted as in TOML, and shortened if it is very long."""
        quoted = key if re.fullmatch("[A-Za-z0-9_-]{1,80}", key) else json.dumps(key[:80], ensure_ascii=False)
        return f"{self._path}.{quoted}" if self._path else quoted

    def require(self, *keys: str) -> None:
        """Raise ``MalformedInput`` when one of ``keys`` is missing."""
        self._required = frozenset(keys)
        for key in keys:
            if key not in self:
                raise MalformedInput(f"lacks the key {self.name(key)}", where=self.where, remedy="add it")

    def check_key(self, key: str, text_format: TextFormat) -> None:
        """Raise ``MalformedInput`` unless ``key`` itself has this format."""
        if not text_format.accepts(key):
            problem, expected = f"the key {self.name(key)} is not usable", text_format.expected
            raise MalformedInput(problem, where=self.where, expected=expected, remedy="correct it")

    def table(self, key: str, keys: Sequence[str] | None = None) -> Table:
        """Return the table at ``key``, an empty one if it is missing."""
        return Table(self._values.get(key, {}), self.where, self.name(key), keys)

    def value(self, key: str) -> object:
        """Return the value at ``key``, unchecked. Raises ``KeyError``."""
        return self._values[key]

    def text(self, key: str, text_format: TextFormat) -> str | None:
        """Return the string at ``key``."""
        value = self._values.get(key)
        if value is not None and not (isinstance(value, str) and text_format.accepts(value)):
            raise self.unusable(key, text_format.expected)
        return value

    def texts(self, key: str, text_format: TextFormat) -> tuple[str, ...] | None:
        """Return the list of strings at ``key``."""
        values = self._values.get(key)
        if values is None:
            return None
        if not isinstance(values, list):
            raise self.unusable(key, "a list of strings")
        for number, value in enumerate(values, 1):
            if not (isinstance(value, str) and text_format.accepts(value)):
                raise self._unusable(f"entry {number} of {self.name(key)}", value, text_format.expected)
        return tuple(values)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """Return the string at ``key``, one of ``choices``, or ``default``."""
        return self.text(key, TextFormat(f"one of {', '.join(choices)}", choices.__contains__)) or default

    def flag(self, key: str, *, default: bool) -> bool:
        """Return the boolean at ``key``, or ``default``."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.unusable(key, "true or false")
        return value

    def whole(self, key: str, most: int) -> int | None:
        """Return the whole number at ``key``, from 1 to ``most``."""
        value = self._values.get(key)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise self.unusable(key, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, least: float = -math.inf) -> float | None:
        """Return the finite number at ``key``, which must be at least ``least``."""
        value = self._values.get(key)
        if value is None:
            return None
        # Comparisons are exact, even for integers too large for a float, and false for NaN.
        if type(value) not in {int, float} or not max(least, -sys.float_info.max) <= value <= sys.float_info.max:
            raise self.unusable(key, "a finite number" if least < 0 else f"a finite number, at least {least:g}")
        return float(value)

    def unusable(self, key: str, expected: str) -> MalformedInput:
        """Return the error for a value at ``key`` that is not what was ``expected``."""
        return self._unusable(self.name(key), self._values[key], expected, required=key in self._required)

    def _unusable(self, what: str, found: object, expected: str, *, required: bool = True) -> MalformedInput:
        problem, remedy = f"{what} is not usable", "correct it" if required else "correct it, or leave it out"
        return MalformedInput(problem, where=self.where, found=_shown(found), expected=expected, remedy=remedy)


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three of ``known`` that ``name`` may be a typo for, the likeliest first."""
    return difflib.get_close_matches(name[:MAX_COMPARED].lower(), known)


def candidates(name: str, known: Sequence[str]) -> str:
    """Return what was expected in place of ``name``, for messages: the nearest of ``known``, or all."""
    return f"one of {', '.join(nearest(name, known) or known)}"


def _shown(value: object) -> str:
    """Return a value as in TOML, shortened for messages."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, str):
        return json.dumps(value[:1000], ensure_ascii=False)
    return str(value).lower()
