"""``inspect``: its report agrees with torch and safetensors, from headers alone, and its table is short."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import deltaweights
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.merge.rules import is_buffer
from deltaweights.util.sizes import human_bytes
from tests.conftest import Run
from tests.support.limits import MOMENT, PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

KEYS = [
    "path", "identity",
    "container", "model_type", "architectures", "parameters", "bytes", "bytes_on_disk", "buffers", "dtypes", "files",
    "shared", "manifest", "notes", "tensors", "naming"
]  # fmt: skip

BASE = base_tensors(layers=12, vocabulary=48, hidden=32)

TABLE = """\
weights
  lm_head.weight                                       F16  [48, 32]         3.07 kB
  model.embed_tokens.weight                            F16  [48, 32]         3.07 kB
  model.layers.{0-11}.input_layernorm.weight           F16  [32]      x12  768 bytes
  model.layers.{0-11}.mlp.down_proj.weight             F16  [32, 92]  x12    70.7 kB
  model.layers.{0-11}.mlp.gate_proj.weight             F16  [92, 32]  x12    70.7 kB
  model.layers.{0-11}.mlp.up_proj.weight               F16  [92, 32]  x12    70.7 kB
  model.layers.{0-11}.post_attention_layernorm.weight  F16  [32]      x12  768 bytes
  model.layers.{0-11}.self_attn.k_proj.weight          F16  [32, 32]  x12    24.6 kB
  model.layers.{0-11}.self_attn.o_proj.weight          F16  [32, 32]  x12    24.6 kB
  model.layers.{0-11}.self_attn.q_proj.weight          F16  [32, 32]  x12    24.6 kB
  model.layers.{0-11}.self_attn.v_proj.weight          F16  [32, 32]  x12    24.6 kB
  model.norm.weight                                    F16  [32]            64 bytes

buffers
  model.layers.{0-11}.self_attn.rotary_emb.inv_freq    F32  [4]       x12  192 bytes
"""


def weights_of(tensors: Tensors) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("inv_freq"))


def by_hand(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a sparse safetensors file of float16 tensors: only its header takes disk space."""
    ends = list(itertools.accumulate(2 * math.prod(shape) for shape in shapes.values()))
    entries = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        for (name, shape), begin, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, path.stat().st_size + ends[-1])
    return path


# For people.


IDENTITY = (
    "12 layers, hidden size 32, 48 rows: no model that is known by its shapes; "
    "weights as large as a model's (typically 0.02)"
)


def test_table(run: Run, tmp_path: Path) -> None:
    """A LLaMA of twelve layers has twelve lines of weights and one of buffers, with totals above and files below."""
    save(BASE, tmp_path / "base", "safetensors", shards=2)
    done = run("inspect", "base", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted((tmp_path / "base").glob("*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    counts = []
    for path in files:
        with safe_open(path, "pt") as file:
            counts.append(len(list(file.keys())))
    nbytes = sum(tensor.nbytes for tensor in BASE.values())
    head = f"""\
checkpoint      base
identity        {IDENTITY}
model           llava
container       safetensors, 2 files ({human_bytes(sum(sizes))})
tensors         {len(BASE)} ({human_bytes(nbytes)})
parameters      {weights_of(BASE):,}
buffers         12 (48 elements, not counted as parameters)
dtypes          F16 {weights_of(BASE):,} ({human_bytes(nbytes - 192)}), F32 48 (192 bytes)
"""
    shards = [
        f"  {path.name}  {human_bytes(size):>9}  {count} tensors"
        for path, size, count in zip(files, sizes, counts, strict=True)
    ]
    expected = "\n".join([head, TABLE, "files", *shards, ""])
    assert expected == done.stdout


def test_every_tensor_is_in_the_table(run: Run, tmp_path: Path) -> None:
    """Names in an irregular pattern, with two shapes, are grouped into lines that count every tensor once."""
    shapes = {
        f"experts.{i}.{j}.w{k}": (4, 2) if k != 2 else (2, 4) for i in range(3) for j in range(4) for k in (1, 2, 3)
    }
    del shapes["experts.1.2.w3"]
    by_hand(tmp_path / "model.safetensors", shapes)
    done = run("inspect", tmp_path)
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("  ")] == [
        ["experts.{0,2}.{0-3}.w{1,3}", "F16", "[4,", "2]", "x16", "256", "bytes"],
        ["experts.{0-2}.{0-3}.w2", "F16", "[2,", "4]", "x12", "192", "bytes"],
        ["experts.1.{0-1,3}.w{1,3}", "F16", "[4,", "2]", "x6", "96", "bytes"],
        ["experts.1.2.w1", "F16", "[4,", "2]", "16", "bytes"],
    ]


def test_long_lists_of_numbers_are_cut(run: Run, tmp_path: Path) -> None:
    """More than twelve numbers that are not a range are abbreviated; the count includes all of them."""
    by_hand(tmp_path / "model.safetensors", {f"layers.{2 * i}.w": (1,) for i in range(40)})
    done = run("inspect", tmp_path)
    assert "  layers.{0,2,4,6,8,10,...,68,70,72,74,76,78}.w  F16  [1]  x40  80 bytes" in done.stdout.splitlines()
    assert len(inspect_checkpoint(tmp_path).tensors) == 40


def test_foreign_text_is_escaped(run: Run, tmp_path: Path) -> None:
    """Characters that a terminal could act on are escaped in names and in facts of config.json, in the table and in JSON."""
    by_hand(tmp_path / "model.safetensors", {"model.\u202eevil\u2028.weight": (2, 2), "ünï.weight": (1,)})
    (tmp_path / "config.json").write_text('{"model_type": "x\\u001b[2J\\ny", "architectures": ["\\u009b31m"]}')
    plain, machine = run("inspect", tmp_path), run("inspect", tmp_path, "--json")
    assert (plain.returncode, machine.returncode) == (0, 0)
    lines = plain.stdout.split("\n")
    assert all(line.isprintable() for line in lines)
    assert r"model           x\x1b[2J\ny (\x9b31m)" in lines
    assert r"  model.\u202eevil\u2028.weight  F16  [2, 2]  8 bytes" in lines
    assert r"  ünï.weight                     F16  [1]     2 bytes" in lines
    assert machine.stdout.isascii()
    assert list(json.loads(machine.stdout)["tensors"]) == ["model.\u202eevil\u2028.weight", "ünï.weight"]


# For programs.


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("container", ["torch", "safetensors"])
def test_json(run: Run, tmp_path: Path, container: str, shards: int) -> None:
    """``--json`` prints one object with the documented keys; its values agree with torch and the file system."""
    folder = save(BASE, tmp_path / "model", container, shards)
    done = run("inspect", folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    assert list(report) == KEYS
    files = sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")])
    size = {"F16": torch.float16, "F32": torch.float32}
    assert report["tensors"].keys() == BASE.keys()
    for name, entry in report["tensors"].items():
        assert list(entry) == ["dtype", "shape", "bytes", "file"]
        assert size[entry["dtype"]] == BASE[name].dtype
        assert (entry["shape"], entry["bytes"]) == (list(BASE[name].shape), BASE[name].nbytes)
        assert folder / entry["file"] in files
    held = [sum(entry["file"] == path.name for entry in report["tensors"].values()) for path in files]
    assert [dict(zip(("name", "size", "tensors"), row, strict=True)) | {"sha256": None} for row in zip(
        [path.name for path in files], [path.stat().st_size for path in files], held, strict=True
    )] == report["files"]  # fmt: skip
    nbytes = sum(tensor.nbytes for tensor in BASE.values())
    assert {
        "path": str(folder),
        "container": container,
        "model_type": "llava",
        "architectures": [],
        "parameters": weights_of(BASE),
        "bytes": nbytes,
        "bytes_on_disk": sum(path.stat().st_size for path in files),
        "buffers": {"tensors": 12, "elements": 48, "bytes": 192},
        "dtypes": {
            "F16": {"tensors": 111, "elements": weights_of(BASE), "bytes": nbytes - 192},
            "F32": {"tensors": 12, "elements": 48, "bytes": 192},
        },
        "shared": [],
        "manifest": None,
        "notes": [],
        "naming": {"layout": "", "prefix": ""},
    } == {key: value for key, value in report.items() if key not in {"tensors", "files", "identity"}}
    typical = report["identity"].pop("typical")
    assert 0.015 < typical < 0.025
    assert report["identity"] == {
        "text": IDENTITY,
        "model": None,
        "certain": False,
        "is_delta": False,
        "is_merge": False,
    }


def test_order(tmp_path: Path) -> None:
    """Tensors are in natural order, whatever their order in the file."""
    names = ["b", "a.10", "a.9", "a.1"]
    by_hand(tmp_path / "w.safetensors", dict.fromkeys(names, (1,)))
    assert list(inspect_checkpoint(tmp_path / "w.safetensors").tensors) == ["a.1", "a.9", "a.10", "b"]


def test_python(tmp_path: Path) -> None:
    """The package exports the function and its report."""
    save_file({"w": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    report = deltaweights.inspect_checkpoint(tmp_path / "w.safetensors")
    assert isinstance(report, deltaweights.InspectReport)
    assert (report.parameters, report.bytes) == (6, 24)


# Manifest, config.json and notes.


def test_manifest(run: Run, tmp_path: Path) -> None:
    """The content digest of a manifest is shown as stated, or as that of other tensors."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    save(base, tmp_path / "base", "safetensors", 1)
    save(delta_tensors(base), tmp_path / "delta", "torch", 2)
    digest = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out").content_digest
    assert (
        f"content digest  {digest} (as the manifest states, not verified)\n" in run("inspect", tmp_path / "out").stdout
    )
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "out")
    assert f"content digest  {digest} (the manifest's, of other tensors)\n" in run("inspect", tmp_path / "out").stdout
    stated = json.loads(run("inspect", tmp_path / "out", "--json").stdout)["manifest"]
    assert (stated["content_digest"], stated["fits"], stated["base"]["verdict"]) == (digest, False, "no evidence")


ODD = {
    "not-json": b"{",
    "list": b"[]",
    "no-text": b'{"model_type": 7, "architectures": "LlamaForCausalLM"}',
    "odd-list": b'{"model_type": null, "architectures": [{}, 1]}',
    "too-long": b'{"model_type": "llama"}' + b" " * 2**20,
    "not-utf-8": b'{"model_type": "\xff"}',
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("content", [*ODD.values(), None], ids=[*ODD, "fifo"])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_odd_companion(run: Run, tmp_path: Path, name: str, content: bytes | None) -> None:
    """A malformed config.json or manifest.json is no error: its facts are absent. A manifest's fault is said in one line."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    done = run("inspect", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= (name == "manifest.json")
    assert all(str(tmp_path / name) in line for line in lines)
    report = json.loads(done.stdout)
    assert (report["model_type"], report["architectures"], report["manifest"]) == (None, [], None)


def test_config(run: Run, tmp_path: Path) -> None:
    """Model type and architectures are from config.json, but not for a single weights file of another name."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert "\nmodel           llama (LlamaForCausalLM)\n" in run("inspect", tmp_path).stdout
    alone = inspect_checkpoint(tmp_path / "other.safetensors")
    assert (alone.model_type, alone.architectures) == (None, ())


def test_notes(run: Run, tmp_path: Path) -> None:
    """An oddity that is no error, such as an index with a wrong total, is a warning on stderr and a note in the JSON."""
    save({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path, "safetensors", 2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"total_size": 20', '"total_size": 21'))
    done = run("inspect", tmp_path, "--json")
    (note,) = json.loads(done.stdout)["notes"]
    assert note == f"{index}: total_size is 21, the tensors have 20 bytes"
    assert done.stderr == f"deltaweights: warning: {note}\n"


# Headers only.


def llama_7b() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of LLaMA-7B."""
    rows, hidden, inner = 32000, 4096, 11008
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    layer |= {"mlp.down_proj.weight": (hidden, inner)}
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}


READ = """
import sys
from deltaweights.jobs.inspect import inspect_checkpoint

def read():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))

before = read()
report = inspect_checkpoint(sys.argv[1])
print(report.parameters, read() - before, "torch" in sys.modules, "numkong" in sys.modules)
"""


def test_seven_billion(run: Run, tmp_path: Path) -> None:
    """The 291 tensors of LLaMA-7B, in a file of 13.5 GB, are shown in twelve lines, without reading the file."""
    by_hand(tmp_path / "model.safetensors", llama_7b())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("inspect", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # 0.15 s; reading the hole would take longer on any machine
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOMENT
    lines = done.stdout.splitlines()
    assert "parameters      6,738,415,616" in lines
    assert "tensors         291 (13.5 GB)" in lines
    assert len(lines) - lines.index("weights") - 1 == 12
    assert "  model.layers.{0-31}.self_attn.q_proj.weight          F16  [4096, 4096]   x32  1.07 GB" in lines


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what a process reads")
@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_reads_headers_only(tmp_path: Path, container: str) -> None:
    """The process reads about as many bytes as the headers have, and imports no compute library."""
    if container == "safetensors":
        by_hand(tmp_path / "model.safetensors", llama_7b())
        parameters = 6_738_415_616
    else:
        big = torch.zeros(2000, 1000)
        torch.save({"a": big, "b": big.t(), "c": torch.zeros(1_000_000)}, tmp_path / "pytorch_model.bin")
        parameters = 3_000_000
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    count, read, *loaded = done.stdout.split()
    assert (int(count), loaded) == (parameters, ["False", "False"])
    assert int(read) < 300_000


# Errors.


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("deltaweights: error: ")
    assert line.isprintable()
    return line


def test_missing(run: Run, tmp_path: Path) -> None:
    """A missing path ends with 5 and a remedy that fits any kind of checkpoint."""
    line = error_of(run("inspect", tmp_path / "x"), 5)
    assert line.endswith("no checkpoint here: found nothing; give the folder that holds the checkpoint's weights")
    with pytest.raises(InputOutputError):
        inspect_checkpoint(tmp_path / "x")


def test_no_path(run: Run) -> None:
    """A missing argument ends with 2."""
    assert "Missing argument 'PATH|HUB_ID'" in error_of(run("inspect"), 2)


def test_malformed(run: Run, tmp_path: Path) -> None:
    """A truncated file, a file of another kind, and a folder without weights each end with 3 and one line."""
    path = by_hand(tmp_path / "model.safetensors", {"w": (8,)})
    os.truncate(path, path.stat().st_size - 1)
    assert "model.safetensors: tensor w: runs past the end of the file" in error_of(run("inspect", tmp_path), 3)
    (tmp_path / "notes.txt").write_text("no weights")
    assert "not a checkpoint: expected a folder, an index.json" in error_of(run("inspect", tmp_path / "notes.txt"), 3)
    (tmp_path / "empty").mkdir()
    assert "no weights here" in error_of(run("inspect", tmp_path / "empty"), 3)
    with pytest.raises(MalformedInput):
        inspect_checkpoint(tmp_path)


def test_control_characters_in_a_name(run: Run, tmp_path: Path) -> None:
    """A tensor name with control characters is refused with 3, and escaped in the error."""
    by_hand(tmp_path / "model.safetensors", {"w\x1b[2J\x07\n.weight": (1,)})
    assert r"w\x1b[2J\x07\n.weight" in error_of(run("inspect", tmp_path), 3)
    assert r"w\x1b[2J\x07\n.weight" in json.loads(run("inspect", tmp_path, "--json").stdout)["error"]["message"]


def test_is_buffer() -> None:
    """A buffer is what ends as the rules say; a weight that has such a name in its middle is a weight."""
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_buffer("model.rotary_emb.inv_freq.weight")
