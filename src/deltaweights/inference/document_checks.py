"""Checks that configuration, tokenizer, processor and chat template agree on special ids, questions and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltaweights.export.conversation import END, START
from deltaweights.inference import transformers_loader as loader
from deltaweights.inference.beginning import check_beginning, check_template_beginning
from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import (
    CONFIG,
    GENERATION_CONFIG,
    PROCESSOR_CONFIG,
    TOKENIZER_CONFIG,
    VOCABULARIES,
    ModelFolder,
)
from deltaweights.inference.prompts import QUESTION, question_turns
from deltaweights.inference.rendering import render, template_of
from deltaweights.util.text import Json

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TEMPLATES = ("chat_template.jinja", "chat_template.json", TOKENIZER_CONFIG)  # may hold the template, by precedence
CLIP = "clip_vision_model"


def check_documents(folder: ModelFolder, config: Any, model: Any, findings: CheckFindings) -> int | None:
    """Check tokenizer, special ids and, for a model with vision, its processor; return the tokenizer's length."""
    length, special = None, dict[str, tuple[int | None, str]]()
    try:
        if folder.file_names.isdisjoint(VOCABULARIES):
            raise loader.LibraryError(f"no {' or '.join(VOCABULARIES)}")  # noqa: TRY301
        tokenizer = loader.load("AutoTokenizer", folder.path)
        with loader.transformers_errors():
            length = len(tokenizer)
            for key in SPECIAL_IDS:
                special[key] = getattr(tokenizer, key), str(getattr(tokenizer, key.removesuffix("_id")))
    except loader.LibraryError as error:
        findings.doubt(TOKENIZER_CONFIG, "transformers cannot load the tokenizer", found=error)
    if model is None:
        return length
    rows = loader.embedding_weights(model)[0].shape[0]
    if length is not None:
        _check_vocabulary_size(length, rows, findings)
    _check_special_ids(_document_ids(folder, config), special, rows, findings)
    if length is None:
        return None
    check_beginning(tokenizer, folder, findings)
    if getattr(config, "vision_config", None) is None:
        _check_template(tokenizer, folder.file_names, findings, vision=False)
        return length
    try:
        processor = loader.load_processor(folder.path)
    except loader.LibraryError as error:
        findings.problem(PROCESSOR_CONFIG, "transformers cannot load the processor", found=error)
        return length
    _check_images(processor, config, findings)
    _check_template(processor, folder.file_names, findings, vision=True)
    return length


@dataclass(frozen=True)
class _DocumentIds:
    """Special ids of a document, by key; ``defaults`` are the keys that it omits, for which transformers has a value."""

    file: str
    ids: Mapping[str, Json]
    defaults: frozenset[str] = frozenset()


def _document_ids(folder: ModelFolder, config: Any) -> list[_DocumentIds]:
    text = folder.config.get("text_config")
    written: Mapping[str, Any] = text if isinstance(text, dict) else folder.config
    effective = config.get_text_config()
    defaults = frozenset(SPECIAL_IDS) - written.keys()
    documents = [_DocumentIds(CONFIG, {key: getattr(effective, key, None) for key in SPECIAL_IDS}, defaults)]
    if written is not folder.config:
        documents.append(_DocumentIds(CONFIG, folder.config))
    if folder.generation_config is not None:
        documents.append(_DocumentIds(GENERATION_CONFIG, folder.generation_config))
    return documents


def _check_special_ids(
    documents: list[_DocumentIds], tokenizer: Mapping[str, tuple[int | None, str]], rows: int, findings: CheckFindings
) -> None:
    """Compare the ids of all documents with the tokenizer's id (or None) and token, and with the ``rows`` of the embeddings.

    Where the tokenizer has no such token, they are compared with the first document that has. Of a list, one id must match.
    """
    for key in SPECIAL_IDS:
        expected, token = tokenizer.get(key, (None, ""))
        for document in documents:
            value = document.ids.get(key)
            if value is None:
                continue
            ids = value if isinstance(value, list) else [value]
            found = f"{value}, transformers' default" if key in document.defaults else value
            if not ids or any(type(number) is not int for number in ids):
                findings.doubt(document.file, f"{key} is not an id", found=value)
            elif expected is not None and expected not in ids:
                due = f"{expected} ({token})" if token else str(expected)
                findings.doubt(document.file, f"{key} is not the tokenizer's", found=found, expected=due)
            elif any(not 0 <= number < rows for number in ids):
                due = f"0 to {rows - 1}"
                findings.doubt(document.file, f"{key} is outside the embeddings", found=found, expected=due)
            elif expected is None:
                expected, token = ids[0], ""


def _check_vocabulary_size(tokens: int, rows: int, findings: CheckFindings) -> None:
    if tokens > rows:
        problem, found = "has more tokens than the embeddings have rows", f"{tokens:,} tokens"
        findings.problem(TOKENIZER_CONFIG, problem, found=found, expected=f"at most {rows:,}")
    elif tokens < rows:
        unused = f"{tokens:,} tokens for {rows:,} rows of embeddings; the other rows are unused"
        findings.notes.append(f"{TOKENIZER_CONFIG}: {unused}")


def _check_template(tool: Any, file_names: frozenset[str], findings: CheckFindings, *, vision: bool) -> None:
    """Check that the template of ``tool`` keeps a question and has a place for an image; ``tool`` is as for ``make_prompt``."""
    file = next((name for name in TEMPLATES if name in file_names), TEMPLATES[0])
    if template_of(tool) is None:
        if vision:
            findings.warn(file, "has no chat template, which places images in a prompt")
        return
    try:
        text = render(tool, question_turns(QUESTION, images=1, vision=vision))
    except loader.LibraryError as error:
        findings.doubt(file, "cannot render a question", found=error)
        return
    if QUESTION not in text:
        findings.doubt(file, "drops the question", found=text)
    check_template_beginning(text, getattr(tool, "tokenizer", tool), file, findings)
    token = getattr(tool, "image_token", None)
    if not vision or not isinstance(token, str) or token not in tool.tokenizer.get_vocab():
        return  # _check_images reports a bad token
    if text.count(token) != 1:
        problem = "does not write one image token for one image"
        findings.doubt(file, problem, found=text.count(token), expected=f"1 {token}")
    if text.count(START) != text.count(END):
        found = f"{text.count(START)} and {text.count(END)}"
        findings.doubt(file, f"does not write as many {START} as {END}", found=found)


def _check_images(processor: Any, config: Any, findings: CheckFindings) -> None:
    """Check the layer that features are taken from, the image token's id, and the number of image tokens."""
    _check_layer(config, findings)
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        findings.problem(PROCESSOR_CONFIG, "names no image_token")
        return
    try:
        with loader.transformers_errors():
            known = processor.tokenizer.get_vocab().get(token)
            pieces = list(processor.tokenizer.encode(token, add_special_tokens=False))
    except loader.LibraryError as error:
        findings.problem(PROCESSOR_CONFIG, "the tokenizer cannot encode image_token", found=error)
        return
    if known is None or pieces != [known]:
        found = f"{token}, encoded as {pieces}"
        findings.problem(PROCESSOR_CONFIG, "image_token is not a token of the tokenizer", found=found)
        return
    configured = getattr(config, "image_token_id", None)
    configured = getattr(config, "image_token_index", None) if configured is None else configured
    if configured != known:
        due = f"{known} ({token})"
        findings.problem(CONFIG, "image_token_index is not the processor's", found=configured, expected=due)
    _check_token_count(processor, config, known, findings)


def _check_layer(config: Any, findings: CheckFindings) -> None:
    layer = getattr(config, "vision_feature_layer", None)
    count = getattr(config.vision_config, "num_hidden_layers", None)
    if layer is None or not isinstance(count, int):
        return
    layers = layer if isinstance(layer, (list, tuple)) and layer else [layer]
    # 0 is the first layer's input.
    if any(type(number) is not int or not -count - 1 <= number <= count for number in layers):
        due = f"{-count - 1} to {count}, the layers of the vision tower"
        findings.problem(CONFIG, "vision_feature_layer does not exist", found=layer, expected=due)


def _check_token_count(processor: Any, config: Any, token_id: int, findings: CheckFindings) -> None:
    try:
        with loader.transformers_errors():
            from PIL import Image  # noqa: PLC0415  (only for models with vision)

            image = Image.new("RGB", (32, 32))
            batch: Any = processor(text=[processor.image_token], images=[image], return_tensors="np")
            inserted = [int(number) for number in batch["input_ids"][0]].count(token_id)
    except loader.LibraryError as error:
        findings.problem(PROCESSOR_CONFIG, "the processor fails on an image", found=error)
        return
    features = _features_per_image(config)
    if features is not None and inserted != features:
        due = f"{features}, the features of the vision tower"
        findings.problem(PROCESSOR_CONFIG, "inserts a wrong number of image tokens", found=inserted, expected=due)
    length, expected = getattr(config, "image_seq_length", None), inserted if features is None else features
    if length is not None and length != expected:
        problem = "image_seq_length is not the number of an image's tokens"
        findings.problem(CONFIG, problem, found=length, expected=expected)


def _features_per_image(config: Any) -> int | None:
    """Return how many features a CLIP tower gives: its patches, and its class token unless that is cut off; None for others."""
    tower = getattr(config, "vision_config", None)
    width, patch = (getattr(tower, name, None) for name in ("image_size", "patch_size"))
    if getattr(tower, "model_type", None) != CLIP or not isinstance(width, int) or not isinstance(patch, int):
        return None
    patches = (width // patch) ** 2
    return patches if getattr(config, "vision_feature_select_strategy", "default") == "default" else patches + 1
