"""Tests of the ``diff`` command: exit codes, lines and JSON."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.support.diffs import BASE, BUFFER, NORM, changed, merge_three_times
from tests.support.pairs import base_tensors, save

PARTS = {"identical", "differing", "other_shape", "only_in_a", "only_in_b"}
KEYS = {"naming", "a", "b", "identical", "same_kind", "weights_read", "bytes", "tensors", "buffers"}
FIGURES = {"name", "shape", "dtypes", "elements", "bits", "max_abs", "relative_norm", "nonfinite"}
BAD = {"missing": 5, "empty": 3, "malformed": 3, "two-sets": 3}
"""Exit codes by what is wrong with the second checkpoint."""


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(run: Run, tmp_path: Path, kind: str) -> None:
    """A checkpoint that is not there, or breaks its format, ends with 5 or 3, one line on stderr and nothing on stdout."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    if kind != "missing":
        (tmp_path / "b").mkdir()
    if kind == "malformed":
        (tmp_path / "b" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    if kind == "two-sets":
        save(BASE, tmp_path / "b", "torch", 2)
        save(BASE, tmp_path / "b", "torch", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (BAD[kind], "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("deltaweights: error: ")
    if kind == "malformed":
        assert "model.safetensors" in line


def test_command_identical(run: Run, tmp_path: Path) -> None:
    """For identical checkpoints the command exits with 0 and counts weights and buffers apart."""
    save(BASE, tmp_path / "a", "safetensors", 2)
    save(BASE, tmp_path / "b", "torch", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    weights, buffers = done.stdout.splitlines()
    assert weights == "identical: 12 tensors, 1.78 kB"
    assert buffers.endswith(": 1 identical, 0 different")


def test_command_different(run: Run, tmp_path: Path) -> None:
    """Differences end with 6, one line on stderr, and a line for every tensor on stdout; long and foreign names break nothing."""
    odd = "odd\u202ename"
    one = BASE | {odd: torch.ones(2, 3), "cast": torch.ones(2), "lone": torch.ones(1), "grown": torch.ones(2)}
    other = one | {
        odd: torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.5]]),
        "cast": torch.ones(2).half(),
        "grown": torch.ones(3),
        NORM: changed(BASE[NORM], 0, math.nan),
    }
    del other["lone"]
    save(one, tmp_path / "a", "safetensors", 1)
    save(other, tmp_path / "b", "safetensors", 1)
    done = run("diff", "a", "b", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr == "deltaweights: error: b: not the same weights as a: found 5 of 16 tensors different\n"
    bits = (int(BASE[NORM].view(torch.int16)[0]) ^ 0x7E00).bit_count()
    assert done.stdout.splitlines() == [
        "different: 5 of 16 tensors",
        "        elements            bits    max abs  rel. norm  differing tensor",
        "               0               -          0          0  cast: F32 and F16 [2]",
        f"               1{bits:>16}          0          0  model.norm.weight: F16 [8], 1 NaN or infinite",
        "               1               1        0.5      0.204  odd\\u202ename: F32 [2, 3]",
        "  other shape  grown: F32 [2] in A, F32 [3] in B",
        "  only in A    lone: F32 [1]",
        "buffers, which do not count: 1 identical, 0 different",
    ]


def test_command_json(run: Run, tmp_path: Path) -> None:
    """``--json`` prints one strict object with the documented keys, the same on every run; null is what has no figure."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    zero = dict.fromkeys(BASE, torch.zeros(8, 8))
    save(BASE | {NORM: changed(BASE[NORM], 0, math.inf), BUFFER: zero[BUFFER]}, tmp_path / "b", "torch", 2)
    done, again = (run("diff", "a", "b", "--json", "-q", cwd=tmp_path) for _ in range(2))
    assert (done.returncode, done.stdout) == (6, again.stdout)
    assert len(done.stderr.splitlines()) == 1
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found.pop("error")["code"] == "E-DIFFERENT"
    assert found.keys() == KEYS
    assert (found["identical"], found["same_kind"], found["weights_read"]) == (False, True, True)
    assert (found["a"], found["b"]) == ("a", "b")
    assert found["tensors"].keys() == found["buffers"].keys() == PARTS
    (tensor,) = found["tensors"]["differing"]
    assert tensor.keys() == FIGURES
    assert (tensor["name"], tensor["dtypes"], tensor["nonfinite"]) == (NORM, ["F16", "F16"], 1)
    (reshaped,) = found["buffers"]["other_shape"]
    assert reshaped == {"name": BUFFER, "shapes": [[1], [8, 8]], "dtypes": ["F32", "F32"]}


@pytest.mark.parametrize("how", ["sizes", "names"])
def test_command_of_unlike_models(run: Run, tmp_path: Path, how: str) -> None:
    """Models of another size, or with other names, are said to be of another kind in the first line, and end with 6."""
    save(BASE, tmp_path / "a", "safetensors", 1)
    other = (
        base_tensors(layers=1, vocabulary=8, hidden=16) if how == "sizes" else {f"x.{n}": t for n, t in BASE.items()}
    )
    save(other, tmp_path / "b", "safetensors", 1)
    done = run("diff", "a", "b", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stdout.splitlines()[0] == (
        "not the same kind of model: no tensor has the same name and shape in both (12 tensors in A, 12 in B)"
    )
    assert len(done.stderr.splitlines()) == 1
    machine = run("diff", "a", "b", "--json", cwd=tmp_path)
    assert json.loads(machine.stdout)["same_kind"] is False


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge a pair three times; tests only read the results."""
    return merge_three_times(tmp_path_factory.mktemp("merged"))


def test_command_trusting_manifests(run: Run, merged: Path) -> None:
    """``--trust-manifests`` says, in the verdict too, that no weights were read."""
    done = run("diff", merged / "one", merged / "other", "--trust-manifests")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].endswith(", as the manifests state; no weights were read")
    assert done.stderr.startswith("no weights were read")
    quiet = run("diff", merged / "one", merged / "other", "--trust-manifests", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, done.stdout, "")
