"""Make a tiny base and a tiny delta with the structure of LLaVA-Med's."""

from __future__ import annotations

import hashlib
import json
import zlib
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import CheckFailed
from deltaweights.merge.torch_frame import TorchFrame
from deltaweights.util.text import Json

Tensor: TypeAlias = NDArray[np.float16] | NDArray[np.float32]

LAYERS, HIDDEN, INTERMEDIATE, HEADS, VISION = 4, 128, 344, 4, 1024
VOCABULARY = 320
NEW_TOKENS = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
"""LLaVA-Med appends these to the vocabulary, in this order (added_tokens.json of microsoft/llava-med-7b-delta)."""

FINE_TUNING_STEP = 4e-4
"""Standard deviation of the tuned weights' distance from the base: 2 % of the base's own, 0.02."""

TOKENIZER = "demo_tokenizer.json"
"""A byte-level BPE of ``VOCABULARY`` pieces and the new tokens; tests/unit/jobs/test_demo.py trains it."""

DTYPES = {"float16": "F16", "float32": "F32"}
"""Of numpy, and of safetensors."""

README = """\
# A tiny stand-in for a published delta

Random weights with the structure of microsoft/llava-med-7b-delta.
Research use only; not for clinical care or any clinical decision.
"""


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Write ``base`` and ``delta`` under ``folder``, and return their paths. The bytes are the same everywhere."""
    base = _base()
    paths = folder / "base", folder / "delta"
    for path, tensors in zip(paths, (base, _delta(base)), strict=True):
        path.mkdir(parents=True, exist_ok=True)
        _save(tensors, path)
    _write_json(paths[0] / "config.json", _config("LlamaForCausalLM", "llama", VOCABULARY))
    _write_delta_files(paths[1])
    return paths


def check_by_libraries(merged: Path) -> int:
    """Compare ``merged``, as the safetensors library reads it, with sums of numpy's; return how many tensors are the same.

    Raises ``CheckFailed`` for a tensor that differs: neither the reader nor the sums are this package's.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415  (the demo alone needs it)

    base = _base()
    expected = {name: each for name, each in _delta(base).items() if not name.endswith("inv_freq")}
    for name in expected.keys() & base.keys():
        expected[name][: len(base[name])] += base[name]
    found = {name: each for file in merged.glob("*.safetensors") for name, each in load_file(file).items()}
    for name, tensor in expected.items():
        if name not in found or found[name].tobytes() != tensor.tobytes():
            raise CheckFailed("numpy's sum differs from the merged tensor", where=merged, tensor=name)
    return len(expected)


def _random(label: str, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
    """Return nearly normal numbers that depend on ``label`` alone, not on numpy's version or the machine.

    Each is the sum of four uniform 16-bit numbers, taken from SHAKE-128: an Irwin-Hall distribution, scaled.
    """
    count = int(np.prod(shape))
    uniform = np.frombuffer(hashlib.shake_128(label.encode()).digest(8 * count), "<u2").reshape(4, count)
    sums = uniform.sum(axis=0, dtype=np.int64)
    scale = deviation / (65536 * (4 / 12) ** 0.5)
    return np.asarray((sums - 2 * 65535) * scale, np.float32).reshape(shape)


def _base() -> dict[str, Tensor]:
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    tensors: dict[str, Tensor] = {
        name: _random(f"base {name}", shape, 0.02).astype(np.float16) for name, shape in shapes.items()
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(HIDDEN, np.float16)
        tensors[f"{prefix}self_attn.rotary_emb.inv_freq"] = _frequencies()
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float16)
    return tensors


def _frequencies() -> NDArray[np.float32]:
    """Return LLaMA's rotary frequencies, of shape [width of a head / 2]."""
    width = HIDDEN // HEADS
    return np.array([10000 ** (-dim / width) for dim in range(0, width, 2)], np.float32)


def _delta(base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tuned weights minus ``base``, in float16, as the original make_delta scripts computed it."""
    delta: dict[str, Tensor] = {}
    for name, tensor in base.items():
        if name.endswith("inv_freq"):
            delta[name] = np.zeros_like(tensor)
            continue
        step = _random(f"step {name}", tensor.shape, FINE_TUNING_STEP)
        delta[name] = (tensor.astype(np.float32) + step).astype(np.float16) - tensor.astype(np.float16)
        if name in {"model.embed_tokens.weight", "lm_head.weight"}:
            rows = _random(f"rows {name}", (len(NEW_TOKENS), HIDDEN), 0.02).astype(np.float16)
            delta[name] = np.concatenate([delta[name], rows])
    projector = _random("projector", (HIDDEN, VISION), 0.02)
    delta["model.mm_projector.weight"] = projector.astype(np.float16)
    delta["model.mm_projector.bias"] = np.zeros(HIDDEN, np.float16)
    return delta


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Save two shards and their index, as transformers did in 2023."""
    names = list(tensors)
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        (folder / file).write_bytes(_torch_file({name: tensors[name] for name in part}, Path(file).stem))
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _torch_file(tensors: dict[str, Tensor], stem: str) -> bytes:
    """Return the bytes of a file that ``torch.load`` reads as ``tensors``."""
    frame = TorchFrame([TensorSpec(name, DTYPES[each.dtype.name], each.shape) for name, each in tensors.items()], stem)
    written, crcs = bytearray(), list[int]()
    for index, tensor in enumerate(tensors.values()):
        data = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        written += frame.bytes_before(index, crcs) + data
        crcs.append(zlib.crc32(data))
    return bytes(written + frame.bytes_before(len(tensors), crcs))


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
    (folder / "tokenizer.json").write_bytes(files(__package__).joinpath(TOKENIZER).read_bytes())
    (folder / "README.md").write_text(README)


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
