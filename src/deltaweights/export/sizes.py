"""What tensors a LLaMA and a CLIP vision model of given sizes consist of.

Enters: sizes. Leaves: the name and shape of every tensor, under original names. Never: a tensor that a loader makes itself.

Shapes: ``modeling_llama.py`` and ``modeling_clip.py`` of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a LLaMA; ``rows`` are those of embedding and head, ``key_value_rows`` those of k_proj and v_proj."""

    hidden: int
    intermediate: int
    layers: int
    rows: int
    key_value_rows: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> TextSizes | None:
        """Return the sizes that tensors of these shapes tell; None when they are no LLaMA's."""
        names = (EMBEDDING, *(f"model.layers.0.{part}_proj.weight" for part in ("mlp.gate", "self_attn.k")))
        if any(len(shapes.get(name, ())) != 2 for name in names):
            return None
        (rows, hidden), (intermediate, _), (key_value_rows, _) = (shapes[name] for name in names)
        layers = {int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.([0-9]{1,6})\.", name))}
        return cls(hidden, intermediate, len(layers), rows, key_value_rows)

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of every weight."""
        hidden, inner = self.hidden, self.intermediate
        yield EMBEDDING, (self.rows, hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            for part, rows in (("q", hidden), ("k", self.key_value_rows), ("v", self.key_value_rows), ("o", hidden)):
                yield f"{at}self_attn.{part}_proj.weight", (rows, hidden)
            yield f"{at}mlp.gate_proj.weight", (inner, hidden)
            yield f"{at}mlp.up_proj.weight", (inner, hidden)
            yield f"{at}mlp.down_proj.weight", (hidden, inner)
            yield f"{at}input_layernorm.weight", (hidden,)
            yield f"{at}post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.rows, hidden)


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of a CLIP vision model; ``image`` and ``patch`` are the sides of squares, in pixels."""

    hidden: int
    intermediate: int
    layers: int
    image: int
    patch: int
    channels: int = 3

    @property
    def patches(self) -> int:
        """How many patches an image has: so many features the language model gets."""
        return (self.image // self.patch) ** 2

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of every weight."""
        hidden, inner, at = self.hidden, self.intermediate, "vision_model."
        yield f"{at}embeddings.class_embedding", (hidden,)
        yield f"{at}embeddings.patch_embedding.weight", (hidden, self.channels, self.patch, self.patch)
        yield f"{at}embeddings.position_embedding.weight", (self.patches + 1, hidden)
        for norm in ("pre_layrnorm", "post_layernorm"):  # the first is spelled so
            yield from _with_bias(f"{at}{norm}", (hidden,))
        for layer in range(self.layers):
            deeper = f"{at}encoder.layers.{layer}."
            for part in ("q", "k", "v", "out"):
                yield from _with_bias(f"{deeper}self_attn.{part}_proj", (hidden, hidden))
            yield from _with_bias(f"{deeper}layer_norm1", (hidden,))
            yield from _with_bias(f"{deeper}layer_norm2", (hidden,))
            yield from _with_bias(f"{deeper}mlp.fc1", (inner, hidden))
            yield from _with_bias(f"{deeper}mlp.fc2", (hidden, inner))


def _with_bias(module: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{module}.weight", shape
    yield f"{module}.bias", shape[:1]
