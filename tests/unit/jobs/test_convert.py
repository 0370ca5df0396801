"""``convert``: Meta's format or torch files to a Hugging Face folder of safetensors."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from deltaweights.errors import Mismatch, TargetBusy, UsageError
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.manifest.verify import verify
from deltaweights.staging.location import locate_target
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.identity import archive_of
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, load, same_bits, save
from tests.support.reports import RecordingReport
from tests.support.whole_runs import (
    BASE,
    DEFLATED,
    STORED,
    Done,
    json_in,
    line_of,
    merge,
    names_in,
    run_cut_off,
    stamps_below,
    tree_of,
    weights_in,
)


def llama(heads: int = 4, keys: int = 4, epsilon: float = 1e-06) -> tuple[LlamaForCausalLM, Tensors]:
    """Return a tiny LLaMA: the model in float32, and its float16 tensors."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=92,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        rms_norm_eps=epsilon,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config).train(False)
    tensors = {name: (tensor * 4).half() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model, tensors


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[1, 7, 3, 39, 0, 12]])).logits
    return found


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 92,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 40,
}


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


ALWAYS = [
    "DELTAWEIGHTS_NOTICE.txt",
    "README.md",
    "SHA256SUMS",
    "config.json",
    "generation_config.json",
    "manifest.json",
]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_convert_gives_the_original_model(tmp_path: Path, parts: int) -> None:
    """For any number of parts every bit is the original's, transformers loads the folder, and the logits are the same."""
    model, tensors = llama()
    folder = save_meta(tensors, tmp_path / "meta", parts)
    result = convert_checkpoint(folder, tmp_path / "hf", max_shard_size=20_000)
    assert (result.status, result.fates) == ("converted", {"copy": 21, "dropped": 1})
    assert result.dropped == {"base": {"rope.freqs": "buffer"}}
    assert same_bits(load(tmp_path / "hf"), tensors)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    assert json_in(tmp_path / "hf" / "config.json") == CONFIG
    assert AutoConfig.from_pretrained(tmp_path / "hf").rms_norm_eps == 1e-06
    assert json_in(tmp_path / "hf" / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2}
    assert verify(tmp_path / "hf", expect=result.content_digest).ok
    shards = [f"model-{n:05d}-of-{result.shards:05d}.safetensors" for n in range(1, result.shards + 1)]
    assert names_in(tmp_path / "hf") == sorted([*ALWAYS, *shards, "model.safetensors.index.json"])


def test_convert_of_grouped_heads(tmp_path: Path) -> None:
    """A model with fewer key heads than query heads and LLaMA-2's epsilon, as LLaMA-2 70B, is converted correctly."""
    model, tensors = llama(4, 2, 1e-05)
    folder = save_meta(tensors, tmp_path / "meta", 2)
    params = json_in(folder / "params.json") | {"norm_eps": 1e-05}
    (folder / "params.json").write_text(json.dumps(params))
    convert_checkpoint(folder, tmp_path / "hf")
    assert same_bits(load(tmp_path / "hf"), tensors)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    changed = {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "max_position_embeddings": 4096}
    assert json_in(tmp_path / "hf" / "config.json") == CONFIG | changed


def test_convert_with_a_tokenizer(tmp_path: Path) -> None:
    """A tokenizer.model beside Meta's parts is copied unchanged, with the files it needs; other files are not copied."""
    folder = save_meta(llama()[1], tmp_path / "meta")
    (folder / "tokenizer.model").write_bytes(bytes(range(256)) * 9)
    (folder / "checklist.chk").write_text("x")
    convert_checkpoint(folder, tmp_path / "hf")
    target = tmp_path / "hf"
    assert (target / "tokenizer.model").read_bytes() == bytes(range(256)) * 9
    assert json_in(target / "special_tokens_map.json") == SPECIAL
    assert json_in(target / "tokenizer_config.json") == SPECIAL | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "tokenizer_class": "LlamaTokenizer",
    }
    tokenizer = ["special_tokens_map.json", "tokenizer.model", "tokenizer_config.json"]
    assert names_in(target) == sorted([*ALWAYS, "model.safetensors", *tokenizer])
    for method, name in ((STORED, "stored"), (DEFLATED, "deflated")):
        convert_checkpoint(archive_of(folder, method), tmp_path / name)
        assert tree_of(tmp_path / name) == tree_of(target)


def test_a_converted_base_is_the_base(merged_pair: Path, tmp_path: Path) -> None:
    """A merge with a converted base has the same weights as one with Meta's files."""
    folder = save_meta(BASE, tmp_path / "meta", 2)
    convert_checkpoint(folder, tmp_path / "hf")
    merge(tmp_path / "hf", merged_pair / "delta", tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(merged_pair / "out")


def converted(run: Run, base: Path, *more: str) -> Done:
    """Run ``convert`` from a folder to ``hf`` beside it."""
    return run("convert", "--base", base, "--target", "hf", *more, cwd=base.parent)


def test_convert_command(run: Run, tmp_path: Path) -> None:
    """``convert`` prints a summary, or one JSON object; ``verify`` and sha256sum accept the result."""
    _, tensors = llama()
    folder = save_meta(tensors, tmp_path / "meta", 2)
    done = converted(run, folder, "--max-shard-size", "20KB")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(rows) == ["target", "status", "tensors", "content digest", "manifest"]
    assert rows["status"].strip().startswith("converted in ")
    said = done.stderr.splitlines()
    shapes = "2 layers, hidden size 32, 40 rows: no model that is known by its shapes"
    assert said[0].startswith(f"base            {shapes}; weights as large as a model's (typically 0.08")
    assert said[1:3] == ["21 tensors: 21 copied", "dropped from the base (buffer): rope.freqs"]
    assert run("verify", tmp_path / "hf").returncode == 0
    summed = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "hf", check=False)
    assert summed.returncode == 0
    listed = {line.split("  ", 1)[1] for line in (tmp_path / "hf" / "SHA256SUMS").read_text().splitlines()}
    assert listed == {*names_in(tmp_path / "hf")} - {"SHA256SUMS"}
    before = stamps_below(tmp_path / "hf")
    again = converted(run, folder, "--max-shard-size", "20KB", "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "already complete")
    assert stamps_below(tmp_path / "hf") == before
    assert "already there, with other content" in line_of(converted(run, folder, "--dtype", "float32", "-q"), 7)
    replaced = converted(run, folder, "--dtype", "float32", "--overwrite", "--json")
    assert json.loads(replaced.stdout)["status"] == "converted"
    assert same_bits(load(tmp_path / "hf"), {name: tensor.float() for name, tensor in tensors.items()})
    assert json_in(tmp_path / "hf" / "config.json")["torch_dtype"] == "float32"


def test_convert_dry_run(run: Run, tmp_path: Path) -> None:
    """A dry run shows shards and fates and writes nothing, also for a deflated archive."""
    folder = save_meta(llama()[1], tmp_path / "meta", 2)
    archive = archive_of(folder, DEFLATED)
    before = tree_of(tmp_path)
    plans = []
    for base in (folder, archive):
        done = converted(run, base, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(done.stdout))
    assert plans[0]["fates"] == {"copy": 21, "dropped": 1}
    assert [shard["file"] for shard in plans[0]["shards"]] == ["model.safetensors"]
    assert plans[0]["plan"] == plans[1]["plan"]
    assert before == tree_of(tmp_path)
    assert names_in(tmp_path) == ["meta", "meta.zip"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("left", [0, 11, 20])
def test_row66_convert_that_is_killed_goes_on(tmp_path: Path, left: int) -> None:
    """After SIGKILL at any tensor, the same conversion reuses the finished shards and gives the same files."""
    _, tensors = llama()
    archive = archive_of(save_meta(tensors, tmp_path / "meta", 2), DEFLATED)
    convert_checkpoint(archive, tmp_path / "expected", max_shard_size=9000)
    arguments = ("convert", "--base", archive, "--target", tmp_path / "hf", "--max-shard-size", "9000B")
    assert run_cut_off("merging", left, "SIGKILL", *arguments).returncode == -signal.SIGKILL
    place, report = locate_target(tmp_path / "hf"), RecordingReport()
    finished = len(list(place.fragments.iterdir()))
    convert_checkpoint(archive, tmp_path / "hf", max_shard_size=9000, report=report)
    assert tree_of(tmp_path / "hf") == tree_of(tmp_path / "expected")
    said = [note for note in report.notes if "finished already" in note]
    assert len(said) == (finished > 0) == (left > 0)
    assert names_in(tmp_path) == ["expected", "hf", "meta", "meta.zip"]


def test_row69_convert_onto_itself(tmp_path: Path) -> None:
    """A target that is the base, is inside it, or contains it is refused, and the base is unchanged."""
    folder = save_meta(llama()[1], tmp_path / "meta")
    before = tree_of(tmp_path)
    for target in (folder, folder / "hf", tmp_path):
        with refused(TargetBusy, where=target, found=f"input {folder}"):
            convert_checkpoint(folder, target, overwrite=True)
    assert before == tree_of(tmp_path)


def test_convert_of_torch_files(tmp_path: Path) -> None:
    """Torch files become safetensors of the same bits without buffers, with the companion files."""
    folder = save(BASE, tmp_path / "base", "torch", 3)
    (folder / "README.md").write_text("a base")
    (folder / "tokenizer.model").write_bytes(b"\0x")
    (folder / "convert.py").write_text("no")
    report = RecordingReport()
    result = convert_checkpoint(folder, tmp_path / "hf", report=report, hash_inputs=True)
    weights = {name: tensor for name, tensor in BASE.items() if not name.endswith("inv_freq")}
    assert same_bits(load(tmp_path / "hf"), weights)
    assert len(result.dropped["base"]) == 4
    copied = {"config.json", "tokenizer_config.json", "tokenizer.model", "BASE_README.md"}
    assert {*names_in(tmp_path / "hf")} == {*ALWAYS, *copied, "model.safetensors"} - {"generation_config.json"}
    assert (tmp_path / "hf" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (tmp_path / "hf" / "BASE_README.md").read_text() == "a base"
    assert "not copied from the base: convert.py" in report.notes
    recorded = json_in(tmp_path / "hf" / "manifest.json")["inputs"]["base"]
    assert all("sha256" in file for file in recorded["files"].values())
    assert verify(tmp_path / "hf", expect=result.content_digest).ok


@pytest.mark.parametrize(
    ("dtypes", "found"),
    [
        ((torch.float16, torch.float32), "F16 and F32"),
        ((torch.bfloat16, torch.float16), "BF16 and F16"),
        ((torch.float64,), "F64"),
    ],
    ids=["float16-and-float32", "bfloat16-and-float16", "float64"],
)
def test_convert_of_several_dtypes(run: Run, tmp_path: Path, dtypes: tuple[torch.dtype, ...], found: str) -> None:
    """Weights of several dtypes, or of an unsupported one, exit with 2 without ``--dtype``; with it they equal torch's casts."""
    tensors = {f"w{number}": torch.randn(5, 7).to(dtypes[number % len(dtypes)]) for number in range(4)}
    folder = save(tensors, tmp_path / "base")
    assert f"found {found}, expected float16, bfloat16, float32" in line_of(converted(run, folder, "-q"), 2)
    assert names_in(tmp_path) == ["base"]
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        convert_checkpoint(folder, tmp_path / name, dtype=name)
        assert same_bits(load(tmp_path / name), {key: tensor.float().to(dtype) for key, tensor in tensors.items()})
        assert json_in(tmp_path / name / "config.json")["torch_dtype"] == name


def test_convert_without_weights(tmp_path: Path) -> None:
    """Integer tensors, and a checkpoint of buffers only, are refused."""
    save({"q": torch.ones(3, dtype=torch.int8), "w": torch.ones(3)}, tmp_path / "packed", "safetensors", 1)
    with pytest.raises(Mismatch, match=r"tensor q: .*found dtype I8, expected one of F16 BF16 F32 F64"):
        convert_checkpoint(tmp_path / "packed", tmp_path / "hf")
    save({"a.rotary_emb.inv_freq": torch.ones(3)}, tmp_path / "empty", "safetensors", 1)
    with refused(Mismatch):
        convert_checkpoint(tmp_path / "empty", tmp_path / "hf")
    with refused(UsageError):
        convert_checkpoint(tmp_path / "empty", "")
    assert names_in(tmp_path) == ["empty", "packed"]
