"""The tokenizer of a delta of 2023, repaired so that current transformers loads it, every token at its id.

Enters: the tokenizer files that lie beside the weights, the rows of the embedding, and what a recipe knows. Leaves: the files that
transformers 4 and 5 load, the ids that the other files of a model need, and what was repaired, in words. Never: a token moved to
another id, a token without a row, or files that disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.errors import MalformedInput, Mismatch, printable
from deltaweights.export.added_tokens import STRIPPING, TokenFlags, TokenSource, unite
from deltaweights.export.tokenizer_files import (
    ADDED,
    BOS,
    CONFIG,
    DOCUMENT,
    EOS,
    MODEL,
    SPECIAL,
    TEMPLATE,
    UNK,
    TokenizerFiles,
    read_files,
)
from deltaweights.export.tokenizer_json import begins_with, with_tokens
from deltaweights.util.text import Json, compact_json, counted, readable_json

PAD = "[PAD]"
"""The token that fine-tunings of 2023 added for padding."""

CLASS = "PreTrainedTokenizerFast"
"""Loads tokenizer.json as it is, in transformers 4 and 5. LlamaTokenizer of 5 does not: it puts no space before a text that begins
with one, as the original did."""

CONTEXT = 2048
"""Tokens that LLaMA-1 was trained on at once: the length where the files state none, or one that stands for "any"."""

MOST_CONTEXT = 1_000_000

MOST_NAMES = 8
"""Tokens named in a line; the others are counted."""


@dataclass(frozen=True)
class Tokens:
    """Ids of the finished tokenizer.

    ``pad`` is [PAD], or ``unk`` where [PAD] has no row; ``added`` are the tokens behind the vocabulary, by content, in the order
    of their ids; ``size`` is the count of all tokens.
    """

    bos: int
    eos: int
    unk: int
    pad: int
    added: dict[str, int]
    size: int


@dataclass(frozen=True)
class RepairedTokenizer:
    """Contents of files by name, the ids in them, and what was repaired: a printable line each, for people."""

    files: dict[str, bytes]
    tokens: Tokens
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Token:
    """A token that is looked for in a text before the text is cut into pieces."""

    id: int
    content: str
    flags: TokenFlags


def repair_tokenizer(
    files: Mapping[str, bytes],
    rows: int,
    *,
    where: Path,
    known: Mapping[str, int] | None = None,
    chat_template: str | None = None,
    stop_strings: Sequence[str] = (),
) -> RepairedTokenizer:
    """Return the tokenizer that ``files``, contents by name, of the folder ``where``, hold, in the form of current transformers.

    ``rows`` are those of the embedding: a token whose id is not below them is left out. ``known`` are ids by token that a recipe
    states; ``stop_strings`` stand in tokenizer_config.json, where only this program looks for them. One of tokenizer.model and
    tokenizer.json must be there. A tokenizer.json is kept, but for its added tokens and what begins a text.

    Raises ``MalformedInput`` when there is no tokenizer, none of LLaMA's kind, or a file breaks its format's rules, and
    ``Mismatch`` when files, recipe and rows contradict each other, or an id below another has no token.
    """
    held = read_files(files, where)
    stated = unite((held.vocabulary, *held.beside), where)
    united = unite((TokenSource("the files", stated, {}), TokenSource("the recipe", known or {}, {})), where)
    ids = _with_rows(united, held.vocabulary, rows, where)
    tokens = _tokens(ids, held.vocabulary, where)
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD if PAD in ids else UNK}
    added = list(_added(held, ids, frozenset(special.values())))
    document = with_tokens(
        held.document, [(token.id, token.content, token.flags) for token in added], (tokens.bos, BOS)
    )
    config = _config(held, special, added, stop_strings)
    result = {
        DOCUMENT: _written(document, where) if held.made or document != held.document else files[DOCUMENT],
        CONFIG: _written(config, where),
        SPECIAL: _written(_special_tokens_map(special, added), where),
    }
    if MODEL in files:
        result[MODEL] = files[MODEL]
    if tokens.added:
        result[ADDED] = _written(tokens.added, where)
    if chat_template is not None:
        result[TEMPLATE] = chat_template.encode()
    notes = [
        *_named("from the recipe", (content for content in united if content not in stated)),
        *_named("left out, without a row of the embedding", (content for content in united if content not in ids)),
        *_changes(held, added, config, special),
    ]
    if rows > tokens.size:
        notes.append(f"{counted(rows - tokens.size, 'row')} of the embedding without a token")
    return RepairedTokenizer(result, tokens, tuple(notes))


def _with_rows(united: Mapping[str, int], vocabulary: TokenSource, rows: int, where: Path) -> dict[str, int]:
    """Return the tokens with a row, by content in the order of their ids, which are consecutive."""
    largest = max(vocabulary.ids.values(), default=-1)
    if largest >= rows:
        raise Mismatch(
            "the embedding has too few rows for the vocabulary",
            where=where / vocabulary.name,
            found=counted(rows, "row"),
            expected=f"at least {largest + 1:,}",
            remedy="take the tokenizer of this model",
        )
    kept = sorted((number, content) for content, number in united.items() if number < rows)
    for expected, (number, content) in enumerate(kept):
        if number != expected:
            raise Mismatch(
                "an id without a token",
                where=where,
                found=f"none for {expected:,}, but {content} for {number:,}",
                remedy=f"name it in {ADDED}, or name the recipe: deltaweights recipes",
            )
    return {content: number for number, content in kept}


def _tokens(ids: Mapping[str, int], vocabulary: TokenSource, where: Path) -> Tokens:
    for content in (BOS, EOS, UNK):
        if content not in ids:
            remedy = "use --layout original"
            raise MalformedInput("not a LLaMA tokenizer", where=where, found=f"no token {content}", remedy=remedy)
    added = {content: number for content, number in ids.items() if content not in vocabulary.ids}
    return Tokens(ids[BOS], ids[EOS], ids[UNK], ids.get(PAD, ids[UNK]), added, len(ids))


def _added(held: TokenizerFiles, ids: Mapping[str, int], special: frozenset[str]) -> Iterator[_Token]:
    """Yield the tokens behind the vocabulary, and those in it that are special or that a file names, in the order of their ids."""
    stated: dict[str, TokenFlags] = {}
    for source in held.beside:
        stated = {**source.flags, **stated}
    beside = special.union(*(source.ids for source in held.beside))
    for content, number in ids.items():
        inside = content in held.vocabulary.ids
        if inside and content not in beside:
            continue
        flags = stated.get(content, TokenFlags() if inside else STRIPPING)
        # In normalized text a token is found only behind a space: of 256 image tokens in a row the first one.
        flags = replace(flags, normalized=flags.normalized and inside, special=flags.special or content in special)
        yield _Token(number, content, flags)


def _config(
    held: TokenizerFiles, special: Mapping[str, str], added: Iterable[_Token], stop_strings: Sequence[str]
) -> dict[str, Json]:
    """Return tokenizer_config.json."""
    length, side = held.config.get("model_max_length"), held.config.get("padding_side")
    splitter = held.document.get("pre_tokenizer")
    config = {
        "tokenizer_class": CLASS,
        "model_max_length": length if type(length) is int and 0 < length <= MOST_CONTEXT else CONTEXT,
        # For those who ask for transformers' slow LlamaTokenizer, which reads tokenizer.model: as in 2023.
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if side in ("left", "right"):
        config["padding_side"] = side
    if isinstance(splitter, dict) and splitter.get("add_prefix_space") is True:
        config["add_prefix_space"] = True  # without it transformers 4.46 to 4.57 puts it out in tokenizer.json's own
    if stop_strings:
        config["stop_strings"] = list(stop_strings)
    decoder = {str(token.id): {"content": token.content, **vars(token.flags)} for token in added}
    return {**config, "added_tokens_decoder": decoder}


def _special_tokens_map(special: Mapping[str, str], added: Iterable[_Token]) -> dict[str, Json]:
    """Return special_tokens_map.json, which transformers before 4.34 reads, and other programs."""
    flags = {token.content: vars(token.flags) for token in added}
    return {
        role: {"content": content, **{flag: on for flag, on in flags[content].items() if flag != "special"}}
        for role, content in special.items()
    }


def _changes(
    held: TokenizerFiles, added: Iterable[_Token], config: Mapping[str, Json], special: Mapping[str, str]
) -> Iterator[str]:
    """Yield a line for each thing that a file says otherwise."""
    if held.made:
        yield f"{DOCUMENT} is made from {MODEL}"
    else:
        stated = held.beside[0].flags
        yield from _named(f"added to {DOCUMENT}", (token.content for token in added if token.content not in stated))
        other = (token.content for token in added if stated.get(token.content, token.flags) != token.flags)
        yield from _named(f"found in another way than {DOCUMENT} said", other)
        bos = next(token.id for token in added if token.content == BOS)
        if not begins_with(held.document.get("post_processor"), bos, BOS):
            yield f"{DOCUMENT}: a text begins with {BOS}"
    for key in ("tokenizer_class", "model_max_length"):
        if held.config.get(key) not in (None, config[key]):
            yield f"{CONFIG}: {key} is {config[key]}, not {_shown(held.config[key])}"
    for name, document in ((CONFIG, held.config), (SPECIAL, held.special)):
        for role, content in special.items():
            value = document.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if value is not None and value != content:
                yield f"{name}: {role} is {content}, not {_shown(value)}"


def _named(what: str, contents: Iterable[str]) -> Iterator[str]:
    """Yield one line that says ``what`` became of the tokens ``contents``, or none when there are none."""
    names = list(contents)
    if names:
        shown = ", ".join(printable(name[:80]) for name in names[:MOST_NAMES])
        rest = f" and {counted(len(names) - MOST_NAMES, 'other')}" if len(names) > MOST_NAMES else ""
        yield f"{what}: {shown}{rest}"


def _shown(value: Json) -> str:
    return printable(compact_json(value)[:80])


def _written(document: Mapping[str, Json], where: Path) -> bytes:
    try:
        return readable_json(document)
    except ValueError as error:
        found = "half a character" if isinstance(error, UnicodeEncodeError) else str(error)
    raise MalformedInput("unusable tokens", where=where, found=found, remedy="fetch the tokenizer again")
