"""Whether one of two checkpoints lacks tensors that belong to it, judging by its other layers and by what any LLaMA has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.recipes.stored_form import listed_names
from deltaweights.util.text import natural_key

Specs = Mapping[str, TensorSpec]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\.")
NUMBER = re.compile(r"(?<=\.)[0-9]{1,6}(?=\.)")

OF_A_LLAMA = frozenset(
    {
        EMBEDDING,
        HEAD,
        "model.norm.weight",
        *(f"model.layers.N.{part}_layernorm.weight" for part in ("input", "post_attention")),
        *(f"model.layers.N.self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"model.layers.N.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
)
"""The names of a LLaMA's tensors, with N for the number of a layer."""


def incomplete(base: Specs, primary: Specs, role: str) -> str | None:
    """Return what the base or the primary, whose ``role`` is "delta" or "target", lacks, and what to do; None if it lacks nothing.

    Not told here are an embedding or a head alone, which may be tied, and the last layers alone: the other may be a larger model.
    """
    for of, specs, other in (("base", base, primary), (role, primary, base)):
        lacking = _lacking(specs, other)
        if lacking:
            which = (
                f"{listed_names(sorted(lacking, key=natural_key), 1)}, which the {role if of == 'base' else 'base'} has"
            )
            partly = ", or holds only what was trained" if of == "delta" else ""
            return f"the {of} is incomplete{partly}: it lacks {which}; fetch or save it again, all of it"
    return None


def _lacking(specs: Specs, other: Specs) -> list[str]:
    """Return the names of the tensors that only ``other`` has, and that belong to both."""
    families = {(_family(name), spec.shape) for name, spec in specs.items()}
    last = max((int(found[1]) for name in specs if (found := LAYER.match(name))), default=None)
    if last is None:
        return []
    lacking = [
        name
        for name, spec in other.items()
        if name not in specs
        and not name.endswith("inv_freq")
        and (_family(name) in OF_A_LLAMA or (_family(name) != name and (_family(name), spec.shape) in families))
    ]
    further = [name for name in lacking if (found := LAYER.match(name)) and int(found[1]) > last]
    rest = set(lacking) - set(further)
    return lacking if rest - {EMBEDDING, HEAD} or (rest and further) else []


def _family(name: str) -> str:
    """Return a name without the numbers of layers and of what else is counted."""
    return NUMBER.sub("N", name)
