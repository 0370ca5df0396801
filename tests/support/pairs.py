"""Tiny real base/delta pairs, made by transformers and torch, and the straightforward merge that ours is compared with.

Enters: sizes, dtypes, containers. Leaves: checkpoint folders of the real structure. Never: our own code, so that a test
compares two independent ways to the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Tensors = dict[str, torch.Tensor]

GROWN = ("model.embed_tokens.weight", "lm_head.weight")


def base_tensors(
    layers: int = 2, vocabulary: int = 48, hidden: int = 32, seed: int = 0, dtype: torch.dtype = torch.float16
) -> Tensors:
    """Return the weights of a tiny LLaMA that transformers initialised, with the buffers that 2023's transformers saved."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden - 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    tensors = {name: tensor.to(dtype) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    for layer in range(layers):
        frequencies = 1.0 / 10000 ** (torch.arange(0, hidden // 4, 2).float() / (hidden // 4))
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    return tensors


def delta_tensors(
    base: Tensors, new_tokens: int = 4, seed: int = 1, projector: bool = True, dtype: torch.dtype = torch.float16
) -> Tensors:
    """Return a LLaVA-Med-like delta on ``base``: tuned weights minus the base, new tokens, a projector, zero buffers."""
    torch.manual_seed(seed)
    delta = {}
    for name, tensor in base.items():
        if name.endswith("inv_freq"):
            delta[name] = torch.zeros_like(tensor)
            continue
        tuned = (tensor.float() + torch.randn(tensor.shape) * 4e-4).to(dtype)
        delta[name] = tuned - tensor.to(dtype)
        if name in GROWN and new_tokens:
            delta[name] = torch.cat([delta[name], (torch.randn(new_tokens, tensor.shape[1]) * 0.02).to(dtype)])
    if projector:
        hidden = base["model.norm.weight"].shape[0]
        delta["model.mm_projector.weight"] = torch.randn(hidden, 24).to(dtype)
        delta["model.mm_projector.bias"] = torch.randn(hidden).to(dtype)
    return delta


def reference(
    base: Tensors, delta: Tensors, compute: torch.dtype = torch.float16, stored: torch.dtype | None = None
) -> Tensors:
    """Return the merged tensors, by the original script's algorithm: whole models in memory."""
    merged = {}
    for name, tensor in delta.items():
        if name.endswith("inv_freq"):
            continue
        total = tensor.to(compute).clone()
        if name in base:
            other = base[name].to(compute)
            if other.shape == total.shape:
                total += other
            else:
                total[: other.shape[0], : other.shape[1]] += other
        merged[name] = total.to(stored or compute)
    return merged


def save(tensors: Tensors, folder: Path, container: str = "torch", shards: int = 2, config: bool = True) -> Path:
    """Save a checkpoint folder: ``container`` is "torch" or "safetensors"; with one shard there is no index."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix, stem, saver = (
        (".bin", "pytorch_model", torch.save) if container == "torch" else (".safetensors", "model", _save_safetensors)
    )
    names = list(tensors)
    if shards == 1:
        saver(tensors, folder / f"{stem}{suffix}")
    else:
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
            part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
            saver({name: tensors[name] for name in part}, folder / file)
            weight_map |= dict.fromkeys(part, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index, indent=2))
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llava", "torch_dtype": "float16"}, indent=2))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return folder


def _save_safetensors(tensors: Tensors, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def load(folder: Path) -> Tensors:
    """Load all tensors of a merged checkpoint with the safetensors library."""
    merged: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        merged |= load_file(path)
    return merged


def same_bits(one: Tensors, other: Tensors) -> bool:
    """Tell whether two checkpoints have the same names, dtypes, shapes and bits (NaN payloads included)."""
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype
        and a.shape == other[name].shape
        and torch.equal(a.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name, a in one.items()
    )


def make_pair(folder: Path, container: str = "torch", shards: int = 2) -> tuple[Path, Path]:
    """Save a LLaVA-Med-like pair under ``folder``; return the base's and the delta's path."""
    base = base_tensors()
    return save(base, folder / "base", container, shards), save(
        delta_tensors(base), folder / "delta", container, shards
    )
