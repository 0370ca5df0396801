"""Merging in memory: the bits of ``apply_delta``, its refusals, and nothing on the disk."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights import apply_delta, iter_merged
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput, Mismatch, UsageError
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.merging import block_size
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, same_bits, save
from tests.support.reports import RecordingReport

DTYPES = ["float16", "bfloat16", "float32"]


def pair(folder: Path, container: str = "torch", shards: int = 2) -> tuple[Path, Path]:
    base = base_tensors()
    delta = save(delta_tensors(base), folder / "delta", container, shards)
    return save(base, folder / "base", container, shards), delta


def merged(folder: Path, base: Path, delta: Path, **options: Any) -> Tensors:
    return load(Path(apply_delta(base, delta, folder / "out", **options).target))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("container", ["torch", "safetensors"])
@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_the_bits_are_those_that_are_written(tmp_path: Path, container: str, compute: str, stored: str) -> None:
    """Names, dtypes, shapes and bits are those of ``apply_delta``, whatever the block; nothing else is left on the disk."""
    options: dict[str, Any] = {"compute_dtype": compute, "dtype": stored, "allow_unproved_base": True}
    where = pair(tmp_path, container)
    before = sorted(tmp_path.rglob("*"))
    with block_size(77):
        found = dict(iter_merged(*where, framework="torch", **options))
    assert sorted(tmp_path.rglob("*")) == before
    assert same_bits(found, merged(tmp_path, *where, **options))


def test_arrays_of_numpy(tmp_path: Path) -> None:
    """The default framework needs no torch, and its arrays are the caller's."""
    where = pair(tmp_path)
    kept = {name: torch.from_numpy(array) for name, array in iter_merged(*where)}
    assert same_bits(kept, merged(tmp_path, *where))
    program = """
import sys
sys.modules["torch"] = None
from deltaweights import iter_merged
print(sum(array.size for _, array in iter_merged(*sys.argv[1:])))
"""
    command = [sys.executable, "-c", program, *map(str, where)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert int(done.stdout) == sum(tensor.numel() for tensor in kept.values())


def test_the_order_is_that_of_the_shards(tmp_path: Path) -> None:
    """Tensors come in the order in which they are written, not sorted by name."""
    where = pair(tmp_path, "safetensors", 1)
    names = [name for name, _ in iter_merged(*where)]
    header = merged(tmp_path, *where)
    assert sorted(names) == sorted(header)
    assert names == [name for name, _ in iter_merged(*where, framework="torch")]


def test_bfloat16_is_no_dtype_of_numpy(tmp_path: Path) -> None:
    """It is refused before the first tensor, with what to do; both ways out work."""
    where = pair(tmp_path)
    options: dict[str, Any] = {"dtype": "bfloat16"}
    with refused(UsageError, problem="numpy has no bfloat16"):
        next(iter_merged(*where, **options))
    assert next(iter_merged(*where, framework="torch", **options))[1].dtype == torch.bfloat16
    assert next(iter_merged(*where, dtype="float32"))[1].dtype == "float32"


def test_a_slip_does_not_wait_for_the_first_tensor(tmp_path: Path) -> None:
    """Wrong arguments are refused by the call itself."""
    where = pair(tmp_path)
    with refused(UsageError, problem="unknown framework", found="jax"):
        iter_merged(*where, framework="jax")
    with refused(UsageError, problem="unknown dtype"):
        iter_merged(*where, compute_dtype="half")
    with refused(UsageError, problem="--base is missing", code=ErrorCode.NO_INPUT_GIVEN):
        iter_merged(None, where[1])


def test_a_wrong_base_gives_no_tensor(tmp_path: Path) -> None:
    """Samples refute it before the first one; with the option, tensors come, and a warning at the end."""
    base = base_tensors(hidden=128, vocabulary=600)
    delta = save(delta_tensors(base), tmp_path / "delta")
    other = save(base_tensors(hidden=128, vocabulary=600, seed=3), tmp_path / "other")
    with pytest.raises(Mismatch) as caught:
        next(iter_merged(other, delta))
    assert caught.value.code == ErrorCode.WRONG_BASE
    said = RecordingReport()
    assert len(list(iter_merged(other, delta, allow_unproved_base=True, report=said))) == len(delta_tensors(base)) - 2
    assert [warning for warning in said.warnings if "base" in warning]


def test_what_samples_do_not_show_is_raised_after_the_last_tensor(tmp_path: Path) -> None:
    """A few weights of another base, which no sample holds."""
    base = base_tensors(hidden=256, vocabulary=4000)
    delta = save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    for row in range(100, 500):  # samples are at one third of a tensor, and at its end
        base["model.embed_tokens.weight"][row] += 0.03
    where = save(base, tmp_path / "base", "safetensors", 1), delta
    tensors = iter_merged(*where)
    count = len(base) - 2 + 2  # without buffers, with the projector
    assert len(list(itertools.islice(tensors, count))) == count
    with pytest.raises(Mismatch):
        next(tensors)
    with pytest.raises(Mismatch):
        apply_delta(*where, tmp_path / "out")


def test_damage_ends_it(tmp_path: Path) -> None:
    """A flipped bit in a file with checksums is found while it is read."""
    where = pair(tmp_path)
    path = next((tmp_path / "delta").glob("*.bin"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(MalformedInput):
        list(iter_merged(*where))


def test_a_closed_iterator_holds_nothing(tmp_path: Path) -> None:
    """Closing it in the middle closes all files."""
    where = pair(tmp_path)
    before = set(Path("/dev/fd").iterdir())
    tensors = iter_merged(*where)
    next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert len(set(Path("/dev/fd").iterdir())) <= len(before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_memory_is_a_tensor_and_some_blocks(tmp_path: Path) -> None:
    """A model of 200 MB in tensors of 8 MB takes less than 100 MB."""
    base = {f"model.layers.{n}.w.weight": torch.randn(1024, 4096).half() / 50 for n in range(25)}
    delta = {name: (tensor.float() / 64).half() for name, tensor in base.items()}
    where = save(base, tmp_path / "base", "safetensors", 1), save(delta, tmp_path / "delta", "safetensors", 1)
    program = """
import sys
from deltaweights import iter_merged
for _ in iter_merged(*sys.argv[1:], allow_unproved_base=True):
    pass
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
    command = [sys.executable, "-c", program, *map(str, where)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert int(done.stdout) < 100_000
