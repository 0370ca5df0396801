"""Which tokens begin and end a text, as LlamaTokenizer of transformers 4.28.1 (the one in Python) read the files.

It took each role from special_tokens_map.json, else from tokenizer_config.json, else LLaMA's own. Its ids are the tokens', so the
token that begins a text decides the first id of every prompt. A token without a role, ``<s>`` where bos is ``</s>``, is plain text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.errors import Mismatch
from deltaweights.export.added_tokens import STRIPPING, TokenFlags
from deltaweights.util.text import Json

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
"""LLaMA's special tokens, with the ids 1, 2 and 0."""

PAD = "[PAD]"  # the token that fine-tunings of 2023 added for padding

OWN = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}

OTHERS = "additional_special_tokens"


@dataclass(frozen=True)
class SpecialTokens:
    """``roles`` are tokens by role, in the words of transformers; ``flags`` those of every special token, by content."""

    roles: Mapping[str, str]
    flags: Mapping[str, TokenFlags]

    @property
    def bos(self) -> str:
        """The token that begins a text."""
        return self.roles["bos_token"]


@dataclass(frozen=True)
class _Statement:
    """A token that a file states; ``flags`` are None for a bare string, beside which white space was taken away."""

    content: str
    flags: TokenFlags | None


def special_tokens(
    special: Mapping[str, Json], config: Mapping[str, Json], ids: Mapping[str, int], bos: str | None, where: Path
) -> SpecialTokens:
    """Return the special tokens that special_tokens_map.json and tokenizer_config.json of the folder ``where`` state.

    ``ids`` are all tokens with a row; a statement of another token, or of none (before transformers 4.28 the files had empty
    strings, and ids were those of tokenizer.model), leaves LLaMA's own. ``bos`` is what a recipe states, before the files. Raises
    ``Mismatch`` when there is no such token.
    """
    if bos is not None and bos not in ids:
        problem, remedy = "the recipe's bos_token is not a token of the model", "correct the recipe"
        raise Mismatch(problem, where=where, found=bos, remedy=remedy)
    flags: dict[str, TokenFlags | None] = {}
    roles: dict[str, str] = {}
    for role in (*OWN, "pad_token"):
        stated = _stated(role, special, config, ids)
        own = OWN.get(role) or (PAD if PAD in ids else UNK)
        if role == "bos_token" and bos is not None and (stated is None or stated.content != bos):
            stated = _Statement(bos, TokenFlags())
        if role == "pad_token" and (stated is None or stated.content != own):
            stated = _Statement(own, None if own == PAD else TokenFlags())
        stated = stated or _Statement(own, TokenFlags())
        roles[role] = stated.content
        _note(flags, stated)
    for stated in _others(special, config):
        if stated.content in ids:
            _note(flags, stated)
    return SpecialTokens(roles, {content: STRIPPING if each is None else each for content, each in flags.items()})


def _stated(
    role: str, special: Mapping[str, Json], config: Mapping[str, Json], ids: Mapping[str, int]
) -> _Statement | None:
    for document, bare in ((special, None), (config, TokenFlags())):
        statement = _statement(document.get(role), bare)
        if statement is not None and statement.content in ids:
            return statement
    return None


def _others(special: Mapping[str, Json], config: Mapping[str, Json]) -> Iterator[_Statement]:
    listed = special[OTHERS] if OTHERS in special else config.get(OTHERS)
    for value in listed if isinstance(listed, list) else ():
        statement = _statement(value, None)
        if statement is not None:
            yield statement


def _statement(value: Json, bare: TokenFlags | None) -> _Statement | None:
    """Return what ``value`` states: a string, whose flags are ``bare``, or an object; None for neither."""
    if isinstance(value, str):
        return _Statement(value, bare)
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(content, str):
        return None
    return _Statement(content, TokenFlags(lstrip=value.get("lstrip") is True, rstrip=value.get("rstrip") is True))


def _note(flags: dict[str, TokenFlags | None], statement: _Statement) -> None:
    """Keep the first flags of a token with several roles; a bare string never replaces some."""
    if flags.get(statement.content) is None:
        flags[statement.content] = statement.flags
