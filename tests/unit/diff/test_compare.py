"""Tests of comparing checkpoints: what is identical, what differs, which manifests are trusted, and errors."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from deltaweights import DiffReport, diff_checkpoints
from deltaweights.diff import tensor_pairs
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.report import Report
from tests.support.diffs import BASE, BUFFER, NORM, Listener, figures, flipped, merge_three_times, only, reference
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.pairs import load, save

FIGURES = {"name", "shape", "dtypes", "elements", "bits", "max_abs", "relative_norm", "nonfinite"}


FORMS = [("torch", 3), ("torch", 1), ("safetensors", 1), ("safetensors", 4)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_identical_across_containers_sharding_and_order(tmp_path: Path, form: tuple[str, int]) -> None:
    """The same tensors in another container, other shards and another order are identical, each counted once."""
    a = save(BASE, tmp_path / "a", "safetensors", 2)
    b = save(dict(reversed(BASE.items())), tmp_path / "b", *form)
    report = diff_checkpoints(a, b)
    assert (report.identical, report.same_kind, report.weights_read) == (True, True, True)
    assert (report.tensors.identical, report.buffers.identical) == (len(BASE) - 1, 1)
    assert report.tensors.different == report.buffers.different == 0
    assert sum(tensor.nbytes for name, tensor in BASE.items() if name != BUFFER) == report.bytes
    file = next(b.glob("*.index.json"), None) or next(b.glob("*model.*"))
    assert diff_checkpoints(file, a).identical, "an index or a file says as much as its folder"


def test_views_of_torch_files_are_compared_as_what_they_show(tmp_path: Path) -> None:
    """A transposed view and the same numbers laid out in rows are identical; a flipped bit is found where it shows."""
    storage = torch.randn(40, 30).half()
    rows, view = {"w": storage.t().contiguous()}, {"w": storage.t()}
    a, b = save(rows, tmp_path / "a", "safetensors", 1), save(view, tmp_path / "b", "torch", 1)
    with patch.object(tensor_pairs, "BLOCK", 256):
        assert diff_checkpoints(a, b).identical
        c = save({"w": flipped(storage, 41, 3).t()}, tmp_path / "c", "torch", 1)
        found = only(diff_checkpoints(a, c).tensors.differing)
    assert figures(found) == reference(rows["w"], flipped(storage, 41, 3).t())


def test_empty_and_scalar_tensors(both: Callable[..., DiffReport]) -> None:
    """Tensors without elements are equal, unless their dtypes are not; a scalar is one element."""
    one = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "cast": torch.zeros(0)}
    report = both(one, one | {"scalar": torch.tensor(3.0), "cast": torch.zeros(0, dtype=torch.float16)})
    cast, scalar = report.tensors.differing
    assert report.tensors.identical == 1
    assert figures(cast) == {"elements": 0, "bits": None, "max_abs": 0.0, "relative_norm": 0.0, "nonfinite": 0}
    assert (scalar.shape, scalar.elements, scalar.max_abs, scalar.relative_norm) == ((), 1, 1.0, 0.5)


def test_other_shapes_and_lone_tensors(both: Callable[..., DiffReport]) -> None:
    """A grown embedding has another shape; what is in one only is listed with dtype and shape; all others are compared."""
    grown = torch.cat([BASE["model.embed_tokens.weight"], torch.zeros(2, 8, dtype=torch.float16)])
    other = BASE | {"model.embed_tokens.weight": grown, "model.mm_projector.bias": torch.ones(8)}
    del other["lm_head.weight"]
    report = both(BASE, other)
    reshaped = only(report.tensors.other_shape)
    assert (reshaped.name, reshaped.shapes) == ("model.embed_tokens.weight", ((8, 8), (10, 8)))
    assert [str(spec) for spec in report.tensors.only_in_a] == ["F16 [8, 8]"]
    assert [(spec.name, str(spec)) for spec in report.tensors.only_in_b] == [("model.mm_projector.bias", "F32 [8]")]
    assert (report.identical, report.same_kind) == (False, True)
    assert (report.tensors.identical, report.tensors.different) == (len(BASE) - 3, 3)


def test_buffers_do_not_count(both: Callable[..., DiffReport]) -> None:
    """Buffers that differ, or are in one checkpoint only, are listed apart, with figures, and leave the verdict alone."""
    other = BASE | {BUFFER: BASE[BUFFER] * 2, "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    report = both(BASE, other)
    assert (report.identical, report.tensors.different, report.tensors.identical) == (True, 0, len(BASE) - 1)
    found = only(report.buffers.differing)
    assert (found.name, found.elements, found.relative_norm) == (BUFFER, 1, 1.0)
    assert only(report.buffers.only_in_b).name.startswith("model.layers.1.")


def test_names_come_in_natural_order(both: Callable[..., DiffReport]) -> None:
    """Differing tensors are listed with the numbers in their names in order."""
    names = [f"layers.{number}.weight" for number in (10, 9, 100, 1)]
    report = both({name: torch.ones(1) for name in names}, {name: torch.zeros(1) for name in names})
    assert [tensor.name for tensor in report.tensors.differing] == [f"layers.{n}.weight" for n in (1, 9, 10, 100)]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge a pair three times; tests copy the folder with all results."""
    return merge_three_times(tmp_path_factory.mktemp("merged"))


def damage(folder: Path) -> None:
    """Flip the last bit of the last shard: a weight of the last tensor in it."""
    path = sorted(folder.glob("*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_manifests_are_trusted_when_that_is_asked_for(merged: Path, tmp_path: Path) -> None:
    """Digests that manifests state stand for weights only with the flag: damage is then not seen, and without it, it is."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "other")
    listener = Listener()
    trusted = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True, report=listener)
    assert (trusted.identical, trusted.weights_read, listener.totals) == (True, False, {})
    assert only(tuple(listener.said)).startswith("no weights were read")
    read = diff_checkpoints(tmp_path / "one", tmp_path / "other")
    assert (read.identical, read.weights_read) == (False, True)
    assert only(read.tensors.differing).bits == 1
    assert trusted.tensors.identical == read.tensors.identical + 1


def test_manifests_tell_which_tensors_differ(merged: Path, tmp_path: Path) -> None:
    """Where two manifests state another digest or dtype, the tensor is listed without figures."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "one" / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document["result"]["tensors"][NORM]["digest"] = "blake3:" + "0" * 64
    manifest.write_text(json.dumps(document))
    report = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True)
    assert figures(only(report.tensors.differing)) == dict.fromkeys(FIGURES - {"name", "shape", "dtypes"})
    assert only(report.tensors.differing).name == NORM
    cast = diff_checkpoints(tmp_path / "one", tmp_path / "bfloat16", trust_manifests=True)
    assert (cast.weights_read, cast.tensors.identical) == (False, 0)
    assert {tensor.dtypes for tensor in cast.tensors.differing} == {("F16", "BF16")}


@pytest.mark.parametrize("state", ["missing", "foreign", "of-others"])
def test_without_two_manifests_weights_are_read(merged: Path, tmp_path: Path, state: str) -> None:
    """A manifest that is missing, not ours, or of other tensors is not trusted: it is said, and the weights are read."""
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "other" / "manifest.json"
    if state == "missing":
        manifest.unlink()
    elif state == "foreign":
        manifest.write_text('{"manifest_version": 3}')
    else:
        shutil.copy(tmp_path / "bfloat16" / "manifest.json", manifest)
    damage(tmp_path / "other")
    listener = Listener()
    report = diff_checkpoints(tmp_path / "one", tmp_path / "other", trust_manifests=True, report=listener)
    assert (report.identical, report.weights_read) == (False, True)
    assert str(manifest) in only(tuple(listener.said))


def test_a_file_that_changes_meanwhile_is_no_ground_for_a_verdict(tmp_path: Path) -> None:
    """A file that is written to, or cut, while it is read ends the comparison with an error, on whatever worker."""
    a, b = (save(BASE, tmp_path / name, "safetensors", 1) for name in "ab")
    path = b / "model.safetensors"

    class Writer(Report):
        def end(self) -> None:
            path.write_bytes(path.read_bytes())

    class Cutter(Report):
        def begin(self, doing: str, total: int) -> None:
            path.write_bytes(path.read_bytes()[:-1])

    for report in (Writer(), Cutter()):
        with refused(InputOutputError, where=path):
            diff_checkpoints(a, b, report=report)


def test_workers_end_with_an_interrupt(tmp_path: Path) -> None:
    """An exception in the thread that waits, such as a signal's, reaches the caller, and no worker is left behind."""
    import threading  # noqa: PLC0415

    class Stop(Report):
        def progress(self, done: int) -> None:
            raise KeyboardInterrupt

    a = save({"w": torch.zeros(200_000)}, tmp_path / "a", "torch", 1)
    before = threading.active_count()
    with patch.object(tensor_pairs, "BLOCK", 8), pytest.raises(KeyboardInterrupt):
        diff_checkpoints(a, a, workers=3, report=Stop())
    assert threading.active_count() == before


def test_no_workers(tmp_path: Path) -> None:
    """No worker at all is a wrong argument."""
    with refused(UsageError, found=0):
        diff_checkpoints(tmp_path, tmp_path, workers=0)


def test_a_manifest_is_not_trusted_for_a_file_beside_its_checkpoint(merged: Path, tmp_path: Path) -> None:
    """A file of the same names and other weights that lies in a merged folder is read, whatever the manifest there says."""
    folder = tmp_path / "folder"
    shutil.copytree(merged / "one", folder)
    tensors = load(folder)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, folder / "other.safetensors")
    report = diff_checkpoints(folder / "other.safetensors", merged / "one", trust_manifests=True)
    assert report.weights_read
    assert [tensor.name for tensor in report.tensors.differing] == [name]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="ru_maxrss would count the process that started it, too"
)
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A tensor of 300 MB, different in its last element, is compared and measured in less than 100 MB."""
    size = 300_000_000
    for name in "ab":
        header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        with open(tmp_path / f"{name}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)
            if name == "b":
                file.seek(-2, 2)
                file.write(b"\x80\x3f")
    program = f"""
from deltaweights import diff_checkpoints
report = diff_checkpoints({str(tmp_path / "a.safetensors")!r}, {str(tmp_path / "b.safetensors")!r}, workers=2)
(tensor,) = report.tensors.differing
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(tensor.elements, tensor.max_abs, peak)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    elements, most, kilobytes = done.stdout.split()
    assert (elements, most) == ("1", "1.0")
    assert int(kilobytes) < 100_000
