"""Pairs of which one, or both, have the names under which transformers saves a LLaVA; and what compares by names in the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from deltaweights.checkpoint.naming import Naming, naming_of
from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint, export_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from tests.conftest import Run
from tests.diagnosis.test_known_causes import PAD, ROWS, base_model, grown, right
from tests.support.errors import refused
from tests.support.merging import merge_and_load, recipe_file
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis

Rename = Callable[[str], str]


def plain(name: str) -> str:
    return name


def wrapped(name: str) -> str:
    return f"module.{name}"


def lightning(name: str) -> str:
    return f"model.{name}"


def since_4_36(name: str) -> str:
    if "mm_projector" in name:
        return name.replace("model.mm_projector", "multi_modal_projector.linear_1")
    return f"language_model.{name}"


def since_4_52(name: str) -> str:
    name = name.replace("mm_projector", "multi_modal_projector.linear_1")
    if "multi_modal_projector" in name or not name.startswith("model."):
        return name
    return name.replace("model.", "model.language_model.", 1)


def wrapped_4_52(name: str) -> str:
    return f"_orig_mod.{since_4_52(name)}"


NAMINGS: dict[Rename, Naming] = {
    plain: Naming(),
    wrapped: Naming("module."),
    lightning: Naming("model."),
    since_4_36: Naming("", "transformers-4.36"),
    since_4_52: Naming("", "transformers-4.52"),
    wrapped_4_52: Naming("_orig_mod.", "transformers-4.52"),
}
NAMED = pytest.mark.parametrize("name", [name for name in NAMINGS if name is not plain])


def under(rename: Rename, tensors: Tensors) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items()}


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_bytes())


@cache
def base() -> Tensors:
    return {name: each for name, each in base_tensors().items() if not name.endswith("inv_freq")}


@cache
def delta() -> Tensors:
    return delta_tensors(base())


TOWER: Tensors = {
    f"vision_tower.vision_model.{part}": torch.ones(8, dtype=torch.float16)
    for part in ("post_layernorm.weight", "post_layernorm.bias")
}


def tower_in(rename: Rename) -> Tensors:
    return TOWER if rename is since_4_36 else {f"model.{name}": each for name, each in TOWER.items()}


def llava() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))


def test_the_layouts_are_those_of_transformers(tmp_path: Path) -> None:
    """What the library has in memory, and what it saves, is led back to one set of names; the LLaMA's are those of a LLaMA."""
    model = llava()
    model.save_pretrained(tmp_path)
    names = [list(model.state_dict()), list(load_file(tmp_path / "model.safetensors"))]
    assert [naming_of(each).layout for each in names] == ["transformers-4.52", "transformers-4.36"]
    in_memory, saved = ({naming_of(each).model_name(name) for name in each} for each in names)
    assert in_memory == saved
    assert {name for name in saved if name.startswith(("model.", "lm_head."))} == {
        *(name for name in base() if "rotary" not in name),
        "model.mm_projector.weight",
        "model.mm_projector.bias",
    }
    report = RecordingReport()
    torch.save(model.state_dict(), tmp_path / "state.bin")
    compared = diff_checkpoints(tmp_path / "state.bin", tmp_path, report=report)
    assert compared.identical
    assert compared.tensors.identical == len(saved)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("of_delta", NAMINGS)
@pytest.mark.parametrize("of_base", NAMINGS)
def test_a_pair_is_merged_whatever_its_names(tmp_path: Path, of_base: Rename, of_delta: Rename) -> None:
    """The sums are those of the plain pair, under the delta's names; the manifest says how each is named, and verifies."""
    save(under(of_base, base()), tmp_path / "base")
    save(under(of_delta, delta()), tmp_path / "delta")
    report = RecordingReport()
    merged = merge_and_load(tmp_path, report=report)
    assert same_bits(merged.tensors, under(of_delta, reference(base(), delta())))
    assert verify(merged.folder).ok
    inputs = manifest_of(merged.folder)["inputs"]
    for role, rename in (("base", of_base), ("delta", of_delta)):
        assert {key: inputs[role][key] for key in ("prefix", "layout") if key in inputs[role]} == NAMINGS[
            rename
        ].document
    said = {note for note in report.notes if "names begin with" in note or "names are those of" in note}
    assert len(said) == (of_base is not plain) + (of_delta is not plain)
    assert check_base(tmp_path / "base", tmp_path / "delta").proof == merged.result.proof


@NAMED
def test_a_delta_of_such_a_target_leads_back_to_it(tmp_path: Path, name: Rename) -> None:
    """Made on a plain base, in an arithmetic that brings every weight back."""
    wide = {key: each.float() for key, each in base().items()}
    target = under(name, reference(wide, {key: each.float() for key, each in delta().items()}, torch.float32))
    save(wide, tmp_path / "base")
    save(target, tmp_path / "target")
    made = make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", compute_dtype="float32")
    assert made.fates["copy"] == 2
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back")
    back = load(tmp_path / "back")
    assert back.keys() == target.keys()
    assert all(torch.allclose(back[key], target[key]) for key in target)


@pytest.mark.parametrize("name", [since_4_36, since_4_52])
def test_a_tower_in_the_delta_is_copied_if_a_recipe_says_so(tmp_path: Path, name: Rename) -> None:
    """Whether it is whole, the headers do not tell: the refusal has the names that a recipe must list, and works if followed."""
    save(base(), tmp_path / "base", config=False)
    save(under(name, delta()) | tower_in(name), tmp_path / "delta", config=False)
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    listed = [key.removeprefix("vision_tower.") for key in TOWER]
    assert f"all of the base fits, and the delta has more: {', '.join(listed)}; " in (caught.value.remedy or "")
    assert "delta_only (docs/recipes.md)" in (caught.value.remedy or "")
    names = json.dumps([*listed, "model.mm_projector.weight", "model.mm_projector.bias"])
    own: Any = recipe_file(tmp_path, more=f"[rules]\ndelta_only = {names}\n")
    merged = merge_and_load(tmp_path, recipe_file=own)
    assert same_bits(merged.tensors, under(name, reference(base(), delta())) | tower_in(name))


@pytest.mark.parametrize("name", [since_4_36, since_4_52])
def test_a_tower_in_both_is_added(tmp_path: Path, name: Rename) -> None:
    """As any tensor that both have, whichever of the layouts each of them has."""
    save(under(since_4_36, base()) | TOWER, tmp_path / "base")
    save(under(name, delta()) | tower_in(name), tmp_path / "delta")
    merged = merge_and_load(tmp_path)
    twice = {key: each * 2 for key, each in tower_in(name).items()}
    assert same_bits(merged.tensors, under(name, reference(base(), delta())) | twice)


def test_a_tower_in_the_base_alone_is_named(tmp_path: Path) -> None:
    """The base is a LLaVA: no wrong LLaMA, and no unknown layout."""
    save(under(since_4_52, base()) | tower_in(since_4_52), tmp_path / "base")
    save(delta(), tmp_path / "delta")
    with refused(Mismatch, tensor="model.vision_tower.vision_model.post_layernorm.weight") as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert "the base is already a vision-language model: it has vision_model." in (caught.value.remedy or "")


@pytest.mark.parametrize("name", [since_4_36, since_4_52])
def test_it_is_not_laid_out_again(tmp_path: Path, name: Rename) -> None:
    """The layout of transformers is what such a model has; a copy keeps its names."""
    given = save(under(name, reference(base(), delta())), tmp_path / "given")
    with refused(Mismatch, problem="is in the layout of current transformers already"):
        export_checkpoint(given, tmp_path / "out")
    convert_checkpoint(given, tmp_path / "copy")
    assert diff_checkpoints(given, tmp_path / "copy").naming is None
    assert verify(tmp_path / "copy").ok


@pytest.mark.sampled(2)
@NAMED
def test_diff_compares_what_is_the_same_tensor(tmp_path: Path, name: Rename, run: Run) -> None:
    """Identical (0) but for names, and different (6) where a weight is; which names were led back is said, in JSON too."""
    model = reference(base(), delta())
    save(model, tmp_path / "one")
    save(under(name, model), tmp_path / "other", "safetensors", 1)
    done = run("diff", "one", "other", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["naming"] == [{"prefix": "", "layout": ""}, vars(NAMINGS[name])]
    assert said["tensors"]["identical"] == len(model)
    shown = run("diff", "other", "one", cwd=tmp_path).stdout
    assert f"compared by the names in the model: in A, {NAMINGS[name].text}\n" in shown
    changed = model | {"model.norm.weight": model["model.norm.weight"] + 1}
    del changed["lm_head.weight"]
    save(under(name, changed), tmp_path / "changed")
    done = run("diff", "one", "changed", "--json", cwd=tmp_path)
    assert done.returncode == 6
    found = json.loads(done.stdout)["tensors"]
    assert [each["name"] for each in found["differing"]] == ["model.norm.weight"]
    assert [each["name"] for each in found["only_in_a"]] == ["lm_head.weight"]
    assert found["only_in_b"] == []


@NAMED
def test_diff_of_two_that_are_named_alike_has_the_names_on_disk(tmp_path: Path, name: Rename) -> None:
    """Nothing is led back, or said, where both are named in the same way."""
    model = under(name, reference(base(), delta()))
    changed = name("model.norm.weight")
    one, other = save(model, tmp_path / "one"), save(model | {changed: model[changed] + 1}, tmp_path / "other")
    report = diff_checkpoints(one, other)
    assert report.naming is None
    assert [each.name for each in report.tensors.differing] == [changed]


@NAMED
def test_manifests_are_compared_under_other_names(tmp_path: Path, name: Rename) -> None:
    """``--trust-manifests`` takes each digest by the name that its own manifest has."""
    save(base(), tmp_path / "base")
    save(delta(), tmp_path / "delta")
    save(under(name, delta()), tmp_path / "renamed")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "one")
    apply_delta(tmp_path / "base", tmp_path / "renamed", tmp_path / "other")
    report = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True)
    assert (report.identical, report.weights_read) == (True, False)


@dataclass(frozen=True)
class Found:
    """What is found of a pair without other names must be found with them: the problem, and a part of the remedy."""

    base: Callable[[], Tensors]
    delta: Callable[[], Tensors]
    problem: str
    remedy: str


FOUND = {
    "a [PAD] row": Found(
        lambda: grown(base_model(), 1), lambda: grown(right(), 3), PAD.format("1 added row"), f"embeddings({ROWS})"
    ),
    "a finished model": Found(
        base_model,
        lambda: {name: each + right()[name] for name, each in base_model().items()},
        "likely already a merged model, not a delta",
        "give the delta itself",
    ),
    "the base itself": Found(
        base_model,
        base_model,
        "base and delta hold the same weights, as far as samples tell",
        "give the delta itself",
    ),
    "swapped": Found(right, base_model, "you swapped --base and --delta", "give --base "),
    "a head stored whole": Found(
        base_model,
        lambda: right() | {"lm_head.weight": base_model()["lm_head.weight"] + right()["lm_head.weight"]},
        "lm_head.weight",
        "its publisher's script",
    ),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("name", [wrapped, since_4_36, wrapped_4_52])
@pytest.mark.parametrize("case", FOUND)
def test_what_is_found_does_not_depend_on_names(tmp_path: Path, case: str, name: Rename, role: str) -> None:
    """Every detection looks tensors up by their names in the model."""
    row = FOUND[case]
    save(under(name if role == "base" else plain, row.base()), tmp_path / "base", "safetensors", 1, config=False)
    save(under(name if role == "delta" else plain, row.delta()), tmp_path / "delta", "safetensors", 1, config=False)
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert row.problem in caught.value.problem
    assert row.remedy in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()


@NAMED
def test_inspect_says_what_it_is_and_how_it_is_named(tmp_path: Path, name: Rename, run: Run) -> None:
    """Its identity is that of the plain checkpoint, and the names have a line of their own."""
    given = save(under(name, base()), tmp_path / "given", config=False)
    report = inspect_checkpoint(given)
    assert report.naming == NAMINGS[name]
    assert report.identity == inspect_checkpoint(save(base(), tmp_path / "plain", config=False)).identity
    assert f"names           {NAMINGS[name].text}\n" in run("inspect", given).stdout


@NAMED
def test_a_head_that_is_too_short_is_seen(tmp_path: Path, name: Rename) -> None:
    """The sanity of the result is that of the names in the model."""
    torn = delta() | {"lm_head.weight": delta()["lm_head.weight"][:-1]}
    save(base(), tmp_path / "base")
    save(under(name, torn), tmp_path / "delta")
    with refused(MalformedInput, problem="embedding and head have different numbers of rows"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")


AMBIGUOUS = {
    "both readings of one name": ["language_model.model.norm.weight", "multi_modal_projector.linear_1.weight",
                                  "model.mm_projector.weight"],
    "a part": ["language_model.model.norm.weight", "model.norm.weight"],
    "another vision tower": ["model.language_model.norm.weight", "model.visual.norm.weight"],
    "Megatron's": ["language_model.encoder.layers.0.weight"],
    "without a head": ["language_model.layers.0.weight", "vision_tower.weight"],
    "a model that is no attribute": ["model.model.norm.weight", "model.other"],
}  # fmt: skip


@pytest.mark.parametrize("names", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_where_there_are_two_readings_none_is_chosen(names: list[str]) -> None:
    """Names that could be of two layouts, or of another model, are left as they are."""
    assert naming_of(names) == Naming()


def test_the_naming_is_recorded_only_where_it_is_another() -> None:
    """A plain checkpoint has neither key."""
    assert [naming.document for naming in (Naming(), replace(Naming(), prefix="module."))] == [
        {},
        {"prefix": "module."},
    ]
