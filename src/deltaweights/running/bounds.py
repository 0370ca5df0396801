"""Sizes that no model has, found before the library takes them at their word.

Enters: a folder's documents. Leaves: a refusal of those with which the library would count, name or allocate for ever. Never:
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deltaweights.running.folder import CONFIG, Held
from deltaweights.text import Json, counted

PARTS = re.compile(r"layers|n_layer|experts|blocks|depth", re.IGNORECASE)
"""Keys that say how many parts to make, each of which has tensors."""

NUMBERS, MOST = re.compile(r"(num|n)_.*", re.IGNORECASE), 1_000_000
"""Keys that count something else, such as labels, each of which gets a name; and the most that any model has."""

SIZES, WIDEST = re.compile(r".*(size|edge|height|width)", re.IGNORECASE), 4096
"""Keys of processors that say how many pixels an image has in one direction, and the most that any has: 200 MB as float32."""


def absurd_size(held: Held) -> tuple[str, str] | None:
    """Return the file and the words of the first size that the library must not see, or None."""
    tensors = len(held.tensors)
    for key, value in _numbers("", held.config):
        if PARTS.search(key) and value > tensors:
            return CONFIG, f"{key} is {value:,}, and the folder has {counted(tensors, 'tensor')}"
        if NUMBERS.fullmatch(key) and value > MOST:
            return CONFIG, f"{key} is {value:,}, more than any model has"
    for name, document in held.processors.items():
        for key, value in _numbers("", document):
            if (SIZES.fullmatch(key) or NUMBERS.fullmatch(key)) and value > WIDEST:
                return name, f"{key} is {value:,}, more than any model takes"
    return None


def _numbers(key: str, document: Json) -> Iterator[tuple[str, int | float]]:
    """Yield all numbers of a document with the nearest key above them; below a size, that is the size's."""
    waiting: list[tuple[str, Json]] = [(key, document)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += (
                (key if SIZES.fullmatch(key) and not SIZES.fullmatch(name) else name, v) for name, v in value.items()
            )
        elif isinstance(value, list):
            waiting += ((key, each) for each in value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
