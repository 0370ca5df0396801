"""Unpacking an archive into a folder: reuse, replacement, disk space, errors."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.zip_format.archive import PIECE, Member, read_archive, read_member
from deltaweights.checkpoint.zip_format.rules import FOLDER_ZIP
from deltaweights.checkpoint.zipped_folder import unpack as unpack_module
from deltaweights.checkpoint.zipped_folder.directory import (
    open_archive,
)
from deltaweights.errors import InputOutputError
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.zips import CONFIG, MODEL, ROOT, SOUND, WEIGHTS, changed, everything, join, opened, written, zipped


def test_files_are_ours_to_read(tmp_path: Path, unpacked: Path) -> None:
    """Unpacked files have the umask's permissions, whatever the archive says."""
    before = os.umask(0o027)
    try:
        with opened(written(tmp_path, changed(central={"external": (stat.S_IFREG | 0o4777) << 16})), unpacked):
            assert {stat.S_IMODE(path.stat().st_mode) for path in unpacked.iterdir()} == {0o640}
    finally:
        os.umask(before)


class Killed(Exception):
    """Raised in place of a signal."""


def test_killed_unpacking_goes_on(tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run leaves whole files and no unfinished ones; the next run does not rewrite them."""
    files = {f"model-{n}-of-4.safetensors": os.urandom(3 * PIECE + n) for n in range(1, 5)} | {
        "model.safetensors": b"x" * 4 * PIECE
    }
    path = written(tmp_path, zipped({f"{ROOT}/{name}": content for name, content in files.items()}, level=1))
    halted, killed = [], threading.Event()

    def halting(file: InputFile, member: Member) -> Iterator[memoryview]:
        """Give the two smallest members, which are the last, in part, until the run is killed."""
        for number, piece in enumerate(read_member(file, member)):
            if number == 2 and member.name.endswith(("1-of-4.safetensors", "2-of-4.safetensors")):
                halted.append(member.name)
                killed.wait(PATIENCE)
                time.sleep(0.1)  # until the workers are told
            yield piece

    class Killing(Report):
        def progress(self, done: int) -> None:
            if len(halted) == 2:
                killed.set()
                raise Killed

    monkeypatch.setattr(unpack_module, "read_member", halting)
    with pytest.raises(Killed):
        open_archive(path, lambda: OpenFolder.at(unpacked), Killing())
    left = {name: (unpacked / name).stat() for name in os.listdir(unpacked)}  # noqa: PTH208
    assert left.keys() == {"model.safetensors", "model-3-of-4.safetensors", "model-4-of-4.safetensors"}
    monkeypatch.undo()
    with opened(path, unpacked) as directory:
        assert everything(directory) == files
    for name, before in left.items():
        after = (unpacked / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_not_ours_is_replaced(tmp_path: Path, unpacked: Path) -> None:
    """Damaged and truncated files, links, and files that are not members are replaced or removed; no link is followed."""
    outside = tmp_path / "outside"
    outside.write_bytes(WEIGHTS)
    files = {f"model-{n}-of-3.safetensors": WEIGHTS for n in (1, 2, 3)} | {
        "model.safetensors": b"yes",
        "config.json": b"{}",
    }
    path = written(tmp_path, zipped({f"{ROOT}/{name}": content for name, content in files.items()}, level=6))
    (unpacked / "model-1-of-3.safetensors").write_bytes(WEIGHTS[::-1])
    (unpacked / "model-2-of-3.safetensors").write_bytes(WEIGHTS[:-1])
    (unpacked / "model-3-of-3.safetensors").symlink_to(outside)
    (unpacked / "model.safetensors.part").symlink_to(outside)
    (unpacked / "pytorch_model.bin").write_bytes(b"of another archive")
    with opened(path, unpacked) as directory:
        assert everything(directory) == files
    assert not any(entry.is_symlink() for entry in unpacked.iterdir())
    assert outside.read_bytes() == WEIGHTS


def test_folder_in_the_way(tmp_path: Path, unpacked: Path) -> None:
    """An unexpected folder among the unpacked files is refused by name, and nothing is changed."""
    (unpacked / "old.bin").write_bytes(b"x")
    (unpacked / "sub").mkdir()
    with refused(InputOutputError, where=unpacked / "sub", remedy="check what it is, and remove it"):
        open_archive(written(tmp_path, join(SOUND)), lambda: OpenFolder.at(unpacked), Report())
    assert sorted(entry.name for entry in unpacked.iterdir()) == ["old.bin", "sub"]


@pytest.mark.parametrize(("copies", "expected"), [(1, "10.2 kB"), (2, "20.5 kB")])
def test_row62_too_little_room(
    tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch, copies: int, expected: str
) -> None:
    """Too little disk for the files and the wanted copies of the weights is refused before a byte is written.

    Files that are already unpacked need no space.
    """
    path = written(tmp_path, zipped({MODEL: WEIGHTS, CONFIG: b"{}"}, level=6))
    usage = type(shutil.disk_usage(unpacked))
    free = 100
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - free, free))
    with refused(unpack_module.NotEnoughDisk, where=unpacked, found="100 bytes free", expected=expected):
        open_archive(path, lambda: OpenFolder.at(unpacked), Report(), copies=copies)
    assert list(unpacked.iterdir()) == []
    (unpacked / "pytorch_model.bin").write_bytes(WEIGHTS)
    with opened(path, unpacked) as directory:
        assert directory.names() == ["config.json", "pytorch_model.bin"]
    (unpacked / "pytorch_model.bin").unlink()
    free = copies * len(WEIGHTS)
    open_archive(path, lambda: OpenFolder.at(unpacked), Report(), copies=copies).close()


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_row62_disk_that_refuses(tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A write error at any step names the file and leaves no unfinished file."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = written(tmp_path, zipped({MODEL: WEIGHTS}, level=6))
    file = LocalFile(path)  # opened before opening fails
    (member,) = read_archive(file, FOLDER_ZIP).members
    folder = OpenFolder.at(unpacked)
    monkeypatch.setattr(os, call, refuse)
    where, problem = unpacked / "pytorch_model.bin", "cannot unpack: No space left on device"
    with folder, refused(InputOutputError, where=where, problem=problem, remedy=unpack_module.KEPT):
        unpack_module.unpack(file, {"pytorch_model.bin": member}, folder, Report(), {})
    monkeypatch.undo()
    file.close()
    assert list(unpacked.iterdir()) == []


def test_row61_archive_that_changes(tmp_path: Path, unpacked: Path) -> None:
    """An archive that changes while it is unpacked is an input error (5)."""
    path = written(tmp_path, join(SOUND))

    class Touching(Report):
        def begin(self, doing: str, total: int) -> None:
            os.utime(path, ns=(1, 1))

    with refused(InputOutputError, where=path):
        open_archive(path, lambda: OpenFolder.at(unpacked), Touching())


def test_progress_is_that_of_all_bytes(tmp_path: Path, unpacked: Path) -> None:
    """Progress starts with the total, ends at the total, also when the files are already there, and is closed."""
    said: list[object] = []

    class Saying(Report):
        def begin(self, doing: str, total: int) -> None:
            said.append((doing, total))

        def progress(self, done: int) -> None:
            said.append(done)

        def end(self) -> None:
            said.append("end")

    path = written(tmp_path, join(SOUND))
    for _ in range(2):
        said.clear()
        with opened(path, unpacked, Saying()):
            assert said[0] == ("unpacking", len(WEIGHTS) + 2)
            assert said[-2:] == [len(WEIGHTS) + 2, "end"]
