"""Unpack the members of a zipped checkpoint into a folder of ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.zip_format.archive import Member, read_member
from deltaweights.errors import InputOutputError, MalformedInput, wrap_os_errors
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.sizes import human_bytes
from deltaweights.util.workers import run_parallel

WORKERS = 2
"""Members unpacked at a time: a deflate stream can only be read in order, by one core."""

UNFINISHED = ".part"
"""Suffix of files being written; no file of a checkpoint has it."""

KEPT = "what is unpacked is kept: make room or repair the disk, then run the same command again"


class NotEnoughDisk(InputOutputError):
    """The disk is too small to unpack into, and nothing was written."""


def unpack(
    file: InputFile, members: Mapping[str, Member], folder: OpenFolder, report: Report, copies: Mapping[str, int]
) -> None:
    """Write ``members`` of the archive ``file`` into ``folder``, which is ours: other files in it are removed.

    ``copies`` says for which members the disk must have room for more than one copy, such as for a result of about the same
    size. A file that already has its member's size and CRC-32 is kept, so a run that was cut off leaves less to do for the
    next one. A damaged archive leaves no files behind. Raises ``MalformedInput`` when the archive is damaged,
    ``NotEnoughDisk``, and ``InputOutputError`` when the disk refuses a write, or the archive cannot be read or changes.
    """
    present = _remove_others(folder, members)
    missing = members.keys() - present
    _check_space(folder, sum(members[name].size * copies.get(name, 1) for name in missing))

    def unpack_one(_: None, item: tuple[str, Member]) -> Iterator[int]:
        name, member = item
        if name in present:
            if (yield from _is_whole(folder, name, member)):
                return
            yield -member.size
        yield from _write(file, member, folder, name)

    # The large ones first, so that the workers end at about the same time.
    jobs = iter(sorted(members.items(), key=lambda item: -item[1].size))
    total = sum(member.size for member in members.values())
    try:
        run_parallel(jobs, lambda: None, unpack_one, workers=WORKERS, report=report, doing="unpacking", total=total)
        file.check_unchanged()
    except MalformedInput:
        for name in members:
            with contextlib.suppress(InputOutputError):  # the damage is the error to report
                folder.remove(name)
        raise


def _remove_others(folder: OpenFolder, members: Mapping[str, Member]) -> set[str]:
    """Remove all files but members of the right size; return the names that are left."""
    looks = {name: found for name in folder.names() if (found := folder.look(name)) is not None}
    for name, found in looks.items():
        if stat.S_ISDIR(found.st_mode):
            problem = "a folder where only unpacked files should be"
            raise InputOutputError(problem, where=folder.path / name, remedy="check what it is, and remove it")
    present = set()
    for name, found in looks.items():
        member = members.get(name)
        if member is not None and stat.S_ISREG(found.st_mode) and found.st_size == member.size:
            present.add(name)
        else:
            folder.remove(name)
    return present


def _check_space(folder: OpenFolder, needed: int) -> None:
    with wrap_os_errors(folder.path, "measure the free disk"):
        free = shutil.disk_usage(folder.fd).free
    if free < needed:
        problem, remedy = "not enough free disk to unpack the archive", "make room, or choose a place on another disk"
        found, expected = f"{human_bytes(free)} free", human_bytes(needed)
        raise NotEnoughDisk(problem, where=folder.path, found=found, expected=expected, remedy=remedy)


def _is_whole(folder: OpenFolder, name: str, member: Member) -> Generator[int, None, bool]:
    """Return whether a file of the right size also has the right CRC-32; yield the size of each piece read."""
    crc, path = 0, folder.path / name
    with wrap_os_errors(path, "open"):
        file = LocalFile(path, folder.open(name))
    with contextlib.closing(file):
        for piece in file.chunks():
            crc = zlib.crc32(piece, crc)
            yield len(piece)
    return crc == member.crc32


def _write(file: InputFile, member: Member, folder: OpenFolder, name: str) -> Iterator[int]:
    """Write a member, and give it its final name once it is whole; yield the size of each piece written."""
    unfinished = f"{name}{UNFINISHED}"
    try:
        folder.remove(name)  # before writing: the disk may have room for only one of the two
        with open(folder.create(unfinished), "wb", buffering=0) as out:
            for piece in read_member(file, member):
                yield len(piece)
                rest = piece
                while rest:
                    rest = rest[out.write(rest) :]
            # A write error may show only here. (What a power cut undoes nevertheless, the next run's CRC-32 check finds.)
            os.fsync(out.fileno())
        os.rename(unfinished, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except BaseException as error:
        with contextlib.suppress(InputOutputError):
            folder.remove(unfinished)
        if isinstance(error, OSError):
            raise InputOutputError.from_os(error, folder.path / name, "unpack", KEPT) from error
        raise


class TemporaryUnpacker:
    """An ``Unpacker`` whose folders are made on demand in ``TMPDIR``, and removed at the end."""

    copies = 1

    def __init__(self) -> None:
        self._root: Path | None = None

    def folder(self, role: str) -> OpenFolder:
        """Make the folder for the checkpoint of that role. Raises ``InputOutputError``."""
        import tempfile  # noqa: PLC0415  (it loads random, for zipped inputs only)

        with wrap_os_errors(tempfile.gettempdir(), "make a folder to unpack in"):
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="deltaweights-"))
            path = self._root / role.replace(" ", "-")
            path.mkdir()
        return OpenFolder.at(path, follow=False)

    def __enter__(self) -> TemporaryUnpacker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._root is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._root)
