"""Make a tiny base and a tiny delta with the structure of LLaVA-Med's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deltaweights.util.text import Json

LAYERS, HIDDEN, INTERMEDIATE, HEADS, VISION = 4, 128, 344, 4, 1024
VOCABULARY = 320
NEW_TOKENS = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
"""LLaVA-Med appends these to the vocabulary, in this order (added_tokens.json of microsoft/llava-med-7b-delta)."""

FINE_TUNING_STEP = 4e-4
"""Standard deviation of the tuned weights' distance from the base: 2 % of the base's own, 0.02."""

TEXT = """
The lungs are clear. There is no pleural effusion and no pneumothorax. The heart is not enlarged. The bones are intact.
What is shown in this image? This is a chest X-ray. Is there evidence of fracture? No. Which organ is abnormal? The liver.
Hematoxylin and eosin stained section of the kidney with glomeruli and tubules, magnification times forty.
"""

README = """\
# A tiny stand-in for a published delta

Random weights with the structure of microsoft/llava-med-7b-delta.
Research use only; not for clinical care or any clinical decision.
"""


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Write ``base`` and ``delta`` under ``folder``, and return their paths."""
    generator = torch.Generator().manual_seed(2023)
    base = _base(generator)
    delta = _delta(base, generator)
    paths = folder / "base", folder / "delta"
    for path, tensors in zip(paths, (base, delta), strict=True):
        path.mkdir(parents=True, exist_ok=True)
        _save(tensors, path)
    _write_json(paths[0] / "config.json", _config("LlamaForCausalLM", "llama", VOCABULARY))
    _write_delta_files(paths[1])
    return paths


def _base(generator: torch.Generator) -> dict[str, torch.Tensor]:
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    tensors = {name: (torch.randn(shape, generator=generator) * 0.02).half() for name, shape in shapes.items()}
    width = HIDDEN // HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(HIDDEN).half()
        tensors[f"{prefix}self_attn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, width, 2).float() / width)
    tensors["model.norm.weight"] = torch.ones(HIDDEN).half()
    return tensors


def _delta(base: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return tuned weights minus ``base``, in float16, as the original make_delta scripts computed it."""
    delta = {}
    for name, tensor in base.items():
        if name.endswith("inv_freq"):
            delta[name] = torch.zeros_like(tensor)
            continue
        step = torch.randn(tensor.shape, generator=generator) * FINE_TUNING_STEP
        delta[name] = (tensor.float() + step).half() - tensor
        if name in {"model.embed_tokens.weight", "lm_head.weight"}:
            rows = (torch.randn((len(NEW_TOKENS), HIDDEN), generator=generator) * 0.02).half()
            delta[name] = torch.cat([delta[name], rows])
    delta["model.mm_projector.weight"] = (torch.randn((HIDDEN, VISION), generator=generator) * 0.02).half()
    delta["model.mm_projector.bias"] = torch.zeros(HIDDEN).half()
    return delta


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Save two shards and their index, as transformers did in 2023."""
    names = list(tensors)
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _config(architecture: str, model_type: str, vocabulary: int) -> dict[str, Json]:
    """Return the keys of the published config.json, with the sizes of the tiny model."""
    return {
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_sequence_length": 2048,
        "model_type": model_type,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": False,
        "vocab_size": vocabulary,
    }


def _write_delta_files(folder: Path) -> None:
    config = _config("LlavaLlamaForCausalLM", "llava", VOCABULARY + len(NEW_TOKENS))
    config |= {"mm_hidden_size": VISION, "mm_use_im_start_end": True, "mm_vision_select_layer": -2}
    config |= {"mm_vision_tower": "openai/clip-vit-large-patch14", "use_mm_proj": True}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": VOCABULARY})
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {**special, "tokenizer_class": "PreTrainedTokenizerFast"})
    _write_json(folder / "added_tokens.json", {token: VOCABULARY + k for k, token in enumerate(NEW_TOKENS)})
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106  (a token of text, not of access)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.add_special_tokens(list(NEW_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text(README)


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
