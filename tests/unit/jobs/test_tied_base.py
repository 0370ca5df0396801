"""Tests of pairs whose base ties its embeddings: it stores one of embedding and head, and has both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights import apply_part, finish_parts
from deltaweights.errors import Mismatch
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from deltaweights.util.text import compact_pieces
from tests.support.errors import refused
from tests.support.merging import files_of, manifest_of, merge
from tests.support.pairs import Tensors, load, reference, same_bits, save
from tests.support.prepared import prepare_merge
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.fidelity

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tied() -> LlamaForCausalLM:
    """Make a tiny LLaMA in float16 whose head is its embedding."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=92,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )
    model.load_state_dict({name: tensor.half() for name, tensor in model.state_dict().items()}, assign=True)
    model.tie_weights()
    return model


def state_of(model: LlamaForCausalLM) -> Tensors:
    """Return the tensors of a loaded model, which the original scripts walk: a tied one has its head, too."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def delta_of(base: Tensors, new_tokens: int) -> Tensors:
    """Return the delta of a model that was tuned without the tie, and may have new tokens."""
    torch.manual_seed(1)
    delta = {}
    for name, tensor in base.items():
        delta[name] = (tensor.float() + torch.randn(tensor.shape) * 4e-4).half() - tensor
        if name in {EMBEDDING, HEAD} and new_tokens:
            delta[name] = torch.cat([delta[name], torch.randn(new_tokens, tensor.shape[1]).half()])
    assert not torch.equal(delta[EMBEDDING], delta[HEAD])
    return delta


def write_config(folder: Path, value: Any = True) -> None:
    """Say in config.json whether the embeddings are tied; None: nothing of it."""
    stated = {} if value is None else {"tie_word_embeddings": value}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **stated}))


def saved_by_transformers(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)


def saved_by_torch(model: LlamaForCausalLM, folder: Path) -> None:
    """Save both names, of one storage."""
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_config(folder)


def torch_without_the_head(model: LlamaForCausalLM, folder: Path) -> None:
    save({name: tensor for name, tensor in state_of(model).items() if name != HEAD}, folder, "torch", 2, config=False)
    write_config(folder)


def shards_without_the_embedding(model: LlamaForCausalLM, folder: Path) -> None:
    """Save as ``safetensors.torch.save_model`` does, which keeps the name that comes first."""
    tensors = {name: tensor for name, tensor in state_of(model).items() if name != EMBEDDING}
    save(tensors, folder, "safetensors", 2, config=False)
    write_config(folder)


FORMS: dict[str, tuple[Callable[[LlamaForCausalLM, Path], None], str | None]] = {
    "transformers": (saved_by_transformers, HEAD),
    "torch, both names": (saved_by_torch, None),
    "torch, no head": (torch_without_the_head, HEAD),
    "safetensors, no embedding": (shards_without_the_embedding, EMBEDDING),
}
"""How a tied base is stored, and which of its tensors is not."""


@pytest.mark.parametrize("new_tokens", [0, 4])
@pytest.mark.parametrize("form", FORMS)
def test_the_head_of_a_tied_base_is_its_embedding(
    tmp_path: Path, tied: LlamaForCausalLM, form: str, new_tokens: int
) -> None:
    """However a tied base is stored, the result is that of the loaded model; what is not stored is said, and in the manifest."""
    save_base, absent = FORMS[form]
    save_base(tied, tmp_path / "base")
    whole = state_of(tied)
    delta = delta_of(whole, new_tokens)
    save(delta, tmp_path / "delta", "torch", 2)
    result, told = merge(tmp_path)
    assert same_bits(load(tmp_path / "merged"), reference(whole, delta))
    assert verify(tmp_path / "merged", expect=result.content_digest).ok
    stored = {EMBEDDING: HEAD, HEAD: EMBEDDING}.get(absent or "")
    notes = [note for note in told.notes if "tied" in note]
    assert len(notes) == (absent is not None)
    assert all(f"its {stored} is its {absent}, too" in note for note in notes)
    rows = manifest_of(tmp_path / "merged")["tensors"]
    assert {name: row["base"] for name, row in rows.items() if "base" in row} == ({absent: stored} if absent else {})
    assert told.warnings == []
    read = json.loads((tmp_path / "merged" / "manifest.json").read_bytes())["inputs"]["base"]["tensors"]
    assert absent not in read


@pytest.mark.parametrize("value", [None, False, "true", 1])
def test_a_base_without_head_that_is_not_tied_is_refused(tmp_path: Path, tied: LlamaForCausalLM, value: Any) -> None:
    """Only ``true`` in config.json makes up for a missing head; the remedy, to say so there, works."""
    torch_without_the_head(tied, tmp_path / "base")
    write_config(tmp_path / "base", value)
    save(delta_of(state_of(tied), 0), tmp_path / "delta")
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path)
    for fact in (f"tensor {HEAD}", f"the base has no {HEAD}", "tie_word_embeddings: true", "full checkpoint"):
        assert fact in str(caught.value)
    write_config(tmp_path / "base")
    assert merge(tmp_path)[0].status == "merged"


def test_a_delta_without_head_on_a_base_with_one_is_refused(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """A tied delta does not fit a base that is not tied, and the error says which is which."""
    base = state_of(tied)
    delta = {name: tensor for name, tensor in delta_of(base, 0).items() if name != HEAD}
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    with pytest.raises(Mismatch, match=f"the delta has no {HEAD}: it ties its embeddings, and the base does not"):
        merge(tmp_path)


def test_a_tie_of_other_weights_in_the_folder_does_not_count(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """The config.json beside a weights file of no usual name may be another model's."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({name: t for name, t in state_of(tied).items() if name != HEAD}, folder / "weights.safetensors")
    write_config(folder)
    save(delta_of(state_of(tied), 0), tmp_path / "delta")
    with (
        pytest.raises(Mismatch, match=f"the base has no {HEAD}"),
        prepare_merge(folder / "weights.safetensors", tmp_path / "delta", tmp_path / "merged"),
    ):
        pass


@pytest.mark.parametrize("form", FORMS)
def test_make_and_check_base_pair_alike(tmp_path: Path, tied: LlamaForCausalLM, form: str) -> None:
    """A delta that is made on a tied base is that on the loaded model, brings the target back, and proves the base."""
    FORMS[form][0](tied, tmp_path / "base")
    whole = state_of(tied)
    target = reference(whole, delta_of(whole, 4))
    save(target, tmp_path / "target", "safetensors", 1)
    made = make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    expected = {name: tensor.clone() for name, tensor in target.items()}
    for name, tensor in whole.items():
        expected[name][: tensor.shape[0]] -= tensor
    assert same_bits(load(tmp_path / "delta"), expected)
    result, _ = merge(tmp_path)
    assert made.inexact is not None
    inexact = sum(made.inexact.values())
    merged = load(tmp_path / "merged")
    assert sum(int((merged[name] != target[name]).sum()) for name in target) == inexact
    told = RecordingReport()
    looked = check_base(tmp_path / "base", tmp_path / "delta", report=told)
    assert looked.proof == result.proof
    assert looked.proof is not None
    assert looked.proof.weights == sum(tensor.numel() for tensor in whole.values())
    assert any("tied" in note for note in told.notes) == (FORMS[form][1] is not None)


def test_parts_and_finish_write_the_same(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """Parts of a merge on a tied base write the files of one process."""
    saved_by_transformers(tied, tmp_path / "base")
    save(delta_of(state_of(tied), 4), tmp_path / "delta")
    merge(tmp_path, max_shard_size=20_000)
    for number in (1, 2):
        apply_part(tmp_path / "base", tmp_path / "delta", tmp_path / "parts", part=f"{number}/2", max_shard_size=20_000)
    finish_parts(tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "merged")


def test_the_plan_says_where_the_head_is_from(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """The plan of a tied base has another identity, by its row of the head alone, and that of another base has no such row."""
    whole = state_of(tied)
    save(delta_of(whole, 0), tmp_path / "delta")
    saved_by_transformers(tied, tmp_path / "tied")
    save(whole, tmp_path / "whole")
    rows = {}
    for base in ("tied", "whole"):
        with prepare_merge(tmp_path / base, tmp_path / "delta", tmp_path / "merged") as prepared:
            assert prepared.plan.identity.startswith("plan1:")
            document = json.loads("".join(compact_pieces(prepared.plan.document)))
        rows[base] = {name: row for shard in document["shards"] for name, row in shard["tensors"].items()}
    assert rows["tied"][HEAD] == {**rows["whole"][HEAD], "base": EMBEDDING}
    del rows["tied"][HEAD], rows["whole"][HEAD]
    assert rows["tied"] == rows["whole"]


def test_a_tied_delta_is_added_once(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """Where embedding and head of the delta share their storage, each is added to once, not twice as by the original loop."""
    whole = state_of(tied)
    delta = delta_of(whole, 0)
    delta[HEAD] = delta[EMBEDDING]
    save(delta, tmp_path / "delta", "torch", 1)
    saved_by_torch(tied, tmp_path / "base")
    merge(tmp_path)
    merged = load(tmp_path / "merged")
    assert torch.equal(merged[EMBEDDING], delta[EMBEDDING] + whole[EMBEDDING])
    assert torch.equal(merged[HEAD], merged[EMBEDDING])


@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("differ", [True, False])
def test_a_contradiction_is_a_warning(tmp_path: Path, tied: LlamaForCausalLM, role: str, differ: bool) -> None:
    """If config.json ties embedding and head, but both are stored and differ, there is a warning; not if they are the same."""
    base = state_of(tied)
    delta = delta_of(base, 0)
    if not differ:
        delta[HEAD] = delta[EMBEDDING].clone()
    elif role == "base":
        base[HEAD] = base[HEAD] + 1
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    write_config(tmp_path / role)
    _, told = merge(tmp_path, allow_unproved_base=True)  # the sums refute a head that was changed
    found = [warning for warning in told.warnings if warning.startswith(f"{tmp_path / role}: config.json")]
    assert len(found) == differ


def test_row58_a_base_without_head_is_refused_in_one_line(tmp_path: Path, tied: LlamaForCausalLM) -> None:
    """The refusal names the first tensor, its file and what was found and expected."""
    shards_without_the_embedding(tied, tmp_path / "base")
    write_config(tmp_path / "base", value=False)
    save(delta_of(state_of(tied), 0), tmp_path / "delta", "torch", 1)
    with refused(Mismatch) as caught:
        merge(tmp_path)
    assert str(caught.value).startswith(
        f"delta pytorch_model.bin: tensor {EMBEDDING}: is in the delta, not in the base"
    )
    assert f"the base has no {EMBEDDING}" in str(caught.value)
