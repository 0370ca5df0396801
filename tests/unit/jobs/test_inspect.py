"""``inspect``: what it says of a checkpoint is what torch and safetensors say, from headers alone, and in few lines."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import deltaweights
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.inspect import InspectReport, SharedStorage, Total, inspect_checkpoint
from deltaweights.merge.rules import is_buffer
from deltaweights.util.sizes import human_bytes
from tests.conftest import Run
from tests.support.limits import MOMENT, PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

KEYS = [
    "path", "identity",
    "container", "model_type", "architectures", "parameters", "bytes", "bytes_on_disk", "buffers", "dtypes", "files",
    "shared", "manifest", "notes", "tensors",
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


def torch_file(folder: Path, tensors: Tensors) -> InspectReport:
    """Save tensors as torch does, views as views, and return what is in the file."""
    torch.save(tensors, folder / "pytorch_model.bin")
    return inspect_checkpoint(folder)


def by_hand(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a safetensors file of float16 tensors whose bytes are a hole: only its header takes room."""
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
    """A LLaMA of twelve layers is twelve lines of weights and one of buffers, aligned, with the sums above and the files below."""
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
    """Names that are alike in all but shape, in a pattern that is not regular, stand in lines that count every tensor once."""
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
    """Of more than twelve numbers that are no range the middle is dots; the count beside it is that of all."""
    by_hand(tmp_path / "model.safetensors", {f"layers.{2 * i}.w": (1,) for i in range(40)})
    done = run("inspect", tmp_path)
    assert "  layers.{0,2,4,6,8,10,...,68,70,72,74,76,78}.w  F16  [1]  x40  80 bytes" in done.stdout.splitlines()
    assert len(inspect_checkpoint(tmp_path).tensors) == 40


def test_foreign_text_is_escaped(run: Run, tmp_path: Path) -> None:
    """No character that a terminal could act on gets out of a name or a config.json, in the table or in JSON."""
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
    """``--json`` is one object of the documented keys, whose values are what torch says of tensors and the system of files."""
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
    } == {key: value for key, value in report.items() if key not in {"tensors", "files", "identity"}}
    typical = report["identity"].pop("typical")
    assert 0.015 < typical < 0.025
    assert report["identity"] == {"text": IDENTITY, "model": None, "certain": False}


def test_order(tmp_path: Path) -> None:
    """Tensors are in natural order, whatever the order in the file, so that two listings can be compared."""
    names = ["b", "a.10", "a.9", "a.1"]
    by_hand(tmp_path / "w.safetensors", dict.fromkeys(names, (1,)))
    assert list(inspect_checkpoint(tmp_path / "w.safetensors").tensors) == ["a.1", "a.9", "a.10", "b"]


def test_python(tmp_path: Path) -> None:
    """The package's front door has the function and its report."""
    save_file({"w": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    report = deltaweights.inspect_checkpoint(tmp_path / "w.safetensors")
    assert isinstance(report, deltaweights.InspectReport)
    assert (report.parameters, report.bytes) == (6, 24)


# Shared storage.


def test_tied(run: Run, tmp_path: Path) -> None:
    """Two names of one storage are told as tied, count once as parameters, and twice in the bytes that they show."""
    embedding = torch.randn(10, 4)
    report = torch_file(
        tmp_path, {"embed.weight": embedding, "norm.weight": torch.ones(4), "lm_head.weight": embedding}
    )
    assert (SharedStorage("pytorch_model.bin", True, 40, ("embed.weight", "lm_head.weight")),) == report.shared
    assert (report.parameters, report.bytes, report.dtypes["F32"]) == (44, 336, Total(3, 84, 336))
    assert "\nshared storage\n  tied   embed.weight, lm_head.weight (40 elements)\n" in run("inspect", tmp_path).stdout


WHOLE = torch.arange(48).reshape(8, 6)

VIEWS: dict[str, tuple[tuple[torch.Tensor, ...], bool]] = {
    "rows": ((WHOLE[:3], WHOLE[3], WHOLE[4:]), False),
    "columns": ((WHOLE[:, :2], WHOLE[:, 2:]), False),
    "columns-apart": ((WHOLE[:, :2], WHOLE[:, 3:5]), False),
    "gaps-reshaped": ((WHOLE.view(-1)[::3], WHOLE.view(-1)[::3].view(4, 4)), False),
    "transposed": ((WHOLE, WHOLE.t()), False),
    "reshaped": ((WHOLE, WHOLE.reshape(4, 12)), False),
    "whole-and-slice": ((WHOLE, WHOLE[2:5], WHOLE[5]), False),
    "overlapping-rows": ((WHOLE[:5], WHOLE[3:7]), False),
    "tied-slices": ((WHOLE[2:4], WHOLE[2:4]), True),
    "tied-and-another": ((WHOLE[2:4], WHOLE[2:4], WHOLE[6:]), False),
    "transposed-tied": ((WHOLE.t(), WHOLE.t()), True),
    "every-other": ((WHOLE[::2], WHOLE[::2].t(), WHOLE[1::2]), False),
    "interleaved-axes": ((WHOLE.reshape(4, 2, 6).permute(2, 0, 1), WHOLE[1:3]), False),
    "one-element": ((WHOLE[3, 3], WHOLE[3, 3].reshape(1, 1)), False),
}


@pytest.mark.parametrize(("views", "tied"), VIEWS.values(), ids=VIEWS)
def test_views(tmp_path: Path, views: tuple[torch.Tensor, ...], tied: bool) -> None:
    """Parameters are the elements of the storage that at least one view shows; same views are tied, others are not."""
    report = torch_file(tmp_path, {f"v{i}": view for i, view in enumerate(views)} | {"own": torch.zeros(2)})
    shown = len({value for view in views for value in view.flatten().tolist()})  # each element holds its own number
    (shared,) = report.shared
    assert (shown, tied, len(views)) == (shared.elements, shared.tied, len(shared.tensors))
    assert shown + 2 == report.parameters


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8), st.booleans()), min_size=1, max_size=6))
def test_any_slices(tmp_path_factory: pytest.TempPathFactory, slices: list[tuple[int, int, bool]]) -> None:
    """Whatever rows of one matrix are saved, plain or transposed, parameters are those that they show, each once."""
    rows = [(WHOLE[begin : begin + length], turned) for begin, length, turned in slices]
    views = [view.t() if turned else view for view, turned in rows]
    report = torch_file(tmp_path_factory.mktemp("slices"), {f"v.{i}": view for i, view in enumerate(views)})
    assert len({value for view in views for value in view.flatten().tolist()}) == report.parameters


def test_views_with_gaps(tmp_path: Path) -> None:
    """Views with gaps that overlap in part are the one case counted as an upper bound: no more than the storage between them."""
    report = torch_file(tmp_path, {"a": WHOLE[:, :3], "b": WHOLE[:, 1:4]})
    assert 8 * 4 <= report.parameters <= 7 * 6 + 4


def test_nothing_shares_nothing(tmp_path: Path) -> None:
    """Tensors without elements share no storage, in either container, though theirs may begin at one place."""
    empty = torch.empty(0, 3)
    assert torch_file(tmp_path, {"a": empty, "b": empty, "c": torch.ones(2)}).shared == ()
    save_file({"a": torch.empty(0, 3), "b": torch.empty(3, 0), "c": torch.ones(2)}, tmp_path / "w.safetensors")
    report = inspect_checkpoint(tmp_path / "w.safetensors")
    assert (report.shared, report.parameters, len(report.tensors)) == ((), 2, 3)


def test_shared_buffer(tmp_path: Path) -> None:
    """Buffers are no parameters, shared or not; where a weight lies on a buffer's storage, the weight counts."""
    one = torch.ones(6)
    names = [f"layers.{i}.rotary_emb.inv_freq" for i in range(3)]
    report = torch_file(tmp_path, dict.fromkeys(names, one) | {"w": one[:2]})
    assert (report.parameters, report.buffers) == (2, Total(3, 18, 72))
    assert (SharedStorage("pytorch_model.bin", False, 6, (*names, "w")),) == report.shared


# What the folder says of itself.


def test_manifest(run: Run, tmp_path: Path) -> None:
    """Of a merged checkpoint the manifest's content digest is shown as stated, and when the manifest is of other tensors, that."""
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
    assert {"content_digest": digest, "fits": False} == stated


ODD = {
    "not-json": b"{",
    "list": b"[]",
    "no-text": b'{"model_type": 7, "architectures": "LlamaForCausalLM"}',
    "odd-list": b'{"model_type": null, "architectures": [{}, 1]}',
    "too-long": b'{"model_type": "llama"}' + b" " * 2**20,
    "not-utf-8": b'{"model_type": "\xff"}',
}


@pytest.mark.parametrize("content", [*ODD.values(), None], ids=[*ODD, "fifo"])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_odd_companion(run: Run, tmp_path: Path, name: str, content: bytes | None) -> None:
    """A config.json or manifest.json that is not one is no error: what it would have said is absent."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    done = run("inspect", tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["model_type"], report["architectures"], report["manifest"]) == (None, [], None)


def test_config(run: Run, tmp_path: Path) -> None:
    """Model type and architectures are config.json's; a lone file of another name has no part in what stands beside it."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert "\nmodel           llama (LlamaForCausalLM)\n" in run("inspect", tmp_path).stdout
    alone = inspect_checkpoint(tmp_path / "other.safetensors")
    assert (alone.model_type, alone.architectures) == (None, ())


def test_notes(run: Run, tmp_path: Path) -> None:
    """What is odd but no error, such as an index with a wrong total, is a warning on stderr and a note in the JSON."""
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
    """A file of LLaMA-7B's 291 tensors, 13.5 GB long, is twelve lines, within seconds of starting Python and all."""
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
    """The system's own count of bytes read stays at the size of the headers, and nothing that computes is loaded."""
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


# What cannot be read.


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("deltaweights: error: ")
    assert line.isprintable()
    return line


def test_missing(run: Run, tmp_path: Path) -> None:
    """A path that is not there ends with 5 and a remedy that fits a checkpoint of any kind."""
    line = error_of(run("inspect", tmp_path / "x"), 5)
    assert line.endswith("no checkpoint here: found nothing; give the folder that holds the checkpoint's weights")
    with pytest.raises(InputOutputError):
        inspect_checkpoint(tmp_path / "x")


def test_no_path(run: Run) -> None:
    """Without a path it ends with 2."""
    assert "Missing argument 'PATH'" in error_of(run("inspect"), 2)


def test_malformed(run: Run, tmp_path: Path) -> None:
    """A file that is cut, one that is something else, a folder without weights: each ends with 3 and one line."""
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
    """A tensor whose name would act on a terminal is refused with 3, and the name is escaped in the refusal, too."""
    by_hand(tmp_path / "model.safetensors", {"w\x1b[2J\x07\n.weight": (1,)})
    for arguments in ((), ("--json",)):
        assert r"w\x1b[2J\x07\n.weight" in error_of(run("inspect", tmp_path, *arguments), 3)


def test_is_buffer() -> None:
    """A buffer is what ends as the rules say; a weight that has such a name in its middle is a weight."""
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_buffer("model.rotary_emb.inv_freq.weight")
