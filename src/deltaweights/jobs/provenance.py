"""The sources of the inputs, and whether their hashes were verified."""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed
from deltaweights.recipes.input_hashes import InputHashes

UNVERIFIED = "not cryptographically verified"
"""Streamed inputs are read out of order, so their hash cannot be compared."""

UNSTATED = "hashes not stated"
"""Of inputs from a mirror of the Hub that states no hash of some weights."""

STREAMED = "streamed"
"""The mark of an input that is not kept."""

Checkpoints = Mapping[str, Checkpoint]
"""By role."""


def is_streamed(checkpoint: Checkpoint) -> bool:
    """Return whether a file of the checkpoint is read from the Hub and not kept."""
    return any(weights.file.streamed for weights in checkpoint.files)


def refuse_unverified(checkpoints: Checkpoints, hashes: InputHashes) -> None:
    """Raise ``CheckFailed`` unless the sha256 of every weights file was compared with the Hub's, or computed."""
    for role, checkpoint in checkpoints.items():
        for weights in checkpoint.files:
            if weights.file.streamed or (weights.file.verified_sha256 is None and role not in hashes.read):
                remedy = "leave --stream out" if weights.file.streamed else "give --hash-inputs, or an id of the Hub"
                code = ErrorCode.INPUTS_UNVERIFIED
                raise CheckFailed(UNVERIFIED, where=weights.file.path, remedy=remedy, code=code)


def marks_of(checkpoints: Checkpoints) -> dict[str, str]:
    """Return the marks of files from the Hub, by role and name: shards made of streamed bytes are not reused for stored ones."""
    return {
        f"{role}/{weights.file.path.name}": weights.file.arrival or STREAMED
        for role, checkpoint in checkpoints.items()
        for weights in checkpoint.files
        if weights.file.arrival is not None or weights.file.streamed
    }


def verified_hashes(checkpoints: Checkpoints, hashes: InputHashes) -> Mapping[str, Mapping[str, str]]:
    """Return the sha256 of files, by role and name, that this run computed or compared."""
    return {
        role: hashes.files[role]
        if role in hashes.read
        else {w.file.path.name: w.file.verified_sha256 for w in checkpoint.files if w.file.verified_sha256 is not None}
        for role, checkpoint in checkpoints.items()
    }


def origins_of(checkpoints: Checkpoints) -> dict[str, dict[str, str]]:
    """Return the source of each input, by role, and whether it was verified, as the manifest records it."""
    return {
        role: {**checkpoint.directory.origin, **_verification(checkpoint)} for role, checkpoint in checkpoints.items()
    }


def _verification(checkpoint: Checkpoint) -> dict[str, str]:
    if is_streamed(checkpoint):
        return {"verification": UNVERIFIED}
    stated = all(weights.file.has_stated_hash for weights in checkpoint.files)
    return {} if stated else {"verification": UNSTATED}
