"""A tiny LLaVA as it was published in 2023: base, delta, tokenizer and vision tower of the real structure; and what it computes.

Enters: a folder. Leaves: checkpoint folders made by torch, transformers and sentencepiece, and the logits that the description of
the model gives. Never: our own code, so that a test compares two independent ways to the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, save
from tests.support.tokenizers_2023 import NEW, SMALL, processor, published

HIDDEN, HEADS, LAYERS, FEATURES = 32, 4, 2, 24

IMAGE, PATCH = 56, 14

PATCHES = (IMAGE // PATCH) ** 2

VISION: dict[str, Any] = {
    "hidden_size": FEATURES,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE,
    "patch_size": PATCH,
}


RECIPE = """
format = "deltaweights-recipe"
version = 1
name = "tiny-llava-med"
title = "A tiny LLaVA-Med"
notice = "Not for clinical use."
[arithmetic]
compute_dtype = "float16"
[transformers]
vision_tower = "clip-vit-l-14"
conversation = "llava-med"
"""
"""LLaVA-Med's recipe, but for its sizes."""


@dataclass(frozen=True)
class Published:
    """The folders that people hold, and what merging base and delta gives."""

    base: Path
    delta: Path
    tower: Path
    merged: Tensors
    rows: int


def publish(
    folder: Path,
    *,
    projector: bool = True,
    container: str = "torch",
    hidden: int = HIDDEN,
    features: int = FEATURES,
    image: int = IMAGE,
) -> Published:
    """Make a base, a LLaVA-Med-like delta (a plain LLaMA's without ``projector``) and a CLIP under ``folder``.

    The original code runs with 1024 ``features`` of an ``image`` of 224 pixels alone, of which it has a constant.
    """
    delta_at = folder / "delta"
    delta_at.mkdir(parents=True)
    for name, data in published(SMALL).items():
        (delta_at / name).write_bytes(data)
    vocabulary = processor(SMALL).get_piece_size()
    base = base_tensors(LAYERS, vocabulary, hidden)
    delta = delta_tensors(base, len(NEW), projector=projector)
    if projector and features != FEATURES:
        delta["model.mm_projector.weight"] = torch.randn(hidden, features).half() / features**0.5
    save(base, folder / "base", container, config=False)
    save(delta, delta_at, container, config=False)
    rows = vocabulary + len(NEW)
    write(folder / "base" / "config.json", _text_config(vocabulary, hidden) | {"model_type": "llama"})
    heads = max(2, features // 64)  # of 1024 features CLIP's 16
    tower = make_tower(folder / "clip", hidden_size=features, image_size=image, num_attention_heads=heads)
    seeing = {"architectures": ["LlavaLlamaForCausalLM"], **SEEING, "mm_hidden_size": features}
    if features != FEATURES:
        seeing["mm_vision_tower"] = str(tower)  # a folder, since no network is wanted
    config = _text_config(rows, hidden) | (seeing if projector else {})
    write(delta_at / "config.json", config | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1})
    write(delta_at / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})
    (delta_at / "README.md").write_text("# The delta's own card\n")
    return Published(folder / "base", delta_at, tower, reference(base, delta), rows)


SEEING = {
    "model_type": "llava",
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "mm_hidden_size": FEATURES,
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": True,
    "use_mm_proj": True,
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
}
"""The keys that microsoft/llava-med-7b-delta has besides those of a LLaMA."""


def _text_config(rows: int, hidden: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 3 * hidden - 4,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": False,
        "vocab_size": rows,
    }


def make_tower(folder: Path, **changes: int) -> Path:
    """Save a tiny CLIP, text model and projections included, as openai/clip-vit-large-patch14 has them, in float32."""
    torch.manual_seed(7)
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    config = CLIPConfig(vision_config=VISION | changes, text_config=text, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    side = changes.get("image_size", IMAGE)
    write(folder / "preprocessor_config.json", {"crop_size": side, "size": side, "resample": 3})
    return folder


def write(path: Path, value: object) -> None:
    """Write a JSON document."""
    path.write_text(json.dumps(value, indent=2) + "\n")


class Described(torch.nn.Module):
    """LLaVA of 2023, from its description: a LLaMA; a picture's features by CLIP, through one linear layer, between two tokens."""

    def __init__(self, published: Published, tensors: Tensors, dtype: torch.dtype) -> None:
        """Load the ``tensors`` of a merged checkpoint in the original layout."""
        super().__init__()
        config = LlamaConfig(
            vocab_size=published.rows,
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN - 4,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            rms_norm_eps=1e-06,
        )
        self.llama: Any = LlamaForCausalLM._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
        self.projector = torch.nn.Linear(FEATURES, HIDDEN)
        of_projector = "model.mm_projector."
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith(of_projector)}
        self.llama.load_state_dict(state)
        self.projector.load_state_dict(
            {
                name.removeprefix(of_projector): tensor
                for name, tensor in tensors.items()
                if name.startswith(of_projector)
            }
        )
        # The original code takes the tower in float16, whatever the rest is computed in.
        tower: Any = CLIPVisionModel.from_pretrained(published.tower, attn_implementation="eager")
        self.tower = tower.half()
        self.to(dtype)
        self.start, self.end = published.rows - 2, published.rows - 1

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, pixels: torch.Tensor | None) -> torch.Tensor:
        """Return the logits, ``[tokens, rows]``, of one prompt, given its ids, and the picture in it if there is one."""
        embedded = self.llama.get_input_embeddings()(ids)
        if pixels is not None:
            states = self.tower(pixels, output_hidden_states=True).hidden_states
            (picture,) = self.projector(states[-2][:, 1:])
            (place,) = (ids == self.start).nonzero().flatten().tolist()
            assert ids[place + len(picture) + 1] == self.end
            embedded = torch.cat([embedded[: place + 1], picture, embedded[place + len(picture) + 1 :]])
        logits: torch.Tensor = self.llama(inputs_embeds=embedded[None]).logits[0]
        return logits
