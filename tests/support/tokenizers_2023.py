"""Tokenizers as the deltas of 2023 hold them: sentencepiece models like LLaMA's, and the files beside them."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import sentencepiece

NEW = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
"""What LLaVA-Med added behind the vocabulary, in the order of the ids."""

TEXT = """
A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers.
###Human: Hi!###Assistant: Hi there!  How can I help you today?
The lungs are clear. There is no pleural effusion and no pneumothorax. The heart is not enlarged. The bones are intact.
What is shown in this image? This is a chest X-ray. Is there evidence of fracture? No. Which organ is abnormal? The liver.
Hematoxylin and eosin stained section of the kidney with glomeruli and tubules, magnification times 40, 1.5 mm.
    if indented:        ====----####    ....    aaaa
Où est la fracture ?  Größe 5 µm, 日本語
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of a piece, as sentencepiece_model.proto numbers them."""

BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]

FIRST = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *BYTES]
"""The first 259 pieces of LLaMA's."""

MADE_OF = """
▁ ▁t he ▁the in er an ▁a ▁an ou ma ag im ▁im ▁image
## ### Hu Human : ▁? a b c d e f g h i l m n o r s t u w y H # ? ! .
"""
"""Other pieces of ``SMALL``: those of two letters and more can be put together of those before and behind them."""


@cache
def trained(size: int = 600) -> bytes:
    """Train a tokenizer.model with the settings of LLaMA's and ``size`` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=3,
        num_threads=1,
    )
    return model.getvalue()


def number(value: int) -> bytes:
    """Return ``value`` as protobuf writes numbers: 7 bits a byte, the low ones first."""
    parts = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def field(key: int, value: float | bytes) -> bytes:
    """Return a field of a protobuf message: a whole number, a float of 32 bits, or the bytes of a string or message."""
    if isinstance(value, float):
        return number(key << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return number(key << 3 | 2) + number(len(value)) + value
    return number(key << 3) + number(int(value))


def piece(text: str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    """Return an entry of the vocabulary."""
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


LLAMA_TRAINER = {3: 2, 35: 1}
"""model_type BPE, byte_fallback."""

LLAMA_NORMALIZER = {3: 1, 4: 0}
"""add_dummy_prefix, and no remove_extra_whitespaces."""


def written(
    pieces: Sequence[tuple[str, float, int]],
    trainer: Mapping[int, float | bytes] = LLAMA_TRAINER,
    normalizer: Mapping[int, float | bytes] = LLAMA_NORMALIZER,
) -> bytes:
    """Write a tokenizer.model field by field."""
    settings = (b"".join(field(key, value) for key, value in part.items()) for part in (trainer, normalizer))
    return b"".join(piece(*entry) for entry in pieces) + b"".join(
        field(key, part) for key, part in enumerate(settings, 2)
    )


SMALL_PIECES = [*FIRST, *((text, -float(place), NORMAL) for place, text in enumerate(MADE_OF.split()))]

SMALL = written(SMALL_PIECES)
"""A tokenizer.model that is the same whatever the version of sentencepiece."""


def published(model: bytes = SMALL, new: Sequence[str] = NEW) -> dict[str, bytes]:
    """Return the tokenizer files of microsoft/llava-med-7b-delta, with ``model`` in place of LLaMA's."""
    size = processor(model).get_piece_size()
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    end, unknown = ({"content": content, **plain} for content in ("</s>", "<unk>"))
    special = {"bos_token": end, "eos_token": end, "pad_token": "[PAD]", "unk_token": unknown}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>", **plain},
        "clean_up_tokenization_spaces": False,
        "eos_token": {"__type": "AddedToken", **end},
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": {"__type": "AddedToken", **unknown},
    }
    documents = {
        "special_tokens_map.json": special,
        "tokenizer_config.json": config,
        "added_tokens.json": {content: size + place for place, content in enumerate(new)},
    }
    return {"tokenizer.model": model} | {name: json.dumps(value).encode() for name, value in documents.items()}


@cache
def processor(model: bytes) -> Any:
    """Load ``model`` with sentencepiece itself."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def original_ids(model: bytes, text: str, new: Sequence[str] = NEW, bos: str = "</s>") -> Iterator[int]:
    """Yield the ids that LlamaTokenizer of transformers 4.28.1, the one in Python, gave a text, without the first, that of ``bos``.

    It cut a text at its special and added tokens (at ``<s>`` only where that is ``bos``), took white space away beside those of
    which no file says otherwise, and gave each stretch between two of them to sentencepiece.
    """
    encoder = processor(model)
    ids = {"<unk>": 0, "</s>": 2} | ({"<s>": 1} if bos == "<s>" else {})
    ids |= {content: encoder.get_piece_size() + place for place, content in enumerate(new)}
    parts = ["", *re.split(f"({'|'.join(map(re.escape, ids))})", text), ""]
    for left, part, right in zip(parts, parts[1:], parts[2:], strict=False):
        if part in ids:
            yield ids[part]
        else:
            stretch = part.lstrip() if left in new else part
            yield from encoder.encode(stretch.rstrip() if right in new else stretch)
