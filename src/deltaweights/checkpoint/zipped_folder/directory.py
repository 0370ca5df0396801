"""A checkpoint's folder inside a zip archive, read in place or unpacked.

Everything that is read whole (configuration, tokenizer, index) or unpacked is compared with the CRC-32 that the archive records.
Weights in place are read by range: ``WeightsFile.extra_checksums`` has the whole file's, unless they have checksums of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltaweights.checkpoint.companions import MAX_SIZE, SOURCE_MANIFEST, is_companion
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import FileSlice, InputFile, LocalFile, MemoryFile
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout_names import HF_WEIGHTS, MAIN_FILES, META_PART, PARAMS
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.projector import FILE as PROJECTOR
from deltaweights.checkpoint.zip_format.archive import Member, read_archive, read_member
from deltaweights.checkpoint.zip_format.central_directory import read_directory
from deltaweights.checkpoint.zip_format.rules import ANY_ZIP, FOLDER_ZIP, STORED, ZipInput
from deltaweights.checkpoint.zipped_folder.find_checkpoint import find_checkpoint, is_main_weights, refuse_bomb
from deltaweights.checkpoint.zipped_folder.unpack import unpack
from deltaweights.errors import InputOutputError
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder

READ_BESIDE = frozenset({*MAIN_FILES, PARAMS, PROJECTOR, "manifest.json", "SHA256SUMS", SOURCE_MANIFEST})
"""Files of a checkpoint that are read but not copied; the last are those of results of this program."""


def is_checkpoint_archive(file: InputFile) -> bool:
    """Return whether ``file`` is a zip archive but not of ``torch.save``. Raises ``MalformedInput``, ``InputOutputError``."""
    if not _is_zip(file):
        return False
    paths = _paths(file)
    has_pickle = any(path.count("/") == 1 and path.endswith("/data.pkl") for path in paths)
    return not has_pickle or any(map(is_main_weights, paths))


def contains_checkpoint(file: InputFile) -> bool:
    """Return whether ``file`` is a zip archive with a checkpoint's weights. Raises ``MalformedInput``, ``InputOutputError``."""
    return _is_zip(file) and any(map(is_main_weights, _paths(file)))


def _is_zip(file: InputFile) -> bool:
    return file.size >= 4 and file.read(0, 4) in {b"PK\3\4", b"PK\5\6"}


def _paths(file: InputFile) -> list[str]:
    return [entry.name for entry in read_directory(ZipInput(file, ANY_ZIP)).entries]


def open_archive(
    path: Path, unpack_into: Callable[[], OpenFolder] | None, report: Report, *, copies: int = 1
) -> Directory:
    """Open the one checkpoint in the archive at ``path``.

    Stored weights are read in place. Deflated weights, and the files that belong to them, are unpacked into the folder that
    ``unpack_into`` opens, which must hold nothing else, and which the caller removes; without it the archive is refused. The
    disk must have room for ``copies`` of the unpacked weights. Raises ``MalformedInput`` and ``InputOutputError``, or its
    subclass ``NotEnoughDisk`` before a byte is written.
    """
    file = LocalFile(path)
    try:
        directory = ArchivedDirectory(file, *find_checkpoint(path, read_archive(file, FOLDER_ZIP).members))
        weights, beside = directory.used()
        deflated = [name for name, member in weights.items() if member.method != STORED]
        if not deflated:
            return directory
        with _open_target(path, deflated, unpack_into) as folder:
            unpack(file, weights | beside, folder, report, dict.fromkeys(weights, copies))
            unpacked = LocalDirectory(folder.path, folder.fd)
        left = [name for name in directory.names() if name not in weights | beside]
    except BaseException:
        file.close()
        raise
    file.close()
    if left:
        others = f" and {len(left) - 8} more" if len(left) > 8 else ""
        report.note(f"not unpacked from {path}, since no part of the checkpoint: {', '.join(left[:8])}{others}")
    return unpacked


def _open_target(path: Path, deflated: Sequence[str], unpack_into: Callable[[], OpenFolder] | None) -> OpenFolder:
    if unpack_into is not None:
        return unpack_into()
    others = f" and {len(deflated) - 1} more" if len(deflated) > 1 else ""
    malformed = MalformedAt(path, "unpack it first (unzip does) and give the folder")
    raise malformed("the archive's weights are compressed", f"{deflated[0]}{others}, deflated", "stored")


class ArchivedDirectory(Directory):
    """The files directly in one folder of an archive, whose file is closed with the directory."""

    def __init__(self, file: InputFile, folder: str, members: Mapping[str, Member]) -> None:
        """``members`` are the files of ``folder`` ("" for the top of the archive) by their plain names."""
        self.path = file.path / folder
        self._file, self._members = file, members

    def names(self) -> list[str]:
        return sorted(self._members)

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> InputFile:
        """Open a file: in place if it is stored; a deflated one must be small, and is read and checked."""
        member = self._member(name)
        if member.method == STORED:
            return FileSlice(self._file, self.path / name, member.offset, member.size, member.crc32)
        return MemoryFile(self.path / name, self.read(name, MAX_SIZE), self._file)

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of a file of at most ``most`` bytes, compared with the CRC-32 that the archive records."""
        member = self._member(name)
        if member.size > most:
            malformed = MalformedAt(self.path / name, "the archive is damaged or unusual: download it again")
            raise malformed("file is too long", f"{member.size} bytes", f"at most {most}")
        return b"".join(map(bytes, read_member(self._file, member)))

    def close(self) -> None:
        self._file.close()

    def used(self) -> tuple[dict[str, Member], dict[str, Member]]:
        """Return a checkpoint's members by name: weights, and files beside them. Raises ``MalformedInput``, also for a zip bomb."""
        names = {name for name in self._members if HF_WEIGHTS.fullmatch(name) or META_PART.fullmatch(name)}
        for main in MAIN_FILES:
            if main.endswith(".index.json") and self.has(main):
                names |= self._members.keys() & read_index(self, main).shards
        weights = {name: self._members[name] for name in sorted(names)}
        beside = {
            name: member
            for name, member in self._members.items()
            if (name in READ_BESIDE and name not in weights) or is_companion(name)
        }
        refuse_bomb(self._file.path, weights.values(), beside.values())
        return weights, beside

    def _member(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            raise InputOutputError("not in the archive", where=self.path / name)
        return member
