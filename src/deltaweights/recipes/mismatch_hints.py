"""What a pair that does not fit, or should not, most likely is.

Enters: the names and shapes of both checkpoints. Leaves: a sentence for people. Never: a decision.

The sizes are those of the published models: LLaMA-1 has 32000 rows at 7B to 65B; Vicuna v0 and Alpaca added one row, LLaVA v0
three, LLaVA-Med four.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from deltaweights.checkpoint.tensors import TensorSpec

EMBEDDING = "model.embed_tokens.weight"

HIDDEN_SIZES = {4096: "7B", 5120: "13B", 6656: "30B", 8192: "65B"}

FINE_TUNED_ROWS = {
    32001: "Vicuna v0 or Alpaca",
    32003: "LLaVA",
    32004: "LLaVA-Med",
    128256: "LLaMA-3",
}
"""Rows of the embedding by which a checkpoint shows that it is not the original LLaMA, whose number is 32000."""

INTEGERS = frozenset({"U8", "I8", "I16", "I32", "I64"})
"""Dtypes that GPTQ, AWQ, bitsandbytes and the like store weights in."""

REMEDY = "use the original LLaMA-1 of the delta's size as the base"
REMEDY_TO_MAKE = "use the base that the target was fine-tuned from"

Specs = Mapping[str, TensorSpec]


def likely_reason(base: Specs, primary: Specs, role: str) -> str:
    """Return the likely reason why ``base`` and the ``role`` ("delta" or "target") do not fit, and the way out."""
    # How the tensors are named comes first: under other names there are no layers to count.
    if any(".attention.wq." in name for name in base):
        return "the base has Meta's tensor names: give the folder with all its consolidated.*.pth files and params.json"
    for of, specs in (("base", base), (role, primary)):
        if any(name.startswith("language_model.model.") for name in specs):
            return f"the {of} is in the layout of current transformers: use that model in the original layout"
    if EMBEDDING not in base and "embed_tokens.weight" in base:
        return "the base was saved without its head (LlamaModel, not LlamaForCausalLM): use the full checkpoint"
    making = role == "target"
    remedy = REMEDY_TO_MAKE if making else REMEDY
    if any("lora_" in name for name in primary):
        instead = "" if making else ", not delta weights"
        return f"the {role} holds LoRA adapters{instead}: merge it with peft"
    if any(spec.dtype in INTEGERS for spec in primary.values()):
        instead = "" if making else ", and no delta"
        return f"the {role} holds whole numbers: it is likely a quantized model{instead}"
    if any(spec.dtype in INTEGERS for spec in base.values()):
        return f"the base holds whole numbers: it is likely quantized; {remedy}, in float16"
    hidden_base, hidden_primary = hidden_size(base), hidden_size(primary)
    if hidden_base != hidden_primary and hidden_base and hidden_primary:
        return f"likely models of two sizes: base {_size(hidden_base)}, {role} {_size(hidden_primary)}; {remedy}"
    layers_base, layers_primary = layers(base), layers(primary)
    if layers_base != layers_primary:
        return f"base has {layers_base} layers, the {role} {layers_primary}: two models, or an incomplete one; {remedy}"
    base_rows = rows(base)
    if base_rows in FINE_TUNED_ROWS and not making:
        return (
            f"{base_rows} rows: the base is likely {FINE_TUNED_ROWS[base_rows]}, which is already fine-tuned; {remedy}"
        )
    if any("mm_projector" in name or "vision_tower" in name for name in base) and not making:
        return f"the base is likely already a LLaVA model; {remedy}"
    return f"base and {role} are likely not a pair; {remedy}"


def pair_warnings(base: Specs, delta: Specs) -> tuple[str, ...]:
    """Return warnings about a pair that fits by its shapes, though a published delta would not belong on such a base."""
    warnings = []
    base_rows = rows(base)
    if base_rows in FINE_TUNED_ROWS and base_rows != rows(delta):
        warnings.append(
            f"base has {base_rows} rows: it is likely {FINE_TUNED_ROWS[base_rows]}, not the original LLaMA (32000 rows); {REMEDY}"
        )
    if any("mm_projector" in name for name in base):
        warnings.append(f"base has a multimodal projector: it is likely already a LLaVA model; {REMEDY}")
    return tuple(warnings)


def rows(specs: Specs) -> int:
    """Return the rows of the embedding, 0 when there is none."""
    return specs[EMBEDDING].shape[0] if EMBEDDING in specs and specs[EMBEDDING].shape else 0


def hidden_size(specs: Specs) -> int:
    """Return the columns of the embedding, 0 when there is none."""
    return specs[EMBEDDING].shape[-1] if EMBEDDING in specs and specs[EMBEDDING].shape else 0


def _size(hidden: int) -> str:
    return f"{HIDDEN_SIZES[hidden]} (hidden size {hidden})" if hidden in HIDDEN_SIZES else f"hidden size {hidden}"


def layers(specs: Specs) -> int:
    """Return how many layers there are."""
    found = (re.match(r"model\.layers\.([0-9]{1,6})\.", name) for name in specs)
    return max((int(layer.group(1)) + 1 for layer in found if layer), default=0)
