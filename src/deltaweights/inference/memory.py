"""Decides where a model's weights go: GPUs, main memory, or left on the disk; estimated from headers and free memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import InputOutputError, UsageError
from deltaweights.merge.rules import is_buffer
from deltaweights.util.sizes import human_bytes

WORKSPACE = 512 * 1024 * 1024  # bytes beside weights and cache: activations, and the libraries themselves
LAYER = re.compile(r"(.*\.layers\.[0-9]+)\..*")  # a tensor of a layer; accelerate loads a layer as a whole
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class FreeMemory:
    """Free bytes of main memory, and of each GPU."""

    host: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of all weights, of the largest layer, of the largest tensor, and of everything else (``work``)."""

    weights: int
    layer: int
    tensor: int
    work: int

    @property
    def total(self) -> int:
        """Bytes with which no weight stays on the disk."""
        return self.weights + self.work

    @property
    def minimum(self) -> int:
        """Bytes without which nothing runs: two layers, one of them being loaded, and the largest tensor (embeddings)."""
        return min(self.total, self.work + 2 * self.layer + self.tensor)


@dataclass(frozen=True)
class Placement:
    """Arguments of ``from_pretrained``: ``device_map`` and ``max_memory``; ``spills`` if weights stay on the disk."""

    device_map: str | dict[str, str]
    max_memory: dict[int | str, int] | None = None
    spills: bool = False


def check_device(device: str) -> None:
    """Raise ``UsageError`` unless ``device`` is the name of one."""
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", device):
        raise UsageError("no such device", found=device, expected="cpu, cuda, cuda:N or auto")


def memory_need(specs: Iterable[TensorSpec], dtype: str, cache: int) -> MemoryNeed:
    """Return the bytes that a model needs in ``dtype`` (torch's name), with ``cache`` bytes for keys and values."""
    layers: Counter[str] = Counter()
    largest = 0
    for spec in specs:
        if not is_buffer(spec.name):
            size = ITEM_SIZES[dtype] * spec.count
            in_layer = LAYER.fullmatch(spec.name)
            layers[in_layer[1] if in_layer else spec.name] += size
            largest = max(largest, size)
    return MemoryNeed(layers.total(), max(layers.values(), default=0), largest, WORKSPACE + cache)


def place(need: MemoryNeed, memory: FreeMemory, device: str, where: Path) -> Placement:
    """Return the placement on ``device``. Raises ``UsageError`` if there is none, ``InputOutputError`` if memory is too small."""
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= len(memory.gpus):
            found = f"{device}, of {len(memory.gpus)} GPUs that torch can use"
            raise UsageError("no such device", found=found, expected="cpu or auto")
        if need.total > memory.gpus[number]:
            raise _too_small(need.total, memory.gpus[number], f"{device} cannot hold the model", where, "--device auto")
        return Placement({"": f"cuda:{number}"})
    gpus = memory.gpus if device == "auto" else ()
    if not gpus and need.total <= memory.host:
        return Placement({"": "cpu"})
    usable = {number: free for number, free in enumerate(gpus) if free > need.minimum}
    if not usable and memory.host < need.minimum:
        remedy = f"all of it takes {human_bytes(need.total)}; end other programs, or use a machine with more"
        problem = "memory cannot hold the model, even with weights left on the disk"
        raise _too_small(need.minimum, memory.host, problem, where, remedy)
    limits: dict[int | str, int] = {number: free - need.work for number, free in usable.items()}
    limits["cpu"] = max(0, memory.host - need.work)
    return Placement("auto", limits, spills=need.weights > sum(limits.values()))


def _too_small(needed: int, free: int, problem: str, where: Path, remedy: str) -> InputOutputError:
    found, expected = f"{human_bytes(free)} free", f"at least {human_bytes(needed)}"
    return InputOutputError(problem, where=where, found=found, expected=expected, remedy=remedy)


def free_memory(device: str) -> FreeMemory:
    """Return what is free of main memory, within the limits of control groups, and of GPUs unless ``device`` is "cpu"."""
    import psutil  # noqa: PLC0415
    import torch  # noqa: PLC0415

    limits = cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    gpus: list[int] = []
    if device != "cpu" and torch.cuda.is_available():
        gpus = [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]
    return FreeMemory(min([psutil.virtual_memory().available, *limits]), tuple(gpus))


def cgroup_limits(root: Path, membership: Path) -> list[int]:
    """Return the bytes left in each control group (v1 and v2, mounted at ``root``) of the file ``membership``, and its parents."""
    left: list[int] = []
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return left
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        top = root / "memory" if controllers else root
        group = top / inside.strip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            try:
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in files)
            except (OSError, ValueError):  # not visible inside a container, or "max"
                continue
            left.append(max(0, limit - used + _cached(folder / "memory.stat")))
    return left


def _cached(stat: Path) -> int:
    """Return the bytes of cached files, which count as free: the kernel drops them when a group needs memory."""
    try:
        rows = dict(line.split(maxsplit=1) for line in stat.read_text(encoding="ascii").splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def kv_cache_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Return the bytes of keys and values for ``tokens`` in all layers of the text configuration ``config``."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * tokens * ITEM_SIZES[dtype])
