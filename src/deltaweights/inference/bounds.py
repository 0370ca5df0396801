"""Sizes that no model has, found before the library takes them at their word.

Enters: a folder's documents. Leaves: a refusal of those with which the library would count, name or allocate for ever. Never:
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deltaweights.inference.folder import CONFIG, Held
from deltaweights.util.text import Json, counted

PARTS = re.compile(r"layers|n_layer|experts|blocks|depth", re.IGNORECASE)
"""Keys that say how many parts to make, each of which has tensors."""

MOST_PARTS = 2048
"""Layers, or experts of one, that a model has at most: the library makes each of them, with all that is in it."""

VOCABULARIES, LARGEST_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"), 64 * 1024 * 1024
"""What the library takes a tokenizer from, and its most bytes: twice what the largest ones have, of 262,144 tokens."""

NUMBERS, MOST = re.compile(r"(num|n)_.*", re.IGNORECASE), 1_000_000
"""Keys that count something else, such as labels, each of which gets a name; and the most that any model has."""

SIZES, WIDEST = re.compile(r".*(size|edge|height|width)", re.IGNORECASE), 2048
"""Keys of processors that say how many pixels an image has in one direction, and the most that any has: 50 MB as float32."""

LARGER, ALWAYS = 4, 1024
"""How many times as wide as the vision tower's images a processor's may be, and how wide they may be in any case."""

PATCH, PATCHES = "patch_size", 256
"""How processors call the width of a patch, and how many an image has at most in one direction: each becomes a token."""


def absurd_size(held: Held) -> tuple[str, str] | None:
    """Return the file and the words of the first size that the library must not see, or None."""
    return _absurd_vocabulary(held) or _absurd_number(held)


def _absurd_vocabulary(held: Held) -> tuple[str, str] | None:
    for name in VOCABULARIES:
        size = _size(held, name)
        if size > LARGEST_VOCABULARY:
            return name, f"{size:,} bytes, more than any tokenizer has"
    return None


def _absurd_number(held: Held) -> tuple[str, str] | None:
    tensors = len(held.tensors)
    for key, value in _numbers("", held.config):
        if PARTS.search(key) and value > tensors:
            return CONFIG, f"{key} is {value:,}, and the folder has {counted(tensors, 'tensor')}"
        if PARTS.search(key) and value > MOST_PARTS:
            return CONFIG, f"{key} is {value:,}, more than any model has"
        if NUMBERS.fullmatch(key) and value > MOST:
            return CONFIG, f"{key} is {value:,}, more than any model has"
    widest = _widest(held.config)
    sizes, patches = [1.0], []
    for name, document in held.processors.items():
        for key, value in _numbers("", document):
            if SIZES.fullmatch(key) and value > widest:
                return name, f"{key} is {value:,}, more than the model takes, {widest:,}"
            if NUMBERS.fullmatch(key) and value > WIDEST:
                return name, f"{key} is {value:,}, more than any model takes"
            if key == PATCH:
                patches.append((value, name))
            elif SIZES.fullmatch(key):
                sizes.append(value)
    for value, name in patches:
        if 0 < value * PATCHES < max(sizes):
            return name, f"{PATCH} is {value:,}, of images that are {max(sizes):,} wide"
    return None


def _size(held: Held, name: str) -> int:
    """Return the bytes of a file of the folder; 0 when it has none of that name."""
    try:
        return (held.path / name).stat().st_size if name in held.names else 0
    except OSError:  # the library will say
        return 0


def _widest(config: dict[str, Json]) -> int:
    """Return how many pixels a processor's images may have in one direction, by what the vision tower takes."""
    tower = config.get("vision_config")
    width = tower.get("image_size") if isinstance(tower, dict) else None
    return min(max(LARGER * width, ALWAYS), WIDEST) if isinstance(width, int) else ALWAYS


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
