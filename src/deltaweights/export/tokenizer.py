"""Repairs the tokenizer of a delta of 2023 so that transformers 4 and 5 load it, with every token at its id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.errors import MalformedInput, Mismatch, printable
from deltaweights.export.added_tokens import STRIPPING, TokenFlags, TokenSource, merge_ids
from deltaweights.export.config import CONTEXT, USE_ORIGINAL
from deltaweights.export.special_tokens import BOS, EOS, UNK, SpecialTokens, special_tokens
from deltaweights.export.tokenizer_files import (
    ADDED,
    CONFIG,
    DOCUMENT,
    MODEL,
    SPECIAL,
    TEMPLATE,
    TokenizerFiles,
    read_files,
)
from deltaweights.export.tokenizer_json import AddedToken, begins_with, with_tokens
from deltaweights.util.text import Json, compact_json, counted, readable_json

CLASS = "PreTrainedTokenizerFast"
"""Loads tokenizer.json as it is, in transformers 4 and 5. LlamaTokenizer of 5 does not: unlike the original, it puts no space
before a text that begins with one."""

MAX_CONTEXT = 1_000_000

MAX_LISTED = 8  # tokens named in a note; the others are counted


@dataclass(frozen=True)
class TokenIds:
    """``pad`` is that of ``<unk>`` where [PAD] has no row; ``added`` follow the vocabulary, by their ids; ``size`` counts all."""

    bos: int
    eos: int
    unk: int
    pad: int
    added: dict[str, int]
    size: int


@dataclass(frozen=True)
class RepairedTokenizer:
    """Contents of files by name, the ids of its tokens, and a printable line for each repair."""

    files: dict[str, bytes]
    tokens: TokenIds
    notes: tuple[str, ...]


def repair_tokenizer(
    files: Mapping[str, bytes],
    rows: int,
    *,
    where: Path,
    known: Mapping[str, int] | None = None,
    bos: str | None = None,
    chat_template: str | None = None,
    stop_strings: Sequence[str] = (),
) -> RepairedTokenizer:
    """Return the tokenizer in ``files``, contents by name, of the folder ``where``, in the form of current transformers.

    ``rows`` is the embedding's: a token whose id is not below it is dropped. ``known`` are ids by token from a recipe, ``bos`` is
    the token that begins a text by it. ``stop_strings`` go into tokenizer_config.json, where only this program looks for them. Of a
    tokenizer.json only the added tokens, and what begins a text, are changed. Raises ``MalformedInput`` and ``Mismatch``.
    """
    source = read_files(files, where)
    stated = merge_ids((source.vocabulary, *source.added), where)
    merged = merge_ids((TokenSource("the files", stated, {}), TokenSource("the recipe", known or {}, {})), where)
    ids = _with_rows(merged, source.vocabulary, rows, where)
    _check_llama(ids, where)
    special = special_tokens(source.special, source.config, ids, bos, where)
    tokens = _token_ids(ids, source.vocabulary, special.roles)
    added = list(_added_tokens(source, ids, special))
    document = with_tokens(source.document, added, (tokens.bos, special.bos))
    config = _config(source, special.roles, added, stop_strings)
    unchanged = not source.converted and document == source.document
    result = {
        DOCUMENT: files[DOCUMENT] if unchanged else encoded(document, where),
        CONFIG: encoded(config, where),
        SPECIAL: encoded(_special_tokens_map(special.roles, added), where),
    }
    if MODEL in files:
        result[MODEL] = files[MODEL]
    if tokens.added:
        result[ADDED] = encoded(tokens.added, where)
    if chat_template is not None:
        result[TEMPLATE] = chat_template.encode()
    notes = [
        *_list_tokens("from the recipe", (content for content in merged if content not in stated)),
        *_list_tokens("dropped, without a row of the embedding", (content for content in merged if content not in ids)),
        *_repairs(source, added, config, special.roles),
    ]
    if rows > tokens.size:
        notes.append(f"{counted(rows - tokens.size, 'row')} of the embedding without a token")
    return RepairedTokenizer(result, tokens, tuple(notes))


def _with_rows(merged: Mapping[str, int], vocabulary: TokenSource, rows: int, where: Path) -> dict[str, int]:
    """Return the tokens with a row, by content in the order of their ids, which must be consecutive."""
    largest = max(vocabulary.ids.values(), default=-1)
    if largest >= rows:
        problem, remedy = "the embedding has too few rows for the vocabulary", "take the tokenizer of this model"
        at, found, least = where / vocabulary.name, counted(rows, "row"), f"at least {largest + 1:,}"
        raise Mismatch(problem, where=at, found=found, expected=least, remedy=remedy)
    kept = sorted((number, content) for content, number in merged.items() if number < rows)
    for expected, (number, content) in enumerate(kept):
        if number != expected:
            problem, remedy = "an id without a token", f"name it in {ADDED}, or name the recipe: deltaweights recipes"
            found = f"none for {expected:,}, but {content} for {number:,}"
            raise Mismatch(problem, where=where, found=found, remedy=remedy)
    return {content: number for number, content in kept}


def _check_llama(ids: Mapping[str, int], where: Path) -> None:
    for content in (BOS, EOS, UNK):
        if content not in ids:
            found, remedy = f"no token {content}", USE_ORIGINAL
            raise MalformedInput("not a LLaMA tokenizer", where=where, found=found, remedy=remedy)


def _token_ids(ids: Mapping[str, int], vocabulary: TokenSource, roles: Mapping[str, str]) -> TokenIds:
    added = {content: number for content, number in ids.items() if content not in vocabulary.ids}
    bos, eos, unk, pad = (ids[roles[role]] for role in ("bos_token", "eos_token", "unk_token", "pad_token"))
    return TokenIds(bos=bos, eos=eos, unk=unk, pad=pad, added=added, size=len(ids))


def _added_tokens(source: TokenizerFiles, ids: Mapping[str, int], special: SpecialTokens) -> Iterator[AddedToken]:
    """Yield the tokens after the vocabulary, and those in it that are special or that a file names, in the order of ids."""
    stated = dict(special.flags)
    for each in reversed(source.added):
        stated |= each.flags
    named = frozenset(special.flags).union(*(each.ids for each in source.added))
    for content, number in ids.items():
        in_vocabulary = content in source.vocabulary.ids
        if in_vocabulary and content not in named:
            continue
        flags = stated.get(content, TokenFlags() if in_vocabulary else STRIPPING)
        # In normalized text a token is found only after a space: of 256 image tokens in a row the first one.
        normalized, is_special = flags.normalized and in_vocabulary, flags.special or content in special.flags
        yield AddedToken(number, content, replace(flags, normalized=normalized, special=is_special))


def _config(
    source: TokenizerFiles, special: Mapping[str, str], added: Iterable[AddedToken], stop_strings: Sequence[str]
) -> dict[str, Json]:
    length, side = source.config.get("model_max_length"), source.config.get("padding_side")
    splitter = source.document.get("pre_tokenizer")
    config = {
        "tokenizer_class": CLASS,
        "model_max_length": length if type(length) is int and 0 < length <= MAX_CONTEXT else CONTEXT,
        # For transformers' slow LlamaTokenizer, which reads tokenizer.model: as in 2023.
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if side in ("left", "right"):
        config["padding_side"] = side
    if isinstance(splitter, dict) and splitter.get("add_prefix_space") is True:
        config["add_prefix_space"] = True  # without it transformers 4.46 to 4.57 turns it off in tokenizer.json's own
    if stop_strings:
        config["stop_strings"] = list(stop_strings)
    decoder = {str(token.id): {"content": token.content, **vars(token.flags)} for token in added}
    return {**config, "added_tokens_decoder": decoder}


def _special_tokens_map(special: Mapping[str, str], added: Iterable[AddedToken]) -> dict[str, Json]:
    """Return special_tokens_map.json, for transformers before 4.34 and other programs."""
    flags = {token.content: {**vars(token.flags)} for token in added}
    for each in flags.values():
        del each["special"]
    return {role: {"content": content, **flags[content]} for role, content in special.items()}


def _repairs(
    source: TokenizerFiles, added: Iterable[AddedToken], config: Mapping[str, Json], special: Mapping[str, str]
) -> Iterator[str]:
    if source.converted:
        yield f"{DOCUMENT} is made from {MODEL}"
    else:
        stated = source.added[0].flags
        yield from _list_tokens(f"added to {DOCUMENT}", (each.content for each in added if each.content not in stated))
        other = (token.content for token in added if stated.get(token.content, token.flags) != token.flags)
        yield from _list_tokens(f"matched otherwise than {DOCUMENT} stated", other)
        bos = next(token for token in added if token.content == special["bos_token"])
        if not begins_with(source.document.get("post_processor"), bos.id, bos.content):
            yield f"{DOCUMENT}: a text begins with {bos.content}"
    for key in ("tokenizer_class", "model_max_length"):
        if source.config.get(key) not in (None, config[key]):
            yield f"{CONFIG}: {key} is {config[key]}, not {_shown(source.config[key])}"
    for name, document in ((CONFIG, source.config), (SPECIAL, source.special)):
        for role, content in special.items():
            value = document.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if value is not None and value != content:
                yield f"{name}: {role} is {content}, not {_shown(value)}"


def _list_tokens(what: str, contents: Iterable[str]) -> Iterator[str]:
    names = list(contents)
    if names:
        shown = ", ".join(printable(name[:80]) for name in names[:MAX_LISTED])
        rest = f" and {counted(len(names) - MAX_LISTED, 'other')}" if len(names) > MAX_LISTED else ""
        yield f"{what}: {shown}{rest}"


def _shown(value: Json) -> str:
    return printable(compact_json(value)[:80])


def encoded(
    document: Json, where: Path, problem: str = "unusable tokens", remedy: str = "fetch the tokenizer again"
) -> bytes:
    """Return ``document`` as JSON. Raises ``MalformedInput``, with ``problem`` and ``remedy``, when that cannot be."""
    try:
        return readable_json(document)
    except ValueError as error:
        found = "half a character" if isinstance(error, UnicodeEncodeError) else str(error)
    raise MalformedInput(problem, where=where, found=found, remedy=remedy)
