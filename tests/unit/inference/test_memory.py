"""Weights are placed by what they need and what is free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import DeltaweightsError, InputOutputError, UsageError
from deltaweights.inference.memory import (
    WORKSPACE,
    FreeMemory,
    MemoryNeed,
    Placement,
    cgroup_limits,
    free_memory,
    memory_need,
    place,
)
from tests.support.errors import refused

GB = 10**9


BIG = MemoryNeed(weights=14 * GB, layer=GB, tensor=GB // 2, work=GB)


@pytest.mark.parametrize(
    ("memory", "device", "expected"),
    [
        (FreeMemory(16 * GB), "auto", Placement({"": "cpu"})),
        (FreeMemory(15 * GB), "cpu", Placement({"": "cpu"})),
        (FreeMemory(15 * GB, (80 * GB,)), "cpu", Placement({"": "cpu"})),
        (FreeMemory(15 * GB - 1), "auto", Placement("auto", {"cpu": 14 * GB - 1}, spills=True)),
        (FreeMemory(4 * GB, (80 * GB,)), "cuda", Placement({"": "cuda:0"})),
        (FreeMemory(4 * GB, (1, 80 * GB)), "cuda:1", Placement({"": "cuda:1"})),
        (FreeMemory(4 * GB, (80 * GB,)), "auto", Placement("auto", {0: 79 * GB, "cpu": 3 * GB})),
        (FreeMemory(4 * GB, (8 * GB, 9 * GB)), "auto", Placement("auto", {0: 7 * GB, 1: 8 * GB, "cpu": 3 * GB})),
        (FreeMemory(1, (8 * GB, 1)), "auto", Placement("auto", {0: 7 * GB, "cpu": 0}, spills=True)),
        (FreeMemory(16 * GB, (GB,)), "auto", Placement("auto", {"cpu": 15 * GB})),
    ],
)
def test_weights_go_where_there_is_room(memory: FreeMemory, device: str, expected: Placement) -> None:
    """GPUs come first, then main memory, each without what the work itself takes; what fits in neither stays on the disk."""
    assert place(BIG, memory, device, Path("model")) == expected


@pytest.mark.parametrize(
    ("memory", "device", "error", "found", "expected"),
    [
        (
            FreeMemory(3 * GB),
            "auto",
            InputOutputError,
            "3 GB free",
            "at least 3.5 GB",
        ),
        (FreeMemory(3 * GB, (3 * GB,)), "auto", InputOutputError, "3 GB free", "at least 3.5 GB"),
        (
            FreeMemory(80 * GB, (8 * GB,)),
            "cuda",
            InputOutputError,
            "8 GB free",
            "at least 15 GB",
        ),
        (FreeMemory(80 * GB), "cuda:3", UsageError, "cuda:3, of 0 GPUs that torch can use", "cpu or auto"),
    ],
)
def test_what_has_no_room_is_refused(
    memory: FreeMemory, device: str, error: type[DeltaweightsError], found: str, expected: str
) -> None:
    """A device that is not there, or too small, is refused with what was found and what is needed."""
    with refused(error, found=found, expected=expected):
        place(BIG, memory, device, Path("model"))


def test_the_need_is_counted_from_headers() -> None:
    """All weights in the dtype that they run in, the largest layer with all its tensors, and the largest tensor; no buffers."""
    specs = [
        TensorSpec("model.embed_tokens.weight", "F32", (100, 10)),
        TensorSpec("model.layers.0.a.weight", "F32", (30, 10)),
        TensorSpec("model.layers.0.b.weight", "F32", (40, 10)),
        TensorSpec("model.layers.1.a.weight", "F32", (20, 10)),
        TensorSpec("model.layers.1.self_attn.rotary_emb.inv_freq", "F32", (1000, 1000)),
    ]
    need = memory_need(specs, "float16", cache=7)
    assert need == MemoryNeed(weights=2 * 1900, layer=2 * 1000, tensor=2 * 1000, work=WORKSPACE + 7)
    assert need.minimum == need.total  # two of the largest are more than everything
    assert MemoryNeed(weights=100, layer=10, tensor=20, work=5).minimum == 45


def write(folder: Path, **files: str) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_control_groups_limit_what_is_free(tmp_path: Path) -> None:
    """Both versions are read, up to the top; a group without a limit says nothing, and cached files are free."""
    version2, version1 = tmp_path / "two", tmp_path / "one"
    write(version2 / "a", memory__max="1000", memory__current="900", memory__stat="anon 5\ninactive_file 300\n")
    write(version2 / "a" / "b", memory__max="max", memory__current="900")
    (tmp_path / "in2").write_text("0::/a/b\n")
    assert cgroup_limits(version2, tmp_path / "in2") == [400]
    write(
        version1 / "memory" / "c",
        memory__limit_in_bytes="500",
        memory__usage_in_bytes="600",
        memory__stat="total_inactive_file 50\n",
    )
    (tmp_path / "in1").write_text("4:cpu,cpuacct:/c\n3:memory:/c\n")
    assert cgroup_limits(version1, tmp_path / "in1") == [0]
    assert cgroup_limits(version1, tmp_path / "nowhere") == []


def test_free_memory_is_that_of_the_machine() -> None:
    """What is free now is more than nothing, and no more than the machine has."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory("cpu").host < pages * size
    assert free_memory("cpu").gpus == ()
