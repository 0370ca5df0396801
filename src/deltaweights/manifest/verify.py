"""Checking a folder against its manifest, or against a pinned digest, in both directions.

Enters: a folder. Leaves: a report of everything that is not as it should be. Never: torch, a file outside the folder, or trust in
what the manifest says where the bytes can be asked.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltaweights.checkpoint.files import ContiguousSource, InputFile, LocalFile, read_small
from deltaweights.checkpoint.pickled.torch_file import open_torch_file
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.digest import Hasher, content_digest, tensor_digest, tensor_hasher
from deltaweights.manifest.manifest import (
    MANIFEST,
    SUMS,
    FileRecord,
    Manifest,
    parse_manifest,
    sums_bytes,
)
from deltaweights.manifest.problems import Problem, VerifyReport

PERMITTED = frozenset({"model.sig", ".cache", "lost+found", ".deltaweights"})
"""What may stand beside our files: a signature, the Hub client's cache, what ext4 puts at the root of a disk, staging of a run that
replaces the model or was killed when it had; and ``.git*``."""

LOADABLE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack", ".py"})
"""Suffixes of files that loaders take weights or code from."""

MAX_MANIFEST = 256 * 1024 * 1024

OPENERS = {".safetensors": open_safetensors, ".bin": open_torch_file}

TensorRow = tuple[str, tuple[int, ...], str]


def verify(
    folder: str | os.PathLike[str],
    *,
    expect: str | None = None,
    expect_manifest: str | None = None,
    workers: int | None = None,
) -> VerifyReport:
    """Check every file of ``folder`` against its manifest, and the folder against ``expect`` and ``expect_manifest``.

    ``expect`` is a content digest (``dw1:...``), recomputed from the bytes of all tensors; ``expect_manifest`` is the sha256 of
    manifest.json. Mismatches, missing and extra files are collected in the report. Raises ``InputOutputError`` when the folder
    cannot be read, ``UsageError`` when a pin is malformed.
    """
    _check_pins(expect, expect_manifest)
    root = Path(folder)
    problems: list[Problem] = []
    present = _list(root, problems)
    manifest, manifest_record = _read_manifest(root, present, problems)
    if (
        expect_manifest is not None
        and manifest_record is not None
        and manifest_record.sha256 != expect_manifest.lower()
    ):
        problems.append(Problem(MANIFEST, "is not the pinned one", manifest_record.sha256, expect_manifest.lower()))
    files = manifest.files if manifest else {}
    if manifest is not None and manifest_record is not None:
        _check_sums(root, present, sums_bytes(files, manifest_record), problems)
        for name in sorted(present - set(files) - {MANIFEST, SUMS}):
            problems.append(Problem(name, "is not in the manifest", "an extra file"))
        _check_places(manifest, problems)
        if content_digest((n, *row) for n, row in manifest.tensors.items()) != manifest.content_digest:
            problems.append(Problem(MANIFEST, "content_digest does not follow from the tensors that it lists"))
    rows = _check_files(
        root, present, files, manifest.places if manifest else {}, problems, workers, with_tensors=expect is not None
    )
    digest = manifest.content_digest if manifest else None
    if expect is not None and manifest is not None:
        digest = content_digest((n, *row) for n, row in rows.items())
        _check_tensors(rows, manifest, problems)
        if digest != expect:
            problems.append(Problem(str(root), "content digest is not the expected one", digest, expect))
    total = sum(record.size for record in files.values())
    sha256 = manifest_record.sha256 if manifest_record else None
    recomputed = expect is not None and manifest is not None
    return VerifyReport(str(root), digest, recomputed, sha256, len(files), total, tuple(problems))


def _check_pins(expect: str | None, expect_manifest: str | None) -> None:
    def is_hex(text: str) -> bool:
        return len(text) == 64 and not set(text.lower()) - set("0123456789abcdef")

    if expect is not None and not (expect.startswith("dw1:") and is_hex(expect[4:]) and expect == expect.lower()):
        raise UsageError("not a content digest", found=expect, expected="dw1: and 64 lower-case hex digits")
    if expect_manifest is not None and not is_hex(expect_manifest):
        raise UsageError("not a sha256", found=expect_manifest, expected="64 hex digits")


def _list(root: Path, problems: list[Problem]) -> set[str]:
    """Return the names of the regular files in ``root``; what is neither that nor permitted is a problem."""
    present = set()
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise InputOutputError.from_os(error, root, "verify", "give the folder of a merged checkpoint") from error
    for entry in entries:
        if entry.name in PERMITTED or entry.name.startswith(".git"):
            continue
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            raise InputOutputError.from_os(error, root / entry.name, "look at it") from error
        if stat.S_ISREG(mode):
            present.add(entry.name)
        else:
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a special file"
            problems.append(Problem(entry.name, "is not a regular file", kind))
    return present


def _read_manifest(root: Path, present: set[str], problems: list[Problem]) -> tuple[Manifest | None, FileRecord | None]:
    if MANIFEST not in present:
        problems.append(Problem(MANIFEST, "is missing", None, "the manifest that deltaweights writes"))
        return None, None
    data = _read(root / MANIFEST, problems)
    if data is None:
        return None, None
    record = FileRecord(len(data), hashlib.sha256(data).hexdigest())
    try:
        return parse_manifest(data), record
    except ValueError as error:
        problems.append(Problem(MANIFEST, "is not a manifest", str(error)))
        return None, record


def _read(path: Path, problems: list[Problem]) -> bytes | None:
    try:
        return read_small(path, MAX_MANIFEST)
    except (InputOutputError, MalformedInput) as error:  # not their base class: a signal's exception must pass
        problems.append(Problem(path.name, f"cannot be read: {error}"))
        return None


def _check_places(manifest: Manifest, problems: list[Problem]) -> None:
    """Hold the weights files that a loader could take against those that the tensors are said to be in."""
    stated = set(manifest.places.values())
    for name in sorted(stated | {name for name in manifest.files if Path(name).suffix in LOADABLE}):
        if name not in stated:
            problems.append(Problem(name, "could be loaded, but holds no tensor of the manifest"))
        elif name not in manifest.files:
            problems.append(Problem(name, "holds tensors of the manifest, but is not among its files"))


def _check_sums(root: Path, present: set[str], expected: bytes, problems: list[Problem]) -> None:
    if SUMS not in present:
        problems.append(Problem(SUMS, "is missing"))
    elif _read(root / SUMS, problems) not in {None, expected}:
        problems.append(Problem(SUMS, "does not say what manifest.json says"))


def _check_files(
    root: Path,
    present: set[str],
    files: dict[str, FileRecord],
    places: dict[str, str],
    problems: list[Problem],
    workers: int | None,
    *,
    with_tensors: bool,
) -> dict[str, TensorRow]:
    """Digest every file that is there, the largest first; return the tensors of the weights files if asked for."""
    rows: dict[str, TensorRow] = {}
    for name in sorted(set(files) - present):
        if not any(problem.file == name for problem in problems):
            problems.append(Problem(name, "is missing"))
    names = sorted(set(files) & present, key=lambda name: (-files[name].size, name))
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        digests = pool.map(lambda name: _check_file(root / name, files[name], with_tensors=with_tensors), names)
        for name, (found, tensors) in zip(names, digests, strict=True):
            problems.extend(found)
            for tensor, row in tensors.items():
                if tensor in rows:
                    problems.append(Problem(tensor, "is in two weights files"))
                if places.get(tensor, name) != name:
                    problems.append(Problem(tensor, "is in another file than the manifest says", name, places[tensor]))
                rows[tensor] = row
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, waiting for the files in hand would take seconds
    return rows


def _check_file(path: Path, expected: FileRecord, *, with_tensors: bool) -> tuple[list[Problem], dict[str, TensorRow]]:
    """Compare one file with its record in one pass, digesting its tensors on the way."""
    try:
        tensors: list[LazyTensor] = []
        file = LocalFile(path)
        if with_tensors and path.suffix in OPENERS:
            tensors = list(OPENERS[path.suffix](file).tensors.values())  # closes the file when it fails
        try:
            _refuse_shared(tensors)
            if file.size != expected.size:
                return [Problem(path.name, "has another size", f"{file.size} bytes", f"{expected.size} bytes")], {}
            sha256, rows = _digest(file, tensors)
            file.check_unchanged()
        finally:
            file.close()
    except (InputOutputError, MalformedInput) as error:
        return [Problem(path.name, f"cannot be verified: {error}")], {}
    if sha256 != expected.sha256:
        return [Problem(path.name, "has another sha256", sha256, expected.sha256)], rows
    return [], rows


def _digest(file: InputFile, tensors: Iterable[LazyTensor]) -> tuple[str, dict[str, TensorRow]]:
    """Return the sha256 of ``file`` and the digests of its ``tensors``, from one pass in order."""
    sha256 = hashlib.sha256()
    rows: dict[str, TensorRow] = {}
    waiting = sorted(tensors, key=_extent, reverse=True)
    current: Hasher = tensor_hasher()
    position = 0
    for chunk in file.chunks():
        sha256.update(chunk)
        end = position + len(chunk)
        while waiting:
            begin, stop = _extent(waiting[-1])
            if begin >= end and stop > begin:
                break
            current.update(chunk[max(begin, position) - position : min(stop, end) - position])
            if stop > end:
                break
            spec = waiting.pop().spec
            rows[spec.name] = (spec.dtype, spec.shape, tensor_digest(current))
            current = tensor_hasher()
        position = end
    return sha256.hexdigest(), rows


def _refuse_shared(tensors: Iterable[LazyTensor]) -> None:
    """Raise ``MalformedInput`` unless each tensor is a range of the file of its own, as in all that we write.

    A torch file could hold views; one pass in order would digest other bytes than a loader finds.
    """
    end = 0
    for tensor in sorted(tensors, key=_extent):
        begin, stop = _extent(tensor)
        if begin < end or not isinstance(tensor.source, ContiguousSource):
            problem, name = "shares bytes with another, or is not in one piece", tensor.spec.name
            raise MalformedInput(problem, where=tensor.path, tensor=name, expected="bytes of its own, in order")
        end = stop


def _extent(tensor: LazyTensor) -> tuple[int, int]:
    begin = tensor.source.offset if isinstance(tensor.source, ContiguousSource) else -1
    return begin, begin + tensor.spec.nbytes


def _check_tensors(rows: dict[str, TensorRow], manifest: Manifest, problems: list[Problem]) -> None:
    for name in sorted(set(rows) | set(manifest.tensors)):
        if name not in rows:
            problems.append(Problem(name, "tensor is in the manifest, in no weights file"))
        elif name not in manifest.tensors:
            problems.append(Problem(name, "tensor is in a weights file, not in the manifest"))
        elif rows[name] != manifest.tensors[name]:
            problems.append(
                Problem(name, "tensor is not what the manifest says", str(rows[name]), str(manifest.tensors[name]))
            )
