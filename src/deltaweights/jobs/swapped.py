"""Base and delta given the wrong way round: the sizes of their weights tell before anything is matched."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.jobs.request import or_allow
from deltaweights.recipes.identify import Identity
from deltaweights.recipes.weight_scale import SMALL, relative_scale, typical_weight
from deltaweights.util.text import shell_quoted

GIVE_THE_MODEL = "give the model itself: deltaweights apply makes it of the delta and its base"

MUCH_LARGER = 4.0
"""How many times as large as the base's weights those of a delta are when the two are swapped; real pairs have 20 to 50."""


def is_small(typical: float | None) -> bool:
    """Return whether weights of this size are likely those of a delta."""
    return typical is not None and typical < SMALL


def refuse_swapped(base: Checkpoint, delta: Checkpoint) -> None:
    """Raise ``Mismatch`` when the base's weights are as small as a delta's, and the delta's much larger."""
    typical = typical_weight(base.tensors.values())
    share = relative_scale(base.model_tensors, delta.model_tensors) if is_small(typical) else None
    if share is None or share < MUCH_LARGER:
        return
    raise Mismatch(
        "you swapped --base and --delta",
        where=base.path,
        found=f"weights of the base as small as a delta's (typically {typical:.2g}), those of the delta {share:.2g} times as large",
        remedy=f"give --base {shell_quoted(delta.path)} --delta {shell_quoted(base.path)}",
        code=ErrorCode.SWAPPED,
    )


def refuse_delta_as_base(base: Checkpoint, identity: Identity, allow: bool | None) -> None:
    """Raise ``Mismatch`` for a base of which its manifest, or its hashes, say that it is a delta."""
    if identity.is_delta and not allow:
        raise not_a_model(base, identity, allow)


def not_a_model(checkpoint: Checkpoint, identity: Identity, allow: bool | None) -> Mismatch:
    """Return the error for a delta in the place of a model."""
    return Mismatch(
        identity.no_model or "is a delta, not a model",
        where=f"{checkpoint.role} {checkpoint.path}",
        found=identity.text,
        remedy=f"{GIVE_THE_MODEL}{or_allow(allow)}",
        code=ErrorCode.NOT_A_MODEL,
    )
