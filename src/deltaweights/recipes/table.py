"""Tables of a TOML document, read key by key.

Enters: a table and the keys that it may have. Leaves: values of the wanted kind, or ``MalformedInput`` with file, key, what was
found and what was expected. Never: an unknown key passed over, or a boolean taken for a number.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deltaweights.errors import MalformedInput

LONGEST_GUESS = 80
"""Characters of a name that are compared with known ones: comparing takes the square of them."""

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Form:
    """A kind of string: what to call it, and whether a string is one."""

    expected: str
    accepts: Callable[[str], object]


def _one_line(text: str) -> bool:
    return text != "" and text.isprintable()


def _file_name(text: str) -> bool:
    return _one_line(text) and text not in {".", ".."} and not {"/", "\\"} & {*text} and len(text) <= 255


LINE = Form("one line of printable text", _one_line)
TEXT = Form("printable text", lambda text: text.replace("\n", "").isprintable())
FILE_NAME = Form("the name of a file, without folders", _file_name)
ARCHIVE = Form("the name of a zip file", lambda text: _file_name(text) and text.lower().endswith(".zip"))
NAME = Form(
    "at most 64 lower-case letters, digits, '.', '_' and '-'", re.compile(r"[a-z0-9][a-z0-9._-]{0,63}").fullmatch
)
REPO = Form(
    "an id of the Hub, ORG/NAME",
    re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}").fullmatch,
)
REVISION = Form("7 to 40 lower-case hex digits of a commit id", re.compile("[0-9a-f]{7,40}").fullmatch)
SHA256 = Form("64 lower-case hex digits", re.compile("[0-9a-f]{64}").fullmatch)
URL = Form("an address that begins with https:// or http://", re.compile("https?://[!-~]+").fullmatch)


class Table:
    """One table of the document ``where``; ``path`` is its name there, empty for the whole document.

    Absent keys give None, or what else a method says. Raises ``MalformedInput`` when ``values`` is no table, or has a key that is
    not among ``keys``; without ``keys`` it may have any.
    """

    def __init__(self, values: object, where: str, path: str = "", keys: Sequence[str] | None = None) -> None:
        self.where, self._path, self._required = where, path, frozenset[str]()
        if not isinstance(values, dict):
            raise self._unusable(path, values, "a table")
        self._values = values
        if keys is not None:
            self._refuse_others(keys)

    def _refuse_others(self, keys: Sequence[str]) -> None:
        for key in self:
            if key not in keys:
                guess = nearest(key, keys)
                raise MalformedInput(
                    f"unknown key {self.name(key)}",
                    where=self.where,
                    expected=f"one of {', '.join(keys)}",
                    remedy=f"did you mean {guess[0]}?" if guess else "leave it out",
                )

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def name(self, key: str) -> str:
        """Return the name of a key in the document, quoted as TOML wants it, and cut when nobody would read it."""
        quoted = key if re.fullmatch("[A-Za-z0-9_-]{1,80}", key) else json.dumps(key[:80], ensure_ascii=False)
        return f"{self._path}.{quoted}" if self._path else quoted

    def require(self, *keys: str) -> None:
        """Raise ``MalformedInput`` when one of ``keys`` is not there."""
        self._required = frozenset(keys)
        for key in keys:
            if key not in self:
                raise MalformedInput(f"lacks the key {self.name(key)}", where=self.where, remedy="add it")

    def table(self, key: str, keys: Sequence[str] | None = None) -> Table:
        """Return the table at ``key``; an empty one when it is absent."""
        return Table(self._values.get(key, {}), self.where, self.name(key), keys)

    def value(self, key: str) -> object:
        """Return what stands at ``key``, whatever it is."""
        return self._values[key]

    def text(self, key: str, form: Form) -> str | None:
        """Return the string at ``key``, which must be of ``form``."""
        value = self._values.get(key)
        if value is not None and not (isinstance(value, str) and form.accepts(value)):
            raise self.unusable(key, form.expected)
        return value

    def texts(self, key: str, form: Form) -> tuple[str, ...] | None:
        """Return the list of strings at ``key``, each of ``form``."""
        values = self._values.get(key)
        if values is None:
            return None
        if not isinstance(values, list):
            raise self.unusable(key, "a list of strings")
        for number, value in enumerate(values, 1):
            if not (isinstance(value, str) and form.accepts(value)):
                raise self._unusable(f"entry {number} of {self.name(key)}", value, form.expected)
        return tuple(values)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """Return the string at ``key``, one of ``choices``, or ``default``."""
        return self.text(key, Form(f"one of {', '.join(choices)}", choices.__contains__)) or default

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
        """Return the finite number at ``key``, not below ``least``."""
        value = self._values.get(key)
        if value is None:
            return None
        # Comparing is exact, also for an integer that no float can hold; a NaN is in no range.
        if type(value) not in {int, float} or not max(least, -LARGEST) <= value <= LARGEST:
            raise self.unusable(key, "a finite number" if least < 0 else f"a finite number, at least {least:g}")
        return float(value)

    def unusable(self, key: str, expected: str) -> MalformedInput:
        """Return the error that says that the value at ``key`` is not what was ``expected``."""
        return self._unusable(self.name(key), self._values[key], expected, required=key in self._required)

    def _unusable(self, what: str, found: object, expected: str, *, required: bool = True) -> MalformedInput:
        remedy = "correct it" if required else "correct it, or leave it out"
        return MalformedInput(
            f"{what} is not usable", where=self.where, found=_shown(found), expected=expected, remedy=remedy
        )


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return those of ``known``, three at most, for which ``name`` may be a slip, the likeliest first."""
    return difflib.get_close_matches(name[:LONGEST_GUESS].lower(), known)


def candidates(name: str, known: Sequence[str]) -> str:
    """Return what to expect instead of an unknown ``name``: those of ``known`` that are nearest, or all."""
    return f"one of {', '.join(nearest(name, known) or known)}"


def _shown(value: object) -> str:
    """Return a value as TOML writes it, as far as a message has room for it."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, str):
        return json.dumps(value[:1000], ensure_ascii=False)
    return str(value).lower()
