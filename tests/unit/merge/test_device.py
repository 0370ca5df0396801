"""Tests of the choice of kernels: which ones compute, and when torch is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numkong
import pytest
import torch

from deltaweights.errors import InputOutputError
from deltaweights.merge import device
from deltaweights.merge.arithmetic import Array
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import TorchKernels
from deltaweights.merge.self_test import passes_self_test
from tests.support.float_bits import DTYPES, every_or_random, of_bits, strange_pair
from tests.support.limits import PATIENCE
from tests.support.merging import block_size, files_of, merge_and_load, missing_facts, small_base
from tests.support.pairs import base_tensors, delta_tensors, save


def test_torch_takes_over_if_the_self_test_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with one wrong bit in one sum fail the self-test; torch does the merge, correctly."""

    class Wrong(CpuKernels):
        def add(self, one: Array, other: Array, out: Array) -> None:
            super().add(one, other, out)
            if out.dtype == "float16" and out.shape[0] > 4711:
                numkong.astype(self.as_array(memoryview(bytearray(2)), "F16"), "float16", out=out[4711:4712])

    assert not passes_self_test(Wrong())
    monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", Wrong)
    with device.kernels_on("cpu") as make:
        assert isinstance(make(), TorchKernels)
    base = small_base()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    wrong = merge_and_load(tmp_path, "one")
    monkeypatch.undo()
    assert files_of(wrong.folder) == files_of(merge_and_load(tmp_path, "other").folder)


@pytest.mark.parametrize("arguments", [("--device", "auto"), ("--device", "cuda")])
def test_a_device_that_needs_torch_says_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Without torch, asking for a GPU is a usage error that names what to install."""
    base = small_base()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    paths = ["--base", tmp_path / "base", "--delta", tmp_path / "delta", "--target", tmp_path / "target"]
    command = [sys.executable, "-c", BARE, "apply", *map(str, paths), "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert missing_facts(done.stderr, f"device {arguments[1]}", "pip install 'deltaweights[gpu]'", "--device cpu") == []


def test_a_failed_self_test_without_torch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If numkong fails the self-test and torch is not installed, the error says what to install."""
    monkeypatch.setattr("deltaweights.merge.device.passes_self_test", lambda _: False)
    monkeypatch.delitem(sys.modules, "deltaweights.merge.kernels_torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputOutputError) as caught, device.kernels_on("cpu"):
        pass
    assert "pip install 'deltaweights[gpu]'" in (caught.value.remedy or "")


def test_torch_that_fails_the_self_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch fails the self-test, too, the run ends with an error."""
    monkeypatch.setattr("deltaweights.merge.device.passes_self_test", lambda _: False)
    with pytest.raises(InputOutputError) as caught, device.kernels_on("cpu"):
        pass
    assert "--device" in (caught.value.remedy or "")


BARE = """
import sys
for name in ("torch", "transformers", "safetensors", "accelerate", "huggingface_hub"):
    sys.modules[name] = None  # importing it fails
from deltaweights.cli import main
main()
"""


def test_a_merge_on_the_processor_needs_no_torch(tmp_path: Path) -> None:
    """Without torch, transformers and the like, apply and verify work, with torch files and NaN in them."""
    base, delta = base_tensors(), delta_tensors(base_tensors())
    delta["model.norm.weight"][3] = torch.nan
    save(base, tmp_path / "base", "torch")
    save(delta, tmp_path / "delta", "torch")
    paths = [str(tmp_path / name) for name in ("base", "delta", "target")]
    apply = ["apply", "--base", paths[0], "--delta", paths[1], "--target", paths[2]]
    for arguments in (apply, ["verify", paths[2]]):
        subprocess.run([sys.executable, "-c", BARE, *arguments], check=True, capture_output=True, timeout=PATIENCE)
    assert files_of(tmp_path / "target") == files_of(merge_and_load(tmp_path, "with-torch").folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here")
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_the_gpu_gives_the_same_files(tmp_path: Path, compute: str, stored: str) -> None:
    """A merge on a CUDA device writes the same SHA256SUMS as one on the CPU, NaN, subnormal and cast numbers included."""
    base, delta = small_base(), delta_tensors(small_base())
    for seed, dtype in enumerate(DTYPES):
        patterns = every_or_random(dtype, seed)
        base[f"sum.{dtype}"], delta[f"sum.{dtype}"] = (of_bits(row[::5], DTYPES[dtype]) for row in patterns)
        base[f"strange.{dtype}"], delta[f"strange.{dtype}"] = strange_pair(dtype)
    base["lm_head.weight"] = base["lm_head.weight"][:, :11]
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    options = {"compute_dtype": compute, "dtype": stored}
    on_cpu = merge_and_load(tmp_path, "cpu", device="cpu", **options).folder
    assert same_sums(on_cpu, merge_and_load(tmp_path, "gpu", device="cuda", **options).folder)
    with block_size(777):
        assert same_sums(on_cpu, merge_and_load(tmp_path, "gpu-small", device="cuda", workers=4, **options).folder)


def same_sums(one: Path, other: Path) -> bool:
    """Return whether two targets have the same checksums."""
    return (one / "SHA256SUMS").read_bytes() == (other / "SHA256SUMS").read_bytes()
