"""Tests of what the system tells of the processor, and of the block that is chosen by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.merge.stream import block_for
from deltaweights.util.processor import second_level_cache


def caches(folder: Path, **sizes: str) -> Path:
    """Write what Linux shows of a core's caches: ``index2="2 512K"`` is a second level of 512 KiB."""
    for name, text in sizes.items():
        level, _, size = text.partition(" ")
        (folder / name).mkdir()
        (folder / name / "level").write_text(f"{level}\n")
        (folder / name / "size").write_text(f"{size}\n")
    return folder


def test_the_second_level_is_found(tmp_path: Path) -> None:
    """The first level has two caches, so the number of the folder is not the level."""
    there = caches(tmp_path, index0="1 32K", index1="1 48K", index2="2 1280K", index3="3 30720K")
    assert second_level_cache(there) == 1280 * 1024


@pytest.mark.parametrize("text", ["3 32768K", "2 huge", "2 "])
def test_what_is_not_told_is_not_known(tmp_path: Path, text: str) -> None:
    """No second level, or a size that is no number."""
    assert second_level_cache(caches(tmp_path, index2=text)) is None
    assert second_level_cache(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("kib", "elements"),
    [(None, 1 << 18), (256, 1 << 18), (1024, 1 << 18), (1280, 1280 * 256), (2048, 1 << 19), (65536, 1 << 19)],
)
def test_the_block_follows_the_cache_within_bounds(kib: int | None, elements: int) -> None:
    """From 1 to 2 MiB of cache, a quarter of its bytes in elements."""
    assert block_for(kib and kib * 1024) == elements
