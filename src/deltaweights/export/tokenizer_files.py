"""The tokenizer files of a folder, read together: one vocabulary, the tokens beside it, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.small_files import json_object
from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.export.added_tokens import TokenSource, decoder_entries, source_of_entries, source_of_ids
from deltaweights.export.sentencepiece import merges_of, read_model
from deltaweights.export.special_tokens import UNK
from deltaweights.export.tokenizer_json import added_entries, llama_document, vocabulary_of
from deltaweights.util.text import Json

MODEL, DOCUMENT, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"

UNLIMITED = b"1000000000000000019884624838656"
"""int(1e30), which transformers writes for an unlimited ``model_max_length``: too long a number for strict JSON."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files state.

    ``document`` is tokenizer.json, or ``converted`` from tokenizer.model; ``config`` is tokenizer_config.json, and ``special``
    special_tokens_map.json, empty where missing; ``added`` are the tokens beside the ``vocabulary``, those of tokenizer.json first.
    """

    document: dict[str, Json]
    converted: bool
    config: dict[str, Json]
    special: dict[str, Json]
    vocabulary: TokenSource
    added: tuple[TokenSource, ...]


def read_files(files: Mapping[str, bytes], where: Path) -> TokenizerFiles:
    """Return what ``files``, contents by name, of the folder ``where`` state; files not of a tokenizer are ignored.

    Raises ``MalformedInput`` for a malformed or missing tokenizer, and ``Mismatch`` when tokenizer.model and
    tokenizer.json have different vocabularies.
    """

    def read(name: str) -> dict[str, Json]:
        return json_object(files[name].replace(UNLIMITED, b"null"), where / name) if name in files else {}

    model = read_model(files[MODEL], where / MODEL) if MODEL in files else None
    if DOCUMENT in files:
        document = json_object(files[DOCUMENT], where / DOCUMENT)
    elif model is not None:
        document = llama_document(model, merges_of(model, where / MODEL), UNK)
    else:
        remedy = "copy it from the repository of the delta, or of its base, into this folder"
        raise MalformedInput("no tokenizer", where=where, expected=f"{MODEL} or {DOCUMENT}", remedy=remedy)
    at = where / DOCUMENT
    vocabulary = source_of_ids(DOCUMENT if DOCUMENT in files else MODEL, vocabulary_of(document, at), at)
    if model is not None and vocabulary.ids != model.vocabulary:
        differing = vocabulary.ids.items() ^ model.vocabulary.items()
        number, content = min((number, content) for content, number in differing)
        problem, remedy = (
            f"{MODEL} and {DOCUMENT} have different vocabularies",
            "keep the files of one tokenizer together",
        )
        found = f"{content} with the id {number:,} in one of them only"
        raise Mismatch(problem, where=where, found=found, remedy=remedy)
    config = read(CONFIG)
    decoder = decoder_entries(config.get("added_tokens_decoder", {}), where / CONFIG)
    added = (
        source_of_entries(DOCUMENT, added_entries(document, at), at),
        source_of_entries(CONFIG, decoder, where / CONFIG),
        source_of_ids(ADDED, read(ADDED), where / ADDED),
    )
    return TokenizerFiles(document, DOCUMENT not in files, config, read(SPECIAL), vocabulary, added)
