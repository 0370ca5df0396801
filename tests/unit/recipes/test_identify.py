"""What checkpoints are identified as: by hashes of their files, by manifests, shapes, and configuration."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from deltaweights.recipes.identify import Identity
from tests.support.identity import (
    AS_A_MODEL,
    BASE,
    CONFIGS,
    DELTA,
    LLAMA_1,
    ONE,
    RECIPE,
    SHAPES,
    TWO,
    UNLISTED,
    Known,
    archive_of,
    cached,
    counted_reads,
    known,
    sha256_of,
)
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, save
from tests.support.reports import RecordingReport

__all__ = ["known"]  # fixtures


def hashed(path: Path) -> Identity:
    """Return what a checkpoint is by the hashes of its files; how large its weights are is left out."""
    found = inspect_checkpoint(path, hash_inputs=True).identity
    return Identity(found.text, found.model, found.certain)


@pytest.mark.parametrize(
    ("key", "form", "text"),
    [
        ("llama-1-7b", "bin", "LLaMA-1 7B (Hugging Face .bin)"),
        ("llama-1-13b", "safetensors", "LLaMA-1 13B (Hugging Face safetensors)"),
        ("llama-2-7b", "bin", "LLaMA-2 7B (Hugging Face .bin)"),
        ("vicuna-7b-v1.1", "bin", "Vicuna 7B v1.1 (a merge) (Hugging Face .bin)"),
    ],
)
def test_all_files_of_a_model(tmp_path: Path, known: Known, key: str, form: str, text: str) -> None:
    """A checkpoint whose files are all a known model's is that model, for certain."""
    save(BASE, tmp_path, "torch" if form == "bin" else "safetensors")
    for path in tmp_path.glob("*-of-*"):
        known.of_model(path, key, form)
    assert hashed(tmp_path) == Identity(f"{text}; sha256 matches", key, certain=True)


def test_all_files_of_metas(tmp_path: Path, known: Known) -> None:
    """Meta's parts are known files, too."""
    save_meta(BASE, tmp_path, 2, 4)
    for path in tmp_path.glob("*.pth"):
        known.of_model(path, "llama-1-13b", "meta")
    assert hashed(tmp_path) == Identity("LLaMA-1 13B (Meta's files); sha256 matches", "llama-1-13b", certain=True)


def test_some_files_of_a_model(tmp_path: Path, known: Known) -> None:
    """If only some files are known, their number is stated, and the model is not certain."""
    save(BASE, tmp_path, "torch", 3)
    known.of_model(tmp_path / "pytorch_model-00002-of-00003.bin", "llama-2-7b")
    text = "LLaMA-2 7B (Hugging Face .bin); sha256 of 1 of 3 files matches"
    assert hashed(tmp_path) == Identity(text, "llama-2-7b", certain=False)


def test_files_of_two_models(tmp_path: Path, known: Known) -> None:
    """If files are of two models, both are named, and it is neither."""
    save(BASE, tmp_path)
    known.of_model(tmp_path / ONE, "llama-2-7b")
    known.of_model(tmp_path / TWO, "llama-1-7b")
    text = "files of different models: LLaMA-1 7B (Hugging Face .bin), LLaMA-2 7B (Hugging Face .bin); sha256 matches"
    assert hashed(tmp_path) == Identity(text, None, certain=False)


def test_files_of_a_model_and_a_delta(tmp_path: Path, known: Known) -> None:
    """A base's file and a delta's file in one folder are both named."""
    save(BASE, tmp_path, "torch", 3)
    known.of_model(tmp_path / "pytorch_model-00001-of-00003.bin", "llama-1-7b")
    known.of_recipe(tmp_path / "pytorch_model-00003-of-00003.bin", "llava-med-7b")
    assert hashed(tmp_path).text == (
        "files of different models: LLaMA-1 7B (Hugging Face .bin), "
        "the delta of LLaVA-Med v1, 7B, recipe llava-med-7b; sha256 of 2 of 3 files matches"
    )


def test_files_of_a_delta(tmp_path: Path, known: Known) -> None:
    """A delta whose files a recipe lists is that recipe's delta, and no model."""
    save(DELTA, tmp_path)
    for name in (ONE, TWO):
        known.of_recipe(tmp_path / name, "llava-med-7b")
    text = "the delta of LLaVA-Med v1, 7B, recipe llava-med-7b; sha256 matches"
    assert hashed(tmp_path) == Identity(text, None, certain=True)


def test_unknown_files(tmp_path: Path, known: Known) -> None:
    """Unknown files are described by shapes and weights only, and their hashes are said to be unknown."""
    save(BASE, tmp_path, config=False)
    text = f"{SHAPES}; {AS_A_MODEL}; {UNLISTED}"
    assert hashed(tmp_path) == Identity(text, None, certain=False)


def test_some_files_have_hashes(tmp_path: Path, known: Known) -> None:
    """If the cache states hashes of only some files, they are not said to be unknown: the others may be known."""
    snapshot = cached(save(BASE, tmp_path / "base", config=False), {ONE: "a" * 64})
    assert inspect_checkpoint(snapshot).identity.text == f"{SHAPES}; {AS_A_MODEL}"
    both = cached(save(BASE, tmp_path / "both", config=False), {ONE: "a" * 64, TWO: "b" * 64})
    stated = UNLISTED.replace("files", "files (stated by the Hub's cache)")
    assert inspect_checkpoint(both).identity.text == f"{SHAPES}; {AS_A_MODEL}; {stated}"


def test_the_cache_states_without_a_read(tmp_path: Path) -> None:
    """A snapshot's files are identified by the names of their blobs, without reading them; computed hashes are of the bytes."""
    snapshot = cached(save(BASE, tmp_path / "base"), LLAMA_1)
    real = {path.name: sha256_of(path) for path in snapshot.glob("*-of-*")}
    report = inspect_checkpoint(snapshot)
    assert {file.sha256 for file in report.files} == {None}, "what a name says is no hash of the file"
    assert report.identity.model == "llama-1-7b"
    hashes = inspect_checkpoint(snapshot, hash_inputs=True)
    assert {file.name: file.sha256 for file in hashes.files} == real
    assert hashes.identity.model is None, "what the blobs hold is nobody's"


def test_what_is_stated_is_said_to_be_stated(tmp_path: Path) -> None:
    """A hash that is only stated by the cache is not said to match."""
    snapshot = cached(save(BASE, tmp_path / "base"), LLAMA_1)
    assert "sha256 matches" not in inspect_checkpoint(snapshot).identity.text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one checkpoint of each kind; tests must not change them."""
    top = tmp_path_factory.mktemp("made")
    base, delta = save(BASE, top / "base", config=False), save(DELTA, top / "delta", config=False)
    (top / "tiny.toml").write_text(RECIPE)
    apply_delta(base, delta, top / "merge", max_shard_size=4000)
    apply_delta(base, delta, top / "by-recipe", recipe_file=top / "tiny.toml")
    make_delta(base, top / "merge", top / "made-delta")
    convert_checkpoint(base, top / "copy")
    return {path.name: path for path in top.iterdir()}


KINDS = {
    "merge": "a merge that deltaweights made, neither a base nor a delta (as its manifest says)",
    "by-recipe": (
        "a merge that deltaweights made by recipe llava-med-7b, neither a base nor a delta (as its manifest says)"
    ),
    "made-delta": "a delta that deltaweights made (as its manifest says)",
    "copy": f"{SHAPES}; {AS_A_MODEL}",
}


@pytest.mark.parametrize(("kind", "text"), KINDS.items(), ids=KINDS)
def test_kinds_of_manifests(made: dict[str, Path], kind: str, text: str) -> None:
    """A merge and a delta are what their manifests say; a copy is described by its shapes."""
    assert inspect_checkpoint(made[kind]).identity.text == text


def test_a_manifest_in_an_archive(made: dict[str, Path], tmp_path: Path) -> None:
    """The manifest in a zipped merge is read, too."""
    copy = shutil.copytree(made["merge"], tmp_path / "merge")
    assert inspect_checkpoint(archive_of(copy, zipfile.ZIP_STORED)).identity.text == KINDS["merge"]


def test_a_manifest_of_other_tensors(made: dict[str, Path], tmp_path: Path) -> None:
    """A manifest that is malformed, or does not list exactly the tensors in the folder, is ignored."""
    folder = save(BASE, tmp_path / "base", config=False)
    for content in (
        (made["merge"] / "manifest.json").read_bytes(),
        b"{}",
        b"\xff",
        b'{"format": "deltaweights-manifest"}',
    ):
        (folder / "manifest.json").write_bytes(content)
        assert inspect_checkpoint(folder).identity.text == f"{SHAPES}; {AS_A_MODEL}"


def test_a_merge_taken_for_the_base(made: dict[str, Path], tmp_path: Path) -> None:
    """A merge given as the base, and a delta that we made, are named as what their manifests say."""
    report = RecordingReport()
    wide = reference(BASE, delta_tensors(BASE, new_tokens=0, projector=False))
    save(wide, tmp_path / "tuned", config=False)
    make_delta(save(BASE, tmp_path / "base", config=False), tmp_path / "tuned", tmp_path / "delta")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merge")
    twice: dict[str, Any] = {"allow_unproved_base": True, "report": report}
    apply_delta(tmp_path / "merge", tmp_path / "delta", tmp_path / "twice", **twice)
    assert report.notes[:2] == [f"base            {KINDS['merge']}", f"delta           {KINDS['made-delta']}"]


@pytest.mark.parametrize("generation", CONFIGS)
def test_the_config_is_a_hint(tmp_path: Path, generation: str | None) -> None:
    """A config.json is attributed to LLaMA-1 or LLaMA-2 only if both distinguishing values match."""
    save(BASE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIGS[generation]}))
    hint = f"; config.json is that of {generation}" if generation else ""
    assert inspect_checkpoint(tmp_path).identity.text == f"{SHAPES}{hint}; {AS_A_MODEL}"


@pytest.mark.parametrize("content", [None, b"[]", b"{", b'{"max_position_embeddings": 4096}'])
def test_a_config_that_gives_no_hint(tmp_path: Path, content: bytes | None) -> None:
    """A config.json that is missing or malformed, lacks values, or is beside a lone file of another name, is ignored."""
    save(BASE, tmp_path, config=False)
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert inspect_checkpoint(tmp_path).identity.text == f"{SHAPES}; {AS_A_MODEL}"
    torch.save(BASE, tmp_path / "other.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["LLaMA-2"]))
    assert inspect_checkpoint(tmp_path / "other.pth").identity.text == f"{SHAPES}; {AS_A_MODEL}"


ROWS = {
    32000: "",
    32001: "; 32001 rows as Vicuna v0 or Alpaca has",
    32003: "; 32003 rows as LLaVA has",
    32004: "; 32004 rows as LLaVA-Med has",
    128256: "; 128256 rows as LLaMA-3 has",
}


@pytest.mark.parametrize("rows", ROWS)
def test_rows_that_fine_tuning_added(tmp_path: Path, rows: int) -> None:
    """The number of rows identifies the fine-tuned model."""
    grown = {name: torch.full((rows, 2), 0.25).half() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    layers = {f"model.layers.{layer}.mlp.up_proj.weight": torch.full((4, 2), 0.25).half() for layer in range(3)}
    save(grown | layers, tmp_path, config=False)
    shapes = f"3 layers, hidden size 2, {rows} rows: no model that is known by its shapes"
    assert inspect_checkpoint(tmp_path).identity.text == (
        f"{shapes}{ROWS[rows]}; weights as large as a model's (typically 0.25)"
    )


def test_one_layer_is_one_layer(tmp_path: Path) -> None:
    """A single layer is counted in the singular."""
    save(base_tensors(layers=1, vocabulary=24, hidden=16), tmp_path)
    assert inspect_checkpoint(tmp_path).identity.text.startswith("1 layer, hidden size 16")


def hole(path: Path, hidden: int, inner: int, layers: int, rows: int) -> Path:
    """Write a float16 LLaMA of these sizes as a sparse file: gigabytes of zeros that take no disk space."""
    layer = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    shapes |= {f"model.layers.{i}.{n}_layernorm.weight": (hidden,) for i in range(layers) for n in ("input", "post")}
    ends = list(itertools.accumulate(2 * math.prod(shape) for shape in shapes.values()))
    header: dict[str, Any] = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        for (name, shape), begin, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    os.truncate(path, 8 + len(data) + ends[-1])
    return path


SIBLINGS = "shapes of LLaMA-1 7B or LLaMA-2 7B or Vicuna 7B v1.1 (a merge)"

LARGE = {
    "7b": ((4096, 11008, 32, 32000), SIBLINGS),
    "13b": ((5120, 13824, 40, 32000), "shapes of LLaMA-1 13B"),
    "65b": ((8192, 22016, 80, 32000), "shapes of LLaMA-1 65B"),
    "llava-med": ((4096, 11008, 32, 32004), f"{SIBLINGS}; 32004 rows as LLaVA-Med has"),
    "of-none": (
        (4096, 11008, 31, 32000),
        "31 layers, hidden size 4096, 32000 rows: no model that is known by its shapes",
    ),
}


@pytest.mark.parametrize(("sizes", "text"), LARGE.values(), ids=LARGE)
def test_shapes_of_known_models(tmp_path: Path, sizes: tuple[int, int, int, int], text: str) -> None:
    """All known models with the same hidden size and number of layers are named."""
    hole(tmp_path / "model.safetensors", *sizes)
    expected = f"{text}; weights as small as a delta's (typically 0)"
    assert inspect_checkpoint(tmp_path).identity.text == expected


def test_no_embedding(tmp_path: Path) -> None:
    """A checkpoint without LLaMA's embedding is described as such, and no further."""
    save(
        {"encoder.weight": torch.ones(3, 3), "model.layers.0.x": torch.ones(3)},
        tmp_path,
        "safetensors",
        1,
        config=False,
    )
    assert inspect_checkpoint(tmp_path).identity == Identity("no embedding under a LLaMA's name", typical=1.0)


def middle(layers: int = 2) -> Tensors:
    """Return a base of 5 MB or more."""
    return base_tensors(layers, vocabulary=2000, hidden=256)


HELD: dict[str, Callable[[Path], Path]] = {
    "safetensors-of-13-gb": lambda folder: hole(folder / "model.safetensors", 4096, 11008, 32, 32000),
    "torch": lambda folder: save(middle(), folder, "torch", 1),
    "33-shards": lambda folder: save(middle(4), folder, "torch", 33),
    "meta": lambda folder: save_meta(middle(), folder, 1, 64),
    "meta-of-4-parts": lambda folder: save_meta(middle(), folder, 4, 64),
    "stored-zip": lambda folder: archive_of(save(middle(), folder / "x"), zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_inspect_reads_headers_and_samples(tmp_path: Path, hold: Callable[[Path], Path]) -> None:
    """Identifying a checkpoint in any container reads less than 300 kB of it."""
    path = hold(tmp_path)
    with counted_reads() as counts:
        report = inspect_checkpoint(path)
    assert report.bytes > 5_000_000
    assert 0 < sum(counts.values()) < 300_000
    assert report.identity.typical is not None
