"""The manifest in the folder of a checkpoint that is an input. Its claims are read, not verified."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from deltaweights.checkpoint.companions import SOURCE_MANIFEST
from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST, MANIFEST_FORMAT, SUMS
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.text import SAVE_UNMARKED, UTF8_MARK, strict_json


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest in the checkpoint's folder.

    Raises ``InputOutputError`` when there is none, ``MalformedInput`` when it is malformed, or when the checkpoint is a single
    file, so that the manifest in its folder may be of other files.
    """
    if checkpoint.is_lone_file:
        problem = "a manifest says nothing about a file that was given without its folder"
        raise MalformedInput(problem, where=checkpoint.path, remedy="give the folder")
    data = checkpoint.directory.read_companion(MANIFEST, limits.MANIFEST.size)
    try:
        return parse_manifest(data)
    except ValueError as error:
        where, remedy = checkpoint.directory.path / MANIFEST, "deltaweights verify says what is wrong with the folder"
        remedy = SAVE_UNMARKED if _is_marked(data) else remedy
        raise MalformedInput(
            "not a manifest", where=where, found=str(error).removesuffix(f": {SAVE_UNMARKED}"), remedy=remedy
        ) from None


def manifest_of_if_any(checkpoint: Checkpoint, report: Report, *, needed: str | None = None) -> Manifest | None:
    """Return the manifest in the checkpoint's folder, or None when there is none of ours that can be read; warn of a damaged one.

    Raises ``MalformedInput`` for one of ours that an editor saved with a byte-order mark, and for any damaged one of ours where it
    decides the result: ``needed`` is what to do about it then.
    """
    directory = checkpoint.directory
    if checkpoint.is_lone_file:
        return None
    try:
        if not directory.has(MANIFEST):
            return None
        return manifest_of(checkpoint)
    except InputOutputError as error:
        report.warn(f"{error}: {_unknown(checkpoint)}")
        return None
    except MalformedInput as error:
        if error.remedy == SAVE_UNMARKED:
            raise
        where, kind = directory.path / MANIFEST, _kind_of(directory)
        if kind == OURS and needed is not None:
            problem = f"the manifest cannot be read, {_unknown(checkpoint)}"
            raise MalformedInput(problem, where=where, found=error.found, remedy=needed) from None
        if kind == FOREIGN:
            report.note(f"{where} is not one of deltaweights, and not used")
        else:
            report.warn(f"{where}: the manifest cannot be read, {_unknown(checkpoint)}: found {error.found}")
        return None


OURS, FOREIGN, DAMAGED = "ours", "foreign", "damaged"
HEAD, MOST_FOREIGN = 4096, 1024 * 1024  # bytes


def _unknown(checkpoint: Checkpoint) -> str:
    lost = "arithmetic and base of the delta are" if checkpoint.role == "delta" else "how it was made is"
    return f"so {lost} not known"


def _kind_of(directory: Directory) -> str:
    """Return whose a manifest is that is none of version 1: ours by its format or by SHA256SUMS beside it, else by being JSON."""
    try:
        data = directory.read_companion(MANIFEST, limits.MANIFEST.size)
        listed = directory.has(SUMS) and f"  {MANIFEST}\n".encode() in directory.read_companion(SUMS, limits.USUAL.size)
    except (InputOutputError, MalformedInput):
        return DAMAGED
    if listed or MANIFEST_FORMAT.encode() in data[:HEAD]:
        return OURS
    try:
        strict_json(data[: MOST_FOREIGN + 1])
    except ValueError:
        return FOREIGN if len(data) > MOST_FOREIGN else DAMAGED
    return FOREIGN


def with_source(checkpoint: Checkpoint, manifest: Manifest | None, report: Report) -> Manifest | None:
    """Return what is known of how a checkpoint was made: of a copy, what the manifest of its source says, which is kept beside it.

    Tensors, files and dtype are those of ``manifest``; counts of weights only if the copy has the same.
    """
    if manifest is None or manifest.kind != "copy" or SOURCE_MANIFEST not in manifest.files:
        return manifest
    where = checkpoint.directory.path / SOURCE_MANIFEST
    try:
        source = _source(checkpoint.directory.read_companion(SOURCE_MANIFEST, limits.MANIFEST.size), manifest)
    except (InputOutputError, MalformedInput, ValueError) as error:
        report.warn(f"{where}: the manifest of the source cannot be used, {_unknown(checkpoint)}: {error}")
        return manifest
    same = source.content_digest == manifest.content_digest
    findings = source.findings if same else replace(source.findings, inexact=None, not_restored=None)
    return replace(
        source,
        files=manifest.files,
        tensors=manifest.tensors,
        places=manifest.places,
        content_digest=manifest.content_digest,
        original_content_digest=source.original_content_digest if same else "",
        dtype=manifest.dtype,
        plan=manifest.plan,
        findings=findings,
    )


def _source(data: bytes, copy: Manifest) -> Manifest:
    """Parse the manifest of a copy's source. Raises ``ValueError`` when it is another one, or of other tensors."""
    if hashlib.sha256(data).hexdigest() != copy.files[SOURCE_MANIFEST].sha256:
        raise ValueError(f"its sha256 is not the one in {MANIFEST}")
    source = parse_manifest(data)
    if {name: row[1] for name, row in source.tensors.items()} != {name: row[1] for name, row in copy.tensors.items()}:
        raise ValueError("it is that of other tensors")
    return source


def _is_marked(data: bytes) -> bool:
    """Return whether ``data`` is a manifest but for a byte-order mark."""
    if not data.startswith(UTF8_MARK):
        return False
    try:
        parse_manifest(data.removeprefix(UTF8_MARK))
    except ValueError:
        return False
    return True


def lists_same_tensors(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    """Return whether manifest and checkpoint have the same tensors, each with the same dtype, shape and file."""
    stated = {name: (dtype, shape, manifest.places[name]) for name, (dtype, shape, _) in manifest.tensors.items()}
    actual = {name: (each.spec.dtype, each.spec.shape, each.file) for name, each in checkpoint.tensors.items()}
    return stated == actual
