"""tokenizer.json, which transformers loads as it is: made from a sentencepiece model, or repaired.

Texts keep the ids of the LlamaTokenizer of 2023, which split a text at its added tokens and gave each stretch between two of
them to sentencepiece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deltaweights.errors import MalformedInput
from deltaweights.export.added_tokens import TokenFlags
from deltaweights.export.sentencepiece import SPACE, SentencePieceModel
from deltaweights.util.text import Json


class AddedToken(NamedTuple):
    """A token that is matched before a text is split into pieces."""

    id: int
    content: str
    flags: TokenFlags


def llama_document(model: SentencePieceModel, merges: Sequence[tuple[str, str]], unk: str) -> dict[str, Json]:
    """Return the document of a LLaMA's sentencepiece model, for ``tokenizers`` since 0.13, still without added tokens."""
    normalizers = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "vocab": model.vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def vocabulary_of(document: Mapping[str, Json], where: Path) -> dict[str, Json]:
    """Return the ids by token of a tokenizer.json. Raises ``MalformedInput`` when it has no vocabulary."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return vocabulary
    if isinstance(vocabulary, list) and all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocabulary
    ):  # a unigram model has pairs of token and score, in the order of their ids
        return {entry[0]: number for number, entry in enumerate(vocabulary)}
    raise MalformedInput("no vocabulary", where=where, expected="a tokenizer.json", remedy="fetch it again")


def added_entries(document: Mapping[str, Json], where: Path) -> list[tuple[Json, Json]]:
    """Return the id and description of each added token. Raises ``MalformedInput`` unless they are a list of objects."""
    added = document.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        expected = "a list of objects"
        raise MalformedInput("unusable added_tokens", where=where, expected=expected, remedy="fetch it again")
    return [(entry.get("id"), entry) for entry in added]


def with_tokens(document: Mapping[str, Json], added: Sequence[AddedToken], bos: tuple[int, str]) -> dict[str, Json]:
    """Return ``document`` with ``added``, in the order of their ids, and every text beginning with ``bos``."""
    tokens = [{"id": token.id, "content": token.content, **vars(token.flags)} for token in added]
    result = {**document, "added_tokens": tokens}
    if not begins_with(document.get("post_processor"), *bos):
        result["post_processor"] = _template(*bos)
    return result


def begins_with(processor: Json, number: int, token: str) -> bool:
    """Return whether ``processor``, or one in its sequence, adds ``token`` at the beginning of a text, and nothing else."""
    parts = [processor]
    if isinstance(processor, dict) and isinstance(processor.get("processors"), list):
        parts += processor["processors"]
    template = _template(number, token)
    keys = ("type", "single", "special_tokens")  # a second text may begin with it or not: both are in use
    return any(isinstance(part, dict) and all(part.get(key) == template[key] for key in keys) for part in parts)


def _template(number: int, token: str) -> dict[str, Json]:
    first = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
