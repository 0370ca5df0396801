"""The tensors of a LLaMA and of a CLIP vision model of given sizes, under original names.

Shapes: ``modeling_llama.py`` and ``modeling_clip.py`` of transformers. Buffers that a loader creates itself are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltaweights.recipes.incomplete import EMBEDDING, LAYER

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a LLaMA: ``rows`` of embedding and head, ``key_value_rows`` of k_proj and v_proj."""

    hidden: int
    intermediate: int
    layers: int
    rows: int
    key_value_rows: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> TextSizes | None:
        """Return the sizes that follow from these tensors, None when they are not a LLaMA's."""
        names = (EMBEDDING, "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.k_proj.weight")
        if any(len(shapes.get(name, ())) != 2 for name in names):
            return None
        (rows, hidden), (intermediate, _), (key_value_rows, _) = (shapes[name] for name in names)
        layers = {int(found[1]) for name in shapes if (found := LAYER.match(name))}
        return cls(hidden, intermediate, len(layers), rows, key_value_rows)

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield the name and shape of every weight."""
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
        """Patches of an image, and so the number of features that the language model gets."""
        return (self.image // self.patch) ** 2

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield the name and shape of every weight."""
        hidden, inner, at = self.hidden, self.intermediate, "vision_model."
        yield f"{at}embeddings.class_embedding", (hidden,)
        yield f"{at}embeddings.patch_embedding.weight", (hidden, self.channels, self.patch, self.patch)
        yield f"{at}embeddings.position_embedding.weight", (self.patches + 1, hidden)
        for norm in ("pre_layrnorm", "post_layernorm"):  # the first is spelled so
            yield from _with_bias(f"{at}{norm}", (hidden,))
        for layer in range(self.layers):
            inside = f"{at}encoder.layers.{layer}."
            for part in ("q", "k", "v", "out"):
                yield from _with_bias(f"{inside}self_attn.{part}_proj", (hidden, hidden))
            yield from _with_bias(f"{inside}layer_norm1", (hidden,))
            yield from _with_bias(f"{inside}layer_norm2", (hidden,))
            yield from _with_bias(f"{inside}mlp.fc1", (inner, hidden))
            yield from _with_bias(f"{inside}mlp.fc2", (hidden, inner))


def _with_bias(module: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{module}.weight", shape
    yield f"{module}.bias", shape[:1]
