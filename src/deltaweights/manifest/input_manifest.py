"""The manifest in the folder of a checkpoint that is an input. Its claims are read, not verified."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.util import limits


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest in the checkpoint's folder.

    Raises ``InputOutputError`` when there is none, ``MalformedInput`` when it is malformed, or when the checkpoint is a single
    file, so that the manifest in its folder may be of other files.
    """
    if checkpoint.is_lone_file:
        problem = "a manifest says nothing about a file that was given without its folder"
        raise MalformedInput(problem, where=checkpoint.path, remedy="give the folder")
    try:
        return parse_manifest(checkpoint.directory.read_companion(MANIFEST, limits.MANIFEST.size))
    except ValueError as error:
        where, remedy = checkpoint.directory.path / MANIFEST, "deltaweights verify says what is wrong with the folder"
        raise MalformedInput("not a manifest", where=where, found=error, remedy=remedy) from None


def manifest_of_if_any(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest in the checkpoint's folder, or None when there is none that can be read."""
    try:
        return manifest_of(checkpoint)
    except (InputOutputError, MalformedInput):
        return None


def lists_same_tensors(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    """Return whether manifest and checkpoint have the same tensors, each with the same dtype, shape and file."""
    stated = {name: (dtype, shape, manifest.places[name]) for name, (dtype, shape, _) in manifest.tensors.items()}
    actual = {name: (each.spec.dtype, each.spec.shape, each.file) for name, each in checkpoint.tensors.items()}
    return stated == actual
