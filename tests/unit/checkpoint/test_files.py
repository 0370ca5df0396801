"""Input files."""

from __future__ import annotations

import os
from pathlib import Path

from deltaweights.checkpoint.files import FileSlice, LocalFile
from deltaweights.errors import InputOutputError
from tests.support.errors import refused


def test_slice_of_a_file(tmp_path: Path) -> None:
    """A slice reads only its part, whole or scattered, and refuses what is outside of it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    file = LocalFile(path)
    part = FileSlice(file, path / "part", 10, 20)
    assert part.read(0, 20) == bytes(range(10, 30))
    assert part.read(20, 0) == b""
    assert b"".join(map(bytes, part.chunks())) == bytes(range(10, 30))
    pieces = [memoryview(bytearray(size)) for size in (1, 0, 4)]
    part.scatter_into(pieces, 15)
    assert b"".join(pieces) == bytes(range(25, 30))
    for offset, length in ((-1, 1), (20, 1), (0, 21), (19, 2), (1000, 1)):
        with refused(InputOutputError, where=path / "part", found="end of file at byte 20"):
            part.read(offset, length)
        with refused(InputOutputError, where=path / "part", found="end of file at byte 20"):
            part.scatter_into([memoryview(bytearray(length))], offset)
    inner = FileSlice(part, path / "part" / "inner", 5, 5)
    assert inner.read(0, 5) == bytes(range(15, 20))
    inner.check_unchanged()
    os.truncate(path, 12)
    with refused(InputOutputError, where=path):
        inner.check_unchanged()
    with refused(InputOutputError, found="end of file at byte 12"):
        part.read(0, 20)
    file.close()
