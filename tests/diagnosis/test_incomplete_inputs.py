"""Inputs that lack something, and configurations of other weights: what is lacking is said, and nobody else is blamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, Mismatch
from deltaweights.inference.structure import check_structure
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint, export_checkpoint
from deltaweights.jobs.make import make_delta
from tests.support.errors import refused
from tests.support.merging import recipe_file
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, save
from tests.support.reports import RecordingReport
from tests.support.tiny_llava import tokenizer

pytestmark = pytest.mark.diagnosis

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def model(layers: int = 3, seed: int = 0) -> Tensors:
    """Return a tiny LLaMA without buffers."""
    tensors = base_tensors(layers=layers, seed=seed)
    return {name: each for name, each in tensors.items() if not name.endswith("inv_freq")}


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """Return what takes away the tensors whose names contain one of ``parts``."""
    return lambda tensors: {name: each for name, each in tensors.items() if not any(part in name for part in parts)}


LACKING = {
    "a-layer-between": (without("layers.1."), "model.layers.1.input_layernorm.weight and 8 more tensors"),
    "the-first-layer": (without("layers.0."), "model.layers.0.input_layernorm.weight and 8 more tensors"),
    "one-matrix": (without(UP), UP),
    "one-norm-of-a-layer": (
        without("layers.2.input_layernorm"),
        "model.layers.2.input_layernorm.weight",
    ),
    "a-kind-in-all-layers": (without("o_proj"), "model.layers.0.self_attn.o_proj.weight and 2 more tensors"),
    "the-last-norm": (without(NORM), NORM),
    "norm-and-head": (without(NORM, HEAD), f"{HEAD} and 1 more tensor"),
    "the-last-shard": (
        without("layers.2.", NORM, HEAD),
        f"{HEAD} and 10 more tensors",
    ),
    "the-first-shard": (without(EMBEDDING, "layers.0."), f"{EMBEDDING} and 9 more tensors"),
}


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("command", ["apply", "apply-with-a-recipe", "check-base", "make"])
def test_what_a_base_lacks_is_said(tmp_path: Path, name: str, command: str) -> None:
    """A base that lacks what the other input has, and what belongs to it, is incomplete; no recipe's key helps."""
    change, lacking = LACKING[name]
    whole = model()
    base = save(change(whole), tmp_path / "base", "safetensors", 1, config=False)
    delta = save(delta_tensors(whole, 0, projector=False), tmp_path / "delta", "safetensors", 1)
    tuned = save(model(seed=0), tmp_path / "tuned", "safetensors", 1)
    own = recipe_file(tmp_path, more="[shapes]\nlayers = 3\n", stated=False)
    actions: dict[str, Callable[[], object]] = {
        "apply": lambda: apply_delta(base, delta, tmp_path / "out"),
        "apply-with-a-recipe": lambda: apply_delta(base, delta, tmp_path / "out", recipe_file=own),
        "check-base": lambda: check_base(base, delta),
        "make": lambda: make_delta(base, tuned, tmp_path / "out"),
    }
    with refused(Mismatch) as caught:
        actions[command]()
    other = "target" if command == "make" else "delta"
    said = f"the base is incomplete: it lacks {lacking}, which the {other} has; fetch or save it again, all of it"
    assert caught.value.remedy == said, str(caught.value)


@pytest.mark.parametrize("name", LACKING)
def test_what_a_delta_lacks_is_said(tmp_path: Path, name: str) -> None:
    """A delta may have been saved of the trained tensors alone: that is not known, and is said."""
    change, lacking = LACKING[name]
    whole = model()
    base = save(whole, tmp_path / "base", "safetensors", 1, config=False)
    delta = save(change(delta_tensors(whole, 0, projector=False)), tmp_path / "delta", "safetensors", 1)
    with refused(Mismatch) as caught:
        apply_delta(base, delta, tmp_path / "out")
    said = f"the delta is incomplete, or holds only what was trained: it lacks {lacking}, which the base has; "
    assert str(caught.value.remedy).startswith(said), str(caught.value)


def test_a_larger_model_is_not_called_incomplete(tmp_path: Path) -> None:
    """Where only the last layers are missing, it may be a smaller model; a head alone may be tied."""
    whole = model()
    delta = save(delta_tensors(whole, 0, projector=False), tmp_path / "delta", "safetensors", 1)
    for change, says in (
        (without("layers.2."), "base has 2 layers, the delta 3"),
        (without(HEAD), f"the base has no {HEAD}, and no config.json that says tie_word_embeddings"),
    ):
        base = save(change(whole), tmp_path / says[:8], "safetensors", 1, config=False)
        with refused(Mismatch) as caught:
            apply_delta(base, delta, tmp_path / "out")
        assert says in str(caught.value)


# One shard of several.

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("shard", [ONE, TWO])
@pytest.mark.parametrize("role", ["base", "delta", "target", "merged", "source"])
def test_one_shard_is_not_taken_for_the_checkpoint(tmp_path: Path, role: str, shard: str) -> None:
    """It is named as what it is, and the folder that is meant; given as told, the command succeeds."""
    whole = model()
    folder = save(whole, tmp_path / "sharded", "safetensors", 2, config=False)
    delta = delta_tensors(whole, 0, projector=False)
    if role == "delta":
        folder = save(delta, tmp_path / "parts", "safetensors", 2, config=False)
    base = save(whole, tmp_path / "base", "safetensors", 1, config=False)
    small = save(delta, tmp_path / "delta", "safetensors", 1, config=False)
    actions: dict[str, Callable[[str], object]] = {
        "base": lambda at: apply_delta(at, small, tmp_path / "out"),
        "delta": lambda at: apply_delta(base, at, tmp_path / "out"),
        "target": lambda at: make_delta(base, at, tmp_path / "out"),
        "merged": lambda at: export_checkpoint(at, tmp_path / "out"),
        "source": lambda at: convert_checkpoint(at, tmp_path / "out"),
    }
    with refused(
        MalformedInput, where=folder / shard, found=f"shard {int(shard[10])} of 2", code="E-INCOMPLETE"
    ) as caught:
        actions[role](str(folder / shard))
    assert caught.value.problem == "is one shard, not a whole checkpoint"
    assert caught.value.remedy == f"give {folder}"
    if role != "merged":  # of which there is no configuration
        actions[role](str(caught.value.remedy).removeprefix("give "))


def test_a_shard_beside_two_sets_names_its_index(tmp_path: Path) -> None:
    """A folder with another set is not what is meant; without an index, it must be fetched; one of one is whole."""
    whole = model()
    folder = save(whole, tmp_path / "both", "safetensors", 2, config=False)
    save(whole, folder, "safetensors", 1, config=False)
    with refused(MalformedInput, remedy=f"give {folder}/model.safetensors.index.json"):
        convert_checkpoint(folder / ONE, tmp_path / "out")
    (folder / "model.safetensors.index.json").unlink()
    fetch = "fetch model.safetensors.index.json and the other shards from where it is from, and give their folder"
    with refused(MalformedInput, remedy=fetch):
        convert_checkpoint(folder / ONE, tmp_path / "out")
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    convert_checkpoint(folder / "model-00001-of-00001.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        (
            "https://huggingface.co/acme/model/resolve/main/model.safetensors",
            "an address is not read: fetch it with deltaweights download acme/model, and give the folder",
        ),
        ("https://example.org/model.zip", "an address is not read: fetch it, and give the folder"),
    ],
)
def test_an_address_is_not_a_path(tmp_path: Path, address: str, remedy: str) -> None:
    """Who gives one is told what to run."""
    with refused(InputOutputError, problem="no base here", remedy=remedy):
        convert_checkpoint(address, tmp_path / "out")


# Configurations of other weights.


@dataclass(frozen=True)
class Row:
    """What config.json states beside the right values, and what is said of it."""

    config: dict[str, Any]
    found: str
    expected: str
    check: bool = True  # whether transformers cannot load it


SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CONFIGS = {
    "tokens-added": Row({"vocab_size": 49}, "vocab_size 49", "vocab_size 48"),
    "another-width": Row({"hidden_size": 64}, "hidden_size 64", "hidden_size 32"),
    "fewer-layers": Row({"num_hidden_layers": 2}, "num_hidden_layers 2", "num_hidden_layers 3", check=False),
    "another-mlp": Row({"intermediate_size": 96}, "intermediate_size 96", "intermediate_size 92"),
    "grouped-heads": Row({"num_key_value_heads": 2}, "num_key_value_heads 2", "num_key_value_heads 4"),
    "wider-heads": Row({"head_dim": 16}, "num_key_value_heads 4", "num_key_value_heads 2"),
    "of-another-model": Row(
        {"vocab_size": 32000, "num_hidden_layers": 32},
        "vocab_size 32000, num_hidden_layers 32",
        "vocab_size 48, num_hidden_layers 3",
    ),
    "in-the-text-s": Row({"model_type": "llava", "text_config": {"vocab_size": 50}}, "vocab_size 50", "vocab_size 48", check=False),
}  # fmt: skip


def configured(folder: Path, tensors: Tensors, more: dict[str, Any]) -> Path:
    save(tensors, folder, "safetensors", 1, config=False)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"} | SIZES | more
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", ["convert", "make", "apply", "check"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_other_weights_is_named(tmp_path: Path, name: str, command: str) -> None:
    """The weights may be right, so it is a warning; ``check``, which asks whether a library loads them, fails."""
    row, report, out = CONFIGS[name], RecordingReport(), tmp_path / "out"
    whole = model()
    delta = delta_tensors(whole, 0, projector=False)
    base = configured(tmp_path / "base", whole, {})
    if command == "check":
        findings = check_structure(configured(tmp_path / "given", whole, row.config))
        assert not (row.check and findings.ok)
        return
    if command == "convert":
        convert_checkpoint(configured(tmp_path / "given", whole, row.config), out, report=report)
    elif command == "make":
        make_delta(base, configured(tmp_path / "given", reference(whole, delta), row.config), out, report=report)
    else:
        apply_delta(base, configured(tmp_path / "given", delta, row.config), out, report=report)
    (said,) = (text for text in report.warnings if "config.json is not that of these weights" in text)
    assert said.endswith(f"found {row.found}, expected {row.expected}")
    assert str(tmp_path / "given") in said
    assert out.exists()


@pytest.mark.parametrize("command", ["convert", "make"])
def test_a_configuration_that_ties_what_differs_is_named(tmp_path: Path, command: str) -> None:
    """A loader would use one of the two in both places."""
    report = RecordingReport()
    given = configured(tmp_path / "given", model(), {"tie_word_embeddings": True})
    if command == "convert":
        convert_checkpoint(given, tmp_path / "out", report=report)
    else:
        make_delta(configured(tmp_path / "base", model(), {}), given, tmp_path / "out", report=report)
    assert [text for text in report.warnings if "tie_word_embeddings: true, but" in text and str(given) in text]


def test_a_right_configuration_gets_no_word(tmp_path: Path) -> None:
    """Also one of grouped heads, of wider heads, and one that states nothing."""
    for number, more in enumerate(({}, {"num_key_value_heads": 2}, {"head_dim": 16}, {"num_key_value_heads": 1})):
        config: Any = LlamaConfig.from_dict(SIZES | more)
        state = {name: each.detach().half() for name, each in LlamaForCausalLM(config).state_dict().items()}
        report = RecordingReport()
        convert_checkpoint(configured(tmp_path / f"{number}", state, more), tmp_path / f"out{number}", report=report)
        assert report.warnings == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "config.json is of another architecture than the weights: found gpt2, expected one whose layers",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "config.json says that the weights are quantized, and they are not: leave quantization_config out of it: found gptq",
        ),
    ],
)
def test_a_configuration_of_another_model_is_named(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    """It belongs to another model, or another form of this one: a library would load neither."""
    report = RecordingReport()
    convert_checkpoint(configured(tmp_path / "given", model(), more), tmp_path / "out", report=report)
    (said,) = report.warnings
    assert says in said


def test_words_in_the_place_of_weights(tmp_path: Path) -> None:
    """What a server answered is no download that was cut short."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("Invalid username or password.\n")
    with refused(MalformedInput, found="a text document", code="E-UNSUPPORTED-FORMAT"):
        convert_checkpoint(tmp_path / "base", tmp_path / "out")


# A delta to export.


@pytest.mark.parametrize("made", [True, False], ids=["ours", "of-others"])
def test_a_delta_is_named_before_a_vision_tower_is_asked_for(tmp_path: Path, made: bool) -> None:
    """What is wrong with the input comes before what is missing besides."""
    whole = base_tensors(1, vocabulary=300)
    delta = delta_tensors(whole, 0)
    base = save(whole, tmp_path / "base")
    given = save(delta, tmp_path / "delta")
    if made:
        given = tmp_path / "made"
        make_delta(base, save(reference(whole, delta), tmp_path / "tuned"), given)
    tokenizer().save_pretrained(given)
    report = RecordingReport()
    with pytest.raises(DeltaweightsError) as caught:
        export_checkpoint(given, tmp_path / "out", report=report)
    if made:
        assert str(caught.value.code) == "E-NOT-A-MODEL"
    else:
        assert [text for text in report.warnings if "looks like a delta, not a model" in text]
