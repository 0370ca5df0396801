"""The layout of current transformers: the same model under other names, which a library loads and which answers the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

from deltaweights import (
    CheckFailed,
    DeltaweightsError,
    InputOutputError,
    MalformedInput,
    Mismatch,
    UsageError,
    apply_delta,
    apply_part,
    convert_checkpoint,
    export_checkpoint,
    finish_parts,
    load_merged,
    verify,
)
from deltaweights.checkpoint.llava_names import transformers_name
from deltaweights.manifest.digest import content_digest
from deltaweights.report import Report
from tests.support.llava_2023 import HIDDEN, PATCHES, RECIPE, Described, Published, make_tower, publish, write
from tests.support.pairs import Tensors, load, same_bits, save
from tests.support.reports import RecordingReport

AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM


AutoModelForImageTextToText: Any = transformers.AutoModelForImageTextToText


AutoProcessor: Any = transformers.AutoProcessor


AutoTokenizer: Any = transformers.AutoTokenizer
"""Without their types, which say less than what they return."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Make a tiny LLaVA-Med as it was published."""
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def exported(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge it in the layout of current transformers, in float32."""
    target = tmp_path_factory.mktemp("exported") / "out"
    merge(published, target, dtype="float32")
    return target


def merge(published: Published, target: Path, *, bos: str | None = None, **options: Any) -> Any:
    """Merge in the layout of current transformers, by LLaVA-Med's recipe but for its sizes; ``bos`` is its bos_token."""
    own = target.parent / "own.toml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(RECIPE + (f'bos_token = "{bos}"\n' if bos else ""))
    options = {"layout": "transformers", "vision_tower": published.tower, **options}
    return apply_delta(published.base, published.delta, target, recipe_file=own, allow_unproved_base=True, **options)


def picture(seed: int) -> Image.Image:
    """Return a picture of noise, wider than high."""
    noise = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def asked(question: str, images: int) -> list[dict[str, Any]]:
    """Return a user's message with some images."""
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


HELLO = "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###Human: "


SEEN = f"\n<im_start>{'<im_patch>' * PATCHES}<im_end>"


@pytest.mark.fidelity
@pytest.mark.parametrize("images", [0, 1])
def test_the_logits_are_those_of_the_description(published: Published, exported: Path, images: int) -> None:
    """In float32 the exported model gives, bit for bit, what LLaMA and one linear projector give."""
    described = Described(published, published.merged, torch.float32)
    model = LlavaForConditionalGeneration.from_pretrained(exported, attn_implementation="eager", dtype=torch.float32)
    logits, expected, prompt = both_ways(described, model, exported, images)
    assert prompt == f"{SYSTEM}{HELLO}What is shown?{SEEN * images}###"
    assert logits.shape == (expected.shape[0], published.rows)
    assert torch.equal(logits, expected)
    assert logits.isfinite().all()
    assert not torch.equal(logits[-1], logits[-2])


def test_the_logits_are_close_in_float16(published: Published, tmp_path: Path) -> None:
    """In float16, as it is published, the two differ by rounding alone."""
    merge(published, tmp_path / "out")
    described = Described(published, published.merged, torch.float16)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager", dtype="auto")
    assert model.dtype == torch.float16
    logits, expected, _ = both_ways(described, model, tmp_path / "out", images=1)
    assert torch.allclose(logits.float(), expected.float(), rtol=2**-8, atol=2**-8 * float(expected.abs().max()))


def both_ways(
    described: Described, model: LlavaForConditionalGeneration, folder: Path, images: int
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return the logits by transformers, those by the description, and the prompt with as many patches as the model gets."""
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(asked("What is shown?", images), add_generation_prompt=True)
    pictures = [picture(seed) for seed in range(images)] or None
    inputs = processor(text=text, images=pictures, return_tensors="pt")
    pixels = inputs["pixel_values"].to(model.dtype) if images else None
    with torch.no_grad():
        logits = model(**{**inputs, **({"pixel_values": pixels} if images else {})}).logits[0]
    return logits, described(inputs["input_ids"][0], pixels), text.replace("<im_patch>", "<im_patch>" * PATCHES)


def test_generation_runs_with_an_image(exported: Path) -> None:
    """The Auto classes load the folder without missing or extra keys, and generate an answer."""
    model, loading = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    processor = AutoProcessor.from_pretrained(exported)
    assert type(processor) is LlavaProcessor
    inputs = processor(text=processor.apply_chat_template(asked("Why?", 1)), images=[picture(1)], return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    ids = model.generation_config
    assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (2, 2, processor.tokenizer.pad_token_id)


def test_both_layouts_hold_the_same_weights(published: Published, exported: Path, tmp_path: Path) -> None:
    """Every tensor of the original layout has its bits under another name; the tower's are CLIP's; two are constant."""
    original = apply_delta(published.base, published.delta, tmp_path / "original", dtype="float32")
    there, here = load(exported), load(tmp_path / "original")
    renamed = {str(transformers_name(name)): tensor for name, tensor in here.items()}
    assert same_bits({name: there[name] for name in there if name in renamed}, renamed)
    tower = {name: t.half().float() for name, t in load(published.tower).items() if name.startswith("vision_model.")}
    of_tower = {name: tensor for name, tensor in there.items() if name.startswith("vision_tower.")}
    assert same_bits(of_tower, {f"vision_tower.{name}": t for name, t in tower.items() if not name.endswith("_ids")})
    rest = {name: there[name] for name in there.keys() - renamed.keys() - of_tower.keys()}
    second = "multi_modal_projector.linear_2."
    assert same_bits(rest, {f"{second}weight": torch.eye(HIDDEN), f"{second}bias": torch.zeros(HIDDEN)})
    assert verify(exported).ok
    result = json.loads((exported / "manifest.json").read_text())["result"]
    assert result["original_content_digest"] == original.content_digest
    assert result["content_digest"] != original.content_digest
    own = {name: t for name, t in result["tensors"].items() if t["fate"] not in {"vision_tower", "identity", "zeros"}}
    rows = ((t["source"], t["dtype"], tuple(t["shape"]), t["digest"]) for t in own.values())
    assert content_digest(rows) == original.content_digest


def test_an_export_is_what_a_merge_gives(published: Published, exported: Path, tmp_path: Path) -> None:
    """Exporting a merge gives the files of merging in that layout; only manifest, card and notice differ."""
    own = exported.parent / "own.toml"
    options: dict[str, Any] = {"recipe_file": own, "dtype": "float32"}
    apply_delta(published.base, published.delta, tmp_path / "merged", allow_unproved_base=True, **options)
    done = export_checkpoint(tmp_path / "merged", tmp_path / "out", vision_tower=published.tower, recipe_file=own)
    assert done.status == "exported"
    same = {path.name for path in exported.iterdir()} - {"manifest.json", "SHA256SUMS", "README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} - same == {"manifest.json", "SHA256SUMS", "README.md"}
    differing = {name for name in same if (exported / name).read_bytes() != (tmp_path / "out" / name).read_bytes()}
    assert differing <= {"DELTAWEIGHTS_NOTICE.txt"}
    assert verify(tmp_path / "out", expect=done.content_digest).ok


def test_a_published_sum_is_that_of_a_merge(published: Published, tmp_path: Path) -> None:
    """The recipe's sum is compared with merged weights; the weights of an export are copied, not summed up, and not doubted."""
    own, told = tmp_path / "own.toml", RecordingReport()
    own.write_text(f"{RECIPE.format(rows=published.rows)}\n[checks]\nsum = 1.0\ntolerance = 0.1\n")
    merged = apply_delta(
        published.base, published.delta, tmp_path / "merged", recipe_file=own, allow_unproved_base=True
    )
    assert merged.published_sum is not None
    done = export_checkpoint(
        tmp_path / "merged", tmp_path / "out", vision_tower=published.tower, recipe_file=own, report=told
    )
    assert done.published_sum is None
    assert not [line for line in (*told.warnings, *told.notes) if "sum of all elements" in line]


def test_a_merge_that_is_not_what_its_manifest_says_is_not_exported(published: Published, tmp_path: Path) -> None:
    """Weights damaged after the merge are detected during export (6), and nothing is published."""
    apply_delta(published.base, published.delta, tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckFailed):
        export_checkpoint(tmp_path / "merged", tmp_path / "out", vision_tower=published.tower)
    assert not (tmp_path / "out").exists()


@pytest.mark.fidelity
@pytest.mark.parametrize("bos", ["<s>", "</s>"])
def test_a_recipe_s_first_token_is_stated_everywhere(published: Published, tmp_path: Path, bos: str) -> None:
    """Tokenizer, config.json and generation_config.json agree with the recipe, before the delta's own files."""
    merge(published, tmp_path / "out", bos=bos)
    number = {"<s>": 1, "</s>": 2}[bos]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer("Why?").input_ids[0], tokenizer.bos_token_id) == (number, number)
    documents = [
        json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json")
    ]
    stated = [documents[0], documents[0]["text_config"], documents[1]]
    assert [each["bos_token_id"] for each in stated] == [number] * 3
    assert [each["eos_token_id"] for each in stated] == [2] * 3


def test_a_plain_llama_keeps_its_weights(tmp_path: Path) -> None:
    """Without vision, both layouts have the same weights; configuration and tokenizer are repaired."""
    published = publish(tmp_path / "published", projector=False)
    original = apply_delta(published.base, published.delta, tmp_path / "original")
    there = merge(published, tmp_path / "out", vision_tower=None)
    assert there.content_digest == original.content_digest
    result = json.loads((tmp_path / "out" / "manifest.json").read_text())["result"]
    assert result["original_content_digest"] == original.content_digest
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(model, LlamaForCausalLM)
    assert (
        (model.config.bos_token_id, model.config.eos_token_id)
        == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        == (2, 2)
    )
    assert len(tokenizer) == model.config.vocab_size == published.rows


def test_the_original_layout_changes_no_byte_beside_the_weights(published: Published, tmp_path: Path) -> None:
    """By default configuration and tokenizer are the publisher's, byte for byte, wrong ids and all."""
    apply_delta(published.base, published.delta, tmp_path / "out")
    for path in published.delta.iterdir():
        if (path.suffix == ".json" and "index" not in path.name) or path.name == "tokenizer.model":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert (tmp_path / "out" / "DELTA_README.md").read_bytes() == (published.delta / "README.md").read_bytes()


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON document; None takes one away."""
    document = {**json.loads(path.read_text()), **changes}
    write(path, {key: value for key, value in document.items() if value is not None})


def copied(published: Published, folder: Path) -> Published:
    """Copy base, delta and tower, to be damaged."""
    for name in ("base", "delta", "clip"):
        shutil.copytree(published.base.parent / name, folder / name)
    return replace(published, base=folder / "base", delta=folder / "delta", tower=folder / "clip")


Damage = Callable[[Published], None]


def _without_tokens(pair: Published) -> None:
    (pair.delta / "added_tokens.json").unlink()


def _without_a_tokenizer(pair: Published) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (pair.delta / name).unlink()


def _another_tower(pair: Published) -> None:
    shutil.rmtree(pair.tower)
    make_tower(pair.tower, hidden_size=16)


def _a_tower_without_config(pair: Published) -> None:
    (pair.tower / "config.json").unlink()


def _a_tower_of_other_sizes(pair: Published) -> None:
    config = json.loads((pair.tower / "config.json").read_text())
    config["vision_config"]["image_size"] = 70
    write(pair.tower / "config.json", config)
    (pair.tower / "preprocessor_config.json").unlink()


def _images_of_another_size(pair: Published) -> None:
    edit(pair.tower / "preprocessor_config.json", crop_size={"height": 70, "width": 70})


def _heads_that_do_not_divide(pair: Published) -> None:
    config = json.loads((pair.tower / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 7
    write(pair.tower / "config.json", config)


def _without_config(pair: Published) -> None:
    (pair.delta / "config.json").unlink()


def _without_heads(pair: Published) -> None:
    edit(pair.delta / "config.json", num_attention_heads=None)


def _another_family(pair: Published) -> None:
    edit(pair.delta / "config.json", model_type="mistral")


def _a_layer_too_deep(pair: Published) -> None:
    edit(pair.delta / "config.json", mm_vision_select_layer=-5)


def _half_a_layer(pair: Published) -> None:
    edit(pair.delta / "config.json", mm_vision_select_layer=-2.5)


def _an_unknown_activation(pair: Published) -> None:
    edit(pair.delta / "config.json", hidden_act="zzz")


def _a_llama_as_tower(pair: Published) -> None:
    shutil.rmtree(pair.tower)
    shutil.copytree(pair.base, pair.tower)


def _a_layer_more(pair: Published) -> None:
    edit(pair.delta / "config.json", num_hidden_layers=3)


def _other_heads(pair: Published) -> None:
    edit(pair.delta / "config.json", num_attention_heads=5)


def _other_features(pair: Published) -> None:
    edit(pair.delta / "config.json", mm_vision_select_feature="cls_patch")


def _malformed_config(pair: Published) -> None:
    (pair.delta / "config.json").write_text('{"hidden_size": NaN}')


REFUSED: dict[str, tuple[Damage, type[DeltaweightsError], str]] = {
    "no-image-token": (_without_tokens, Mismatch, "<im_patch>"),
    "no-tokenizer": (_without_a_tokenizer, MalformedInput, "tokenizer"),
    "another-tower": (
        _another_tower,
        Mismatch,
        r"model\.mm_projector\.weight.*\[32, 24\]",
    ),
    "no-config-of-the-tower": (
        _a_tower_without_config,
        InputOutputError,
        r"clip/config\.json",
    ),
    "a-tower-of-other-sizes": (
        _a_tower_of_other_sizes,
        Mismatch,
        r"position_embedding\.weight",
    ),
    "a-llama-as-tower": (_a_llama_as_tower, Mismatch, r"class_embedding"),
    "a-layer-more": (_a_layer_more, Mismatch, "num_hidden_layers: found 3, expected 2"),
    "other-heads": (_other_heads, Mismatch, "found 5 of 6"),
    "other-features": (_other_features, Mismatch, "mm_vision_select_feature cls_patch, expected patch"),
    "no-config": (_without_config, MalformedInput, r"delta/config\.json"),
    "no-heads": (_without_heads, MalformedInput, "num_attention_heads"),
    "another-family": (_another_family, Mismatch, "model_type mistral, expected llama or llava"),
    "a-layer-too-deep": (
        _a_layer_too_deep,
        Mismatch,
        "mm_vision_select_layer -5",
    ),
    "half-a-layer": (_half_a_layer, MalformedInput, r"mm_vision_select_layer.*-2\.5"),
    "an-unknown-activation": (
        _an_unknown_activation,
        MalformedInput,
        "hidden_act.*zzz",
    ),
    "images-of-another-size": (_images_of_another_size, Mismatch, "crop_size"),
    "heads-that-do-not-divide": (
        _heads_that_do_not_divide,
        MalformedInput,
        "num_attention_heads.*found 7",
    ),
    "malformed-config": (_malformed_config, MalformedInput, r"delta/config\.json"),
}


@pytest.mark.parametrize(("damage", "kind", "fact"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    published: Published, tmp_path: Path, damage: Damage, kind: type[DeltaweightsError], fact: str
) -> None:
    """A model that would not load, or would get other image features, is refused before a byte is written."""
    pair = copied(published, tmp_path)
    damage(pair)
    with pytest.raises(kind, match=fact) as caught:
        merge(pair, tmp_path / "target" / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["own.toml"]


def test_options_that_contradict_each_other(published: Published, tmp_path: Path) -> None:
    """Contradictory options are refused (2) before anything is read."""
    for options, message in (
        ({"vision_tower": published.tower}, "vision tower"),
        ({"layout": "transformers", "weights": "bin"}, "safetensors"),
        ({"layout": "hf"}, "found hf, expected original, transformers"),
        ({"weights": "gguf"}, "found gguf, expected safetensors, bin"),
    ):
        with pytest.raises(UsageError, match=message):
            apply_delta(tmp_path / "nowhere", tmp_path / "nowhere", tmp_path / "out", **options)


def test_a_model_that_sees_needs_a_tower(published: Published, tmp_path: Path) -> None:
    """Without a recipe, a vision-language model needs ``--vision-tower`` (2)."""
    with pytest.raises(UsageError, match="--vision-tower"):
        apply_delta(published.base, published.delta, tmp_path / "out", layout="transformers")


def test_another_tower_than_the_recipes_is_said(published: Published, tmp_path: Path) -> None:
    """A tower of the user's choice, other than the recipe's, is hashed, recorded, and warned about."""
    said: list[str] = []

    class Listener(Report):
        def warn(self, text: str) -> None:
            said.append(text)

    merge(published, tmp_path / "out", report=Listener())
    assert any("not the files of CLIP ViT-L/14, which the recipe names: sha256 " in text for text in said)
    inputs = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
    (file,) = inputs["vision_tower"]["files"].values()
    assert len(file["sha256"]) == 64
    assert "sha256" in file["checks"]
    assert "logit_scale" in inputs["vision_tower"]["dropped"]
    assert len(inputs["vision_tower"]["tensors"]) == 55


def test_torch_files_hold_what_safetensors_do(published: Published, tmp_path: Path) -> None:
    """``weights="bin"`` writes files that torch.load reads, with an index, and verify recomputes the same content digest."""
    other = apply_delta(published.base, published.delta, tmp_path / "safetensors")
    done = apply_delta(published.base, published.delta, tmp_path / "bin", weights="bin", max_shard_size=20_000)
    assert done.content_digest == other.content_digest
    index = json.loads((tmp_path / "bin" / "pytorch_model.bin.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == done.shards > 1
    loaded: Tensors = {}
    for name in files:
        loaded |= torch.load(tmp_path / "bin" / name, weights_only=True)
    assert same_bits(loaded, load_file(tmp_path / "safetensors" / "model.safetensors"))
    assert verify(tmp_path / "bin", expect=other.content_digest).ok
    again = apply_delta(published.base, tmp_path / "bin", tmp_path / "x", allow_unproved_base=True)
    assert again.parameters == done.parameters


def test_a_bit_of_a_torch_file_is_found(published: Published, tmp_path: Path) -> None:
    """One flipped bit of a tensor in a torch file is found by verify, with and without a pinned digest."""
    done = apply_delta(published.base, published.delta, tmp_path / "bin", weights="bin")
    path = tmp_path / "bin" / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    for expect in (None, done.content_digest):
        assert any("sha256" in str(problem) for problem in verify(tmp_path / "bin", expect=expect).problems)


def test_a_sharded_tower_of_torch_files_is_read(published: Published, tmp_path: Path) -> None:
    """A sharded tower of .bin files gives the same result as one of safetensors."""
    save(load(published.tower), tmp_path / "clip", config=False)
    shutil.copy(published.tower / "config.json", tmp_path / "clip")
    one = merge(published, tmp_path / "one" / "out")
    other = merge(published, tmp_path / "other" / "out", vision_tower=tmp_path / "clip")
    assert one.content_digest == other.content_digest


def test_what_config_states_goes_along(published: Published, tmp_path: Path) -> None:
    """Rotary settings, and the tower's own means and deviations, are carried over."""
    pair = copied(published, tmp_path)
    scaling = {"type": "linear", "factor": 4.0}
    edit(pair.delta / "config.json", rope_scaling=scaling, rope_theta=1e6)
    edit(pair.tower / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], do_center_crop=False)
    merge(pair, tmp_path / "target" / "out")
    text = json.loads((tmp_path / "target" / "out" / "config.json").read_text())["text_config"]
    assert (text["rope_scaling"], text["rope_theta"]) == (scaling, 1e6)
    images = json.loads((tmp_path / "target" / "out" / "preprocessor_config.json").read_text())
    assert (images["image_mean"], images["do_center_crop"], images["do_resize"]) == ([0.5, 0.5, 0.5], False, True)


def test_a_projector_in_float64_gets_its_second_layer(published: Published, tmp_path: Path) -> None:
    """Constant tensors have the written dtype, whatever the projector's."""
    pair = copied(published, tmp_path)
    delta: Tensors = {}
    for path in sorted(pair.delta.glob("*.bin")):
        delta |= torch.load(path, weights_only=True)
        path.unlink()
    (pair.delta / "pytorch_model.bin.index.json").unlink()
    delta = {name: t.double() if "mm_projector" in name else t for name, t in delta.items()}
    save(delta, pair.delta, config=False)
    merge(pair, tmp_path / "target" / "out")
    assert torch.equal(
        load(tmp_path / "target" / "out")["multi_modal_projector.linear_2.weight"], torch.eye(HIDDEN).half()
    )


def test_workers_and_containers_change_no_byte(published: Published, tmp_path: Path) -> None:
    """The files do not depend on the number of workers or the containers of the inputs, origins apart."""
    one = merge(published, tmp_path / "one" / "out", workers=1, max_shard_size=30_000)
    four = merge(published, tmp_path / "four" / "out", workers=4, max_shard_size=30_000)
    assert one.shards > 4
    assert contents(tmp_path / "one" / "out") == contents(tmp_path / "four" / "out")
    pair = copied(published, tmp_path / "other")
    for folder in (pair.base, pair.delta):
        tensors: Tensors = {}
        for path in sorted(folder.glob("*.bin")):
            tensors |= torch.load(path, weights_only=True)
            path.unlink()
        (folder / "pytorch_model.bin.index.json").unlink()
        save(tensors, folder, "safetensors", 3, config=False)
    merge(pair, tmp_path / "five" / "out", max_shard_size=30_000)
    differing = {
        name
        for name, data in contents(tmp_path / "five" / "out").items()
        if data != contents(tmp_path / "one" / "out")[name]
    }
    assert differing <= {"manifest.json", "SHA256SUMS"}
    assert four.content_digest == one.content_digest
    assert len(differing) == 2 or not differing


def test_parts_in_this_layout(published: Published, tmp_path: Path) -> None:
    """Parts and finish give the same bytes as one process."""
    merge(published, tmp_path / "one" / "out", max_shard_size=30_000)
    own = tmp_path / "one" / "own.toml"
    for number in (1, 2, 3):
        apply_part(
            published.base,
            published.delta,
            tmp_path / "out",
            part=f"{number}/3",
            recipe_file=own,
            allow_unproved_base=True,
            layout="transformers",
            vision_tower=published.tower,
            max_shard_size=30_000,
        )
    finish_parts(tmp_path / "out", allow_unproved_base=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "one" / "out")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_either_digest_pins_the_folder(published: Published, exported: Path, tmp_path: Path) -> None:
    """``verify --expect`` accepts the digest of either layout; a forged one is detected."""
    original = apply_delta(published.base, published.delta, tmp_path / "original", dtype="float32")
    assert verify(exported, expect=original.content_digest).ok
    assert not verify(exported, expect=f"dw1:{'0' * 64}").ok
    forged = shutil.copytree(exported, tmp_path / "forged")
    text = (forged / "manifest.json").read_text()
    (forged / "manifest.json").write_text(text.replace(original.content_digest, f"dw1:{'1' * 64}"))
    problems = [str(problem) for problem in verify(forged).problems]
    assert any("original_content_digest does not follow from the tensors that it lists" in text for text in problems)


def test_notices_travel_with_an_export(published: Published, exported: Path, tmp_path: Path) -> None:
    """The notice of a recipe that is no longer known, and the delta's card, are copied to the export."""
    own = exported.parent / "own.toml"
    options: dict[str, Any] = {"recipe_file": own, "allow_unproved_base": True}
    apply_delta(published.base, published.delta, tmp_path / "merged", **options)
    export_checkpoint(tmp_path / "merged", tmp_path / "out", vision_tower=published.tower)
    assert "A tiny LLaVA-Med: Not for clinical use." in (tmp_path / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text()
    assert (tmp_path / "out" / "DELTA_README.md").read_bytes() == (published.delta / "README.md").read_bytes()


def test_a_card_states_what_is_known(published: Published, exported: Path, tmp_path: Path) -> None:
    """A card names no unknown delta, and says how to load this layout, but not CLIP."""
    apply_delta(published.base, published.delta, tmp_path / "merged")
    (tmp_path / "merged" / "manifest.json").unlink()
    export_checkpoint(tmp_path / "merged", tmp_path / "out", vision_tower=published.tower)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- Delta:" not in card
    assert "- Source: " in card
    assert "AutoModelForImageTextToText" in card
    convert_checkpoint(exported, tmp_path / "copy")
    assert "AutoModelForImageTextToText" in (tmp_path / "copy" / "README.md").read_text()
    convert_checkpoint(published.tower, tmp_path / "clip", dtype="float32")
    card = (tmp_path / "clip" / "README.md").read_text()
    assert "Not known here." in card
    assert "AutoModel" not in card


def test_what_is_laid_out_already_is_said(published: Published, exported: Path, tmp_path: Path) -> None:
    """Exporting an exported folder, or merging with one, is refused (4)."""
    with pytest.raises(Mismatch, match="language_model"):
        export_checkpoint(exported, tmp_path / "out", vision_tower=published.tower)
    with pytest.raises(Mismatch):
        apply_delta(exported, published.delta, tmp_path / "out")


@pytest.mark.slow
def test_check_also_looks_at_what_stands_there(published: Published, tmp_path: Path) -> None:
    """``check`` refuses a model that a library would not load, before and after publishing."""
    pair = copied(published, tmp_path)
    own: dict[str, Any] = {"check": True}
    merge(pair, tmp_path / "good" / "out", **own)
    assert (tmp_path / "good" / "out").exists()
    merge(pair, tmp_path / "good" / "out", **own)  # already complete, and still checked
    edit(pair.delta / "config.json", rope_scaling={"rope_type": "no-such-kind"})
    with pytest.raises(CheckFailed, match=r"config\.json"):
        merge(pair, tmp_path / "bad" / "out", **own)
    assert not (tmp_path / "bad" / "out").exists()
    merge(pair, tmp_path / "bad" / "out")
    with pytest.raises(CheckFailed, match=r"config\.json"):
        merge(pair, tmp_path / "bad" / "out", **own)


def test_a_llava_is_loaded_without_a_copy_on_the_disk(published: Published, exported: Path) -> None:
    """``load_merged`` gives the model that the exported folder holds: language model, projector and vision tower."""
    own = exported.parent / "own.toml"
    options: dict[str, Any] = {"recipe_file": own, "vision_tower": published.tower, "dtype": "float32"}
    model = load_merged(published.base, published.delta, allow_unproved_base=True, **options)
    other = AutoModelForImageTextToText.from_pretrained(exported)
    state = model.state_dict()
    assert type(model) is type(other)
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
