"""The known models and their files."""

from __future__ import annotations

import pytest

from deltaweights.errors import UsageError
from deltaweights.recipes import catalogue, models
from tests.support.errors import refused
from tests.support.recipes import FACTS

TENSORS = {"llama-1-7b": (291, 323), "llama-1-13b": (363, 403)}
"""Tensors of a checkpoint in the Hugging Face layout, without and with the inv_freq buffers."""


def test_every_model_is_there() -> None:
    """LLaMA-1 in four sizes, LLaMA-2 7B, CLIP and the merged Vicuna are known, by unique keys."""
    keys = [model.key for model in models.models()]
    llamas = ["llama-1-7b", "llama-1-13b", "llama-1-30b", "llama-1-65b", "llama-2-7b"]
    assert keys == [*llamas, "clip-vit-l-14", "vicuna-7b-v1.1"]


def test_the_default_base_is_pinned() -> None:
    """LLaMA-1 7B has a repository and two full commit ids, of which one is the default; CLIP has one, the others have none."""
    model = models.model("llama-1-7b")
    assert (model.repo, model.revision) == ("huggyllama/llama-7b", "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16")
    assert model.revisions[1:] == ("4782ad278652c7c71b72204d462d6d01eaaf7549",)
    assert [other.key for other in models.models() if other.repo or other.revision] == ["llama-1-7b", "clip-vit-l-14"]


def test_the_vision_tower_is_pinned() -> None:
    """Every LLaVA sees through CLIP ViT-L/14 at one commit, of which both weights files are known; no other recipe sees."""
    clip = models.model("clip-vit-l-14")
    commit = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    assert (clip.repo, clip.revision) == ("openai/clip-vit-large-patch14", commit)
    assert [file.name for file in clip.files] == ["pytorch_model.bin", "model.safetensors"]
    for name in FACTS:
        assert catalogue.load(name).vision_tower == ("clip-vit-l-14" if "llava" in name else None)


@pytest.mark.parametrize("key", TENSORS)
def test_layers_agree_with_the_tensors_that_are_counted(key: str) -> None:
    """Nine tensors and one buffer per layer, and three beside the layers, are the counts that are published."""
    layers = models.model(key).shapes.layers
    assert layers is not None
    assert (9 * layers + 3, 10 * layers + 3) == TENSORS[key]


def test_generations_differ_in_config_alone() -> None:
    """LLaMA-1 and LLaMA-2 7B have one shape, and differ in what config.json says."""
    one, two = models.model("llama-1-7b"), models.model("llama-2-7b")
    assert one.shapes == two.shapes
    assert one.config == {"max_position_embeddings": 2048, "rms_norm_eps": 1e-06}
    assert two.config == {"max_position_embeddings": 4096, "rms_norm_eps": 1e-05}


SHARD = "pytorch_model-0000{}-of-0000{}.bin"

KNOWN = [
    ("700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d", "llama-1-7b", "consolidated.00.pth", "meta"),
    ("461bc5e50200db7813ff99cc0b9316c48ccbd6aaaa31bf8cf7bee0b64bc3eda3", "llama-1-7b", SHARD.format(2, 2), "bin"),
    ("2efc56cddb7877c830bc5b402ee72996aedb5694c9e8007bf1d52d72c0d97d26", "llama-1-13b", SHARD.format(3, 3), "bin"),
    ("eac58861ca5f3749c819676d908b906d3df38046c09efe055fe78d7678b718e7", "llama-1-13b", SHARD.format(3, 3), "bin"),
    ("065611608159615ced8d38473ee693129a1a0d872ced0ad8daf09290af7c7061", "llama-1-30b", SHARD.format(7, 7), "bin"),
    ("d27f5b0677d7ff129ceacd73fd461c4d06910ad7787cf217b249948c3f3bc638", "llama-1-65b", "consolidated.07.pth", "meta"),
    ("ee62ed2ad7ded505ae47df50bc6c52916860dfb1c009df4715148cc4bfb50d2f", "llama-2-7b", SHARD.format(1, 2), "bin"),
    ("5ed572be140240b212049a3e791271eed8a04c40bc732c91a4da4b1469db23b1", "vicuna-7b-v1.1", SHARD.format(1, 2), "bin"),
]


@pytest.mark.parametrize(("sha256", "key", "name", "form"), KNOWN)
def test_a_file_names_its_model(sha256: str, key: str, name: str, form: str) -> None:
    """A known hash names the model, the file and its form; where two of one name circulate, both do."""
    found = models.known_file(sha256)
    assert found is not None
    assert (found[0].key, vars(found[1])) == (key, {"name": name, "sha256": sha256, "size": None, "form": form})


def test_a_size_is_kept_where_it_is_known() -> None:
    """The two safetensors files of LLaMA-2 7B and both files of CLIP, alone, are known with their bytes."""
    sizes = {(model.key, file.name): file.size for model in models.models() for file in model.files if file.size}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert sizes == {
        ("llama-2-7b", names[0]): 9976578928,
        ("llama-2-7b", names[1]): 3500297344,
        ("clip-vit-l-14", "pytorch_model.bin"): 1710671599,
        ("clip-vit-l-14", "model.safetensors"): 1710540580,
    }


def test_an_unknown_model_is_a_usage_error() -> None:
    """A key that no model has is refused with similar keys."""
    with refused(UsageError, found="llama-2-70b", expected="one of llama-2-7b, llama-1-7b, llama-1-30b"):
        models.model("llama-2-70b")
