"""Checkpoints in Meta's format, made by splitting Hugging Face tensors with the inverse rules, in torch.

Enters: tensors under Hugging Face's names. Leaves: ``params.json`` and ``consolidated.NN.pth``. Never: our own code.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.pairs import Tensors

NAMES = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
"""Hugging Face's names within a layer: Meta's, and the axis that Meta splits."""

OUTSIDE = {
    "model.embed_tokens.weight": ("tok_embeddings.weight", 1),
    "model.norm.weight": ("norm.weight", None),
    "lm_head.weight": ("output.weight", 0),
}


def interleaved(matrix: torch.Tensor, head: int) -> torch.Tensor:
    """Return the rows of a query or key matrix in Meta's order, where rotation pairs neighbours."""
    rows, columns = matrix.shape
    return matrix.view(rows // head, 2, head // 2, columns).transpose(1, 2).reshape(rows, columns)


def meta_tensors(tensors: Tensors, head: int) -> dict[str, tuple[torch.Tensor, int | None]]:
    """Return all weights under Meta's names, with the axis to split."""
    found = {}
    for name, tensor in tensors.items():
        if name in OUTSIDE:
            meta, axis = OUTSIDE[name]
            found[meta] = tensor, axis
        elif name.startswith("model.layers.") and not name.endswith("inv_freq"):
            _, _, layer, rest = name.split(".", 3)
            meta, axis = NAMES[rest.removesuffix(".weight")]
            rotary = meta in {"attention.wq", "attention.wk"}
            found[f"layers.{layer}.{meta}.weight"] = interleaved(tensor, head) if rotary else tensor, axis
    return found


def split(tensors: Tensors, parts: int, head: int) -> list[Tensors]:
    """Return the tensors of each part, as Meta's loaders want them, with the rotary frequencies in all of them."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, head, 2).float() / head)
    divided: list[Tensors] = [{} for _ in range(parts)]
    for name, (tensor, axis) in meta_tensors(tensors, head).items():
        pieces = [tensor] * parts if axis is None else tensor.chunk(parts, axis)
        for part, piece in zip(divided, pieces, strict=True):
            part[name] = piece.clone(memory_format=torch.contiguous_format)
    for part in divided:
        part["rope.freqs"] = frequencies
    return divided


def params_of(tensors: Tensors, head: int) -> dict[str, object]:
    """Return what params.json says of a LLaMA-1 with these tensors."""
    layers = sum(name.endswith("input_layernorm.weight") for name in tensors)
    dim = tensors["model.norm.weight"].shape[0]
    queries, keys = (tensors[f"model.layers.0.self_attn.{k}_proj.weight"].shape[0] for k in "qk")
    hidden = tensors["model.layers.0.mlp.up_proj.weight"].shape[0]
    grouped = {} if queries == keys else {"n_kv_heads": keys // head}
    # With this multiplier, and multiples of 1, Meta's formula gives the width that the tensors have.
    factor = (hidden + 0.5) / int(8 * dim / 3)
    return {
        "dim": dim,
        "multiple_of": 1,
        "ffn_dim_multiplier": factor,
        "n_heads": queries // head,
        "n_layers": layers,
        "norm_eps": 1e-06,
        "vocab_size": -1,
        **grouped,
    }


def save_meta(tensors: Tensors, folder: Path, parts: int = 1, head: int = 8) -> Path:
    """Write a checkpoint in Meta's format."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(split(tensors, parts, head)):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params_of(tensors, head)))
    return folder
