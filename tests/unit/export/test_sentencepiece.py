"""tokenizer.model files, against sentencepiece and transformers themselves; damaged and hostile ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import generate_merges

from deltaweights.errors import MalformedInput
from deltaweights.export.sentencepiece import MAX_BYTES, merges_of, read_model
from tests.support.errors import refused
from tests.support.tokenizers_2023 import (
    FIRST,
    NORMAL,
    SMALL,
    field,
    processor,
    trained,
    written,
)

WHERE = Path("delta")


@pytest.mark.parametrize("model", [trained(400), trained(700), SMALL], ids=["400", "700", "written"])
def test_merges_are_those_of_transformers(model: bytes) -> None:
    """The merges, with their order, are those that the converter of transformers makes from the same file."""
    parsed = read_model(model, WHERE)
    scores = [(piece.text, piece.score) for piece in parsed.pieces]
    assert merges_of(parsed, WHERE) == generate_merges(parsed.vocabulary, scores)


def test_pieces_are_those_of_sentencepiece() -> None:
    """Texts and scores of the pieces are those that sentencepiece reads."""
    model = processor(trained())
    assert [(piece.text, piece.score) for piece in read_model(trained(), WHERE).pieces] == [
        (model.id_to_piece(number), model.get_score(number)) for number in range(model.get_piece_size())
    ]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_never_ends_in_a_traceback(data: st.DataObject) -> None:
    """A damaged tokenizer.model is read, or refused."""
    damaged = bytearray(SMALL[: data.draw(st.integers(1, len(SMALL)))])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedInput):
        merges_of(read_model(bytes(damaged), WHERE), WHERE)


def names(count: int, length: int) -> list[str]:
    """Return different pieces of ``length`` letters."""
    return ["".join(letters) for letters in itertools.islice(itertools.product("abcdefghij", repeat=length), count)]


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "fields": (lambda: b"\x30\0" * (MAX_BYTES // 2), "more than 263,144 fields"),
    "fields-of-a-piece": (
        lambda: field(1, b"\x30\0" * (MAX_BYTES // 2 - 8)),
        "a piece without text, or too long",
    ),
    "pieces": (
        lambda: b"".join(field(1, field(1, name.encode())) for name in names(400_000, 6)),
        "more than 262,144 pieces",
    ),
    "long-pieces": (
        lambda: written([FIRST[0], *((f"{name}{'a' * 120}", 0.0, NORMAL) for name in names(36_000, 5))], {3: 2}),
        "",
    ),
    "merges": (
        lambda: written(
            [FIRST[0], *((chr(c) * n, 0.0, NORMAL) for c in range(256, 316) for n in range(1, 129))], {3: 2}
        ),
        "more than 400,000 merges",
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("bomb", "found"), BOMBS.values(), ids=BOMBS)
def test_a_large_file(bomb: Callable[[], bytes], found: str) -> None:
    """A tokenizer.model of the maximum size is read, or refused with the right reason."""
    data = bomb()
    assert len(data) <= MAX_BYTES
    if not found:
        merges_of(read_model(data, WHERE), WHERE)
        return
    with refused(MalformedInput, where=WHERE, found=found):
        merges_of(read_model(data, WHERE), WHERE)
