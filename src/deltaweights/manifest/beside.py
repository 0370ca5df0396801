"""The manifest that stands beside a checkpoint's weights, taken at its word.

Enters: an open checkpoint. Leaves: what its manifest.json states. Never: a byte of weights, or a digest that was made anew.
"""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.manifest import MANIFEST
from deltaweights.manifest.parsed import Manifest, parse_manifest
from deltaweights.util import limits


def manifest_beside(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest in the checkpoint's folder.

    Raises ``InputOutputError`` when there is none, ``MalformedInput`` when it is no manifest, or says nothing of a file that
    only lies beside its checkpoint.
    """
    if checkpoint.is_lone_file:
        problem = "a manifest says nothing of a file beside its checkpoint"
        raise MalformedInput(problem, where=checkpoint.path, remedy="give the folder")
    try:
        return parse_manifest(checkpoint.directory.read_companion(MANIFEST, limits.MANIFEST.size))
    except ValueError as error:
        where, remedy = checkpoint.directory.path / MANIFEST, "deltaweights verify says what is wrong with the folder"
        raise MalformedInput("not a manifest", where=where, found=error, remedy=remedy) from None


def stated_beside(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest in the checkpoint's folder, None when there is none that can be read."""
    try:
        return manifest_beside(checkpoint)
    except (InputOutputError, MalformedInput):
        return None


def lists_exactly(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    """Tell whether the manifest lists the checkpoint's tensors, and no others, each with its dtype, shape and file."""
    return {name: (*row[:2], manifest.places[name]) for name, row in manifest.tensors.items()} == {
        name: (tensor.spec.dtype, tensor.spec.shape, tensor.file) for name, tensor in checkpoint.tensors.items()
    }
