"""The two sets of kernels, ours for the processor and torch's: the same bits, whatever the processor can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numkong
import pytest
import torch

from deltaweights.errors import InputOutputError
from deltaweights.merge import device
from deltaweights.merge.arithmetic import Array, BlockCombiner, Kernels, Task
from deltaweights.merge.blocks import Run
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import TorchKernels
from deltaweights.merge.operation import Operation
from deltaweights.merge.self_test import EXPECTED_DIGEST, passes_self_test, results_digest
from tests.support.limits import LONG, PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, same_bits, save
from tests.unit.merge.test_exactness import DTYPES, SMALL, every_or_random, files_of, merge, of_bits, strange_pair

LEVELS = [name for name, here in numkong.get_capabilities().items() if here and name != "serial"]
"""What this processor can do beyond plain C, from old to new; leaving out the newest few gives an older processor."""


def older_processors() -> list[tuple[str, ...]]:
    """Return what to leave out to have this processor and each older kind of it, down to plain C."""
    return [tuple(LEVELS[count:]) for count in range(len(LEVELS), -1, -1)]


def torch_kernels() -> TorchKernels:
    """Return torch's kernels for the processor."""
    return TorchKernels(torch.device("cpu"))


def test_the_known_answers_are_torchs() -> None:
    """What both sets of kernels are compared with at every start is what torch gives."""
    assert results_digest(torch_kernels()) == EXPECTED_DIGEST


WITHOUT = """
import sys, numkong
for name in sys.argv[1:]:
    numkong.disable_capability(name)
    assert not numkong.get_capabilities()[name]
"""


@pytest.mark.parametrize("left_out", older_processors(), ids=lambda names: f"without-{'-'.join(names) or 'none'}")
def test_every_kind_of_processor_gives_the_known_answers(left_out: tuple[str, ...]) -> None:
    """The kernels that an older processor would be given prove themselves, too."""
    program = f"""{WITHOUT}
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.self_test import passes_self_test
print(passes_self_test(CpuKernels()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *left_out], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "True\n"


EVERY_SUM = """
import numpy as np, torch
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import TORCH_DTYPES
kernels = CpuKernels()
torch.set_num_threads(1)
rows = 64
one, other, total = (kernels.buffer(rows * 131072) for _ in range(3))
np.frombuffer(one, np.uint16)[:] = np.tile(np.arange(65536, dtype=np.uint16), rows)
others = np.frombuffer(other, np.uint16)
arrays = [kernels.as_array(buffer, DTYPE) for buffer in (one, other, total)]
tensors = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[DTYPE]) for buffer in (one, other, total)]
expected = torch.empty_like(tensors[0])
compute, by_torch = {"add": (kernels.add, torch.add), "subtract": (kernels.subtract, torch.sub)}[OPERATION]
for first in range(0, 65536, rows):
    others[:] = np.repeat(np.arange(first, first + rows, dtype=np.uint16), 65536)
    compute(*arrays)
    by_torch(tensors[0], tensors[1], out=expected)
    differ = tensors[2].view(torch.int16) != expected.view(torch.int16)
    if differ.any():  # NaN payloads may
        assert (tensors[2].isnan() == expected.isnan()).all(), first
        assert expected[differ].isnan().all(), first
"""


@pytest.mark.slow
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize(
    ("dtype", "left_out"),
    [("BF16", ()), *(("F16", left_out) for left_out in older_processors())],
    ids=lambda part: part if isinstance(part, str) else f"without-{'-'.join(part) or 'none'}",
)
def test_every_sum_and_difference_of_16_bits_is_torchs(dtype: str, left_out: tuple[str, ...], operation: str) -> None:
    """All 2^32 have torch's bits, NaN payloads aside: in bfloat16, and in float16 on every kind of processor."""
    program = f"OPERATION, DTYPE = {operation!r}, {dtype!r}{WITHOUT}{EVERY_SUM}"
    subprocess.run([sys.executable, "-c", program, *left_out], check=True, timeout=LONG - 60)


NAN_TEST = """
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "test_a_cast_keeps_nan and ours", FILE]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("left_out", older_processors()[1:], ids=lambda names: f"without-{'-'.join(names)}")
def test_older_processors_keep_nan(left_out: tuple[str, ...]) -> None:
    """What the known answers leave out, NaN in casts, holds on every kind of processor."""
    program = f"FILE = {__file__!r}{WITHOUT}{NAN_TEST}"
    done = subprocess.run(
        [sys.executable, "-c", program, *left_out], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_processor_that_rounds_otherwise_is_found_out_and_torch_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels with one wrong bit in one sum do not prove themselves; the merge is done by torch, and right."""

    class Wrong(CpuKernels):
        def add(self, one: Array, other: Array, out: Array) -> None:
            super().add(one, other, out)
            if out.dtype == "float16":
                numkong.astype(self.as_array(memoryview(bytearray(2)), "F16"), "float16", out=out[4711:4712])

    assert not passes_self_test(Wrong())
    monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", Wrong)
    with device.kernels_on("cpu") as make:
        assert isinstance(make(), TorchKernels)
    base = SMALL()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    wrong = merge(tmp_path, "one")
    monkeypatch.undo()
    assert files_of(wrong.folder) == files_of(merge(tmp_path, "other").folder)


@pytest.mark.parametrize("arguments", [("--device", "auto"), ("--device", "cuda")])
def test_a_device_that_needs_torch_says_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Where torch is not installed, asking for a GPU ends with 2 and one line, not with a traceback."""
    base = SMALL()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    paths = ["--base", tmp_path / "base", "--delta", tmp_path / "delta", "--target", tmp_path / "target"]
    command = [sys.executable, "-c", BARE, "apply", *map(str, paths), "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == (
        f"deltaweights: error: device {arguments[1]} needs torch; pip install torch, or run with --device cpu\n"
    )


def test_without_torch_nobody_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ours do not prove themselves and torch is not installed, the run ends with 5 and says what to install."""
    monkeypatch.setattr("deltaweights.merge.device.passes_self_test", lambda _: False)
    monkeypatch.delitem(sys.modules, "deltaweights.merge.kernels_torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputOutputError, match=r"does not round.*pip install torch"), device.kernels_on("cpu"):
        pass


def test_torch_that_rounds_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch does not give the known answers either, the run ends with one line."""
    monkeypatch.setattr("deltaweights.merge.device.passes_self_test", lambda _: False)
    with pytest.raises(InputOutputError, match="does not round"), device.kernels_on("cpu"):
        pass


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_both_sets_of_kernels_write_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str, stored: str
) -> None:
    """Merges by torch on the processor have the bytes of merges by ours, with NaN, subnormal and cast numbers in them."""
    base, delta = base_tensors(), delta_tensors(base_tensors())
    for number, dtype in enumerate(DTYPES):
        patterns = every_or_random(dtype, seed=number)
        base[f"sum.{dtype}"], delta[f"sum.{dtype}"] = (of_bits(row[::9], DTYPES[dtype]) for row in patterns)
        base[f"strange.{dtype}"], delta[f"strange.{dtype}"] = strange_pair(dtype)
    base["wide"], delta["wide"] = (of_bits(row[:1000], torch.float32).double() for row in every_or_random("float32", 3))
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    ours = merge(tmp_path, "ours", compute_dtype=compute, dtype=stored)
    monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", _Unproven)
    by_torch = merge(tmp_path, "by-torch", compute_dtype=compute, dtype=stored)
    assert files_of(ours.folder) == files_of(by_torch.folder)


class _Unproven(CpuKernels):
    """Kernels that no proof accepts."""

    def add(self, one: Array, other: Array, out: Array) -> None:
        """Leave ``out`` as it is."""


BARE = """
import sys
for name in ("torch", "transformers", "safetensors", "accelerate", "huggingface_hub"):
    sys.modules[name] = None  # importing it fails
from deltaweights.cli import main
main()
"""


def test_a_merge_on_the_processor_needs_no_torch(tmp_path: Path) -> None:
    """Where torch, transformers and the like are not installed, apply and verify work, from torch files, with NaN in them."""
    base, delta = base_tensors(), delta_tensors(base_tensors())
    delta["model.norm.weight"][3] = torch.nan
    save(base, tmp_path / "base", "torch")
    save(delta, tmp_path / "delta", "torch")
    paths = [str(tmp_path / name) for name in ("base", "delta", "target")]
    apply = ["apply", "--base", paths[0], "--delta", paths[1], "--target", paths[2]]
    for arguments in (apply, ["verify", paths[2]]):
        subprocess.run([sys.executable, "-c", BARE, *arguments], check=True, capture_output=True, timeout=PATIENCE)
    assert files_of(tmp_path / "target") == files_of(merge(tmp_path, "with-torch").folder)


@pytest.mark.parametrize("make", [CpuKernels, torch_kernels], ids=["ours", "torch"])
def test_a_cast_keeps_nan(make: type[CpuKernels]) -> None:
    """No NaN becomes a number, whatever its payload, in any cast of float16, float32 and float64 (some roundings lose them)."""
    kernels: Kernels = make()
    patterns = {
        "F16": [*range(0x7C01, 0x8000), *range(0xFC01, 0x10000)],
        "F32": [0x7F800000 + (1 << bit) for bit in range(23)] + [0xFFFFFFFF, 0xFF800001, 0x7FFF8000, 0x7FFFFFFF],
        "F64": [0x7FF0000000000000 + (1 << bit) for bit in range(52)] + [0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFE0000000],
    }
    for dtype, words in patterns.items():
        for wanted, torch_dtype in DTYPES_BY_CODE.items():
            size = {"F16": 2, "F32": 4, "F64": 8}[dtype]
            bench = BlockCombiner(kernels, Task(Operation.APPLY, wanted, wanted), len(words))
            bench.primary[: len(words) * size] = b"".join(word.to_bytes(size, "little") for word in words)
            result = bench.combine(len(words), dtype, None, ())
            assert result.tally.nonfinite == len(words), f"{dtype} to {wanted}"
            stored = torch.frombuffer(bytearray(result.data), dtype=torch_dtype)
            assert stored.isnan().all(), f"{dtype} to {wanted}"


DTYPES_BY_CODE = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@pytest.mark.parametrize("make", [CpuKernels, torch_kernels], ids=["ours", "torch"])
def test_kernels_leave_their_inputs_alone(make: type[CpuKernels]) -> None:
    """The bytes that were read are what is digested afterwards: a sum, a cast or a NaN does not change them."""
    base, delta = strange_pair("float16")
    bench = BlockCombiner(make(), Task(Operation.APPLY, "BF16", "F16"), len(base))
    before = [tensor.view(torch.uint8).numpy().tobytes() for tensor in (base, delta)]
    size = len(before[0])
    bench.base[:size], bench.primary[:size] = before
    bench.combine(len(base), "F16", "F16", (Run(0, len(base), 0),))
    assert [bytes(bench.base[:size]), bytes(bench.primary[:size])] == before
    assert same_bits({"w": base}, {"w": torch.frombuffer(bytearray(bench.base[:size]), dtype=torch.float16)})
