"""Limits on numbers in configuration documents: transformers would allocate, or loop, for whatever they say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deltaweights.inference.model_folder import CONFIG, VOCABULARIES, ModelFolder
from deltaweights.util.text import Json, counted

# Of a tokenizer's file: twice the largest known ones, which have 262,144 tokens.
MAX_VOCABULARY_BYTES = 64 * 1024 * 1024
# Keys that count layers, or experts of one: transformers builds each of them, and each has tensors.
PART_COUNT, MAX_PARTS = re.compile(r"layers|n_layer|experts|blocks|depth", re.IGNORECASE), 2048
# Keys that count something else, such as labels (each of which gets a name).
COUNT, MAX_COUNT = re.compile(r"(num|n)_.*", re.IGNORECASE), 1_000_000
# A processor's keys for the pixels of an image in one direction; the maximum makes 50 MB as float32.
PIXELS, MAX_PIXELS = re.compile(r".*(size|edge|height|width)", re.IGNORECASE), 2048
# A processor's images may be this many times as wide as the vision tower's, or this wide in any case.
TOWER_FACTOR, MIN_LIMIT = 4, 1024
# A processor's key for the width of a patch, and the patches of an image in one direction: each becomes a token.
PATCH, MAX_PATCHES = "patch_size", 256


def implausible_size(model: ModelFolder) -> tuple[str, str] | None:
    """Return the file and a description of the first size that transformers must not see, or None."""
    return _implausible_vocabulary(model) or _implausible_config(model) or _implausible_processor(model)


def _implausible_vocabulary(model: ModelFolder) -> tuple[str, str] | None:
    for name in (*VOCABULARIES, "merges.txt"):
        try:
            size = (model.path / name).stat().st_size if name in model.file_names else 0
        except OSError:  # transformers will report it
            continue
        if size > MAX_VOCABULARY_BYTES:
            return name, f"{size:,} bytes, more than any tokenizer has"
    return None


def _implausible_config(model: ModelFolder) -> tuple[str, str] | None:
    tensors = len(model.tensors)
    for key, value in _numbers(model.config):
        if PART_COUNT.search(key) and value > tensors:
            return CONFIG, f"{key} is {value:,}, and the folder has {counted(tensors, 'tensor')}"
        if (PART_COUNT.search(key) and value > MAX_PARTS) or (COUNT.fullmatch(key) and value > MAX_COUNT):
            return CONFIG, f"{key} is {value:,}, more than any model has"
    return None


def _implausible_processor(model: ModelFolder) -> tuple[str, str] | None:
    limit = _max_image_width(model.config)
    sizes, patches = [1.0], []
    for name, document in model.processors.items():
        for key, value in _numbers(document):
            if PIXELS.fullmatch(key) and value > limit:
                return name, f"{key} is {value:,}, more than the model takes, {limit:,}"
            if COUNT.fullmatch(key) and value > MAX_PIXELS:
                return name, f"{key} is {value:,}, more than any model takes"
            if key == PATCH:
                patches.append((value, name))
            elif PIXELS.fullmatch(key):
                sizes.append(value)
    for value, name in patches:
        if 0 < value * MAX_PATCHES < max(sizes):
            return name, f"{PATCH} is {value:,}, for images {max(sizes):,} pixels wide"
    return None


def _max_image_width(config: dict[str, Json]) -> int:
    tower = config.get("vision_config")
    width = tower.get("image_size") if isinstance(tower, dict) else None
    return min(max(TOWER_FACTOR * width, MIN_LIMIT), MAX_PIXELS) if isinstance(width, int) else MIN_LIMIT


def _numbers(document: Json) -> Iterator[tuple[str, int | float]]:
    """Yield all numbers of a document with their nearest key, but those inside a size (a "size" may be an object) with its key."""
    pending: list[tuple[str, Json]] = [("", document)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                pending.append((key if PIXELS.fullmatch(key) and not PIXELS.fullmatch(name) else name, inner))
        elif isinstance(value, list):
            pending += ((key, item) for item in value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
