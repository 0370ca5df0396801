"""What names, dtypes and shapes tell of the form that a checkpoint is stored in: sharded, quantized, adapted, or another layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.naming import LAYOUTS
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.checkpoint.wrapper_prefix import WRAPPERS
from deltaweights.util.text import counted

Specs = Mapping[str, TensorSpec]

ZERO_3 = "a ZeRO-3 shell: DeepSpeed kept the weights in other files, and saved empty ones in their place"
RUN_ZERO_TO_FP32 = "run zero_to_fp32.py, which DeepSpeed left in the folder of the training, and give what it writes"
PLAIN = "use the same model in float16, bfloat16 or float32"
TOO_FEW = 2  # tensors of a form, of which a checkpoint with fewer is not of that form


@dataclass(frozen=True)
class StoredForm:
    """A form that can be neither added nor copied as it is: ``what`` follows "the base is", ``remedy`` says what to do."""

    what: str
    remedy: str


def empty_weight(specs: Specs) -> TensorSpec | None:
    """Return the first tensor that ZeRO-3 left empty, if one is: its shape is [0], whatever the weight's was."""
    empty = [(name, spec) for name, spec in specs.items() if spec.shape == (0,)]
    whole = len(empty) == len(specs) >= TOO_FEW
    return next((spec for name, spec in empty if whole or name.endswith(".weight")), None)


QUANTIZED = (
    ("GPTQ", (".qweight", ".qzeros", ".g_idx")),
    ("AWQ", (".qweight", ".qzeros")),
    ("bitsandbytes (4 bits)", (".absmax", ".quant_map")),
    ("bitsandbytes (8 bits)", (".SCB",)),
    ("compressed-tensors", (".weight_packed",)),
    ("HQQ", (".W_q",)),
    ("EXL2", (".q_weight",)),
)
"""Methods of quantization, and the ends of the names of tensors that all of them store; the first that fits is it."""

ADAPTERS = re.compile(r"(\.lora_|\.base_layer\.|\.ia3_|modules_to_save\.)")
INSIDE = "|".join(re.escape(prefix) for prefix in (*WRAPPERS, "_checkpoint_wrapped_module."))
PLACED_INSIDE = re.compile(rf"(?:^|\.)({INSIDE})")

ARCHITECTURES = (
    ("GPT-NeoX", re.compile(r"gpt_neox\.")),
    ("OPT", re.compile(r"model\.decoder\.layers\.")),
    ("GPT-2, GPT-J, BLOOM or Falcon", re.compile(r"transformer\.(h|word_embeddings|wte)\.")),
    ("MPT", re.compile(r"transformer\.blocks\.")),
    ("ChatGLM", re.compile(r"transformer\.encoder\.layers\.")),
    ("Megatron-LM", re.compile(r"(language_model\.encoder|decoder)\.layers\..*(linear_qkv|query_key_value)")),
    ("T5 or BART", re.compile(r"(model\.)?(encoder|decoder)\.(block|layers)\.")),
    ("Qwen-VL", re.compile(r"(model\.)?visual\.")),
    ("Mixtral", re.compile(r"model\.layers\.[0-9]+\.block_sparse_moe\.")),
    ("Qwen3", re.compile(r"model\.layers\.[0-9]+\.self_attn\.q_norm\.")),
    ("Gemma 2 or 3", re.compile(r"model\.layers\.[0-9]+\.pre_feedforward_layernorm\.")),
    ("DeepSeek-V2 or V3", re.compile(r"model\.layers\.[0-9]+\.self_attn\.kv_a_proj_with_mqa\.")),
    ("Qwen2", re.compile(r"model\.layers\.[0-9]+\.self_attn\.q_proj\.bias$")),
)
ANY_ARCHITECTURE = re.compile("|".join(pattern.pattern for _, pattern in ARCHITECTURES))
"""By the names of tensors that no LLaMA has, of which there must be several; the first that fits is it."""

TRAINED = (
    (".exp_avg", "the state of an optimizer, not of a model", "give the weights that were saved beside it"),
    (
        "flat_param",
        "flattened by FSDP: its matrices lie end to end in tensors named *flat_param",
        "save it again with FSDP's StateDictType.FULL_STATE_DICT",
    ),
)
"""How names of what training saves end, what it is, and what to do."""


def quantized_form(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint whose weights are quantized."""
    ends = {name[name.rfind(".") :] for name in specs}
    if any(".quant_state.bitsandbytes__" in name for name in specs):
        return StoredForm("quantized by bitsandbytes (4 bits)", PLAIN)
    for method, needed in QUANTIZED:
        if ends.issuperset(needed):
            return StoredForm(f"quantized by {method}: it has tensors named *{needed[0]}", PLAIN)
    eight = next((spec.dtype for spec in specs.values() if spec.dtype.startswith("F8_")), None)
    if eight is not None:
        scales = "" if any("_scale" in end for end in ends) else ", without the scales that belong to it"
        return StoredForm(f"stored as fp8 ({eight}){scales}", PLAIN)
    return None


def other_names(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint whose tensors have names that no LLaMA has, though it may be one.

    Meta's names, and those that a wrapper put a prefix before, are of this kind where not all of them have it.
    """
    if any(".attention.wq." in name for name in specs):
        return StoredForm("in Meta's layout", "give the folder with all its consolidated.*.pth files and params.json")
    inside = next((found[1] for name in specs if (found := PLACED_INSIDE.search(name))), None)
    if inside is not None:
        what = f"saved from inside a wrapper: some names hold {inside}"
        return StoredForm(what, "save the state of the model itself, with the wrappers removed")
    for end, what, remedy in TRAINED:
        if any(name.endswith(end) for name in specs):
            return StoredForm(what, remedy)
    if any(".self_attn.qkv_proj." in name or ".mlp.gate_up_proj." in name for name in specs):
        return StoredForm("stored with fused matrices (qkv_proj, gate_up_proj)", "use it as transformers saves a LLaMA")
    of_others = [name for name in specs if ANY_ARCHITECTURE.match(name)]  # mostly none of 100,000
    for architecture, pattern in ARCHITECTURES:
        if sum(pattern.match(name) is not None for name in of_others) >= TOO_FEW:
            return StoredForm(
                f"by its names a {architecture}, not a LLaMA", "use the model that the delta was made for"
            )
    return _mixed_layout(specs) or _headless(specs)


def _mixed_layout(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint only some of whose names are those of transformers' LLaVA."""
    for language_model, known in LAYOUTS.values():
        if any(name.startswith(language_model) for name in specs):
            found = (name for name in specs if not name.startswith(known) and name not in PROJECTOR)
            other = next(found, PROJECTOR[0])
            what = f"named in two ways: by transformers' LLaVA ({language_model}*), and otherwise ({other})"
            return StoredForm(what, "save it again in one of them, with transformers' save_pretrained")
    return None


def _headless(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint that was saved without its head."""
    for embedding, saved, whole in (
        ("embed_tokens.weight", "LlamaModel", "LlamaForCausalLM"),
        ("language_model.embed_tokens.weight", "LlavaModel", "LlavaForConditionalGeneration"),
    ):
        head = next((name for name in ("lm_head.weight", "language_model.lm_head.weight") if name in specs), None)
        if embedding in specs and head is not None:
            what = f"named as {saved} is inside a model, beside a head ({head})"
            return StoredForm(what, f"put model. before all of its names but {head}")
        if embedding in specs:
            return StoredForm(f"saved without its head ({saved}, not {whole})", "use the full checkpoint")
    return None


def adapter_form(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint that holds adapters."""
    if any("lora_" in name or ADAPTERS.search(name) for name in specs):
        return StoredForm("made of adapters, such as LoRA's", "merge it with peft (merge_and_unload)")
    return None


def stored_form(specs: Specs) -> StoredForm | None:
    """Return the form of a checkpoint, None where it is a plain one."""
    return quantized_form(specs) or adapter_form(specs) or other_names(specs)


def listed_names(names: Iterable[str], most: int = 2) -> str:
    """Return the first of ``names``, and how many more there are."""
    listed = list(names)
    more = f" and {counted(len(listed) - most, 'more tensor')}" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"
