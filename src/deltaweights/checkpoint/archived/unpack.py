"""The files of a zipped checkpoint, written out.

Enters: an open archive, the members to write, and a folder of ours. Leaves: each member under its plain name, complete and with
the CRC-32 that the archive records. Never: an unfinished file under a final name, a link followed, a file written again that is
there already, or more bytes than were recorded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import zlib
from collections.abc import Generator, Iterator, Mapping

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.zipped.archive import Member
from deltaweights.checkpoint.zipped.contents import contents
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.sizes import human_bytes
from deltaweights.util.workers import run_parallel

WORKERS = 2
"""Members that are unpacked at a time: a deflate stream can only be read in order, by one core."""

UNFINISHED = ".part"
"""Ends the names of files that are being written; no file of a checkpoint has such a name."""

KEPT = "what is unpacked is kept: make room or mend the disk, then run the same command again"


class NoRoom(InputOutputError):
    """The disk is too small for what would be unpacked, and nothing was."""


def unpack(
    file: InputFile, members: Mapping[str, Member], folder: OpenFolder, report: Report, copies: Mapping[str, int]
) -> None:
    """Write ``members`` of the archive ``file`` into ``folder``, which exists and is ours: what else is in it is removed.

    ``copies`` says of which members the disk must have room for more than one copy, such as for a result that is about as large.
    A file that has a member's size and CRC-32 is kept; a run that ends early, for whatever reason, so leaves the next one less to
    do. Only an archive that turns out to be damaged leaves nothing. Raises ``MalformedInput`` then, ``NoRoom`` when the disk is too
    small, and ``InputOutputError`` when it refuses, or the archive cannot be read or changes meanwhile.
    """
    present = _tidy(folder, members)
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
            with contextlib.suppress(InputOutputError):  # the refusal is what is to be told
                folder.remove(name)
        raise


def _tidy(folder: OpenFolder, members: Mapping[str, Member]) -> set[str]:
    """Remove what is not a member, or has not a member's size; return the names of what is left."""
    looks = {name: found for name in folder.names() if (found := folder.look(name)) is not None}
    for name, found in looks.items():
        if stat.S_ISDIR(found.st_mode):
            problem = "a folder where only unpacked files should be"
            raise InputOutputError(problem, where=folder.path / name, remedy="see what it is, and remove it")
    present = set()
    for name, found in looks.items():
        member = members.get(name)
        if member is not None and stat.S_ISREG(found.st_mode) and found.st_size == member.size:
            present.add(name)
        else:
            folder.remove(name)
    return present


def _check_space(folder: OpenFolder, needed: int) -> None:
    try:
        free = shutil.disk_usage(folder.fd).free
    except OSError as error:
        raise InputOutputError.from_os(error, folder.path, "look at the disk") from error
    if free < needed:
        raise NoRoom(
            "not enough free disk to unpack the archive",
            where=folder.path,
            found=f"{human_bytes(free)} free",
            expected=human_bytes(needed),
            remedy="make room, or choose a place on another disk",
        )


def _is_whole(folder: OpenFolder, name: str, member: Member) -> Generator[int, None, bool]:
    """Tell whether the file of the right size that is there has the right CRC-32, too; yield the bytes that were read."""
    crc, path = 0, folder.path / name
    try:
        file = LocalFile(path, folder.open(name))
    except OSError as error:
        raise InputOutputError.from_os(error, path, "open") from error
    try:
        for piece in file.chunks():
            crc = zlib.crc32(piece, crc)
            yield len(piece)
    finally:
        file.close()
    return crc == member.crc32


def _write(file: InputFile, member: Member, folder: OpenFolder, name: str) -> Iterator[int]:
    """Write a member under its final name once it is whole; yield the bytes that were written."""
    unfinished = f"{name}{UNFINISHED}"
    try:
        folder.remove(name)  # not at the end: there may be room for one of the two
        with open(folder.create(unfinished), "wb", buffering=0) as out:
            for piece in contents(file, member):
                yield len(piece)
                rest = piece
                while rest:
                    rest = rest[out.write(rest) :]
            # A write may fail as late as here. (What a power cut undoes all the same, the next run's CRC-32 shows.)
            os.fsync(out.fileno())
        os.rename(unfinished, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except BaseException as error:
        with contextlib.suppress(InputOutputError):
            folder.remove(unfinished)
        if isinstance(error, OSError):
            raise InputOutputError.from_os(error, folder.path / name, "unpack", KEPT) from error
        raise
