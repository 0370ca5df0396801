"""Tokens that stand beside a tokenizer's vocabulary: what the files say of them, brought together.

Enters: JSON documents of a tokenizer. Leaves: tokens by content, with their ids and the way they are found in text. Never: a token
with two ids, or an id with two tokens: files that disagree are a ``Mismatch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.util.text import Json

LARGEST_ID = 2**31 - 1

MOST_TOKENS = 400_000
"""Some have 262,144."""


@dataclass(frozen=True)
class TokenFlags:
    """The way a token is found in text, in the order and the words of ``tokenizers``.

    ``lstrip`` and ``rstrip``: with the white space on its left and right; ``normalized``: after the text was normalized, where
    ``▁`` may stand before it; ``special``: left out when text without special tokens is wanted.
    """

    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


STRIPPING = TokenFlags(lstrip=True, rstrip=True)
"""As transformers of 2023 found a token of which no file says how: its LlamaTokenizer (in Python) stripped the text beside it."""


@dataclass(frozen=True)
class TokenSource:
    """What one file says: ids by content, and the matching of those for which it gives one."""

    name: str
    ids: Mapping[str, int]
    flags: Mapping[str, TokenFlags]


def plain_source(name: str, ids: Mapping[str, Json], where: Path) -> TokenSource:
    """Read an object of ids by content, such as added_tokens.json. Raises ``MalformedInput``."""
    if len(ids) > MOST_TOKENS:
        raise _unusable(f"{len(ids):,} tokens", where)
    return TokenSource(name, {content: _checked_id(number, where) for content, number in ids.items()}, {})


def full_source(name: str, entries: Iterable[tuple[Json, Json]], where: Path) -> TokenSource:
    """Read pairs of an id and what is said of its token: content and flags. Raises ``MalformedInput``."""
    ids: dict[str, int] = {}
    matching: dict[str, TokenFlags] = {}
    for number, entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or content in ids:
            raise _unusable(f"an entry with the content {content!r}", where)
        ids[content] = _checked_id(number, where)
        flags = {flag: entry.get(flag, False) for flag in vars(STRIPPING)}
        if not all(isinstance(value, bool) for value in flags.values()):
            raise _unusable(f"{content!r} with flags that are not true or false", where)
        matching[content] = TokenFlags(**flags)
    return TokenSource(name, ids, matching)


def decoder_entries(decoder: Json, where: Path) -> Iterator[tuple[Json, Json]]:
    """Yield the entries of an ``added_tokens_decoder``, an object of tokens by their ids, which are strings there."""
    if not isinstance(decoder, dict):
        raise _unusable("added_tokens_decoder that is no object", where)
    for number, entry in decoder.items():
        yield int(number) if number.isdecimal() and len(number) <= 10 else number, entry


def unite(sources: Iterable[TokenSource], where: Path) -> dict[str, int]:
    """Return all tokens of ``sources`` by content. Raises ``Mismatch`` when two of them disagree; ``where`` is their folder."""
    by_content: dict[str, tuple[int, str]] = {}
    by_id: dict[int, tuple[str, str]] = {}
    for source in sources:
        for content, number in source.ids.items():
            other_id, first = by_content.setdefault(content, (number, source.name))
            if other_id != number:
                raise _contradiction("two ids for one token", content, (other_id, number), (first, source.name), where)
            other, first = by_id.setdefault(number, (content, source.name))
            if other != content:
                raise _contradiction("two tokens for one id", number, (other, content), (first, source.name), where)
    return {content: number for content, (number, _) in by_content.items()}


def _contradiction(
    problem: str, what: object, values: tuple[object, object], names: tuple[str, str], where: Path
) -> Mismatch:
    what, one, two = (str(value)[:80] for value in (what, *values))
    found = f"{what}: {one} in {names[0]}, {two} in {names[1]}"
    return Mismatch(problem, where=where, found=found, remedy="keep the files of one tokenizer together")


def _checked_id(number: Json, where: Path) -> int:
    if type(number) is not int or not 0 <= number <= LARGEST_ID:
        raise _unusable(f"the id {number!r}", where)
    return number


def _unusable(found: str, where: Path) -> MalformedInput:
    return MalformedInput("unusable tokens", where=where, found=found, remedy="fetch it again")
