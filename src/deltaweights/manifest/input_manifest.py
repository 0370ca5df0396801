"""The manifest in the folder of a checkpoint that is an input. Its claims are read, not verified."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.util import limits
from deltaweights.util.text import SAVE_UNMARKED, UTF8_MARK


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


def manifest_of_if_any(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest in the checkpoint's folder, or None when there is none that can be read.

    Raises ``MalformedInput`` for one of ours that an editor saved with a byte-order mark: what it states would be ignored.
    """
    try:
        return manifest_of(checkpoint)
    except InputOutputError:
        return None
    except MalformedInput as error:
        if error.remedy == SAVE_UNMARKED:
            raise
        return None


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
