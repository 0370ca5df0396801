"""Where the inputs of a job are from, and how far they are verified.

Enters: open checkpoints, and hashes of their files. Leaves: what the manifest and staging keep of that, and a refusal. Never: a
hash that nobody compared or made.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import CheckFailed
from deltaweights.recipes.input_hashes import InputHashes

UNVERIFIED = "not cryptographically verified"
"""Said of inputs that were streamed: bytes in another order than the file's cannot be held against its hash."""

STREAMED = "streamed"
"""The mark of an input that is kept nowhere."""

Checkpoints = Mapping[str, Checkpoint]
"""By role."""


def is_streamed(checkpoint: Checkpoint) -> bool:
    """Tell whether a file of the checkpoint is read from the Hub and kept nowhere."""
    return any(weights.file.streamed for weights in checkpoint.files)


def refuse_unverified(checkpoints: Checkpoints, hashes: InputHashes) -> None:
    """Raise ``CheckFailed`` unless the sha256 of every weights file was compared with the Hub's, or made."""
    for role, checkpoint in checkpoints.items():
        for weights in checkpoint.files:
            if weights.file.streamed or (weights.file.verified_sha256 is None and role not in hashes.read):
                remedy = "leave --stream out" if weights.file.streamed else "give --hash-inputs, or an id of the Hub"
                raise CheckFailed(UNVERIFIED, where=weights.file.path, remedy=remedy)


def marks_of(checkpoints: Checkpoints) -> dict[str, str]:
    """Return the marks of inputs that came from the Hub, by role and name; a shard of streamed bytes is none of stored ones."""
    return {
        f"{role}/{weights.file.path.name}": weights.file.arrival or STREAMED
        for role, checkpoint in checkpoints.items()
        for weights in checkpoint.files
        if weights.file.arrival is not None or weights.file.streamed
    }


def verified_hashes(checkpoints: Checkpoints, hashes: InputHashes) -> Mapping[str, Mapping[str, str]]:
    """Return the sha256 of files, by role and name, that were made in this run, or that the files were compared with."""
    return {
        role: hashes.files[role]
        if role in hashes.read
        else {w.file.path.name: w.file.verified_sha256 for w in checkpoint.files if w.file.verified_sha256 is not None}
        for role, checkpoint in checkpoints.items()
    }


def origins_of(checkpoints: Checkpoints) -> dict[str, dict[str, str]]:
    """Return what the manifest says of where inputs are from, by role, and how far they can be trusted."""
    return {
        role: {**checkpoint.directory.origin, **({"verification": UNVERIFIED} if is_streamed(checkpoint) else {})}
        for role, checkpoint in checkpoints.items()
    }
