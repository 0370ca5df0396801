"""Tests that a merge is reproducible, and that other libraries read it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights.errors import CheckFailed
from deltaweights.staging.location import locate_target
from deltaweights.util.text import compact_pieces
from tests.support.base_pairs import wrong_pair
from tests.support.limits import PATIENCE
from tests.support.merging import (
    Killed,
    block_size,
    files_of,
    killed_after,
    merge,
    merge_and_load,
    merge_tensors,
    model_of,
    save_pair,
    small_base,
)
from tests.support.pairs import base_tensors, delta_tensors, reference, same_bits, save
from tests.support.prepared import prepare_merge


def test_the_model_does_not_depend_on_how_the_inputs_were_stored(tmp_path: Path) -> None:
    """The same tensors and options give the same weights, index, configuration and content digest, whatever held them."""
    base = base_tensors()
    delta = delta_tensors(base)
    models, digests = [], set()
    roads = [("torch", "torch", 1, 1), ("safetensors", "torch", 3, 2), ("torch", "safetensors", 2, 3)]
    for number, (of_base, of_delta, base_shards, delta_shards) in enumerate(roads):
        folder = tmp_path / str(number)
        order = 1 if number % 2 else -1
        save(dict(list(base.items())[::order]), folder / "base", of_base, base_shards)
        save(dict(list(delta.items())[::order]), folder / "delta", of_delta, delta_shards)
        with block_size(10 ** (number + 2)):
            merged = merge_and_load(folder, workers=number + 1, max_shard_size=30_000)
        models.append(model_of(merged.folder))
        digests.add(merged.result.content_digest)
    assert {"model.safetensors.index.json", "config.json"} < set(models[0])
    assert models[1:] == models[:-1]
    assert len(digests) == 1


RUN = """
import sys
from deltaweights.jobs.apply import apply_delta
apply_delta(*sys.argv[1:4], workers=int(sys.argv[4]), max_shard_size=30_000)
"""


def test_nothing_written_depends_on_the_surroundings(tmp_path: Path) -> None:
    """The same input files give the same bytes in every file, whatever the paths, folder, clock, zone, umask and locale."""
    base = base_tensors()
    save(base, tmp_path / "one" / "base")
    save(delta_tensors(base), tmp_path / "one" / "delta")
    other = tmp_path / "another place"
    shutil.copytree(tmp_path / "one", other)
    for path in other.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    one = merge_and_load(tmp_path / "one", workers=1, max_shard_size=30_000)
    environment = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", RUN, "base", "./delta", "../target of another name", "4"]
    subprocess.run(command, check=True, cwd=other, env=os.environ | environment, umask=0o077, timeout=PATIENCE)
    assert files_of(tmp_path / "target of another name") == files_of(one.folder)


def test_manifest_and_plan_name_no_place(tmp_path: Path) -> None:
    """No part of the target's path is in any file of the target, and two places have one plan."""
    base = small_base()
    merged = merge_tensors(tmp_path / "some-folder", base, delta_tensors(base))
    for name, data in files_of(merged.folder).items():
        assert b"some-folder" not in data, name
        assert str(tmp_path).encode() not in data, name
    shutil.copytree(tmp_path / "some-folder", tmp_path / "elsewhere")
    plans = []
    for place in ("some-folder", "elsewhere"):
        with prepare_merge(tmp_path / place / "base", tmp_path / place / "delta", tmp_path / place / "x") as job:
            plans.append("".join(compact_pieces(job.plan.document)))
            assert place not in plans[-1]
    assert plans[0] == plans[1]


def test_the_manifest_does_not_depend_on_the_order_in_which_shards_were_finished(tmp_path: Path) -> None:
    """A run that resumes with later shards finished before earlier ones writes the manifest of an uninterrupted run."""
    base = small_base()
    delta = delta_tensors(base)
    for tensor in delta.values():
        tensor.view(-1)[0] = torch.inf  # so that every shard has something to tell
    whole = merge_tensors(tmp_path, base, delta, max_shard_size=2500)
    assert len(whole.result.nonfinite) >= 4
    with pytest.raises(CheckFailed):
        merge_and_load(tmp_path, "resumed", max_shard_size=2500, strict=True)
    place = locate_target(tmp_path / "resumed")
    first = sorted(place.fragments.iterdir())[0]
    first.unlink()
    resumed = merge_and_load(tmp_path, "resumed", max_shard_size=2500)
    assert list(resumed.result.nonfinite) == list(whole.result.nonfinite)
    assert files_of(resumed.folder) == files_of(whole.folder)


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    """``from_pretrained`` loads a merged plain LLaMA: its parameters are the reference's, and so are its logits."""
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=92, num_hidden_layers=2, num_attention_heads=4, dtype="float16"
    )
    base = base_tensors()
    delta = delta_tensors(base, new_tokens=0, projector=False)
    save(base, tmp_path / "base", config=False)
    config.save_pretrained(save(delta, tmp_path / "delta", config=False))
    folder = merge_and_load(tmp_path, max_shard_size=30_000).folder
    expected = reference(base, delta)
    config.save_pretrained(save(expected, tmp_path / "tuned", "safetensors", 1, config=False))
    model, tuned = (
        LlamaForCausalLM.from_pretrained(path, dtype=torch.float16) for path in (folder, tmp_path / "tuned")
    )
    assert same_bits(model.state_dict(), expected)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = model(tokens).logits
        assert torch.equal(logits, tuned(tokens).logits)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_the_safetensors_library_reads_each_shard_of_the_index(tmp_path: Path) -> None:
    """The index names every tensor once, in the shard that holds it, and its total is the bytes of all tensors."""
    base = base_tensors()
    merged = merge_tensors(tmp_path, base, delta_tensors(base), max_shard_size=30_000)
    index = json.loads((merged.folder / "model.safetensors.index.json").read_bytes())
    found = {name: path.name for path in merged.folder.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.tensors.values())


@pytest.mark.parametrize("finished", [1, 3])
def test_a_run_that_was_cut_off_counts_like_one_that_was_not(tmp_path: Path, finished: int) -> None:
    """A run that dies after some shards and goes on writes the manifest of an uninterrupted one: proof, numbers and all."""
    base, delta = wrong_pair(tmp_path)
    for tensor in list(delta.values())[1::3]:
        tensor.view(-1)[0] = torch.inf
    base["model.layers.0.mlp.up_proj.weight"] = torch.full_like(base["model.layers.0.mlp.up_proj.weight"], 0.5)
    for folder in ("base", "delta"):
        shutil.rmtree(tmp_path / folder)
    save_pair(tmp_path, base, delta)
    options: dict[str, Any] = {"max_shard_size": 2500, "workers": 2, "allow_unproved_base": True}
    whole, _ = merge(tmp_path, "whole", **options)
    assert whole.shards > finished + 1
    with killed_after(finished), pytest.raises(Killed):
        merge(tmp_path, **options)
    resumed, told = merge(tmp_path, **options)
    assert any(f"{finished} of {whole.shards} shards" in note for note in told.notes)
    assert resumed.proof == whole.proof
    assert whole.nonfinite
    assert whole.uniform
    assert files_of(tmp_path / "merged") == files_of(tmp_path / "whole")
