"""A manifest of any checkpoint, whoever wrote it: a listing of its files and tensors.

Enters: a folder. Leaves: the bytes of a manifest that names no inputs. Never: a changed folder, or a file that is named by a path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import MalformedInput
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.digest_files import Found, read
from deltaweights.manifest.folder_entries import FolderEntries, name_inside, scan
from deltaweights.manifest.open_weights import open_for_listing, request_for
from deltaweights.manifest.records import MANIFEST, SUMS, manifest_pieces, plain_name
from deltaweights.report import Report
from deltaweights.util.text import Json, in_chunks, natural_key
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True)
class Listing:
    """The manifest of a folder, and what it says. ``folders`` are those in it, of which it says nothing but their names."""

    folder: str
    document: bytes
    content_digest: str
    manifest_sha256: str
    files: int
    bytes: int
    tensors: int
    parameters: int
    folders: tuple[str, ...]


def list_checkpoint(
    folder: str | os.PathLike[str],
    *,
    apart: Path | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> Listing:
    """Make the manifest of the checkpoint in ``folder``, in any form that is read, from one reading of all its files.

    ``apart`` is where the manifest will stand: should that be in the folder, it is none of its files; nor are manifest.json and
    SHA256SUMS. Links to files are followed. Raises ``InputOutputError`` when something cannot be read, ``MalformedInput`` when
    the weights break their format, are damaged as their own checksums have it, or a name is none that a manifest can hold.
    """
    root, report = Path(folder), report or Report()
    entries = scan(root, "list")
    names = sorted(entries.readable - {MANIFEST, SUMS} - name_inside(root, apart))
    _refuse_unlisted(root, names, entries)
    with open_for_listing(root) as checkpoint:
        for note in checkpoint.notes:
            report.warn(note)
        found = read(
            request_for(checkpoint, names, compare=True, links=entries.links), _fail, resolve_workers(workers), report
        )
        checkpoint.check_unchanged()
        result = _result(checkpoint, names, found, entries)
    document = b"".join(in_chunks(manifest_pieces(result, {})))
    return Listing(
        str(root),
        document,
        result["content_digest"],
        hashlib.sha256(document).hexdigest(),
        len(names),
        sum(found.files[name].size for name in names),
        len(found.tensors),
        result["parameters"],
        tuple(sorted(entries.folders)),
    )


def _refuse_unlisted(root: Path, names: Iterable[str], entries: FolderEntries) -> None:
    for name, kind in entries.others.items():
        raise MalformedInput("cannot be listed", where=root / name, found=kind, expected="files", remedy="remove it")
    for name in names:
        try:
            plain_name(name)
        except ValueError as error:
            raise MalformedInput(f"cannot be listed: {error}", where=root, remedy="rename it") from None


def _fail(_name: str, error: Exception) -> None:
    raise error


def _result(checkpoint: Checkpoint, names: list[str], found: Found, entries: FolderEntries) -> dict[str, Json]:
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
    folders = {"folders": sorted(entries.folders)} if entries.folders else {}
    return {
        "content_digest": content_digest((name, *row) for name, row in found.tensors.items()),
        "parameters": sum(spec.count for spec in specs.values()),
        "bytes": sum(spec.nbytes for spec in specs.values()),
        "files": {name: vars(found.files[name]) for name in names},
        **folders,
        "tensors": {name: _tensor(checkpoint, found, name) for name in sorted(specs, key=natural_key)},
    }


def _tensor(checkpoint: Checkpoint, found: Found, name: str) -> dict[str, Json]:
    dtype, shape, digest = found.tensors[name]
    return {"dtype": dtype, "shape": list(shape), "file": checkpoint.tensors[name].file, "digest": digest}
