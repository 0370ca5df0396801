"""Where a recipe's base and delta are on the Hub.

Enters: a recipe. Leaves: ids at pinned commits, and which files are not meant. Never: a guess where a recipe names none.
"""

from __future__ import annotations

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import HubId, ModelSource
from deltaweights.recipes.models import model
from deltaweights.recipes.recipe import Recipe

FULL_COMMIT = 40
"""Hex digits of a commit id that the Hub resolves; a beginning of one it does not."""

SAFETENSORS = (".safetensors", ".safetensors.index.json")


def has_base(recipe: Recipe) -> bool:
    """Tell whether it is known where the base is."""
    return recipe.base_model is not None and model(recipe.base_model).repo is not None


def base_of(recipe: Recipe) -> ModelSource:
    """Return where the base is: of its two formats the one of which the hashes of all files are known.

    Raises ``UsageError`` when nobody said where it is.
    """
    known = model(recipe.base_model) if recipe.base_model is not None else None
    if known is None or known.repo is None:
        raise UsageError(f"recipe {recipe.name} does not say where its base is", remedy="give --base")
    pinned = any(file.form == "bin" for file in known.files)
    return ModelSource(HubId(known.repo, known.revision), SAFETENSORS if pinned else ())


def delta_of(recipe: Recipe) -> ModelSource:
    """Return where the delta is. Raises ``UsageError`` when nobody said, ``InputOutputError`` when there are no weights there."""
    delta = recipe.delta
    if delta.repo is None:
        raise UsageError(f"recipe {recipe.name} does not say where its delta is", remedy="give --delta")
    if not delta.has_weights:
        archives = f"give the archive, if you hold it: {', '.join(delta.archives)}"
        raise InputOutputError("the repository holds no weights", where=delta.repo, remedy=archives)
    pinned = delta.revision if delta.revision and len(delta.revision) == FULL_COMMIT else None
    return ModelSource(HubId(delta.repo, pinned))
