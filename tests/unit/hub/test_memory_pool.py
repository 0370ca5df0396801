"""What of streamed files is kept in memory."""

from __future__ import annotations

import pytest

from deltaweights.hub.memory_pool import LEAST_AHEAD, MEMORY_PIECE, MOST_AHEAD, MemoryPool
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.repo_listing import HubFile

PIECE = bytes(MEMORY_PIECE)


def opened(pool: MemoryPool, name: str, pieces: int) -> PieceMap:
    return PieceMap(HubFile(name, pieces * MEMORY_PIECE, None, "0" * 40), pool.open(), read_ahead=MOST_AHEAD)


def arrive(file: PieceMap, piece: int) -> None:
    file.storage.put(memoryview(PIECE), piece * MEMORY_PIECE)
    file.mark_present(piece)


def has(file: PieceMap, piece: int) -> bool:
    return file.storage.get(memoryview(bytearray(10)), piece * MEMORY_PIECE)


@pytest.mark.parametrize("files", [1, 3, 40])
def test_no_more_than_the_pool_holds(files: int) -> None:
    """However many files there are, the pool keeps no more than its capacity, and every file knows what it lost."""
    pool = MemoryPool(20)
    opened_files = [opened(pool, f"f{number}", 30) for number in range(files)]
    for piece in range(30):
        for file in opened_files:
            arrive(file, piece)
    kept = [(file, piece) for file in opened_files for piece in range(30) if has(file, piece)]
    assert len(kept) == 20
    assert {(id(file), piece) for file, piece in kept} == {
        (id(file), piece)
        for file in opened_files
        for piece in range(30)
        if file.first_absent(range(piece, piece + 1)) is None
    }


def test_what_was_read_goes_before_what_was_not() -> None:
    """A piece behind the reader is evicted before one that came earlier and is yet to be read."""
    pool = MemoryPool(4)
    ahead, behind = opened(pool, "ahead", 9), opened(pool, "behind", 9)
    arrive(ahead, 5)
    for piece in (0, 1, 2):
        arrive(behind, piece)
    behind.note_read(range(2))
    arrive(behind, 3)
    assert [has(ahead, 5), *(has(behind, piece) for piece in range(4))] == [True, False, True, True, True]


def test_what_somebody_waits_for_is_kept() -> None:
    """Pinned pieces stay, also when nothing else is left to evict; once unpinned they are evicted like others."""
    pool = MemoryPool(2)
    file = opened(pool, "f", 9)
    file.storage.pin(range(3))
    file.note_read(range(3))
    for piece in range(3):
        arrive(file, piece)
    assert all(has(file, piece) for piece in range(3))
    file.storage.unpin(range(3))
    arrive(file, 3)
    assert sum(has(file, piece) for piece in range(4)) == 2
    assert has(file, 3)


def test_the_more_files_are_read_the_less_is_requested_ahead() -> None:
    """One reader gets half of the pool, many get a few pieces each."""
    pool = MemoryPool(200)
    files = [opened(pool, f"f{number}", 1000) for number in range(50)]
    assert files[0].storage.share() == 100
    for file in files:
        share = file.storage.share()
    assert share == LEAST_AHEAD
