"""Operations on names in an open folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.util import open_folder
from deltaweights.util.open_folder import OpenFolder
from tests.support.errors import refused


def test_exchange_really_swaps(tmp_path: Path) -> None:
    """Two folders change names in one step: each inode is found under the other's name."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    inodes = one.stat().st_ino, other.stat().st_ino
    with OpenFolder.at(tmp_path) as both:
        assert both.exchange("one", both, "other"), "this file system cannot exchange"
    assert (other.stat().st_ino, one.stat().st_ino) == inodes
    assert (one / "name").read_text() == "other"


def test_exchange_with_nothing_is_an_error(tmp_path: Path) -> None:
    """An exchange that the system refuses for a reason other than not knowing how is an error of input/output."""
    (tmp_path / "one").mkdir()
    with OpenFolder.at(tmp_path) as folder, refused(InputOutputError, where=tmp_path / "missing"):
        folder.exchange("one", folder, "missing")


def test_a_folder_that_is_removed_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another process removes between two looks at it is made again."""
    mkdir, left = os.mkdir, [2]

    def racing(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        mkdir(name, mode, dir_fd=dir_fd)

    with OpenFolder.at(tmp_path) as folder:
        monkeypatch.setattr(os, "mkdir", racing)
        folder.make("made").close()
        monkeypatch.undo()
        assert (tmp_path / "made").is_dir()
        (tmp_path / "file").touch()
        with refused(MalformedInput, where=tmp_path / "file", found="something else"):
            folder.make("file")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[OpenFolder]:
    """Open the test's folder."""
    with OpenFolder.at(tmp_path) as opened:
        yield opened


def test_replace_leaves_the_old_file_or_the_new_one(tmp_path: Path, folder: OpenFolder) -> None:
    """A write that fails half-way changes nothing, and leaves no temporary file; one that succeeds takes the old one's place."""

    def failing() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder.replace("name", b"old")
    with refused(InputOutputError):
        folder.replace("name", failing())
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_bytes() == b"old"
    folder.replace("name", [b"n", memoryview(b"ew")])
    assert (tmp_path / "name").read_bytes() == b"new"


def test_write_once_never_replaces(tmp_path: Path, folder: OpenFolder) -> None:
    """The second of two writers changes nothing, and is told so; no temporary file is left."""
    assert [folder.write_once("name", data) for data in (b"first", b"second")] == [True, False]
    assert (tmp_path / "name").read_bytes() == b"first"
    assert folder.names() == ["name"]


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_move_if_absent(tmp_path: Path, folder: OpenFolder, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """A file moves to a free name, and to no other; file systems without hard links are no exception."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with folder.make("to") as to:
        assert folder.move_if_absent("a", to, "new")
        assert not folder.move_if_absent("b", to, "new")
    assert (tmp_path / "to" / "new").read_text() == "a"
    assert folder.names() == ["b", "to"]


def test_links_are_not_followed(tmp_path: Path, folder: OpenFolder) -> None:
    """A link is neither read, nor entered, nor written through; removing it leaves what it leads to."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (tmp_path / "to folder").symlink_to("precious")
    (tmp_path / "to file").symlink_to("precious/file")
    with refused(MalformedInput, where=tmp_path / "to folder", found="a link"):
        folder.folder("to folder")
    with refused(InputOutputError, where=tmp_path / "to folder"):
        OpenFolder.at(tmp_path / "to folder", follow=False)
    with refused(InputOutputError, where=tmp_path / "to file"):
        folder.read("to file", 100)
    folder.write("to file", b"new")
    folder.remove("to folder")
    assert (tmp_path / "precious" / "file").read_text() == "mine"
    assert (tmp_path / "to file").read_text() == "new"


def test_read_takes_regular_files_up_to_a_limit(tmp_path: Path, folder: OpenFolder) -> None:
    """A file that is too long, or none, is refused; a FIFO is not waited for."""
    (tmp_path / "file").write_text("1234")
    os.mkfifo(tmp_path / "fifo")
    assert folder.read("file", 4) == b"1234"
    with refused(MalformedInput, where=tmp_path / "file", expected="at most 3 bytes"):
        folder.read("file", 3)
    with refused(MalformedInput, where=tmp_path / "fifo"):
        folder.read("fifo", 3)
    with refused(InputOutputError, where=tmp_path / "missing"):
        folder.read("missing", 3)


def test_begins_asks_regular_files(tmp_path: Path, folder: OpenFolder) -> None:
    """What is missing, or is no regular file, begins with nothing."""
    (tmp_path / "file").write_text("1234")
    os.mkfifo(tmp_path / "fifo")
    assert [folder.begins(name, b"12") for name in ("file", "fifo", "missing")] == [True, False, False]
    assert not folder.begins("file", b"2")


def test_remove_takes_all_that_is_below(tmp_path: Path, folder: OpenFolder) -> None:
    """A folder goes with its contents; what does not exist is removed already."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    for _ in range(2):
        folder.remove("a")
    assert folder.names() == []


def test_a_short_file_is_noticed(folder: OpenFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that claims to have written what it has not is found out."""
    monkeypatch.setattr(open_folder, "flush", lambda _: None)
    fstat = os.fstat

    class Shorter:
        def __init__(self, fd: int) -> None:
            self.st_size = fstat(fd).st_size - 1

    monkeypatch.setattr(os, "fstat", Shorter)
    with refused(InputOutputError, problem="was not written in full", found="3 bytes", expected="4 bytes"):
        folder.write("name", b"1234")
