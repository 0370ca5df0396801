"""Whether a checkpoint can be a model at all, judging by names, shapes and configuration.

Names are those of the model, in the original layout. A model of an architecture that is not known here is taken as it is, but for
what contradicts itself in any.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.export.sizes import TextSizes
from deltaweights.recipes.incomplete import EMBEDDING, HEAD, LAYER
from deltaweights.util.text import Json, counted

LLAMAS = frozenset({"llama", "llava", "llava_llama"})
"""Model types whose language model is a LLaMA."""

NAMED_OTHERWISE = frozenset(
    {"gpt2", "gptj", "gpt_neox", "gpt_neo", "opt", "bloom", "falcon", "mpt", "t5", "bart", "chatglm", "bert"}
)
"""Model types whose layers have no names that begin with ``model.layers.``."""

Specs = Mapping[str, TensorSpec]
Config = Mapping[str, Json]


@dataclass(frozen=True)
class Oddity:
    """What is wrong with a model; ``impossible``: no model can be so, else it only looks wrong."""

    problem: str
    impossible: bool
    tensor: str | None = None
    found: str | None = None
    expected: str | None = None


def oddities(specs: Specs, config: Config) -> list[Oddity]:
    """Return what is wrong with a model of these tensors and this config.json, which is empty where there is none."""
    llama = _is_llama(config)
    sizes = TextSizes.from_shapes({name: spec.shape for name, spec in specs.items()})
    attends = any(LAYER.match(name) and name.endswith(".self_attn.k_proj.weight") for name in specs)
    has_layers = llama is True or (llama is None and attends)
    found = [
        *_other_model(specs, config),
        *_empty(specs),
        *_rows(specs, config, llama=llama is not False),
        *_holes(specs, sure=has_layers),
    ]
    if sizes is not None and llama is not False:
        found += _table(specs, config, sizes, llama=llama is True)
    return sorted(found, key=lambda oddity: not oddity.impossible)


def _is_llama(config: Config) -> bool | None:
    """Return whether the configuration is that of a LLaMA, or of a LLaVA on one; None where it does not say."""
    text = config.get("text_config")
    named = config.get("architectures")
    if isinstance(text, dict):
        config = text
    kind = config.get("model_type")
    if isinstance(named, list) and any("LlamaFor" in str(name) for name in named):
        return True
    return kind in LLAMAS if isinstance(kind, str) else None


def _other_model(specs: Specs, config: Config) -> Iterator[Oddity]:
    """Compare what config.json says that the model is with what names and dtypes tell."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in NAMED_OTHERWISE and any(LAYER.match(name) for name in specs):
        expected = "one whose layers are named model.layers.*"
        yield Oddity("config.json is of another architecture than the weights", False, None, str(kind), expected)
    quantized = config.get("quantization_config")
    floats = all(spec.dtype in {"F16", "BF16", "F32", "F64"} for spec in specs.values())
    if isinstance(quantized, dict) and specs and floats:
        method = str(quantized.get("quant_method", "quantization_config"))[:80]
        problem = (
            "config.json says that the weights are quantized, and they are not: leave quantization_config out of it"
        )
        yield Oddity(problem, False, None, method)


def _has_head(config: Config) -> bool:
    named = config.get("architectures")
    return not isinstance(named, list) or any("ForCausalLM" in str(name) for name in named)


def _empty(specs: Specs) -> Iterator[Oddity]:
    empty = [name for name, spec in specs.items() if not spec.count]
    if empty:
        known = next(
            (name for name in empty if LAYER.match(name) or name in {EMBEDDING, HEAD, "model.norm.weight"}), None
        )
        shown = specs[known or empty[0]]
        problem = f"holds no weights{_and_more(len(empty))}"
        yield Oddity(
            problem, known is not None, shown.name, str(list(shown.shape)), "a size of at least 1 in each axis"
        )


def _rows(specs: Specs, config: Config, *, llama: bool) -> Iterator[Oddity]:
    """Compare embedding and head: a loader gives both as many rows as the vocabulary has."""
    if EMBEDDING not in specs or HEAD not in specs:
        return
    one, other = specs[EMBEDDING], specs[HEAD]
    if len(one.shape) != 2 or len(other.shape) != 2 or one.shape[0] == other.shape[0]:
        return
    tied = config.get("tie_word_embeddings") is True
    stated = {value for key, value in config.items() if re.search("vocab|output", key) and isinstance(value, int)}
    if {one.shape[0], other.shape[0]} <= stated:
        return
    problem = f"embedding and head have different numbers of rows{', though config.json ties them' if tied else ''}"
    yield Oddity(
        problem, llama and not tied, other.name, counted(other.shape[0], "row"), f"{one.shape[0]:,}, as in {one.name}"
    )


def _holes(specs: Specs, *, sure: bool) -> Iterator[Oddity]:
    """Look for layers that are not there, though later ones are."""
    numbers = {int(found[1]) for name in specs if (found := LAYER.match(name))}
    missing = next((number for number in range(max(numbers, default=0)) if number not in numbers), None)
    if missing is not None:
        problem = "is a layer that is missing, though later ones are there"
        yield Oddity(problem, sure, f"model.layers.{missing}", "no tensor of it", f"layers 0 to {max(numbers)}")


def _table(specs: Specs, config: Config, sizes: TextSizes, *, llama: bool) -> Iterator[Oddity]:
    """Compare the tensors with those of a LLaMA of these sizes.

    Where the configuration does not say that it is one, what no layer has may not belong to the model.
    """
    expected = dict(sizes.tensors())
    missing = [name for name in expected if name not in specs and name != HEAD]
    if missing:
        kinds = {LAYER.sub("", name) for name in specs if LAYER.match(name)}
        torn = [name for name in missing if LAYER.match(name) and LAYER.sub("", name) in kinds]
        first = (torn or missing)[0]
        problem = f"is missing{_and_more(len(missing))}: {'other layers have' if torn else 'a LLaMA has'} it"
        yield Oddity(problem, llama or bool(torn), first, "no such tensor", str(list(expected[first])))
    if HEAD not in specs and _has_head(config) and config.get("tie_word_embeddings") is not True:
        yield Oddity("is missing, and no config.json says tie_word_embeddings: true", False, HEAD, "no such tensor")
    yield from _stated(config, sizes)
    yield from _unlike_others(specs)


def _stated(config: Config, sizes: TextSizes) -> Iterator[Oddity]:
    """Compare what config.json states with the weights: a loader makes a model of those sizes, and then they do not fit."""
    text = config.get("text_config")
    stated = {**config, **text} if isinstance(text, dict) else config
    numbers = {key: value for key, value in stated.items() if type(value) is int and value > 0}
    found = {
        "vocab_size": sizes.rows,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
    }
    heads = numbers.get("num_attention_heads")
    fits = numbers.get("hidden_size", sizes.hidden) == sizes.hidden and heads is not None and not sizes.hidden % heads
    width = numbers.get("head_dim") or (sizes.hidden // heads if heads and fits else 0)
    if heads and width:
        numbers.setdefault("num_key_value_heads", heads)
        found["num_key_value_heads"] = sizes.key_value_rows // width
    wrong = [key for key, value in found.items() if numbers.get(key, value) != value]
    if wrong:
        yield Oddity(
            "config.json is not that of these weights",
            False,
            None,
            ", ".join(f"{key} {numbers[key]}" for key in wrong),
            ", ".join(f"{key} {found[key]}" for key in wrong),
        )


def _unlike_others(specs: Specs) -> Iterator[Oddity]:
    """Look for tensors that have another shape than those of the same name in most other layers."""
    shapes: defaultdict[str, defaultdict[tuple[int, ...], list[TensorSpec]]] = defaultdict(lambda: defaultdict(list))
    for name, spec in specs.items():
        if LAYER.match(name):
            shapes[LAYER.sub("", name)][spec.shape].append(spec)
    for by_shape in shapes.values():
        if len(by_shape) > 1:
            usual, *_ = sorted(by_shape, key=lambda shape: -len(by_shape[shape]))
            odd = next(of[0] for shape, of in by_shape.items() if shape != usual)
            yield Oddity(
                "has another shape than in other layers", False, odd.name, str(list(odd.shape)), str(list(usual))
            )
            return


def _and_more(count: int) -> str:
    return f" (and {counted(count - 1, 'more tensor')} like it)" if count > 1 else ""
