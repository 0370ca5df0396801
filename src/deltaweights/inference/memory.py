"""Where a model's weights can be held: how much is free, what is needed, and what stays on the disk.

Enters: sizes from headers, and free bytes. Leaves: where transformers is to put the weights, or a refusal that gives both figures.
Never: weights, or an allocation to see whether it works.
"""

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

WORKSPACE = 512 * 1024 * 1024
"""Bytes beside weights and cache: the numbers on their way through a layer, and the library itself."""

LAYER = re.compile(r"(.*\.layers\.[0-9]+)\..*")
"""A tensor of a layer, which has to be in memory as a whole."""

ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Memory:
    """Free bytes: of main memory, and of each GPU."""

    host: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Need:
    """What running a model needs, in bytes: all its weights, those of the largest layer and tensor, and what is beside weights."""

    weights: int
    layer: int
    tensor: int
    work: int

    @property
    def all(self) -> int:
        """Bytes with which no weight stays on the disk."""
        return self.weights + self.work

    @property
    def least(self) -> int:
        """Bytes with which it runs at all: two layers, of which one is on its way, and the largest tensor, the embeddings."""
        return min(self.all, self.work + 2 * self.layer + self.tensor)


@dataclass(frozen=True)
class Placement:
    """What transformers is told: a device for all, or "auto" and the most bytes for each; ``spills`` when some stay on the disk."""

    device_map: str | dict[str, str]
    most: dict[int | str, int] | None = None
    spills: bool = False


def check_device(device: str) -> None:
    """Raise ``UsageError`` unless ``device`` is the name of one."""
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", device):
        raise UsageError("no such device", found=device, expected="cpu, cuda, cuda:N or auto")


def need_of(specs: Iterable[TensorSpec], dtype: str, cache: int) -> Need:
    """Return what running weights of these shapes in ``dtype`` (torch's name) needs, with ``cache`` bytes for keys and values."""
    size = ITEM_SIZES[dtype]
    layers: Counter[str] = Counter()
    largest = 0
    for spec in specs:
        if not is_buffer(spec.name):
            inside = LAYER.fullmatch(spec.name)
            layers[inside[1] if inside else spec.name] += size * spec.count
            largest = max(largest, size * spec.count)
    return Need(layers.total(), max(layers.values(), default=0), largest, WORKSPACE + cache)


def place(need: Need, memory: Memory, device: str, where: Path) -> Placement:
    """Return where to put the weights on ``device``: "cpu", "cuda", "cuda:N", or "auto", any that there is.

    Raises ``UsageError`` when there is no such device, ``InputOutputError`` when memory cannot hold what is needed.
    """
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= len(memory.gpus):
            found = f"{len(memory.gpus)} GPUs that torch can use"
            raise UsageError("no such device", found=f"{device}, of {found}", expected="cpu or auto")
        if need.all > memory.gpus[number]:
            raise _refusal(need.all, memory.gpus[number], f"{device} cannot hold the model", where, "--device auto")
        return Placement({"": f"cuda:{number}"})
    gpus = memory.gpus if device == "auto" else ()
    if not gpus and need.all <= memory.host:
        return Placement({"": "cpu"})
    rooms: dict[int | str, int] = {k: free - need.work for k, free in enumerate(gpus) if free > need.least}
    free = sum(gpus[number] for number in rooms if isinstance(number, int)) + memory.host
    if not rooms and memory.host < need.least:
        rest = f"all of it takes {human_bytes(need.all)}; end other programs, or use a machine with more"
        raise _refusal(
            need.least, free, "memory cannot hold the model, even with weights left on the disk", where, rest
        )
    rooms["cpu"] = max(0, memory.host - need.work)
    return Placement("auto", rooms, spills=need.weights > sum(rooms.values()))


def _refusal(needed: int, free: int, problem: str, where: Path, remedy: str) -> InputOutputError:
    found, expected = f"{human_bytes(free)} free", f"at least {human_bytes(needed)}"
    return InputOutputError(problem, where=where, found=found, expected=expected, remedy=remedy)


def free_memory(device: str) -> Memory:
    """Return what is free: of main memory, or of what the control group may have of it, and of GPUs unless ``device`` is "cpu"."""
    import psutil  # noqa: PLC0415  (only who loads needs it)
    import torch  # noqa: PLC0415

    limits = group_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    gpus: list[int] = []
    if device != "cpu" and torch.cuda.is_available():
        gpus = [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]
    return Memory(min([psutil.virtual_memory().available, *limits]), tuple(gpus))


def group_limits(root: Path, membership: Path) -> list[int]:
    """Return what each control group of this process has left, as far as its files tell; cached files count as free.

    Both versions of control groups are known, and a limit of a group further up counts as well.
    ``root`` is where the groups are mounted, ``membership`` the file that says in which ones the process is.
    """
    left = []
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
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
            except (OSError, ValueError):  # not seen from inside a container, or "max"
                continue
            left.append(max(0, limit - used + _cached(folder / "memory.stat")))
    return left


def _cached(stat: Path) -> int:
    """Return the bytes of cached files that a group gives up when it needs them."""
    try:
        rows = dict(line.split(maxsplit=1) for line in stat.read_text(encoding="ascii").splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def cache_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Return the bytes of keys and values that ``tokens`` leave in all layers of the library's text configuration ``config``."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * tokens * ITEM_SIZES[dtype])
