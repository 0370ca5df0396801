"""An archive of a checkpoint's folder: read once, in order; nothing is unpacked, and only small documents are kept."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast

from deltaweights.checkpoint.files import InputFile, LocalFile, MemoryFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.zip_format.archive import read_archive, read_member
from deltaweights.checkpoint.zip_format.rules import FOLDER_ZIP
from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_entries import FolderEntries
from deltaweights.manifest.member_file import digest_member
from deltaweights.manifest.records import MANIFEST, SUMS, check_file_name
from deltaweights.manifest.tar_reader import FILE, FOLDER, TarMember, TarReader
from deltaweights.manifest.verify_source import StatedHashes, VerifySource
from deltaweights.report import Report
from deltaweights.util.litter import is_litter

if TYPE_CHECKING:
    from deltaweights.checkpoint.folder import Checkpoint

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")

KEPT = frozenset({MANIFEST, SUMS, "model.sig"})
MOST_KEPT = 64 * 1024 * 1024  # bytes of these documents, which are kept in memory

MOST_ATTRIBUTES, MOST_HEAD = 1024 * 1024, 16
"""The most bytes of a file of macOS's attributes, and how many of them are kept: they tell whether it is one."""

MOST_LEVELS = 64  # of folders in folders

SURELY_NONE, MOST_RATIO = 256 * 1024 * 1024, 100
"""What unpacks to more bytes than the former, and to more than the latter times its own size, is a bomb: weights barely shrink."""


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive of a folder, by its name: torch's own files are zip archives, too."""
    return path.name.lower().endswith(ENDINGS)


class ArchiveSource(VerifySource):
    """The files in an archive, at its top or in the one folder there. All are read, and digested, when it is made.

    With ``with_tensors`` the tensors of safetensors files are digested in the same pass.
    """

    digests: Digests

    def __init__(self, path: Path, *, with_tensors: bool = False, report: Report | None = None) -> None:
        """Read the archive. Raises ``InputOutputError``, and ``MalformedInput``, also for names that lead out of the folder."""
        self.title, self._path, self._with_tensors = str(path), path, with_tensors
        self._digests = Digests()
        errors: dict[str, Exception] = {}
        self._kept: dict[str, bytes] = {}
        self._kept_bytes = 0
        self._folders: set[str] = set()
        self._others: dict[str, str] = {}
        self._malformed = MalformedAt(
            path, "the archive is damaged or unusual: get it again, or unpack it and give the folder"
        )
        report = report or Report()
        with closing(LocalFile(path)) as file:
            report.begin("reading", file.size)
            try:
                for member in _members(file, self._malformed, report):
                    self._take(member, errors)
            finally:
                report.end()
            file.check_unchanged()
        self._refuse_inside_of_files()
        self._root = self._top_folder()
        self.digests = Digests(
            {self._inside(name): each for name, each in self._digests.files.items() if self._is_direct(name)}
        )
        self.digests.tensors.update(self._digests.tensors)
        self.errors = {self._inside(name): error for name, error in errors.items()}
        files, folders = set(self.digests.files), {self._inside(name).split("/")[0] for name in self._below_root()}
        self.entries = FolderEntries.of_names(files, folders)
        self.entries.others = {self._inside(name): kind for name, kind in self._others.items() if self._is_direct(name)}

    def _take(self, member: TarMember, errors: dict[str, Exception]) -> None:
        name = self._plain(member.name)
        if member.kind == FOLDER:
            self._folders.add(name)
            return
        if name in self._digests.files or name in self._others:
            raise self._malformed("two members of one name", name)
        if member.kind != FILE:
            self._others[name] = member.kind
            return
        last = PurePosixPath(name).name
        attributes = last.startswith("._") and member.size <= MOST_ATTRIBUTES
        keep = attributes or (last in KEPT and name.count("/") < 2)
        if keep and not attributes:
            self._kept_bytes += member.size
            if self._kept_bytes > MOST_KEPT:
                raise self._malformed("documents are too long", f"more than {MOST_KEPT} bytes")
        pieces: list[bytes] | None = [] if keep else None
        with_tensors = self._with_tensors and name.endswith(".safetensors")
        record, rows, error = digest_member(member, self._path / name, pieces, with_tensors=with_tensors)
        self._digests.files[name] = record
        if pieces is not None:
            self._kept[name] = b"".join(pieces)[: MOST_HEAD if attributes else None]
        for tensor in sorted(rows.keys() & self._digests.tensors.keys()):
            error = error or self._malformed("is in two weights files", tensor=tensor)
        self._digests.tensors.update(rows)
        if error is not None:
            errors[name] = error

    def _plain(self, name: str) -> str:
        """Return a member's name without what changes nothing. Raises ``MalformedInput`` for one that could leave its folder."""
        parts = [part for part in name.removesuffix("/").split("/") if part != "."]
        if len(parts) > MOST_LEVELS:
            raise self._malformed("a member too deep in folders", f"{len(parts)} levels", f"at most {MOST_LEVELS}")
        if name.startswith("/"):
            raise self._malformed("a member of an unusable name", f"{name!r:.80} is absolute")
        try:
            return "/".join(map(check_file_name, parts))
        except ValueError as error:
            raise self._malformed("a member of an unusable name", error) from None

    def _refuse_inside_of_files(self) -> None:
        """Raise ``MalformedInput`` for a member below a file, or below a link, which leads anywhere once it is unpacked."""
        no_folders = {**dict.fromkeys(self._digests.files, FILE), **self._others}
        for name in (*no_folders, *self._folders):
            above = name
            while above := above.rpartition("/")[0]:
                if above in no_folders:
                    raise self._malformed("a member inside of what is no folder", name[:80])
        for name in sorted(self._folders & no_folders.keys()):
            raise self._malformed("two members of one name", name)

    def _top_folder(self) -> str:
        """Return the folder that all files are in, with a slash, or nothing. Raises ``MalformedInput`` when there are several."""
        names = [name for name in (*self._digests.files, *self._others) if not is_litter(name.split("/")[0])]
        if not names or any("/" not in name for name in names):
            return ""
        tops = sorted({name.split("/")[0] for name in names})
        if len(tops) > 1:
            raise self._malformed(
                "several folders at the top", ", ".join(tops[:8]), "the files, or one folder with them"
            )
        return f"{tops[0]}/"

    def _inside(self, name: str) -> str:
        return name.removeprefix(self._root)

    def _is_direct(self, name: str) -> bool:
        return name.startswith(self._root) and "/" not in self._inside(name)

    def _below_root(self) -> Iterator[str]:
        """Yield the names of folders in the folder, and of files in them."""
        for name in (*self._folders, *self._digests.files, *self._others):
            inside = self._inside(name)
            if name.startswith(self._root) and inside and ("/" in inside or name in self._folders):
                yield name

    def state(self, stated: StatedHashes | None) -> None:
        self.stated = stated
        folders = stated.folders if stated is not None else frozenset()
        for path, record in self._digests.files.items():
            name = self._inside(path)
            if path.startswith(self._root) and name.rpartition("/")[0] in folders:
                self.entries.files.add(name)
                self.digests.files[name] = record

    def open(self, name: str) -> InputFile:
        if self._root + name not in self._kept:
            problem = "cannot be read again: the archive was read in order"
            raise InputOutputError(problem, where=self.where(name), remedy="unpack it, and give the folder")
        return MemoryFile(self._path / name, self._kept[self._root + name])

    def size(self, name: str) -> int | None:
        return self.digests.files[name].size if name in self.digests.files else None

    def checkpoint(self) -> Checkpoint:
        problem, remedy = "weights in an archive are not opened", "unpack it, and give the folder"
        raise MalformedInput(problem, where=self.title, remedy=remedy)


def _members(file: LocalFile, malformed: MalformedAt, report: Report) -> Iterator[TarMember]:
    """Yield the members of an archive in order; each must be read before the next."""
    name = file.path.name.lower()
    if name.endswith(".zip"):
        for member in read_archive(file, FOLDER_ZIP).members:
            _refuse_bomb(member.size, member.packed, malformed)
            report.progress(member.offset)
            kind = FOLDER if member.name.endswith("/") else FILE
            yield TarMember(member.name, kind, member.size, read_member(file, member) if kind == FILE else iter(()))
        return
    raw = _InOrder(file, report)
    stream: BinaryIO = io.BufferedReader(raw)
    if name.endswith("z"):
        stream = cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    elif name.endswith(".zst"):
        stream = _open_zstd(stream)
    done = 0

    def read(length: int) -> bytes:
        nonlocal done
        try:
            data = stream.read(length)
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise malformed("the archive is damaged, or cut short", error) from None
        done += len(data)
        _refuse_bomb(done, file.size, malformed)
        return data

    yield from TarReader(file.path, read)


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        remedy = "unpack it first (zstd -d), or use Python 3.14 or newer"
        raise UsageError("this Python cannot read zstd archives", remedy=remedy) from None
    return cast("BinaryIO", zstd.ZstdFile(stream))


def _refuse_bomb(size: int, packed: int, malformed: MalformedAt) -> None:
    if size > SURELY_NONE and size > MOST_RATIO * packed:
        raise malformed(
            "the archive is a bomb", f"{packed} bytes that unpack to {size} and more", f"{MOST_RATIO} times as many"
        )


class _InOrder(io.RawIOBase):
    """A file as a stream; tells the report how far it is."""

    def __init__(self, file: LocalFile, report: Report) -> None:
        self._file, self._report, self._at = file, report, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        out = memoryview(cast("bytearray", buffer)).cast("B")
        out = out[: min(len(out), self._file.size - self._at)]
        self._file.read_into(out, self._at)
        self._at += len(out)
        self._report.progress(self._at)
        return len(out)
