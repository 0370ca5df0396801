"""Reads the sentencepiece model of a LLaMA tokenizer: its pieces, and the merges they imply.

The file is one protobuf message, ``ModelProto`` of sentencepiece_model.proto, which defines the field numbers. The sentencepiece
library is not used, since a hostile file can abuse it: a character map can crash the interpreter, and empty pieces fill gigabytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.small_files import refuse_wrong_content
from deltaweights.errors import MalformedInput
from deltaweights.util.text import counted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of a piece (``SentencePiece.Type``)."""

MODEL_TYPE, SUFFIX, BYTE_FALLBACK = 3, 24, 35
"""Fields of ``TrainerSpec``: ``model_type``, ``treat_whitespace_as_suffix`` and ``byte_fallback``."""

CHARACTER_MAP, LLAMA_NORMALIZER = 2, {3: True, 4: False, 5: True}
"""Fields of ``NormalizerSpec``: ``precompiled_charsmap``; and ``add_dummy_prefix``, ``remove_extra_whitespaces`` and
``escape_whitespaces`` as LLaMA has them, whose default is true."""

SPACE = "▁"  # stands for a space in pieces: U+2581

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Pieces for the bytes of characters without a piece of their own."""

MAX_BYTES = 5 * 1024 * 1024
"""LLaMA's tokenizer.model has half a megabyte, the largest known one (256,000 pieces) four."""

MAX_PIECES, MAX_OTHER_FIELDS = 262_144, 1_000  # there are three other fields

MAX_PIECE_LENGTH = 128  # characters; LLaMA's longest piece has 16

MAX_MERGES = 400_000
"""LLaMA's 32,000 pieces stand for 61,249 merges. More could not be read back by ``strict_json``."""

FIXED_SIZES = {1: 8, 5: 4}  # bytes of a number, by its protobuf wire type

REMEDY = "fetch it again"

Fields = Mapping[int, int | bytes]


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; the higher its score, the earlier it is merged."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model holds; the id of a piece is its place.

    ``fault`` says in what way it is not of LLaMA's kind: a byte-pair encoding whose only change to a text is ``SPACE`` for spaces
    and before the first word. Only that kind can be converted exactly.
    """

    pieces: tuple[Piece, ...]
    byte_fallback: bool
    fault: str | None

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}


def read_model(data: bytes, where: Path) -> SentencePieceModel:
    """Parse ``data``, the content of ``where``. Raises ``MalformedInput`` when it is not a sentencepiece model."""
    refuse_wrong_content(data, where)
    try:
        return _model(data)
    except ValueError as error:
        raise MalformedInput("not a sentencepiece model", where=where, found=error, remedy=REMEDY) from None


def merges_of(model: SentencePieceModel, where: Path) -> list[tuple[str, str]]:
    """Return the pairs of pieces that merge into a piece, in the order of merging.

    Sentencepiece joins the two neighbours whose piece has the highest score. Every way to cut a piece in two is thus a merge with
    the rank of its score; of one piece, the merge with the longer left part comes first (as in LLaMA's tokenizer.json).

    Raises ``MalformedInput`` for a model that is not of LLaMA's kind, or has more than ``MAX_MERGES``.
    """
    if model.fault is not None:
        remedy = "put the tokenizer.json of the model beside it"
        raise MalformedInput("not a LLaMA tokenizer", where=where, found=model.fault, remedy=remedy)
    # Merging never yields a control or byte piece.
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    merges = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((score, cut, len(text), left, right))
        if len(merges) > MAX_MERGES:
            found = f"more than {MAX_MERGES:,} merges"
            raise MalformedInput("not a sentencepiece model", where=where, found=found, remedy=REMEDY)
    # A sort, even a reversed one, keeps the order of equals: that of the vocabulary.
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in merges]


def _model(data: bytes) -> SentencePieceModel:
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes")
    pieces: dict[str, Piece] = {}
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for count, (number, value) in enumerate(_fields(data)):
        if count > MAX_PIECES + MAX_OTHER_FIELDS:
            raise ValueError(f"more than {MAX_PIECES + MAX_OTHER_FIELDS:,} fields")
        if number == 1:
            piece = _piece(_chosen(value, 1, 2, 3))
            if piece.text in pieces:
                raise ValueError(f"the piece {piece.text} twice")
            if len(pieces) == MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES:,} pieces")
            pieces[piece.text] = piece
        elif number == 2:
            trainer |= _chosen(value, MODEL_TYPE, SUFFIX, BYTE_FALLBACK)
        elif number == 3:
            normalizer |= _chosen(value, CHARACTER_MAP, *LLAMA_NORMALIZER)
    unknown = sum(piece.kind == UNKNOWN for piece in pieces.values())
    if unknown != 1:
        raise ValueError(f"{counted(unknown, 'piece')} for unknown text")
    byte_fallback = bool(trainer.get(BYTE_FALLBACK, 0))
    if byte_fallback and not pieces.keys() >= {*BYTES}:
        raise ValueError("bytes without a piece")
    return SentencePieceModel(tuple(pieces.values()), byte_fallback, _fault(pieces, trainer, normalizer))


def _piece(fields: Fields) -> Piece:
    text, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not 0 < len(content := text.decode()) <= MAX_PIECE_LENGTH:
        raise ValueError("a piece without text, or too long")
    if not isinstance(score, bytes) or len(score) != 4 or not math.isfinite(number := struct.unpack("<f", score)[0]):
        raise ValueError(f"the piece {content} without a score")
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE or (kind == BYTE and content not in BYTES):
        raise ValueError(f"the piece {content} of an unknown kind")
    return Piece(content, number, kind)


def _fault(pieces: Mapping[str, Piece], trainer: Fields, normalizer: Fields) -> str | None:
    if trainer.get(MODEL_TYPE, 1) != 2:  # byte-pair encoding; 1 is a unigram model
        return "a model that is not a byte-pair encoding"
    settings = {setting: bool(normalizer.get(setting, True)) for setting in LLAMA_NORMALIZER}
    if normalizer.get(CHARACTER_MAP) or settings != LLAMA_NORMALIZER:
        return "a model that normalizes text"
    if trainer.get(SUFFIX):
        return "a model with spaces after words"
    odd = [text for text, piece in pieces.items() if piece.kind in {USER_DEFINED, UNUSED} or " " in text]
    return f"the piece {odd[0]}, which no merge yields" if odd else None


def _chosen(message: int | bytes, *numbers: int) -> dict[int, int | bytes]:
    """Return the fields ``numbers`` of ``message``; the last one where a field is repeated, as in protobuf."""
    if not isinstance(message, bytes):
        raise ValueError("a number instead of a message")
    return {number: value for number, value in _fields(message) if number in numbers}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field of a protobuf message; fixed-size numbers as bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire_type = key & 7
        value: int | bytes
        if wire_type == 0:
            value, place = _varint(message, place)
        else:
            size, place = _varint(message, place) if wire_type == 2 else (FIXED_SIZES.get(wire_type), place)
            if size is None:
                raise ValueError(f"a field of the wire type {wire_type}")
            value = message[place : place + size]
            if len(value) != size:
                raise ValueError("the end in the middle of a field")
            place += size
        yield key >> 3, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the number at ``place``, 7 bits a byte, the low ones first, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("the end in the middle of a number")
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a number of more than 10 bytes")
