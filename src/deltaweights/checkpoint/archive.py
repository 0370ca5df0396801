"""A checkpoint's folder inside a zip archive.

Enters: the path of an archive. Leaves: a ``Directory`` whose files are read where they stand in the archive, or, where weights are
compressed, one of the files unpacked. Never: a byte written for an archive that can be read in place, or before all its records
are known to be sound.

Which checks are made: everything that is read whole (configuration, tokenizer, index) and everything that is unpacked is compared
with the CRC-32 that the archive records. Weights that are read in place are not, since they are read by range: torch's files have
checksums of their own, for safetensors ``ArchivedDirectory.note`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltaweights.checkpoint.archive_members import begins_weights, find_checkpoint
from deltaweights.checkpoint.companions import MAX_SIZE
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile, Window
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import PART, STARTS, WEIGHTS
from deltaweights.checkpoint.unpack import unpack
from deltaweights.checkpoint.zip_archive import Member, read_archive
from deltaweights.checkpoint.zip_contents import contents
from deltaweights.checkpoint.zip_entries import read_directory
from deltaweights.checkpoint.zip_rules import CHECKPOINT, EITHER, STORED, Zip
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.report import Report


def is_checkpoint_archive(file: InputFile) -> bool:
    """Tell whether ``file`` is a zip archive, but not one that ``torch.save`` wrote; reads its central directory only.

    Raises ``MalformedInput`` for a zip archive whose central directory breaks the rules, ``InputOutputError``.
    """
    if file.size < 4 or file.read(0, 4) not in {b"PK\3\4", b"PK\5\6"}:
        return False
    paths = [entry.name for entry in read_directory(Zip(file, EITHER)).entries]
    has_pickle = any(path.count("/") == 1 and path.endswith("/data.pkl") for path in paths)
    return not has_pickle or any(map(begins_weights, paths))


def open_archive(path: Path, unpack_into: Callable[[], Path] | None, report: Report) -> Directory:
    """Open the one checkpoint in the archive at ``path``.

    Where its weights are stored they are read in place. Where they are deflated, all files of its folder are unpacked into the
    folder that ``unpack_into`` makes or finds, which is to hold nothing else, and which the caller removes; without ``unpack_into``
    the archive is refused. Raises ``MalformedInput`` and ``InputOutputError``.
    """
    file = LocalFile(path)
    try:
        directory = ArchivedDirectory(file, *find_checkpoint(path, read_archive(file, CHECKPOINT).members))
        deflated = directory.deflated_weights()
        if not deflated:
            return directory
        unpacked = directory.unpack(_folder_for(path, deflated, unpack_into), report)
    except BaseException:
        file.close()
        raise
    file.close()
    return unpacked


def _folder_for(path: Path, deflated: Sequence[str], unpack_into: Callable[[], Path] | None) -> Path:
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
        """See ``Directory``."""
        return sorted(self._members)

    def has(self, name: str) -> bool:
        """See ``Directory``."""
        return name in self._members

    def open(self, name: str) -> InputFile:
        """See ``Directory``. A stored file is read in place; one that is deflated must be small, and is checked."""
        member = self._member(name)
        if member.method == STORED:
            return Window(self._file, self.path / name, member.offset, member.size)
        return _Inflated(self._file, self.path / name, self.read(name, MAX_SIZE))

    def read(self, name: str, most: int) -> bytes:
        """See ``Directory``. Compares the CRC-32 that the archive records."""
        member = self._member(name)
        if member.size > most:
            found, expected = f"{member.size} bytes", f"at most {most}"
            raise MalformedInput("too long for what it is", where=self.path / name, found=found, expected=expected)
        return b"".join(map(bytes, contents(self._file, member)))

    def close(self) -> None:
        """See ``Directory``."""
        self._file.close()

    def weights(self) -> list[str]:
        """Return the names of the weights files. Raises ``MalformedInput`` when an index that would name them is not sound."""
        names = {name for name in self._members if WEIGHTS.fullmatch(name) or PART.fullmatch(name)}
        for start in STARTS:
            if start.endswith(".index.json") and self.has(start):
                names |= self._members.keys() & read_index(self, start).shards
        return sorted(names)

    def deflated_weights(self) -> list[str]:
        """Return the names of the weights files that cannot be read in place. Raises as ``weights`` does."""
        return [name for name in self.weights() if self._members[name].method != STORED]

    @property
    def note(self) -> str | None:
        """What is to be said of weights that are read in place: which of them nothing in the file itself proves."""
        unproven = [name for name in self.weights() if name.endswith(".safetensors")]
        if not unproven:
            return None
        return f"{self.path}: read in place, so the zip's checksums of its safetensors files are not compared (unzip -t does)"

    def unpack(self, folder: Path, report: Report) -> LocalDirectory:
        """Write the weights, and all files that are small, into ``folder``. Raises as ``unpack.unpack`` does."""
        wanted = {*self.weights(), *(name for name, member in self._members.items() if member.size <= MAX_SIZE)}
        unpack(self._file, {name: self._members[name] for name in wanted}, folder, report)
        left = sorted(self._members.keys() - wanted)
        if left:
            report.note(f"left in the archive, being large and no weights: {', '.join(left)}")
        return LocalDirectory(folder)

    def _member(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            raise InputOutputError("not in the archive", where=self.path / name)
        return member


class _Inflated(InputFile):
    """A small file that was deflated in ``archive``, in memory."""

    def __init__(self, archive: InputFile, path: Path, content: bytes) -> None:
        self.path, self.size = path, len(content)
        self._archive, self._content = archive, content

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ``InputFile``."""
        piece = self._content[offset : offset + len(out)]
        if len(piece) < len(out):
            raise InputOutputError("read past the end", where=self.path, expected=f"{self.size} bytes")
        out[:] = piece

    def check_unchanged(self) -> None:
        """See ``InputFile``: the archive is what it was."""
        self._archive.check_unchanged()

    def close(self) -> None:
        """See ``InputFile``: holds nothing."""
