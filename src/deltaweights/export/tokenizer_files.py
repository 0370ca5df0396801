"""The tokenizer files of a folder, read together.

Enters: contents of files by name. Leaves: one vocabulary, the tokens beside it by the file that names them, and the settings.
Never: the vocabularies of two tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.small_files import json_object
from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.export.added_tokens import Source, decoder_entries, full_source, plain_source
from deltaweights.export.sentencepiece import merges_of, read_model
from deltaweights.export.tokenizer_json import added_entries, llama_document, vocabulary_of
from deltaweights.util.text import Json

MODEL, DOCUMENT, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
"""LLaMA's special tokens, with the ids 1, 2 and 0."""

UNLIMITED = b"1000000000000000019884624838656"
"""int(1e30), which transformers writes for a ``model_max_length`` without limit: too long a number for strict JSON."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say.

    ``document`` is tokenizer.json, ``made`` from tokenizer.model or as it was; ``config`` is tokenizer_config.json, and
    ``special`` special_tokens_map.json, empty where they are missing; ``beside`` are the tokens beside the ``vocabulary``, those
    of tokenizer.json first.
    """

    document: dict[str, Json]
    made: bool
    config: dict[str, Json]
    special: dict[str, Json]
    vocabulary: Source
    beside: tuple[Source, ...]


def read_files(files: Mapping[str, bytes], where: Path) -> TokenizerFiles:
    """Return what ``files``, contents by name, of the folder ``where`` say; others than a tokenizer's are passed over.

    Raises ``MalformedInput`` when one breaks its format's rules, or there is no tokenizer, and ``Mismatch`` when tokenizer.model
    and tokenizer.json have different vocabularies.
    """

    def read(name: str) -> dict[str, Json]:
        return json_object(files[name].replace(UNLIMITED, b"null"), where / name) if name in files else {}

    model = read_model(files[MODEL], where / MODEL) if MODEL in files else None
    if DOCUMENT in files:
        document = json_object(files[DOCUMENT], where / DOCUMENT)
    elif model is not None:
        document = llama_document(model, merges_of(model, where / MODEL), UNK)
    else:
        raise MalformedInput(
            "no tokenizer",
            where=where,
            expected=f"{MODEL} or {DOCUMENT}",
            remedy="copy it from the repository of the delta, or of its base, into this folder",
        )
    vocabulary = plain_source(
        DOCUMENT if DOCUMENT in files else MODEL, vocabulary_of(document, where / DOCUMENT), where / DOCUMENT
    )
    if model is not None and vocabulary.ids != model.vocabulary:
        odd = {*vocabulary.ids.items()} ^ {*model.vocabulary.items()}
        number, content = min((number, content) for content, number in odd)
        raise Mismatch(
            f"{MODEL} and {DOCUMENT} have different vocabularies",
            where=where,
            found=f"{content} with the id {number:,} in one of them only",
            remedy="keep the files of one tokenizer together",
        )
    config = read(CONFIG)
    beside = (
        full_source(DOCUMENT, added_entries(document, where / DOCUMENT), where / DOCUMENT),
        full_source(CONFIG, decoder_entries(config.get("added_tokens_decoder", {}), where / CONFIG), where / CONFIG),
        plain_source(ADDED, read(ADDED), where / ADDED),
    )
    return TokenizerFiles(document, DOCUMENT not in files, config, read(SPECIAL), vocabulary, beside)
