"""Make the manifest of any checkpoint: a listing of its files and tensors, without inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import MalformedInput
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.digest_files import digest_all
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_entries import FolderEntries, name_inside
from deltaweights.manifest.open_checkpoint import open_for_listing
from deltaweights.manifest.open_weights import request_for
from deltaweights.manifest.records import MANIFEST, SUMS, check_file_name, manifest_pieces
from deltaweights.manifest.verify_source import LocalSource
from deltaweights.report import Report
from deltaweights.util.text import Json, in_chunks, natural_key, short_repr
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True)
class Listing:
    """The manifest of a folder as a ``document``, and a summary. ``folders`` are subfolders, of which only the names are listed."""

    folder: str
    document: bytes
    content_digest: str
    manifest_sha256: str
    files: int
    bytes: int
    tensors: int
    parameters: int
    folders: tuple[str, ...]

    def __repr__(self) -> str:
        return short_repr(
            self, folder=self.folder, files=self.files, tensors=self.tensors, content_digest=self.content_digest
        )


def list_checkpoint(
    folder: str | os.PathLike[str],
    *,
    apart: Path | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> Listing:
    """Make the manifest of the checkpoint in ``folder``, in any supported format; each file is read once.

    ``apart`` is where the manifest will be written: if that is in the folder, it is not listed; nor are manifest.json and
    SHA256SUMS. Links to files are followed. Raises ``InputOutputError`` when something cannot be read, ``MalformedInput`` when
    the weights are malformed, do not match their recorded checksums, or a file name cannot be in a manifest.

    >>> from deltaweights import list_checkpoint
    >>> list_checkpoint("base").content_digest[:4]
    'dw1:'
    """
    root, report = Path(folder), report or Report()
    source = LocalSource(root, "list")
    entries = source.entries.without_litter()
    names = sorted(entries.readable - {MANIFEST, SUMS} - name_inside(root, apart))
    _refuse_unlistable(root, names, entries)
    with open_for_listing(root) as checkpoint:
        for note in checkpoint.notes:
            report.warn(note)
        request = request_for(source, checkpoint, names, verify_checksums=True)
        digests = digest_all(request, _raise, resolve_workers(workers), report)
        checkpoint.check_unchanged()
        result = _result(checkpoint, names, digests, entries)
    document = b"".join(in_chunks(manifest_pieces(result, {})))
    return Listing(
        folder=str(root),
        document=document,
        content_digest=result["content_digest"],
        manifest_sha256=hashlib.sha256(document).hexdigest(),
        files=len(names),
        bytes=sum(digests.files[name].size for name in names),
        tensors=len(digests.tensors),
        parameters=result["parameters"],
        folders=tuple(sorted(entries.folders)),
    )


def _refuse_unlistable(root: Path, names: Iterable[str], entries: FolderEntries) -> None:
    for name, kind in entries.others.items():
        raise MalformedInput("cannot be listed", where=root / name, found=kind, expected="files", remedy="remove it")
    for name in names:
        try:
            check_file_name(name)
        except ValueError as error:
            raise MalformedInput(f"cannot be listed: {error}", where=root, remedy="rename it") from None


def _raise(_name: str, error: Exception) -> None:
    raise error


def _result(checkpoint: Checkpoint, names: list[str], digests: Digests, entries: FolderEntries) -> dict[str, Json]:
    specs = [tensor.spec for tensor in checkpoint.tensors.values()]
    tensors = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        (dtype, shape, digest), file = digests.tensors[name], checkpoint.tensors[name].file
        tensors[name] = {"dtype": dtype, "shape": list(shape), "file": file, "digest": digest}
    return {
        "content_digest": content_digest((name, *row) for name, row in digests.tensors.items()),
        "parameters": sum(spec.count for spec in specs),
        "bytes": sum(spec.nbytes for spec in specs),
        "files": {name: vars(digests.files[name]) for name in names},
        **({"folders": sorted(entries.folders)} if entries.folders else {}),
        "tensors": tensors,
    }
