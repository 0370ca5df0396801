"""Tests of the compiled sums and counts: where they are built, used, refused and done without."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deltaweights.manifest.tally import Proof
from deltaweights.merge import compiled
from deltaweights.merge.compiled import CompiledKernels, compiled_kernels
from deltaweights.merge.device import kernels_on
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.self_test import passes_self_test
from tests.support.limits import PATIENCE
from tests.support.merging import merge_tensors, small_base
from tests.support.pairs import delta_tensors, same_bits

ROOT = Path(__file__).parents[3]
built = pytest.mark.skipif(compiled_kernels("F16") is None, reason="the library was not built: there was no C compiler")


@built
def test_a_library_that_counts_wrongly_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One count too many in a block, and numpy counts instead; the merge and its proof are the same."""
    base = small_base()
    right = merge_tensors(tmp_path / "right", base, delta_tensors(base))
    true = CompiledKernels.round_trip
    monkeypatch.setattr(CompiledKernels, "round_trip", lambda *arguments: true(*arguments) + Proof(violations=1))
    assert not passes_self_test(CpuKernels())
    with kernels_on("cpu") as make_kernels:
        assert passes_self_test(make_kernels())
    other = merge_tensors(tmp_path / "other", base, delta_tensors(base))
    assert same_bits(other.tensors, right.tensors)
    assert [(path / "manifest.json").read_bytes() for path in (right.folder, other.folder)].count(
        (right.folder / "manifest.json").read_bytes()
    ) == 2


@built
def test_a_library_that_overlooks_what_is_not_finite_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the last few numbers of a block must be found, too."""
    true = CompiledKernels.nonfinite
    monkeypatch.setattr(
        CompiledKernels, "nonfinite", lambda self, numbers, count: true(self, numbers, count // 16 * 16)
    )
    assert not passes_self_test(CpuKernels())


@built
def test_a_library_that_adds_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sum that is left out at the end, and neither its sums nor its counts are used."""
    counts = compiled_kernels("F16")
    if counts is None or not counts.adds:
        pytest.skip("the library does not add on this processor")
    true = CompiledKernels.add
    monkeypatch.setattr(
        CompiledKernels, "add", lambda self, one, other, out, count: true(self, one, other, out, count - 1)
    )
    assert not passes_self_test(CpuKernels())
    with kernels_on("cpu") as make_kernels:
        assert passes_self_test(make_kernels())


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF of another machine"])
def test_without_a_library_numpy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """A missing, empty or foreign file is no error."""
    library = tmp_path / "kernels.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setattr(compiled, "LIBRARY", library)
    compiled._library.cache_clear()
    try:
        assert compiled_kernels("F16") is None
        assert passes_self_test(CpuKernels())
    finally:
        compiled._library.cache_clear()


@built
@pytest.mark.parametrize("count", [0, 1, 15, 16_383, 16_384, 16_385, 70_001])
def test_every_number_is_counted_once(count: int) -> None:
    """Whole strides, their neighbours, and more numbers than 16 bits can count: all are infinite, or all of the region."""
    counts = compiled_kernels("F16")
    assert counts is not None
    infinite = (ctypes.c_uint16 * max(count, 1))(*[0xFC00] * count)
    ones, more = ((ctypes.c_uint16 * max(count, 1))(*[word] * count) for word in (0x3C00, 0x3C01))
    zeros = (ctypes.c_uint16 * max(count, 1))()
    address = ctypes.addressof
    assert counts.nonfinite(address(infinite), count) == count
    assert counts.nonfinite(address(zeros), count) == 0
    found = counts.round_trip(address(ones), address(zeros), address(more), address(ones), count)
    assert found == Proof(count, count, count, count)
    found = counts.round_trip(address(ones), address(zeros), address(ones), address(zeros), count)
    assert found == Proof(count, count, 0, 0)


def test_numbers_of_eight_bytes_have_no_compiled_kernels() -> None:
    """Numpy counts them: no published delta is computed in float64."""
    assert compiled_kernels("F64") is None


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "nonesuch", "false"])
def test_a_wheel_is_built_with_any_compiler_and_with_none(tmp_path: Path, compiler: str) -> None:
    """With one, the wheel has the library and is for one platform; without, or if it fails, it is for every platform."""
    if shutil.which(compiler) is None and compiler != "nonesuch":
        pytest.skip(f"there is no {compiler}")
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.so", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=ignore)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")],
        cwd=copy,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        has_library = "deltaweights/merge/kernels.so" in opened.namelist()
    assert has_library == (compiler == "cc")
    assert wheel.name.endswith("-py3-none-any.whl") == (not has_library)
    assert ("without its compiled library" in done.stdout + done.stderr) == (not has_library)
