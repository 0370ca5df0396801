"""Folders without weights of ours: what each is, and what to give or run instead; twins; litter."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.checkpoint.foreign.listing import HEAD_BYTES, FolderListing, Layout, Subject
from deltaweights.checkpoint.foreign.recognise import recognise
from deltaweights.checkpoint.layout_names import EXPECTED
from deltaweights.errors import CheckFailed, MalformedInput, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.listing import list_checkpoint
from deltaweights.manifest.verify import verify
from deltaweights.signing.folder import read_signature, sign_folder
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, make_pair, save
from tests.support.signing import make_key

pytestmark = pytest.mark.diagnosis

TENSORS: Tensors = {"a": torch.ones(2), "b": torch.full((3,), 2.0)}
SAFE, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
COMMIT, OLDER = "a" * 40, "b" * 40
MODEL = "models--acme--llama"
WEIGHTS = b"\x10\0\0\0\0\0\0\0{}              "
"""An empty safetensors file."""
CONFIG = b'{"model_type": "llama"}'
CODED = bytes(a ^ b for a, b in zip(b'{"model_type": "llama", 1', b'{"model_type": "opt", "h"', strict=True))
EASYLM = b"\x92\x95\xa6params\xa5model\xa1h"
MADE_FROM = "give the checkpoint that it was made from"

Files = Mapping[str, bytes]
Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Row:
    """The files of a folder ``given``, what it is, and what of ``found`` and ``remedy`` tells. AT stands for the folder's path."""

    files: Files
    layout: Layout
    found: str
    remedy: str
    given: str = "model"


def below(*paths: str) -> Files:
    """Return weights at these paths."""
    return dict.fromkeys(paths, WEIGHTS)


def cache(snapshots: Mapping[str, Files], main: str | None = COMMIT, more: Files | None = None) -> Files:
    """Return a repository in the Hub's cache."""
    files = {f"snapshots/{commit}/{name}": data for commit, each in snapshots.items() for name, data in each.items()}
    return {**files, **({} if main is None else {"refs/main": main.encode()}), "blobs/0": b"", **(more or {})}


def inside(folder: str, files: Files) -> Files:
    """Return files one folder further down."""
    return {f"{folder}/{name}": data for name, data in files.items()}


ROWS: dict[str, Row] = {
    # One or two folders down.
    "meta-in-7B": Row(
        {"tokenizer.model": b"\n", **below("7B/consolidated.00.pth"), "7B/params.json": b"{}"},
        Layout.CHECKPOINT_BELOW,
        "weights in 7B/ (consolidated.00.pth)",
        "give AT/7B",
    ),
    "archive-in-its-own-name": Row(
        below(f"model/{SAFE}"), Layout.CHECKPOINT_BELOW, f"weights in model/ ({SAFE})", "give AT/model"
    ),
    "two-down": Row(
        below(f"data/llama/{BIN}"), Layout.CHECKPOINT_BELOW, "weights in data/llama/", "give AT/data/llama"
    ),
    "several-sizes": Row(
        below("7B/consolidated.00.pth", "13B/consolidated.00.pth", "13B/consolidated.01.pth"),
        Layout.CHECKPOINT_BELOW,
        "weights in 7B/, 13B/",
        "give the one you mean: AT/7B or AT/13B",
    ),
    "trainer-checkpoints": Row(
        {"trainer_state.json": b"{}", **below(f"checkpoint-9/{SAFE}", f"checkpoint-100/{INDEX}")},
        Layout.CHECKPOINT_BELOW,
        "weights in checkpoint-9/, checkpoint-100/",
        "AT/checkpoint-9 or AT/checkpoint-100",
    ),
    "litter-beside": Row(
        {".DS_Store": b"\0", "__MACOSX/m/._model.safetensors": b"\0", **below(f"m/{SAFE}")},
        Layout.CHECKPOINT_BELOW,
        f"weights in m/ ({SAFE})",
        "give AT/m",
    ),
    # The Hub's cache.
    "cache-repository": Row(
        cache({COMMIT: below(SAFE), OLDER: below(SAFE)}),
        Layout.HUB_REPOSITORY,
        "blobs, refs and snapshots",
        f"give its snapshot, AT/snapshots/{COMMIT}",
        given=MODEL,
    ),
    "cache-repository-no-ref": Row(
        cache({OLDER: below(SAFE)}, main=None),
        Layout.HUB_REPOSITORY,
        "blobs, refs and snapshots",
        f"give its snapshot, AT/snapshots/{OLDER}",
        given=MODEL,
    ),
    "cache-repository-main-without-weights": Row(
        cache({COMMIT: {"config.json": CONFIG}, OLDER: {"config.json": CONFIG}}, more={"blobs/1.incomplete": b""}),
        Layout.HUB_REPOSITORY,
        "1 unfinished in blobs, without weights",
        "fetch them: deltaweights download acme/llama",
        given=MODEL,
    ),
    "cache-repository-two-tags": Row(
        cache({COMMIT: below(SAFE), OLDER: below(BIN)}, main="c" * 40),
        Layout.HUB_REPOSITORY,
        "2 have weights",
        f"AT/snapshots/{COMMIT} or AT/snapshots/{OLDER}",
        given=MODEL,
    ),
    "cache": Row(
        {"version.txt": b"1", **inside(MODEL, cache({COMMIT: below(SAFE)}))},
        Layout.HUB_CACHE,
        f"the Hub's cache, with {MODEL}",
        f"give AT/{MODEL}/snapshots/{COMMIT}",
        given="hub",
    ),
    "cache-of-several": Row(
        {**inside(MODEL, cache({COMMIT: below(SAFE)})), **inside("models--b--c-d", cache({COMMIT: below(BIN)}))},
        Layout.HUB_CACHE,
        MODEL,
        "by its id (acme/llama or b/c-d), or its snapshot, such as AT/models--",
        given="hub",
    ),
    "cache-above-hub": Row(
        {"token": b"hf", **inside(f"hub/{MODEL}", cache({COMMIT: below(SAFE)}))},
        Layout.HUB_CACHE,
        "the folder of the Hub's cache",
        f"give AT/hub/{MODEL}/snapshots/{COMMIT}",
        given="huggingface",
    ),
    "cache-of-a-dataset": Row(
        cache({COMMIT: {"a.parquet": b"PAR1"}}),
        Layout.HUB_REPOSITORY,
        "a dataset in the Hub's cache",
        "give a model's folder",
        given="datasets--acme--words",
    ),
    # Adapters, projectors, other codings.
    "peft": Row(
        {"adapter_config.json": b'{"base_model_name_or_path": "acme/llama"}', "adapter_model.bin": b"PK\3\4"},
        Layout.ADAPTER,
        "a LoRA or other PEFT adapter (adapter_config.json, adapter_model.bin) of acme/llama",
        "AutoPeftModelForCausalLM.from_pretrained('AT').merge_and_unload().save_pretrained('OUT'), and give OUT",
    ),
    "peft-without-a-base": Row(
        {"adapter_config.json": b"{", "adapter_model.safetensors": WEIGHTS},
        Layout.ADAPTER,
        "adapter_model.safetensors)",
        "peft",
    ),
    "llava-lora": Row(
        {"adapter_config.json": b"{}", "non_lora_trainables.bin": b"PK\3\4", "config.json": CONFIG},
        Layout.ADAPTER,
        "non_lora_trainables.bin",
        "LLaVA's scripts/merge_lora_weights.py --model-path AT --model-base BASE",
    ),
    "projector": Row(
        {"mm_projector.bin": b"PK\3\4", "config.json": CONFIG},
        Layout.PROJECTOR,
        "LLaVA's projector alone",
        "beside the weights",
    ),
    "xor-below": Row(
        {
            "xor_codec.py": b"import os",
            "README.md": b"#",
            "enc/config.json": CODED,
            "enc/pytorch_model.bin.index.json": b"\0" * 9,
        },
        Layout.XOR,
        "an XOR payload in enc/ (xor_codec.py beside it)",
        "python xor_codec.py OUT AT/enc BASE",
    ),
    "xor-itself": Row(
        {
            "config.json": CODED,
            "pytorch_model.bin.index.json": b"\0" * 9,
            "pytorch_model-00001-of-00001.bin": b"\0" * 99,
        },
        Layout.XOR,
        "an XOR payload (config.json is no text)",
        "python xor_codec.py OUT AT BASE",
    ),
    "encrypted": Row(
        {f"pytorch_model.bin.{'0' * 64}.enc": b"?", f"config.json.{'1' * 64}.enc": b"?"},
        Layout.ENCRYPTED,
        "files encrypted with Meta's weights (config.json.",
        "decrypt.py and Meta's consolidated.00.pth",
    ),
    # Other formats.
    "gguf": Row(
        {"llama-7b.Q4_K_M.gguf": b"GGUF\3"}, Layout.GGUF, "GGUF of llama.cpp (llama-7b.Q4_K_M.gguf)", MADE_FROM
    ),
    "gguf-of-any-name": Row({"blob": b"GGUF\3\0\0\0"}, Layout.GGUF, "GGUF of llama.cpp (blob)", MADE_FROM),
    "ggml": Row({"ggml-model-q4_0.bin": b"tjgg\1\0"}, Layout.GGML, "GGML of llama.cpp", MADE_FROM),
    "ggml-of-any-name": Row({"vicuna.bin": b"lmgg\0\0"}, Layout.GGML, "GGML of llama.cpp (vicuna.bin)", MADE_FROM),
    "flax": Row(
        {"flax_model.msgpack": b"\x81\xa5"}, Layout.FLAX, "flax weights", "from_pretrained('AT', from_flax=True)"
    ),
    "koala": Row(
        {"koala_7b_diff_v2": EASYLM, "README.md": b"#"},
        Layout.EASYLM,
        "EasyLM writes, such as Koala's diffs (koala_7b_diff_v2)",
        "EasyLM.scripts.diff_checkpoint --recover_diff=True",
    ),
    "orbax": Row({"_METADATA": b"{}", "manifest.ocdbt": b"\x0c"}, Layout.ORBAX, "a JAX checkpoint of Orbax", MADE_FROM),
    "tensorflow": Row(
        {"tf_model.h5": b"\x89HDF", "config.json": CONFIG},
        Layout.TENSORFLOW,
        "TensorFlow weights (tf_model.h5)",
        "from_tf=True",
    ),
    "tensorflow-1": Row(
        {"model.ckpt-100.index": b"", "model.ckpt-100.data-00000-of-00001": b""},
        Layout.TENSORFLOW,
        "model.ckpt-100.index",
        MADE_FROM,
    ),
    "onnx": Row(
        {"model.onnx": b"\x08", "model.onnx_data": b"", "config.json": CONFIG}, Layout.ONNX, "an ONNX model", MADE_FROM
    ),
    "numpy": Row({"weights.npz": b"PK\3\4"}, Layout.NUMPY, "NumPy arrays (weights.npz)", MADE_FROM),
    "diffusers": Row(
        {"model_index.json": b"{}", **below("unet/diffusion.safetensors", f"text_encoder/{SAFE}")},
        Layout.DIFFUSERS,
        "a pipeline of Diffusers",
        "give the folder of one model in it: AT/text_encoder",
    ),
    # What training leaves.
    "deepspeed": Row(
        {
            "zero_to_fp32.py": b"",
            "latest": b"global_step8",
            "global_step16/mp_rank_00_model_states.pt": b"",
            "global_step8/mp_rank_00_model_states.pt": b"",
            "global_step8/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": b"",
        },
        Layout.DEEPSPEED,
        "a DeepSpeed checkpoint (global_step8/, global_step16/",
        "run python AT/zero_to_fp32.py AT OUT -t global_step8, and give OUT",
    ),
    "deepspeed-step": Row(
        {"zero_pp_rank_0_mp_rank_00_model_states.pt": b"", "zero_pp_rank_0_mp_rank_00_optim_states.pt": b""},
        Layout.DEEPSPEED,
        "a DeepSpeed checkpoint",
        "python -m deepspeed.utils.zero_to_fp32 UP OUT -t global_step7",
        given="global_step7",
    ),
    "deepspeed-without-zero": Row(
        {"mp_rank_00_model_states.pt": b""}, Layout.DEEPSPEED, "(mp_rank_00_model_states.pt)", "torch.save its 'module'"
    ),
    "deepspeed-script-alone": Row(
        {"zero_to_fp32.py": b"", "config.json": CONFIG}, Layout.DEEPSPEED, "what DeepSpeed left", "global_step"
    ),
    "fsdp-in-accelerate": Row(
        {
            "pytorch_model_fsdp_0/__0_0.distcp": b"PK",
            "pytorch_model_fsdp_0/.metadata": b"\x80\2X\5\0\0\0modelq",
            "optimizer_0/__0_0.distcp": b"",
        },
        Layout.DISTRIBUTED,
        "pytorch_model_fsdp_0/__0_0.distcp",
        "run accelerate merge-weights AT/pytorch_model_fsdp_0 OUT",
    ),
    "megatron": Row(
        {"latest_checkpointed_iteration.txt": b"5", "iter_0000005/mp_rank_00/model_optim_rng.pt": b""},
        Layout.MEGATRON,
        "a checkpoint of Megatron (iter_0000005/mp_rank_00/model_optim_rng.pt)",
        "export it to Hugging Face's layout",
    ),
    # Not whole, or not named as expected.
    **{
        f"unfinished-{suffix}": Row(
            {f"{SAFE}.{suffix}": b"", "config.json": CONFIG},
            Layout.UNFINISHED,
            f"not finished ({SAFE}.{suffix})",
            "same download again",
        )
        for suffix in ("incomplete", "crdownload", "part", "aria2")
    },
    "unfinished-local-dir": Row(
        {"config.json": CONFIG, ".cache/huggingface/download/x.0abc.incomplete": b""},
        Layout.UNFINISHED,
        "x.0abc.incomplete",
        "again",
    ),
    "shards-without-index": Row(
        below(ONE, TWO), Layout.NO_INDEX, f"2 of 2 shards ({ONE}), without {INDEX}", f"fetch {INDEX}, from where"
    ),
    "a-shard-alone": Row(
        below("pytorch_model-00002-of-00003.bin"), Layout.NO_INDEX, "1 of 3 shards", "and the other shards"
    ),
    "other-name": Row(
        {"config.json": CONFIG, **below("consolidated.safetensors"), "optimizer.pt": b""},
        Layout.OTHER_NAMES,
        "weights under other names (consolidated.safetensors)",
        "give the file itself: AT/consolidated.safetensors",
    ),
    "other-names": Row(below("a.pth", "b.pth"), Layout.OTHER_NAMES, "(a.pth, b.pth)", "AT/a.pth or AT/b.pth"),
    "zip": Row(
        {"delta.zip": b"PK\3\4"}, Layout.ARCHIVE, "an archive (delta.zip)", "give the archive itself: AT/delta.zip"
    ),
    "tar": Row({"robin-7b.tar.gz": b"\x1f\x8b"}, Layout.ARCHIVE, "an archive (robin-7b.tar.gz)", "unpack it"),
    "gguf-in-its-own-name": Row({"m/m.gguf": b"GGUF"}, Layout.GGUF, "in m/, GGUF of llama.cpp (m.gguf)", MADE_FROM),
    "configuration": Row(
        {"config.json": CONFIG, "tokenizer.model": b"\n"},
        Layout.CONFIGURATION,
        "without weights (config.json, tokenizer.model)",
        "fetch",
    ),
    "dataset": Row(
        {"train-00000-of-00001.parquet": b"PAR1", "README.md": b"#"}, Layout.DATASET, "a dataset", "folder of a model"
    ),
    "source-code": Row(
        {"pyproject.toml": b"", "llava/model.py": b""}, Layout.SOURCE_CODE, "source code (pyproject.toml)", "folder of"
    ),
    "clone": Row(
        {".git/HEAD": b"ref", ".gitattributes": b""},
        Layout.NO_CHECKOUT,
        "a git clone",
        "run git -C AT checkout HEAD -- . and",
    ),
    "litter-alone": Row(
        {".DS_Store": b"\0"}, Layout.EMPTY, "an empty folder", "give the folder that holds the base's weights"
    ),
    "unknown": Row({"notes.txt": b"x"}, Layout.UNKNOWN, "notes.txt", "a README alone is not a checkpoint"),
}


def write(files: Files, folder: Path) -> Path:
    """Write files at their paths below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_folder_without_weights_is_named(tmp_path: Path, row: Row) -> None:
    """The layout is named in one line, with what to give or run; and the same is said from the listing alone, without a disk."""
    folder = write(row.files, tmp_path / row.given)
    with refused(MalformedInput, where=folder, problem="no weights here") as caught:
        open_checkpoint(folder, "base")
    error = caught.value
    remedy = row.remedy.replace("AT", str(folder)).replace("UP", str(tmp_path))
    assert row.found in str(error.found)
    assert remedy in str(error.remedy)
    assert str(error).count("\n") == 0
    assert row.layout is Layout.XOR or error.expected == EXPECTED
    kept = {name: data for name, data in row.files.items() if ".DS_Store" not in name and "__MACOSX" not in name}
    heads = {name: data[:HEAD_BYTES] for name, data in kept.items()}
    known = recognise(Subject(str(folder), FolderListing.of({n: len(d) for n, d in kept.items()}), heads))
    assert (known.layout, known.found) == (row.layout, error.found)
    assert known.remedy in str(error.remedy)


GIVEN = re.compile(r"(?:give(?: its snapshot,| the archive itself:| the file itself:)?|such as) (/\S+)$")


@pytest.mark.parametrize(
    "files",
    [
        lambda m: inside("7B", m),
        lambda m: inside("a/b", m),
        lambda m: {"other.safetensors": m[SAFE]},
        lambda m: cache({COMMIT: m}),
        lambda m: inside(MODEL, cache({COMMIT: m})),
        lambda m: inside(f"hub/{MODEL}", cache({COMMIT: m})),
    ],
    ids=["below", "two-below", "other-name", "cache-repository", "cache", "cache-above"],
)
def test_what_is_recommended_opens(tmp_path: Path, files: Callable[[Files], Files]) -> None:
    """The path that a remedy names can be given."""
    save(TENSORS, tmp_path / "source", "safetensors", 1)
    made = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    with pytest.raises(MalformedInput) as caught:
        open_checkpoint(write(files(made), tmp_path / "given"), "base")
    match = GIVEN.search(str(caught.value.remedy))
    assert match, caught.value
    with open_checkpoint(match[1], "base") as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)


def test_a_folder_of_the_cache_itself(tmp_path: Path) -> None:
    """Of blobs, refs and snapshots each, the snapshot is named, too."""
    root = write(cache({COMMIT: below(SAFE), OLDER: below(SAFE)}), tmp_path / MODEL)
    for name in ("blobs", "refs", "snapshots"):
        with refused(MalformedInput, where=root / name, remedy=f"give its snapshot, {root / 'snapshots' / COMMIT}"):
            open_checkpoint(root / name, "base")


FILES = {
    "model.gguf": (b"GGUF\3\0\0\0", "GGUF of llama.cpp (model.gguf)", MADE_FROM),
    "ggml-model-f16.bin": (b"fmgg\1\0\0\0", "GGML of llama.cpp", MADE_FROM),
    "flax_model.msgpack": (b"\x81", "flax weights", "from_flax=True"),
    "koala_13b_diff_v2": (EASYLM, "EasyLM", "EasyLM.scripts"),
    "model.onnx": (b"\x08\7", "an ONNX model", MADE_FROM),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n", "TensorFlow weights", "from_tf=True"),
    "mp_rank_00_model_states.pt": (b"PK\3\4", "a DeepSpeed checkpoint", "torch.save its 'module'"),
    "__0_0.distcp": (b"PK\3\4", "a distributed checkpoint of torch", "dcp_to_torch"),
    f"{SAFE}.crdownload": (WEIGHTS, "a download that is not finished", "the same download again"),
    f"{BIN}.{'0' * 64}.enc": (b"?", "files encrypted with Meta's weights", "decrypt.py"),
    "adapter_model.bin": (b"PK\3\4", "a LoRA or other PEFT adapter", "merge_and_unload()"),
    "adapter_model.safetensors": (WEIGHTS, "a LoRA or other PEFT adapter", "merge_and_unload()"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_another_format_is_named(tmp_path: Path, name: str) -> None:
    """The same for a file that is given itself."""
    data, found, remedy = FILES[name]
    path = write({name: data}, tmp_path / "model") / name
    with refused(MalformedInput, where=path, problem="not a base") as caught:
        open_checkpoint(path, "base")
    assert found in str(caught.value.found)
    assert remedy in str(caught.value.remedy)


def test_an_adapter_can_be_looked_at(tmp_path: Path) -> None:
    """``inspect``, ``diff`` and ``manifest`` take the file of an adapter as what it is: tensors."""
    save_file({"lora": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with open_checkpoint(tmp_path / "adapter_model.safetensors", "checkpoint") as checkpoint:
        assert set(checkpoint.tensors) == {"lora"}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "accelerate"])
def test_a_distributed_checkpoint_is_converted_as_told(tmp_path: Path, wrap: bool) -> None:
    """The command for what torch.distributed.checkpoint writes makes a checkpoint that can be given."""
    state = {"model": TENSORS} if wrap else TENSORS
    with pytest.warns(UserWarning, match="single process"):
        save_distributed(state, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
    with pytest.raises(MalformedInput) as caught:
        open_checkpoint(tmp_path, "base")
    match = re.fullmatch(r"run (.+), and give (OUT\S*)", str(caught.value.remedy))
    assert match, caught.value
    program = {"python": sys.executable, "accelerate": str(Path(sys.executable).with_name("accelerate"))}
    command = [program.get(word, word) for word in match[1].split()]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
    with open_checkpoint(tmp_path / match[2], "base") as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)


def test_a_large_folder_is_refused_at_once(tmp_path: Path) -> None:
    """Recognition of a folder with thousands of names, and large files, reads little, in time and in memory."""
    for number in range(40):
        (tmp_path / f"part-{number}" / "deep").mkdir(parents=True)
        for each in range(60):
            (tmp_path / f"part-{number}" / f"{each}.txt").touch()
    for name in ("one", "two.bin"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(20 * 10**9)
    before, memory = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedInput):
        open_checkpoint(tmp_path, "base")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.5
    assert (after.ru_maxrss - memory) * (1 if sys.platform == "darwin" else 1024) < 100 * 2**20


# Twins.

OTHERS: Tensors = {name: tensor + 1 for name, tensor in TENSORS.items()}
OLD, NEW = 1_600_000_000, 1_700_000_000


def saved(folder: Path, kind: str, tensors: Tensors, time: int, shards: int = 1) -> Path:
    """Save a set of weights into a folder, all files of it written at ``time``."""
    before = set(folder.iterdir()) if folder.exists() else set()
    save(tensors, folder, kind, shards, config=False)
    for path in set(folder.iterdir()) - before:
        os.utime(path, (time, time))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("other", "safe_time", "bin_time", "tells"),
    [
        (
            OTHERS,
            OLD,
            NEW,
            "although {bin} beside it holds other weights and is newer (2023-11-14 22:13 UTC, not 2020-09-13 12:26 UTC)",
        ),
        (OTHERS, NEW, OLD, "although {bin} beside it holds other weights: give"),
        (OTHERS, OLD, OLD, "although {bin} beside it holds other weights: give"),
        ({**TENSORS, "a": torch.ones(3)}, OLD, NEW, "holds other weights and is newer"),
        (
            {name: tensor.half() for name, tensor in TENSORS.items()},
            OLD,
            NEW,
            "although {bin} beside it is newer (2023",
        ),
        (TENSORS, OLD, NEW, "not {bin} beside it"),
        (TENSORS, NEW, OLD, "not {bin} beside it"),
    ],
    ids=["newer", "older", "same-time", "grown", "another-dtype", "same-weights-newer", "same-weights-older"],
)
def test_a_folder_saved_into_twice(
    tmp_path: Path, other: Tensors, safe_time: int, bin_time: int, tells: str, shards: int
) -> None:
    """Of two complete sets, safetensors are used as by the Hub's loaders; that the others differ, or are newer, is a warning."""
    folder = saved(saved(tmp_path / "m", "safetensors", TENSORS, safe_time, shards), "torch", other, bin_time, shards)
    torch_main = BIN if shards == 1 else f"{BIN}.index.json"
    with open_checkpoint(folder, "base") as checkpoint:
        (note,) = checkpoint.notes
    assert tells.replace("{bin}", torch_main) in note
    if "give" in note:
        with open_checkpoint(folder / torch_main, "base") as checkpoint:
            assert (checkpoint.container, checkpoint.notes) == ("torch", ())


def test_a_newer_set_that_is_not_complete(tmp_path: Path) -> None:
    """The complete set is used, and it is said that the newer one lacks something, whichever is which."""
    folder = saved(saved(tmp_path / "m", "torch", TENSORS, OLD), "safetensors", OTHERS, NEW, 2)
    (folder / TWO).unlink()
    with open_checkpoint(folder, "base") as checkpoint:
        assert f"{BIN} is used, since {TWO} is missing, although {INDEX} is newer" in checkpoint.notes[0]
    folder = saved(saved(tmp_path / "n", "safetensors", TENSORS, OLD), "torch", OTHERS, NEW, 2)
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    with open_checkpoint(folder, "base") as checkpoint:
        assert (
            "which is newer (2023-11-14 22:13 UTC) but not complete: pytorch_model-00001-of-00002.bin is missing"
            in checkpoint.notes[0]
        )


def drop(name: str) -> Callable[[Path], None]:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda _: None, f"give the one you mean: AT/{SAFE} (the newest, 2023-11-14 22:13 UTC) or AT/{INDEX}"),
        (drop(TWO), f"give the complete one, AT/{SAFE}; {INDEX} cannot be used, since {TWO} is missing"),
        (
            lambda f: (f / INDEX).write_text("{"),
            f"give the complete one, AT/{SAFE}; {INDEX} cannot be used, since it is damaged",
        ),
        (
            lambda f: (f / f"{SAFE}.aria2").touch(),
            f"give the complete one, AT/{INDEX}; {SAFE} cannot be used, since {SAFE} is not fini",
        ),
    ],
    ids=["both", "dead-index", "damaged-index", "unfinished-single"],
)
def test_only_a_complete_set_is_recommended(tmp_path: Path, change: Callable[[Path], None], remedy: str) -> None:
    """Of two sets in one format, a remedy names those that open, the newest first."""
    folder = saved(saved(tmp_path / "m", "safetensors", TENSORS, OLD, 2), "safetensors", OTHERS, NEW)
    change(folder)
    with refused(MalformedInput, problem="more than one set of weights", found=f"{INDEX} and {SAFE}") as caught:
        open_checkpoint(folder, "base")
    assert str(caught.value.remedy).startswith(remedy.replace("AT", str(folder)))
    for path in re.findall(rf"{re.escape(str(folder))}/[\w.-]+\w", str(caught.value.remedy)):
        open_checkpoint(path, "base").__exit__()


def test_none_of_two_sets_is_complete(tmp_path: Path) -> None:
    """Where none is complete, none is recommended."""
    folder = saved(saved(tmp_path / "m", "torch", TENSORS, OLD, 2), "torch", OTHERS, NEW)
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    (folder / f"{BIN}.aria2").touch()
    with refused(MalformedInput, problem="more than one set of weights") as caught:
        open_checkpoint(folder, "base")
    assert str(caught.value.remedy).startswith("none is complete (pytorch_model-00001-of-00002.bin is missing, ")


def test_shards_of_another_save(tmp_path: Path) -> None:
    """An index whose shards are gone, beside those of another save, is not called a download to be finished."""
    folder = saved(tmp_path / "m", "safetensors", TENSORS, OLD, 2)
    for name in (ONE, TWO):
        (folder / name).rename(folder / name.replace("00002.", "00003."))
    with refused(MalformedInput, problem="shard is missing", where=folder / ONE) as caught:
        open_checkpoint(folder, "base")
    assert str(caught.value.found).endswith("-of-00003.safetensors, which it does not name")
    assert "index and shards are of two saves" in str(caught.value.remedy)


@pytest.mark.parametrize("state", [f"{SAFE}.aria2", f"{SAFE}.st"])
def test_a_file_that_is_still_downloaded_is_not_used(tmp_path: Path, state: str) -> None:
    """Downloaders that give a file its final name and size at once keep their state beside it."""
    folder = saved(tmp_path / "m", "safetensors", TENSORS, OLD)
    (folder / state).touch()
    with refused(
        MalformedInput, where=folder / SAFE, problem="a download that is not finished", found=f"{state} beside it"
    ):
        open_checkpoint(folder, "base")


# Litter.

LITTER = (
    ".DS_Store",
    "._config.json",
    "._model.safetensors",
    "Thumbs.db",
    "desktop.ini",
    ".nfs0000000000a1b2c3",
    ".localized",
)


@pytest.fixture
def littered(tmp_path: Path) -> tuple[Pair, Path]:
    """Make a pair full of litter, and its merge."""
    pair = make_pair(tmp_path, "safetensors", 1)
    for folder in pair:
        litter(folder)
    apply_delta(*pair, tmp_path / "out")
    return pair, tmp_path / "out"


def litter(folder: Path) -> None:
    """Add what systems leave in a folder."""
    for name in LITTER:
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("{}")


def test_litter_in_inputs_and_results(littered: tuple[Pair, Path]) -> None:
    """Litter in inputs changes nothing, nor is it listed; in a result ``verify`` mentions it, and finds no problem."""
    pair, out = littered
    assert {path.name for path in out.iterdir()} & {*LITTER, ".ipynb_checkpoints"} == set()
    assert not any(name in (out / "README.md").read_text() for name in LITTER)
    assert not set(LITTER) & set(json.loads(list_checkpoint(pair[0]).document)["result"]["files"])
    clean = verify(out)
    litter(out)
    report = verify(out, expect=clean.content_digest)
    assert (report.problems, report.files) == ((), clean.files)
    assert {note.split(" is no part")[0].split("/")[-1] for note in report.notes} == {*LITTER, ".ipynb_checkpoints"}


def test_what_only_looks_like_litter_is_a_problem(littered: tuple[Pair, Path]) -> None:
    """A link under such a name, and a real extra file, are reported as ever."""
    _, out = littered
    (out / ".DS_Store").symlink_to("config.json")
    (out / "DS_Store.py").touch()
    assert {problem.file for problem in verify(out).problems} == {".DS_Store", "DS_Store.py"}


def test_a_listing_that_names_litter_still_counts(littered: tuple[Pair, Path], tmp_path: Path) -> None:
    """Manifests of before list such files: they are compared as ever."""
    pair, _ = littered
    document = json.loads(list_checkpoint(pair[0]).document)
    document["result"]["files"][".DS_Store"] = {"size": 4, "sha256": "0" * 64}
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert [
        problem.file
        for problem in verify(pair[0], manifest=tmp_path / "old.json").problems
        if problem.file == ".DS_Store"
    ]


def test_a_target_with_nothing_but_litter_is_free(littered: tuple[Pair, Path], tmp_path: Path) -> None:
    """It needs no --overwrite, and the result is whole."""
    pair, out = littered
    (tmp_path / "new").mkdir()
    litter(tmp_path / "new")
    assert apply_delta(*pair, tmp_path / "new").content_digest == verify(out).content_digest
    assert (verify(tmp_path / "new").problems, (tmp_path / "new" / ".DS_Store").exists()) == ((), False)


@pytest.mark.parametrize("within", [False, True], ids=["beside", "inside"])
def test_a_target_with_litter_is_replaced(
    littered: tuple[Pair, Path], within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--overwrite replaces a model with litter in it, by one rename or file by file."""
    pair, out = littered
    litter(out)
    if within:
        monkeypatch.chdir(out)
    apply_delta(*pair, out, overwrite=True, dtype="float32")
    assert verify(out).problems == ()


def test_a_notebook_is_not_litter(littered: tuple[Pair, Path]) -> None:
    """Jupyter's folder with a copy of a file that no checkpoint has is the user's, and stays."""
    pair, out = littered
    litter(out)
    (out / ".ipynb_checkpoints" / "thesis-checkpoint.ipynb").touch()
    with refused(TargetBusy, where=out):
        apply_delta(*pair, out, overwrite=True, dtype="float32")
    shutil.rmtree(out / ".ipynb_checkpoints")
    apply_delta(*pair, out, overwrite=True, dtype="float32")


def test_a_signature_allows_no_litter(littered: tuple[Pair, Path], tmp_path: Path) -> None:
    """Stock verifiers of the format would refuse the folder, so it is not signed, and litter that came later is named."""
    _, out = littered
    private, public = make_key(tmp_path)
    sign_folder(out, private)
    (out / ".DS_Store").touch()
    assert [problem.file for problem in verify(out, signed=read_signature(out, public)).problems] == [".DS_Store"]
    with refused(CheckFailed) as caught:
        sign_folder(out, private)
    assert ".DS_Store: cannot be signed" in str(caught.value)
