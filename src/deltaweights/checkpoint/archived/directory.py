"""A checkpoint's folder inside a zip archive.

Enters: the path of an archive. Leaves: a ``Directory`` whose files are read where they stand in the archive, or, where weights are
compressed, one of the files unpacked. Never: a byte written for an archive that can be read in place, or before all its records
are known to be sound.

Which checks are made: everything that is read whole (configuration, tokenizer, index) and everything that is unpacked is compared
with the CRC-32 that the archive records. Weights that are read in place are read by range: where their format has no checksums of
its own, as torch's has, ``WeightsFile.loose`` names them as a whole, for whoever reads all of them to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltaweights.checkpoint.archived.members import begins_weights, find_checkpoint, refuse_bomb
from deltaweights.checkpoint.archived.unpack import unpack
from deltaweights.checkpoint.companions import MAX_SIZE, is_companion
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile, MemoryFile, Window
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import PARAMS, PART, STARTS, WEIGHTS
from deltaweights.checkpoint.projector import FILE as PROJECTOR
from deltaweights.checkpoint.zipped.archive import Member, read_archive
from deltaweights.checkpoint.zipped.contents import contents
from deltaweights.checkpoint.zipped.entries import read_directory
from deltaweights.checkpoint.zipped.rules import CHECKPOINT, EITHER, STORED, Zip
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder

BESIDE = frozenset({*STARTS, PARAMS, PROJECTOR, "manifest.json"})
"""Files of a checkpoint that are read, and not copied; the last stands in every result of this program."""


def is_checkpoint_archive(file: InputFile) -> bool:
    """Tell whether ``file`` is a zip archive, but not one that ``torch.save`` wrote; reads its central directory only.

    Raises ``MalformedInput`` for a zip archive whose central directory breaks the rules, ``InputOutputError``.
    """
    if not _is_zip(file):
        return False
    paths = _paths(file)
    has_pickle = any(path.count("/") == 1 and path.endswith("/data.pkl") for path in paths)
    return not has_pickle or any(map(begins_weights, paths))


def holds_checkpoint(file: InputFile) -> bool:
    """Tell whether ``file`` is a zip archive that has a checkpoint's weights in it. Raises as ``is_checkpoint_archive`` does."""
    return _is_zip(file) and any(map(begins_weights, _paths(file)))


def _is_zip(file: InputFile) -> bool:
    return file.size >= 4 and file.read(0, 4) in {b"PK\3\4", b"PK\5\6"}


def _paths(file: InputFile) -> list[str]:
    return [entry.name for entry in read_directory(Zip(file, EITHER)).entries]


def open_archive(
    path: Path, unpack_into: Callable[[], OpenFolder] | None, report: Report, *, copies: int = 1
) -> Directory:
    """Open the one checkpoint in the archive at ``path``.

    Where its weights are stored they are read in place. Where they are deflated, they and the files that belong to them are
    unpacked into the folder that ``unpack_into`` makes or finds, which is to hold nothing else, and which the caller removes;
    without ``unpack_into`` the archive is refused. The disk must have room for ``copies`` of what weights are unpacked. Raises
    ``MalformedInput`` and ``InputOutputError``, of them ``NoRoom`` before a byte is written.
    """
    file = LocalFile(path)
    try:
        directory = ArchivedDirectory(file, *find_checkpoint(path, read_archive(file, CHECKPOINT).members))
        weights, beside = directory.used()
        deflated = [name for name, member in weights.items() if member.method != STORED]
        if not deflated:
            return directory
        with _folder_for(path, deflated, unpack_into) as folder:
            unpack(file, weights | beside, folder, report, dict.fromkeys(weights, copies))
            unpacked = LocalDirectory(folder.path, folder.fd)
        left = [name for name in directory.names() if name not in weights | beside]
    except BaseException:
        file.close()
        raise
    file.close()
    if left:
        others = f" and {len(left) - 8} more" if len(left) > 8 else ""
        report.note(f"left in {path}, being no part of the checkpoint: {', '.join(left[:8])}{others}")
    return unpacked


def _folder_for(path: Path, deflated: Sequence[str], unpack_into: Callable[[], OpenFolder] | None) -> OpenFolder:
    if unpack_into is not None:
        return unpack_into()
    raise MalformedInput(
        "the archive's weights are compressed",
        where=path,
        found=f"{deflated[0]}{f' and {len(deflated) - 1} more' if deflated[1:] else ''}, deflated",
        expected="stored",
        remedy="unpack it first (unzip does) and give the folder",
    )


class ArchivedDirectory(Directory):
    """The files right in one folder of an archive, which is closed with the directory."""

    def __init__(self, file: InputFile, folder: str, members: Mapping[str, Member]) -> None:
        """``members`` are the files of ``folder`` ("" for the top of the archive) by their plain names."""
        self.path = file.path / folder
        self._file, self._members = file, members

    def names(self) -> list[str]:
        return sorted(self._members)

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> InputFile:
        """See ``Directory``. A stored file is read in place; one that is deflated must be small, and is checked."""
        member = self._member(name)
        if member.method == STORED:
            return Window(self._file, self.path / name, member.offset, member.size, member.crc32)
        return MemoryFile(self.path / name, self.read(name, MAX_SIZE), self._file)

    def read(self, name: str, most: int) -> bytes:
        """See ``Directory``. Compares the CRC-32 that the archive records."""
        member = self._member(name)
        if member.size > most:
            found, expected = f"{member.size} bytes", f"at most {most}"
            remedy = "the archive is damaged or unusual: download it again"
            where = self.path / name
            raise MalformedInput("too long for what it is", where=where, found=found, expected=expected, remedy=remedy)
        return b"".join(map(bytes, contents(self._file, member)))

    def close(self) -> None:
        self._file.close()

    def used(self) -> tuple[dict[str, Member], dict[str, Member]]:
        """Return the members of which a checkpoint is made, by name: its weights, and files beside them.

        Raises ``MalformedInput`` when they are a bomb, or when an index that would name weights is not sound.
        """
        weights = {name: self._members[name] for name in self._weights()}
        names = BESIDE - weights.keys()
        beside = {name: member for name, member in self._members.items() if name in names or is_companion(name)}
        refuse_bomb(self._file.path, weights.values(), beside.values())
        return weights, beside

    def _weights(self) -> list[str]:
        names = {name for name in self._members if WEIGHTS.fullmatch(name) or PART.fullmatch(name)}
        for start in STARTS:
            if start.endswith(".index.json") and self.has(start):
                names |= self._members.keys() & read_index(self, start).shards
        return sorted(names)

    def _member(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            raise InputOutputError("not in the archive", where=self.path / name)
        return member
