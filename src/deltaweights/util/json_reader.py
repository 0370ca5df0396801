"""A JSON document that is read member by member, by the rules of ``text.strict_json``, so that it is never in memory as a whole."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterable, Iterator

from deltaweights.util.interruption import check
from deltaweights.util.limits import MOST_NAMES, MOST_STEPS, MOST_TENSORS, MOST_VALUE, Limit
from deltaweights.util.text import MARKED, SAVE_UNMARKED, STRICT, Json, duplicate_key

SPACE = re.compile(r"[ \t\n\r]*")
SPACES = frozenset({" ", "\t", "\n", "\r", ""})
PLAIN_KEY = re.compile(r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')  # a key without escapes, and the colon
MOST_LEVELS = 100  # levels of nesting in what is skipped
CHUNK = 1024 * 1024
Document = bytes | Iterable[bytes | memoryview]  # a document, or the chunks of one


class JsonReader:
    """One pass over a document; the caller takes each value of ``members`` and ``items``. All raise ``ValueError``."""

    def __init__(self, document: Document, limit: Limit) -> None:
        self._chunks = iter(_split(document) if isinstance(document, bytes) else document)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._limit = limit
        self._text, self._position = "", 0
        self._before = 0  # characters before ``_text``
        self._at_end = False  # no more chunks
        self._size = self._objects = self._lists = self._commas = 0
        self._steps = 0
        self._interned: dict[str, str] = {}
        self._interned_bytes = 0
        self._fill()
        if self._text.startswith("\ufeff"):
            raise ValueError(f"{MARKED}: {SAVE_UNMARKED}")

    def members(self, most: int = MOST_TENSORS) -> Iterator[str]:
        """Yield the keys of the next value, an object of at most ``most`` members."""
        if self._take() != "{":
            raise self._unexpected("an object")
        seen: set[str] = set()
        if self._take_if("}"):
            return
        while True:
            key = self._key()
            if key in seen:
                raise duplicate_key(key)
            seen.add(key)
            if len(seen) > most:
                raise ValueError(f"more than {most:,} members in one object")
            self._count_step()
            yield key
            if self._take_comma_or("}") == "}":
                return

    def items(self, most: int = MOST_TENSORS) -> Iterator[None]:
        """Yield once for each item of the next value, a list of at most ``most``."""
        if self._take() != "[":
            raise self._unexpected("a list")
        if self._take_if("]"):
            return
        for _ in range(most):
            self._count_step()
            yield
            if self._take_comma_or("]") == "]":
                return
        raise ValueError(f"more than {most:,} items in one list")

    def value(self) -> Json:
        """Return the next value, of at most ``MOST_VALUE`` characters."""
        self._skip_space()
        start = self._position
        try:
            value, self._position = STRICT.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            cut = not self._at_end and (error.pos - start >= MOST_VALUE or error.msg.startswith("Unterminated"))
            raise self._too_long(start) if cut else self._error(error.msg, error.pos) from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if self._position - start > MOST_VALUE:
            raise self._too_long(start)
        return value

    def interned(self, text: Json) -> str:
        """Return ``text``, as one object for all equal ones; together they may take ``MOST_NAMES`` bytes."""
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.40} is not a string")
        known = self._interned.get(text)
        if known is not None:
            return known
        self._interned_bytes += sys.getsizeof(text)
        if self._interned_bytes > MOST_NAMES:
            raise ValueError(f"names that take more than {MOST_NAMES:,} bytes")
        self._interned[text] = text
        return text

    def skip(self, levels: int = MOST_LEVELS) -> None:
        """Skip the next value, however long; it is checked like any other."""
        if not levels:
            raise ValueError("nested too deeply")
        self._skip_space()
        first = self._text[self._position : self._position + 1]
        if first not in {"{", "["}:
            self.value()
            return
        for _ in self.members() if first == "{" else self.items():
            self.skip(levels - 1)

    def end(self) -> None:
        """Raise ``ValueError`` when anything follows the document."""
        self._skip_space()
        if self._position < len(self._text):
            raise self._error("Extra data", self._position)

    def _key(self) -> str:
        self._look_ahead()
        plain = PLAIN_KEY.match(self._text, self._position)
        if plain is not None and plain.end() - self._position <= MOST_VALUE:
            self._position = plain.end()
            return self.interned(plain.group(1))
        self._skip_space()
        if self._text[self._position : self._position + 1] != '"':
            raise self._unexpected("property name enclosed in double quotes")
        key = self.interned(self.value())
        if self._take() != ":":
            raise self._unexpected("':' delimiter")
        return key

    def _count_step(self) -> None:
        check()
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS:,} members and items")

    def _take(self) -> str:
        """Take the next character that is no space; return nothing at the end."""
        self._skip_space()
        self._position += 1
        return self._text[self._position - 1 : self._position]

    def _take_if(self, character: str) -> bool:
        self._skip_space()
        if self._text[self._position : self._position + 1] != character:
            return False
        self._position += 1
        return True

    def _take_comma_or(self, end: str) -> str:
        character = self._take()
        if character not in {",", end}:
            raise self._unexpected("',' delimiter")
        return character

    def _skip_space(self) -> None:
        """Skip spaces, and have as much text at hand as one value may take."""
        while True:
            self._look_ahead()
            if self._text[self._position : self._position + 1] not in SPACES:
                return
            found = SPACE.match(self._text, self._position)
            self._position = found.end() if found else self._position
            if self._position == len(self._text) and self._at_end:
                return

    def _look_ahead(self) -> None:
        if len(self._text) - self._position <= MOST_VALUE and not self._at_end:
            self._fill()

    def _fill(self) -> None:
        """Read chunks until more text is at hand than one value may take."""
        parts = [self._text[self._position :]]
        self._before += self._position
        length = len(parts[0])
        while length <= MOST_VALUE and not self._at_end:
            chunk = next(self._chunks, None)
            self._at_end = chunk is None
            parts.append(self._decode(b"" if chunk is None else bytes(chunk)))
            length += len(parts[-1])
        self._text, self._position = "".join(parts), 0

    def _decode(self, chunk: bytes) -> str:
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
            return self._decoder.decode(chunk, final=self._at_end)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {begin - pending + error.start}") from None

    def _unexpected(self, expected: str) -> ValueError:
        return self._error(f"Expecting {expected}", self._position)

    def _too_long(self, start: int) -> ValueError:
        return self._error(f"a value of more than {MOST_VALUE:,} characters", start)

    def _error(self, problem: str, position: int) -> ValueError:
        return ValueError(f"{problem} at character {self._before + position}")


def _split(document: bytes) -> Iterator[bytes]:
    return (document[start : start + CHUNK] for start in range(0, len(document), CHUNK))
