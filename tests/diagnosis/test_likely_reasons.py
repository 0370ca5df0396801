"""What headers tell of a pair that does not fit; where they tell nothing, that is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from deltaweights.errors import Mismatch
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from tests.support.errors import refused
from tests.support.merging import merge_and_load, recipe_file
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, same_bits, save

pytestmark = pytest.mark.diagnosis

FP8 = torch.float8_e4m3fn
LINEAR = ("q_proj.weight", "k_proj.weight", "up_proj.weight")


def quantized(*parts: tuple[str, torch.dtype], weight: torch.dtype | None = None) -> Callable[[Tensors], Tensors]:
    """Return what stores each linear layer as ``parts``, tensors of these names and dtypes, beside ``weight`` if given."""

    def change(tensors: Tensors) -> Tensors:
        changed: Tensors = {}
        for name, tensor in tensors.items():
            if not name.endswith(LINEAR):
                changed[name] = tensor
                continue
            if weight is not None:
                changed[name] = tensor.to(weight)
            for part, dtype in parts:
                changed[name.removesuffix("weight") + part] = torch.ones(4, 4).to(dtype)
        return changed

    return change


def renamed(of: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {of(name): tensor for name, tensor in tensors.items()}


def language_model(name: str) -> str:
    """Rename as transformers' LLaVA of version 4.52 and later does."""
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def gpt_neox(_: Tensors) -> Tensors:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=48
    )
    return {name: each.half() for name, each in GPTNeoXForCausalLM(config).state_dict().items()}


def extended(tensors: Tensors) -> Tensors:
    """Add ten tokens to embedding and head."""
    vocabulary = ("model.embed_tokens.weight", "lm_head.weight")
    return tensors | {name: torch.cat([tensors[name], tensors[name][:10]]) for name in vocabulary}


def stranger(tensors: Tensors) -> Tensors:
    return tensors | {"model.extra.weight": torch.zeros(3, 3, dtype=torch.float16)}


def without_head(prefix: str) -> Callable[[Tensors], Tensors]:
    """Return what saves the model inside the one with the head."""
    return lambda tensors: {
        prefix + name.removeprefix("model."): each for name, each in tensors.items() if name != "lm_head.weight"
    }


def also(name: str) -> Callable[[Tensors], Tensors]:
    """Return what adds a tensor of this name to each of the two layers."""
    return lambda tensors: tensors | {f"model.{name.format(layer)}": torch.ones(4).half() for layer in range(2)}


def qwen_vl(tensors: Tensors) -> Tensors:
    """Rename as transformers does for Qwen2-VL, whose language model is named as LLaVA's."""
    blocks = {f"model.visual.blocks.{block}.norm1.weight": torch.ones(4).half() for block in range(2)}
    return renamed(language_model)(tensors) | blocks


def half(tensors: Tensors) -> Tensors:
    """Give the first of two devices its rows of each matrix that is split by rows."""
    split = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
    return {name: each[: len(each) // 2].clone() if name.endswith(split) else each for name, each in tensors.items()}


def fused(tensors: Tensors) -> Tensors:
    return {name.replace("q_proj", "qkv_proj"): each for name, each in tensors.items()}


@dataclass(frozen=True)
class Row:
    """How the base is changed, and what is said of it."""

    change: Callable[[Tensors], Tensors]
    says: str
    container: str = "safetensors"


INTEGER, HALF = torch.int32, torch.float16
ROWS = {
    "gptq": Row(
        quantized(("qweight", INTEGER), ("qzeros", INTEGER), ("scales", HALF), ("g_idx", INTEGER)), "quantized by GPTQ"
    ),
    "awq": Row(quantized(("qweight", INTEGER), ("qzeros", INTEGER), ("scales", HALF)), "quantized by AWQ"),
    "bitsandbytes-4": Row(
        quantized(
            ("weight.absmax", torch.float32),
            ("weight.quant_map", torch.float32),
            ("weight.quant_state.bitsandbytes__nf4", torch.uint8),
            weight=torch.uint8,
        ),
        "quantized by bitsandbytes (4 bits)",
    ),
    "bitsandbytes-4-old": Row(
        quantized(("weight.absmax", torch.uint8), ("weight.quant_map", torch.float32), weight=torch.uint8),
        "quantized by bitsandbytes (4 bits)",
    ),
    "bitsandbytes-8": Row(quantized(("SCB", torch.float32), weight=torch.int8), "quantized by bitsandbytes (8 bits)"),
    "compressed-tensors": Row(quantized(("weight_packed", INTEGER), ("weight_scale", HALF)), "compressed-tensors"),
    "hqq": Row(quantized(("W_q", torch.uint8)), "quantized by HQQ"),
    "fp8": Row(quantized(("weight_scale", torch.float32), weight=FP8), "stored as fp8 (F8_E4M3): use the same model"),
    "fp8-without-scales": Row(quantized(weight=FP8), "stored as fp8 (F8_E4M3), without the scales that belong to it"),
    "integers-of-no-known-kind": Row(quantized(weight=torch.int8), "the base holds whole numbers"),
    "transformers-4.52-and-original": Row(
        renamed(lambda name: name if "embed" in name else language_model(name)),
        "named in two ways: by transformers' LLaVA (model.language_model.*), and otherwise (model.embed_tokens.weight)",
    ),
    "transformers-4.36-and-original": Row(
        renamed(lambda name: f"language_model.{name}" if "layers" in name else name),
        "named in two ways: by transformers' LLaVA (language_model.model.*), and otherwise (",
    ),
    "llava-without-head": Row(
        without_head("language_model."), "saved without its head (LlavaModel, not LlavaForConditionalGeneration)"
    ),
    "llama-without-head": Row(without_head(""), "saved without its head (LlamaModel, not LlamaForCausalLM)"),
    "flattened-by-fsdp": Row(
        renamed(lambda name: name.replace("q_proj.weight", "_flat_param")), "flattened by FSDP: its matrices lie"
    ),
    "optimizer": Row(renamed(lambda name: f"{name}.exp_avg"), "the state of an optimizer, not of a model"),
    "qwen2-vl": Row(qwen_vl, "by its names a Qwen-VL, not a LLaMA"),
    "qwen3": Row(also("layers.{}.self_attn.q_norm.weight"), "by its names a Qwen3, not a LLaMA"),
    "qwen2": Row(also("layers.{}.self_attn.q_proj.bias"), "by its names a Qwen2, not a LLaMA"),
    "mixtral": Row(
        renamed(lambda name: name.replace("mlp.", "block_sparse_moe.experts.0.")), "by its names a Mixtral, not a LLaMA"
    ),
    "unknown-prefix": Row(
        renamed(lambda name: f"student.llm.{name}"),
        "all names of the base begin with student.llm., which is not known as a wrapper's; save the model inside it",
    ),
    "one-of-two-devices": Row(
        half, "the base has 1/2 of the rows of each matrix: it is likely one of 2 tensor-parallel parts; join them"
    ),
    "block-fp8": Row(quantized(("weight_scale_inv", torch.float32), weight=FP8), "stored as fp8 (F8_E4M3): use"),
    "llava-as-base": Row(
        lambda tensors: tensors | {"vision_tower.vision_model.post_layernorm.weight": torch.ones(8).half()},
        "the base is already a vision-language model: it has vision_tower.vision_model.post_layernorm.weight",
    ),
    "lora-not-merged": Row(
        renamed(lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer.")), "made of adapters"
    ),
    "checkpointing": Row(
        renamed(lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp.")),
        "saved from inside a wrapper: some names hold _checkpoint_wrapped_module.",
    ),
    "gpt-neox": Row(gpt_neox, "by its names a GPT-NeoX, not a LLaMA"),
    "beside-a-head": Row(
        renamed(lambda name: name.removeprefix("model.")),
        "the base is named as LlamaModel is inside a model, beside a head (lm_head.weight): put model. before all",
    ),
    "another-prefix-beside-a-head": Row(
        renamed(lambda name: name.replace("model.", "transformer.")),
        "the base has no tensor named model.layers.*, as the other one has; its names: ",
    ),
    "transposed": Row(
        lambda tensors: {name: each.T.contiguous() if each.dim() == 2 else each for name, each in tensors.items()},
        "the matrices of base and delta are transposed to each other",
    ),
    "fused": Row(fused, "stored with fused matrices"),
    "meta-s-names": Row(
        renamed(lambda name: name.replace("self_attn.q_proj", "attention.wq")), "the base is in Meta's layout"
    ),
    "without-layers": Row(
        renamed(lambda name: name.replace("model.layers", "body")),
        "the base has no tensor named model.layers.*, as the other one has; its names: ",
    ),
    "more-tokens": Row(extended, "likely the base has 6 added rows"),
    "nothing-known": Row(stranger, "nothing more is known of why they do not fit; deltaweights inspect"),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_refusal_says_what_headers_tell(tmp_path: Path, name: str) -> None:
    """Refused (4), with what the base is; never "0 layers" or "not a pair", which nobody found."""
    row = ROWS[name]
    base = {key: each for key, each in base_tensors().items() if not key.endswith("inv_freq")}
    save(row.change(base), tmp_path / "base", "safetensors", 1, config=False)
    save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    message = str(caught.value)
    assert row.says in message, message
    assert not [guess for guess in ("0 layers", "not a pair") if guess in message]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gptq", "fp8", "bitsandbytes-4", "lora-not-merged", "gpt-neox", "qwen2-vl"])
def test_the_same_is_said_of_delta_and_target_and_by_inspect(tmp_path: Path, name: str) -> None:
    """Whatever the place, and whoever asks."""
    row = ROWS[name]
    base = {key: each for key, each in base_tensors().items() if not key.endswith("inv_freq")}
    given = save(row.change(base), tmp_path / "given", "safetensors", 1, config=False)
    save(base, tmp_path / "base", "safetensors", 1, config=False)
    words = row.says.partition(":")[0]
    for command, role in ((apply_delta, "delta"), (make_delta, "target")):
        with refused(Mismatch) as caught:
            command(tmp_path / "base", given, tmp_path / "out")
        assert f"the {role} is {words}" in str(caught.value)
    assert words in inspect_checkpoint(given).identity.text


@pytest.mark.parametrize("name", ["gptq", "fp8", "bitsandbytes-8"])
def test_a_quantized_model_is_not_converted(tmp_path: Path, name: str) -> None:
    """The refusal says by what it is quantized, and what to use."""
    given = save(ROWS[name].change(base_tensors()), tmp_path / "given", "safetensors", 1, config=False)
    with refused(Mismatch) as caught:
        convert_checkpoint(given, tmp_path / "out", dtype="float16")
    words = ROWS[name].says.partition(":")[0]
    assert words in str(caught.value)
    assert "use the same model in float16, bfloat16 or float32" in str(caught.value)


def test_a_delta_with_further_modules_names_the_key_of_the_recipe(tmp_path: Path) -> None:
    """The remedy works: with ``delta_only`` in a recipe, the tensors are copied."""
    base = base_tensors()
    further = {
        "model.vision_resampler.query": torch.ones(4, 8, dtype=torch.float16),
        "model.vision_resampler.proj.weight": torch.ones(8, 8, dtype=torch.float16),
    }
    delta = delta_tensors(base) | further
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    message = str(caught.value)
    assert f"all of the base fits, and the delta has more: {', '.join(further)}" in message
    assert "delta_only (docs/recipes.md)" in message
    names = [*further, "model.mm_projector.weight", "model.mm_projector.bias"]
    own: Any = recipe_file(tmp_path, more=f"[rules]\ndelta_only = {names}\n".replace("'", '"'))
    assert same_bits(merge_and_load(tmp_path, recipe_file=own).tensors, reference(base, delta))


def test_a_tied_base_without_a_head_says_what_is_missing(tmp_path: Path) -> None:
    """No configuration says that the embedding is the head; with one that does, the pair is merged."""
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=92, num_hidden_layers=2, num_attention_heads=4)
    )
    state = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    save(delta_tensors(state, 0), tmp_path / "delta")
    head = state.pop("lm_head.weight")
    assert head.shape == state["model.embed_tokens.weight"].shape
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert "the base has no lm_head.weight, and no config.json that says tie_word_embeddings: true" in str(caught.value)
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": true}')
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", allow_unproved_base=True)


@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("name", ["transformers-4.52-and-original", "without-layers", "gpt-neox"])
def test_a_recipe_s_check_says_the_same(tmp_path: Path, name: str, role: str) -> None:
    """With a recipe, sizes are compared first: what the input is comes before how many layers it has under a LLaMA's names."""
    base = {key: each for key, each in base_tensors().items() if not key.endswith("inv_freq")}
    delta = delta_tensors(base)
    change = ROWS[name].change
    save(change(base) if role == "base" else base, tmp_path / "base", "safetensors", 1, config=False)
    save(change(delta) if role == "delta" else delta, tmp_path / "delta", "safetensors", 1)
    own = recipe_file(tmp_path, more="[shapes]\nlayers = 2\n")
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", recipe_file=own)
    assert "0 layers" not in str(caught.value)
    assert f"not the {role} of recipe own" in str(caught.value)
