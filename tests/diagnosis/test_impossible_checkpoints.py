"""Checkpoints that cannot be a model, or only look wrong: whatever the command, without ``--check``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import DeltaweightsError, MalformedInput, Mismatch
from deltaweights.export.sanity import oddities
from deltaweights.inference.structure import check_structure
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from tests.support.errors import refused
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
Change = Callable[[Tensors], Any]


def model(layers: int = 3) -> Tensors:
    """Return a tiny LLaMA without buffers."""
    return {name: each for name, each in base_tensors(layers=layers).items() if not name.endswith("inv_freq")}


def store(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """Save a checkpoint with the configuration of a LLaMA, or one without where ``model_type`` is None."""
    save(tensors, folder, "safetensors", 1, config=False)
    known = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({key: v for key, v in (known | config).items() if v is not None}))
    return folder


def zero_3(tensors: Tensors) -> None:
    """Do as DeepSpeed does: weights of 100,000 elements and more are kept elsewhere; of a tiny model, all matrices."""
    tensors.update({name: torch.empty(0, dtype=each.dtype) for name, each in tensors.items() if each.dim() > 1})


def zero_3_entirely(tensors: Tensors) -> None:
    tensors.update({name: torch.empty(0, dtype=each.dtype) for name, each in tensors.items()})


def zero_3_in_part(tensors: Tensors) -> None:
    """Leave the embedding alone empty, as after resizing it within a training."""
    tensors[EMBEDDING] = torch.empty(0, dtype=torch.float16)


def run_all(folder: Path, given: Path) -> dict[str, Callable[[], object]]:
    """Return every command that takes ``given``, which is not to be trusted, with sound inputs beside it."""
    base = store(folder / "base", model())
    delta = store(folder / "delta", delta_tensors(model(), 0, projector=False))
    return {
        "convert": lambda: convert_checkpoint(given, folder / "out"),
        "make target": lambda: make_delta(base, given, folder / "out"),
        "make base": lambda: make_delta(given, base, folder / "out"),
        "apply delta": lambda: apply_delta(base, given, folder / "out"),
        "apply base": lambda: apply_delta(given, delta, folder / "out"),
        "check-base": lambda: check_base(given, delta),
        "check": lambda: check_structure(given),
    }


COMMANDS = ("convert", "make target", "make base", "apply delta", "apply base", "check-base", "check")


@pytest.mark.parametrize("change", [zero_3, zero_3_entirely, zero_3_in_part], ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_zero_3_shell_is_refused(tmp_path: Path, command: str, change: Change) -> None:
    """Every command says what it is and what to run, and nothing is written."""
    tensors = model()
    change(tensors)
    shell = store(tmp_path / "shell", tensors)
    with refused(MalformedInput, found="[0]") as caught:
        run_all(tmp_path, shell)[command]()
    assert "a ZeRO-3 shell" in caught.value.problem
    assert "zero_to_fp32.py" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()
    assert inspect_checkpoint(shell).identity.text.startswith("a ZeRO-3 shell")


def grow_head(tensors: Tensors) -> None:
    tensors[HEAD] = torch.cat([tensors[HEAD], tensors[HEAD][:1]])


def without(*parts: str) -> Change:
    """Return what takes away the tensors whose names contain one of ``parts``."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return change


@dataclass(frozen=True)
class Row:
    """A model that is changed, its configuration, and what is said: refused where ``error`` is given, else a warning."""

    change: Change
    says: str
    error: Mapping[str, object] | None = None
    config: dict[str, Any] = field(default_factory=dict)


UNKNOWN = {"model_type": "olmo9", "architectures": ["Olmo9ForCausalLM"]}
SILENT = {"model_type": None, "architectures": None}
ROWS = {
    "head-grown": Row(grow_head, "different numbers of rows", {"tensor": HEAD, "found": "49 rows"}),
    "head-grown-no-config": Row(grow_head, "different numbers of rows", {"tensor": HEAD}, SILENT),
    "head-grown-tied": Row(grow_head, "though config.json ties them", None, {"tie_word_embeddings": True}),
    "head-grown-unknown-architecture": Row(grow_head, "different numbers of rows", None, UNKNOWN),
    "embedding-grown": Row(
        lambda tensors: tensors.update({EMBEDDING: torch.zeros(50, 32, dtype=torch.float16)}),
        "different numbers of rows",
        {"tensor": HEAD, "expected": f"50, as in {EMBEDDING}"},
    ),
    "a-layer-between": Row(without("layers.1."), "a layer that is missing", {"tensor": "model.layers.1"}),
    "the-first-layer": Row(without("layers.0."), "a layer that is missing", {"tensor": "model.layers.0"}),
    "a-layer-between-unknown-architecture": Row(without("layers.1."), "a layer that is missing", None, UNKNOWN),
    "a-tensor-of-a-layer": Row(without(UP), "is missing: other layers have it", {"tensor": UP}),
    "a-tensor-of-a-layer-no-config": Row(without(UP), "is missing: other layers have it", {"tensor": UP}, SILENT),
    "the-last-norm": Row(without(NORM), "is missing: a LLaMA has it", {"tensor": NORM, "expected": "[32]"}),
    "the-last-shard": Row(without("layers.2.", NORM, HEAD), "is missing", {"tensor": NORM}),
    "one-kind-in-no-layer": Row(without("up_proj"), "is missing (and 2 more tensors", {"tensor": UP.replace("1", "0")}),
    "one-kind-in-no-layer-no-config": Row(without("up_proj"), "is missing (and 2 more tensors", None, SILENT),
    "the-head": Row(without(HEAD), "no config.json says tie_word_embeddings"),
    "fewer-layers-than-stated": Row(
        lambda _: None, "found num_hidden_layers 4, expected num_hidden_layers 3", None, {"num_hidden_layers": 4}
    ),
    "one-layer-pruned": Row(
        lambda tensors: tensors.update({UP: tensors[UP][:8].clone()}), "has another shape than in other layers"
    ),
    "an-empty-norm": Row(
        lambda tensors: tensors.update({NORM: torch.zeros(0, 1)}),
        "holds no weights",
        {"tensor": NORM, "found": "[0, 1]"},
    ),
    "an-empty-tensor-of-no-llama": Row(
        lambda tensors: tensors.update({"extra.scale": torch.zeros(0, 3, dtype=torch.float16)}), "holds no weights"
    ),
}


@pytest.mark.sampled(19)
@pytest.mark.parametrize("command", ["convert", "make", "apply"])
@pytest.mark.parametrize("name", ROWS)
def test_what_cannot_be_is_refused_and_what_looks_wrong_is_said(tmp_path: Path, name: str, command: str) -> None:
    """What no model is like is refused (3), with the tensor; what only looks wrong is published with a warning."""
    row, tensors, report = ROWS[name], model(), RecordingReport()
    row.change(tensors)
    given = store(tmp_path / "given", tensors, **row.config)
    tuned = {key: (each.float() + 1e-3 * torch.randn_like(each.float())).half() for key, each in tensors.items()}
    delta = store(tmp_path / "delta", {key: each - tensors[key] for key, each in tuned.items()}, **row.config)
    target = store(tmp_path / "target", tuned, **row.config)
    out = tmp_path / "out"
    actions: dict[str, Callable[[], object]] = {
        "convert": lambda: convert_checkpoint(given, out, report=report, dtype="float16"),
        "make": lambda: make_delta(given, target, out, report=report),
        "apply": lambda: apply_delta(given, delta, out, report=report),
    }
    if row.error is None:
        actions[command]()
        assert [text for text in report.warnings if row.says in text]
        assert out.exists()
        return
    with refused(MalformedInput, **row.error) as caught:
        actions[command]()
    assert row.says in caught.value.problem
    assert not out.exists()


@pytest.mark.parametrize("config", [{}, SILENT, UNKNOWN, {"num_hidden_layers": 3}], ids=str)
def test_a_sound_model_gets_no_word(tmp_path: Path, config: dict[str, Any]) -> None:
    """Whether it is known or not."""
    report = RecordingReport()
    convert_checkpoint(store(tmp_path / "given", model(), **config), tmp_path / "out", report=report)
    assert report.warnings == []


def test_tied_and_otherwise_stated_models_are_sound() -> None:
    """A head that is the embedding, one whose size the configuration states, a classifier, and other architectures' names."""
    specs = {name: TensorSpec(name, "F16", tuple(each.shape)) for name, each in model().items()}
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=92,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=True,
    ).to_dict()
    tied = {name: spec for name, spec in specs.items() if name != HEAD}
    assert oddities(tied, config) == []
    assert oddities(tied, {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}) == []
    larger = specs | {HEAD: TensorSpec(HEAD, "F16", (64, 32))}
    assert oddities(larger, {"model_type": "llama", "vocab_size": 48, "output_vocab_size": 64}) == []
    assert oddities(specs, {"model_type": ["gpt2"], "quantization_config": "none"}) == []
    assert oddities({"transformer.h.1.attn.weight": TensorSpec("", "F16", (3, 3))}, {}) == []


SMALL = "looks like a delta, not a model: its weights are typically"


def as_small(tensors: Tensors, seed: int) -> Tensors:
    """Return tensors of these shapes as small as a delta's."""
    torch.manual_seed(seed)
    return {name: (torch.randn(each.shape) * 4e-4).half() for name, each in tensors.items()}


@pytest.mark.parametrize("command", ["convert", "make", "apply base", "check"])
def test_what_looks_like_a_delta_in_the_place_of_a_model_is_named(tmp_path: Path, command: str) -> None:
    """Its weights are small, and nothing else tells: a warning, and the result is published."""
    one = store(tmp_path / "given", as_small(model(), 3))
    other = store(tmp_path / "other", as_small(model(), 4))
    less = store(tmp_path / "delta", {name: each / 9 for name, each in load_all(one).items()})
    report = RecordingReport()
    if command == "check":
        assert [each for each in check_structure(one).warnings if each.problem.startswith(SMALL)]
        return
    actions: dict[str, Callable[[], object]] = {
        "convert": lambda: convert_checkpoint(one, tmp_path / "out", report=report),
        "make": lambda: make_delta(one, other, tmp_path / "out", report=report),
        "apply base": lambda: apply_delta(one, less, tmp_path / "out", allow_unproved_base=True, report=report),
    }
    actions[command]()
    assert [text for text in report.warnings if SMALL in text and str(one) in text], report.warnings
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["base", "target"])
def test_a_delta_beside_a_model_is_refused(tmp_path: Path, role: str) -> None:
    """A target 50 times as small as its base, or the other way round, cannot be tuned from it: refused (4)."""
    small, whole = store(tmp_path / "small", as_small(model(), 3)), store(tmp_path / "whole", model())
    given = (small, whole) if role == "base" else (whole, small)
    with refused(Mismatch, where=f"{role} {small}") as caught:
        make_delta(*given, tmp_path / "out")
    assert caught.value.problem.startswith(SMALL)
    assert not (tmp_path / "out").exists()


def load_all(folder: Path) -> Tensors:
    """Load the one file of a folder."""
    from safetensors.torch import load_file  # noqa: PLC0415

    return load_file(folder / "model.safetensors")


@pytest.fixture
def own_delta(tmp_path: Path) -> Path:
    """Make a delta of ours."""
    base = model()
    store(tmp_path / "base", base)
    store(tmp_path / "target", reference(base, delta_tensors(base, 0, projector=False)))
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("command", ["make base", "make target", "apply base"])
def test_a_delta_of_ours_in_the_place_of_a_model_is_refused(tmp_path: Path, own_delta: Path, command: str) -> None:
    """Its manifest says what it is: refused (4)."""
    actions: dict[str, Callable[[], object]] = {
        "make base": lambda: make_delta(own_delta, tmp_path / "base", tmp_path / "out"),
        "make target": lambda: make_delta(tmp_path / "base", own_delta, tmp_path / "out"),
        "apply base": lambda: apply_delta(
            own_delta,
            store(tmp_path / "small", {name: each / 9 for name, each in load_all(own_delta).items()}),
            tmp_path / "out",
        ),
    }
    with refused(Mismatch, problem="is a delta, not a model") as caught:
        actions[command]()
    assert "give the model itself" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


def test_a_delta_of_ours_is_copied_with_a_warning_and_fails_the_check(tmp_path: Path, own_delta: Path) -> None:
    """A copy of a delta is a delta, so convert says what it is; check, which asks for a model, finds a problem (6)."""
    report = RecordingReport()
    convert_checkpoint(own_delta, tmp_path / "out", report=report)
    assert [text for text in report.warnings if "is a delta, not a model" in text]
    (problem,) = (each for each in check_structure(own_delta).problems if "delta" in each.problem)
    assert problem.problem == "is a delta, not a model"


def test_the_user_may_insist_on_a_base(tmp_path: Path, own_delta: Path) -> None:
    """--allow-unproved-base, which the refusal names, lets a delta pass as the base."""
    small = store(tmp_path / "small", {name: each / 9 for name, each in load_all(own_delta).items()})
    report = RecordingReport()
    with pytest.raises(DeltaweightsError, match="--allow-unproved-base lets it pass"):
        apply_delta(own_delta, small, tmp_path / "out")
    apply_delta(own_delta, small, tmp_path / "out", allow_unproved_base=True, report=report)
    assert [text for text in report.warnings if "is a delta, not a model" in text]
