"""Where a recipe's base and delta are on the Hub."""

from __future__ import annotations

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.ids import HubId, ModelSource
from deltaweights.recipes.models import model
from deltaweights.recipes.recipe import Recipe

FULL_COMMIT = 40  # hex digits of a full commit id; the Hub does not resolve shorter ones
SAFETENSORS = (".safetensors", ".safetensors.index.json")


def has_base_source(recipe: Recipe) -> bool:
    """Return whether a repository of the base is known."""
    return recipe.base_model is not None and model(recipe.base_model).repo is not None


def base_source(recipe: Recipe) -> ModelSource:
    """Return the repository of the base, without safetensors files if its .bin files' hashes are known. Raises ``UsageError``."""
    known = model(recipe.base_model) if recipe.base_model is not None else None
    if known is None or known.repo is None:
        problem = f"recipe {recipe.name} does not say where its base is"
        raise UsageError(problem, remedy="give --base", code=ErrorCode.NO_INPUT_GIVEN)
    has_hashes = any(file.form == "bin" for file in known.files)
    return ModelSource(HubId(known.repo, known.revision), SAFETENSORS if has_hashes else ())


def delta_source(recipe: Recipe) -> ModelSource:
    """Return the repository of the delta. Raises ``UsageError`` when none is known, ``InputOutputError`` when it has no weights."""
    delta = recipe.delta
    if delta.repo is None:
        problem = f"recipe {recipe.name} does not say where its delta is"
        raise UsageError(problem, remedy="give --delta", code=ErrorCode.NO_INPUT_GIVEN)
    if not delta.has_weights:
        archives = f"give the archive, if you have it: {', '.join(delta.archives)}"
        problem, code = "the repository holds no weights", ErrorCode.NO_WEIGHTS
        raise InputOutputError(problem, where=delta.repo, remedy=archives, code=code)
    pinned = delta.revision if delta.revision and len(delta.revision) == FULL_COMMIT else None
    return ModelSource(HubId(delta.repo, pinned))
