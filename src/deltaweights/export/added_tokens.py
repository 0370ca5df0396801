"""Tokens beside a tokenizer's vocabulary, merged from several files: no token has two ids, and no id two tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.util.text import Json

MAX_ID, MAX_TOKENS = 2**31 - 1, 400_000  # some tokenizers have 262,144 tokens


@dataclass(frozen=True)
class TokenFlags:
    """How a token is matched in text, in the words of ``tokenizers``.

    ``lstrip`` and ``rstrip`` include the white space beside it; ``normalized`` matches after normalization, where ``▁`` may precede
    it; ``special`` tokens are left out of a decoded text without special tokens.
    """

    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


STRIPPING = TokenFlags(lstrip=True, rstrip=True)
"""For a token without stated flags: the LlamaTokenizer (in Python) of 2023 stripped the text beside it."""


@dataclass(frozen=True)
class TokenSource:
    """What one file states: ids by content, and flags by content where it has any."""

    name: str
    ids: Mapping[str, int]
    flags: Mapping[str, TokenFlags]


def source_of_ids(name: str, ids: Mapping[str, Json], where: Path) -> TokenSource:
    """Read an object of ids by content, such as added_tokens.json. Raises ``MalformedInput``."""
    if len(ids) > MAX_TOKENS:
        raise _unusable(f"{len(ids):,} tokens", where)
    return TokenSource(name, {content: _checked_id(number, where) for content, number in ids.items()}, {})


def source_of_entries(name: str, entries: Iterable[tuple[Json, Json]], where: Path) -> TokenSource:
    """Read pairs of an id and a token's description: content and flags. Raises ``MalformedInput``."""
    ids: dict[str, int] = {}
    flags: dict[str, TokenFlags] = {}
    for number, entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or content in ids:
            raise _unusable(f"an entry with the content {content!r}", where)
        ids[content] = _checked_id(number, where)
        stated = {flag: entry.get(flag, False) for flag in vars(STRIPPING)}
        if not all(isinstance(value, bool) for value in stated.values()):
            raise _unusable(f"{content!r} with flags that are not true or false", where)
        flags[content] = TokenFlags(**stated)
    return TokenSource(name, ids, flags)


def decoder_entries(decoder: Json, where: Path) -> Iterator[tuple[Json, Json]]:
    """Yield the entries of an ``added_tokens_decoder``, an object of tokens by their ids, which are strings there."""
    if not isinstance(decoder, dict):
        raise _unusable("an added_tokens_decoder that is not an object", where)
    for number, entry in decoder.items():
        yield int(number) if number.isdecimal() and len(number) <= 10 else number, entry


def merge_ids(sources: Iterable[TokenSource], where: Path) -> dict[str, int]:
    """Return the ids of all tokens by content. Raises ``Mismatch`` when two sources disagree; ``where`` is their folder."""
    by_content: dict[str, tuple[int, str]] = {}
    by_id: dict[int, tuple[str, str]] = {}
    for source in sources:
        for content, number in source.ids.items():
            other_id, first = by_content.setdefault(content, (number, source.name))
            if other_id != number:
                raise _contradiction("two ids for one token", content, (other_id, first), (number, source.name), where)
            other, first = by_id.setdefault(number, (content, source.name))
            if other != content:
                raise _contradiction("two tokens for one id", number, (other, first), (content, source.name), where)
    return {content: number for content, (number, _) in by_content.items()}


def _contradiction(
    problem: str, subject: object, one: tuple[object, str], two: tuple[object, str], where: Path
) -> Mismatch:
    found = f"{str(subject)[:80]}: {str(one[0])[:80]} in {one[1]}, {str(two[0])[:80]} in {two[1]}"
    return Mismatch(problem, where=where, found=found, remedy="keep the files of one tokenizer together")


def _checked_id(number: Json, where: Path) -> int:
    if type(number) is not int or not 0 <= number <= MAX_ID:
        raise _unusable(f"the id {number!r}", where)
    return number


def _unusable(found: str, where: Path) -> MalformedInput:
    return MalformedInput("unusable tokens", where=where, found=found, remedy="fetch it again")
