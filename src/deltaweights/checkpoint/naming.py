"""What the names of a checkpoint's tensors are in the model, in the original layout, whoever saved it.

Names are led back where all of them allow only one reading: a wrapper's prefix before every name, and the layouts in which
transformers saves a LLaVA. Where only some names are of such a layout, they are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from deltaweights.checkpoint.llava_names import SINCE_4_52, SINCE_5, original_name
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.wrapper_prefix import wrapper_prefix

T = TypeVar("T")

LAYOUTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "transformers-4.36": (
        "language_model.model.",
        ("language_model.model.", "language_model.lm_head.", "multi_modal_projector.", "vision_tower."),
    ),
    "transformers-4.52": ("model.language_model.", tuple(current for current, _ in SINCE_4_52)),
}
"""How the names of the language model's tensors begin, and those of all of them, by the version that has saved a LLaVA so first."""


@dataclass(frozen=True)
class Naming:
    """``prefix`` is what a wrapper put before every name, ``layout`` one of ``LAYOUTS``; both empty for the original names."""

    prefix: str = ""
    layout: str = ""

    def model_name(self, name: str) -> str:
        """Return the name in the model of a tensor that is ``name`` on disk."""
        bare = name.removeprefix(self.prefix)
        if not self.layout:
            return bare
        for renamed in (SINCE_4_52 if self.layout == "transformers-4.52" else (), SINCE_5):
            bare = next((old + bare.removeprefix(new) for new, old in renamed if bare.startswith(new)), bare)
        return original_name(bare) or bare.removeprefix("language_model.")

    def by_model_name(self, tensors: Mapping[str, T]) -> Mapping[str, T]:
        """Return ``tensors``, which are by their names on disk, by their names in the model."""
        if self == PLAIN:
            return tensors
        return {self.model_name(name): tensor for name, tensor in tensors.items()}

    @property
    def text(self) -> str:
        """What is said of names that are not the original ones; empty of these."""
        said = [f"all names begin with {self.prefix}, which a wrapper of the model put there"] if self.prefix else []
        if self.layout:
            version = self.layout.removeprefix("transformers-")
            said.append(
                f"names are those of a LLaVA of transformers {version} (they begin with {LAYOUTS[self.layout][0]})"
            )
        return "; ".join(said)

    @property
    def document(self) -> dict[str, str]:
        """The facts that are not empty, as in a manifest."""
        return {key: value for key, value in vars(self).items() if value}


PLAIN = Naming()


def naming_of(names: Iterable[str]) -> Naming:
    """Return how these tensors are named."""
    every = set(names)
    prefix = wrapper_prefix(every)
    bare = {name.removeprefix(prefix) for name in every if name not in PROJECTOR}
    for layout, (language_model, known) in LAYOUTS.items():
        if any(name.startswith(language_model) for name in bare) and all(name.startswith(known) for name in bare):
            naming = Naming(prefix, layout)
            if len({naming.model_name(name) for name in every}) == len(every):
                return naming
    return Naming(prefix)
