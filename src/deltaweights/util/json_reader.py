"""A JSON document that is read member by member, so that it need not be in memory as a whole.

Enters: the chunks of a document of a stranger's. Leaves: keys and small values, or a ``ValueError`` that says which rule was
broken; the rules are those of ``text.strict_json``. Never: more of the document in memory than a chunk, or a key that is there
twice.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterable, Iterator

from deltaweights.errors import printable
from deltaweights.util.interruption import check
from deltaweights.util.limits import MOST_NAMES, MOST_STEPS, MOST_TENSORS, MOST_VALUE, Limit
from deltaweights.util.text import STRICT, Json

SPACE = re.compile(r"[ \t\n\r]*")

SPACES = frozenset({" ", "\t", "\n", "\r", ""})

PLAIN_KEY = re.compile(r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')
"""A key without escapes, and the colon."""

MOST_LEVELS = 100
"""Of nesting in what is skipped."""

CHUNK = 1024 * 1024


class JsonReader:
    """One reading of a document. Whoever is given a key takes its value, by one of the methods, before the next key."""

    def __init__(self, document: bytes | Iterable[bytes | memoryview], limit: Limit) -> None:
        self._chunks = iter(_cut(document) if isinstance(document, bytes) else document)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._limit = limit
        self._text, self._at = "", 0
        self._before = 0  # characters before ``_text``
        self._ended = False
        self._size = self._objects = self._lists = self._commas = 0
        self._steps = 0
        self._names: dict[str, str] = {}
        self._kept = 0
        self._fill()
        if self._text.startswith("\ufeff"):
            raise ValueError("starts with a byte-order mark")

    def members(self, most: int = MOST_TENSORS) -> Iterator[str]:
        """Yield the keys of the object that comes next, at most ``most``."""
        if self._sign() != "{":
            raise self._unexpected("an object")
        seen: set[str] = set()
        if self._ends("}"):
            return
        while True:
            key = self._key()
            if key in seen:
                raise ValueError(f"duplicate key {printable(json.dumps(key[:200], ensure_ascii=False))}")
            seen.add(key)
            if len(seen) > most:
                raise ValueError(f"more than {most:,} members in one object")
            self._step()
            yield key
            if self._is_last("}"):
                return

    def items(self, most: int = MOST_TENSORS) -> Iterator[None]:
        """Yield for each item of the list that comes next, at most ``most``."""
        if self._sign() != "[":
            raise self._unexpected("a list")
        if self._ends("]"):
            return
        for _ in range(most):
            self._step()
            yield
            if self._is_last("]"):
                return
        raise ValueError(f"more than {most:,} items in one list")

    def value(self) -> Json:
        """Return the value that comes next, of at most ``MOST_VALUE`` characters."""
        self._skip_space()
        try:
            value, end = STRICT.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            cut = not self._ended and (error.pos - self._at >= MOST_VALUE or error.msg.startswith("Unterminated"))
            raise self._too_long() if cut else self._at_place(error.msg, error.pos) from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if end - self._at > MOST_VALUE:
            raise self._too_long()
        self._at = end
        return value

    def kept(self, text: Json) -> str:
        """Return ``text``, the same one whenever it is equal; all that are kept have room in ``MOST_NAMES`` bytes."""
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.40} is not a string")
        known = self._names.get(text)
        if known is not None:
            return known
        self._kept += sys.getsizeof(text)
        if self._kept > MOST_NAMES:
            raise ValueError(f"names that take more than {MOST_NAMES:,} bytes")
        self._names[text] = text
        return text

    def skip(self, levels: int = MOST_LEVELS) -> None:
        """Pass over the value that comes next, however long; what breaks the rules is refused in it, too."""
        if not levels:
            raise ValueError("nested too deeply")
        self._skip_space()
        sign = self._text[self._at : self._at + 1]
        if sign not in {"{", "["}:
            self.value()
            return
        for _ in self.members() if sign == "{" else self.items():
            self.skip(levels - 1)

    def end(self) -> None:
        """Raise ``ValueError`` when something comes behind the document."""
        self._skip_space()
        if self._at < len(self._text):
            raise self._at_place("Extra data", self._at)

    def _key(self) -> str:
        """Take a key and the colon behind it."""
        self._look_ahead()
        plain = PLAIN_KEY.match(self._text, self._at)
        if plain is not None and plain.end() - self._at <= MOST_VALUE:
            self._at = plain.end()
            return self.kept(plain.group(1))
        self._skip_space()
        if self._text[self._at : self._at + 1] != '"':
            raise self._unexpected("property name enclosed in double quotes")
        key = self.kept(self.value())
        if self._sign() != ":":
            raise self._unexpected("':' delimiter")
        return key

    def _step(self) -> None:
        check()
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS:,} members and items")

    def _sign(self) -> str:
        """Return the character that comes next, and pass it; nothing at the end."""
        self._skip_space()
        self._at += 1
        return self._text[self._at - 1 : self._at]

    def _ends(self, sign: str) -> bool:
        """Tell whether ``sign`` comes next, and pass it if it does."""
        self._skip_space()
        if self._text[self._at : self._at + 1] != sign:
            return False
        self._at += 1
        return True

    def _is_last(self, end: str) -> bool:
        """Pass a comma, or ``end``, and tell whether it was the latter."""
        sign = self._sign()
        if sign not in {",", end}:
            raise self._unexpected("',' delimiter")
        return sign == end

    def _skip_space(self) -> None:
        """Come to what is no space, with as much text at hand as one value may have."""
        while True:
            self._look_ahead()
            if self._text[self._at : self._at + 1] not in SPACES:
                return
            found = SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at == len(self._text) and self._ended:
                return

    def _look_ahead(self) -> None:
        if len(self._text) - self._at <= MOST_VALUE and not self._ended:
            self._fill()

    def _fill(self) -> None:
        """Take chunks until there is more text at hand than one value may have."""
        parts = [self._text[self._at :]]
        self._before += self._at
        length = len(parts[0])
        while length <= MOST_VALUE and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            parts.append(self._decoded(b"" if chunk is None else bytes(chunk)))
            length += len(parts[-1])
        self._text, self._at = "".join(parts), 0

    def _decoded(self, chunk: bytes) -> str:
        limit = self._limit
        pending = len(self._decoder.getstate()[0])
        begin, self._size = self._size, self._size + len(chunk)
        self._objects += chunk.count(b"{")
        self._lists += chunk.count(b"[")
        self._commas += chunk.count(b",")
        if self._size > limit.size:
            raise ValueError(f"more than {limit.size:,} bytes")
        if self._objects > limit.objects or self._lists > limit.lists or self._commas > limit.commas:
            raise ValueError(f"more than {limit.objects:,} objects, {limit.lists:,} lists or {limit.commas:,} commas")
        try:
            return self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {begin - pending + error.start}") from None

    def _unexpected(self, expected: str) -> ValueError:
        return self._at_place(f"Expecting {expected}", self._at)

    def _at_place(self, what: str, at: int) -> ValueError:
        return ValueError(f"{what} at character {self._before + at}")

    def _too_long(self) -> ValueError:
        return self._at_place(f"a value of more than {MOST_VALUE:,} characters", self._at)


def _cut(document: bytes) -> Iterator[bytes]:
    return (document[start : start + CHUNK] for start in range(0, len(document), CHUNK))
