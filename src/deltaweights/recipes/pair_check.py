"""Check that base and delta have the sizes in the recipe, and that the delta is complete."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.projector import FILE as PROJECTOR_FILE
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.errors import Mismatch
from deltaweights.recipes.mismatch_hints import EMBEDDING, REMEDY, layers
from deltaweights.recipes.recipe import Recipe
from deltaweights.util.text import counted

HEAD = "lm_head.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"


def check_pair(recipe: Recipe, base: Checkpoint, delta: Checkpoint) -> None:
    """Raise ``Mismatch`` when base or delta have other sizes than the recipe, or the delta lacks a required tensor."""
    for name in recipe.required:
        if name not in delta.tensors:
            raise Mismatch(
                f"not the whole delta of recipe {recipe.name}",
                where=f"delta {delta.path}",
                tensor=name,
                found="no such tensor",
                remedy=f"is {PROJECTOR_FILE} missing beside the shards?" if name in PROJECTOR else "fetch it again",
            )
    shapes = recipe.shapes
    for checkpoint, rows in ((base, shapes.base_rows), (delta, shapes.delta_rows)):
        for name, axis, expected, what in (
            (EMBEDDING, 0, rows, "rows"),
            (EMBEDDING, 1, shapes.hidden_size, "columns"),
            (HEAD, 0, rows, "rows"),
            (GATE, 0, shapes.intermediate_size, "rows"),
        ):
            shape = checkpoint.tensors[name].spec.shape if name in checkpoint.tensors else ()
            if expected is not None and len(shape) == 2 and shape[axis] != expected:
                raise _mismatch(recipe, checkpoint, f"{shape[axis]} {what}", expected, name)
        found = layers(checkpoint.tensors)
        if shapes.layers is not None and found != shapes.layers:
            raise _mismatch(recipe, checkpoint, counted(found, "layer"), shapes.layers, None)


def _mismatch(recipe: Recipe, checkpoint: Checkpoint, found: str, expected: int, tensor: str | None) -> Mismatch:
    role = checkpoint.role
    return Mismatch(
        f"not the {role} of recipe {recipe.name}",
        where=f"{role} {checkpoint.path}",
        tensor=tensor,
        found=found,
        expected=expected,
        remedy=REMEDY if role == "base" else "use the delta that the recipe names, or another recipe",
    )
