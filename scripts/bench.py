"""Measures whole commands, side by side, on checkpoints with the tensor shapes of LLaMA-7B.

Enters: how many layers, which container, how many rounds. Leaves: a table (or JSON) of medians and of ratios within a round. Never:
a verdict from a single run: the contestants take turns, each starts after a ``sync``, and the ratio is taken round by round, since
a shared machine drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 4096, 11008, 32000, 32
"""LLaMA-7B's sizes; its 32 layers are 13.5 GB in float16."""

ORIGINAL = """
import sys, torch
from transformers import LlamaForCausalLM
base_path, delta_path, target_path = sys.argv[1:]
base = LlamaForCausalLM.from_pretrained(base_path, dtype=torch.float16, low_cpu_mem_usage=True)
delta = LlamaForCausalLM.from_pretrained(delta_path, dtype=torch.float16, low_cpu_mem_usage=True)
weights = base.state_dict()
for name, parameter in delta.state_dict().items():
    parameter.data += weights[name]
delta.save_pretrained(target_path)
"""
"""The original apply_delta scripts' algorithm (see docs/design.md, Rules), written anew: both models, a loop, save_pretrained."""


@dataclass(frozen=True)
class Run:
    """One run of one contestant: seconds of wall clock, peak memory in MB, and what it says of itself."""

    seconds: float
    peak_mb: float
    own: dict[str, float]


def make_checkpoints(folder: Path, layers: int, container: str, pair: str) -> tuple[Path, Path]:
    """Write a random base and delta with LLaMA-7B's shapes under ``folder``, unless they are there; return their paths.

    A "llava-med" delta has four more rows of vocabulary, a projector, and the buffers in float32, as the published one.
    """
    import torch  # noqa: PLC0415  (so that --help is quick)
    from safetensors.torch import save_file  # noqa: PLC0415

    paths = folder / f"base-{layers}-{container}", folder / f"delta-{pair}-{layers}-{container}"
    for seed, (path, scale) in enumerate(zip(paths, (0.02, 0.0004), strict=True)):
        if (path / "config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        weight_map: dict[str, str] = {}
        grown = pair == "llava-med" and path == paths[1]
        parts = _parts(layers, VOCABULARY + 4 if grown else VOCABULARY)
        if grown:
            parts[-1] |= {"model.mm_projector.weight": (HIDDEN, 1024), "model.mm_projector.bias": (HIDDEN,)}
        for number, shapes in enumerate(parts, start=1):
            tensors = {n: torch.empty(s).normal_(0, scale, generator=generator).half() for n, s in shapes.items()}
            if grown and number == 1:
                tensors |= {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.zeros(64) for k in range(layers)}
            stem, suffix = ("model", ".safetensors") if container == "safetensors" else ("pytorch_model", ".bin")
            file = f"{stem}-{number:05d}-of-{len(parts):05d}{suffix}"
            if container == "safetensors":
                save_file(tensors, path / file, metadata={"format": "pt"})
            else:
                torch.save(tensors, path / file)
            weight_map |= dict.fromkeys(tensors, file)
        index = "model.safetensors.index.json" if container == "safetensors" else "pytorch_model.bin.index.json"
        (path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_attention_heads": HEADS,
            "num_hidden_layers": layers,
            "vocab_size": VOCABULARY + 4 if grown else VOCABULARY,
            "torch_dtype": "float16",
        }
        (path / "config.json").write_text(json.dumps(config))
    return paths


def _parts(layers: int, vocabulary: int) -> list[dict[str, tuple[int, ...]]]:
    """Return names and shapes of a LLaMA with 7B's sizes, about 4 GB to a shard."""
    parts: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (vocabulary, HIDDEN)}]
    for layer in range(layers):
        if layer and layer % 10 == 0:
            parts.append({})
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            parts[-1][f"{prefix}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name, shape in (
            ("gate", (INTERMEDIATE, HIDDEN)),
            ("up", (INTERMEDIATE, HIDDEN)),
            ("down", (HIDDEN, INTERMEDIATE)),
        ):
            parts[-1][f"{prefix}mlp.{name}_proj.weight"] = shape
        for name in ("input", "post_attention"):
            parts[-1][f"{prefix}{name}_layernorm.weight"] = (HIDDEN,)
    parts[-1] |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}
    return parts


def measure(command: list[str], inputs: tuple[Path, Path], target: Path) -> Run:
    """Run ``command`` once from a clean target, after a ``sync``, with ``inputs`` in the page cache."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    buffer = bytearray(1 << 24)
    for path in inputs:
        for file in path.iterdir():  # a machine that is short of memory drops them between two runs
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None  # noqa: S101  (PIPE was asked for)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"bench: {' '.join(command[:4])} ... ended with {process.returncode}")
    own = json.loads(output)["seconds"] if output.startswith(b"{") else {}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kilobytes on Linux
    return Run(seconds, usage.ru_maxrss * unit / 1e6, own)


def contestants(
    base: Path, delta: Path, target: Path, chosen: set[str], workers: int | None
) -> dict[str, Callable[[], Run]]:
    """Return the commands to compare, by name."""
    ours = [
        sys.executable,
        "-m",
        "deltaweights",
        "apply",
        "--base",
        str(base),
        "--delta",
        str(delta),
        "--target",
        str(target),
    ]
    ours += ["--json", "--quiet", *(["--workers", str(workers)] if workers else [])]
    copy = f"cp -r '{delta}' '{target}'"
    commands = {
        "deltaweights": ours,
        "original": [sys.executable, "-c", ORIGINAL, str(base), str(delta), str(target)],
        "copy+sha256": ["sh", "-c", f"{copy} && openssl dgst -sha256 '{target}'/*"],
        "copy": ["sh", "-c", copy],
        "start-up": [sys.executable, "-c", "import torch"],
    }
    return {
        name: partial(measure, command, (base, delta), target) for name, command in commands.items() if name in chosen
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description="Measure the merge against the original algorithm and against copying."
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of 405 MB each; 4 give 2.1 GB of output, 32 are LLaMA-7B"
    )
    parser.add_argument("--container", choices=("safetensors", "torch"), default="safetensors", help="of both inputs")
    parser.add_argument(
        "--pair", choices=("plain", "llava-med"), default="plain", help="plain LLaMA, or with LLaVA-Med's extra tensors"
    )
    parser.add_argument("--rounds", type=int, default=5, help="each contestant runs once per round, in turns")
    parser.add_argument("--workers", type=int, help="for deltaweights")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="deltaweights, original, copy+sha256, copy, start-up")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where checkpoints are made and kept")
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    options = parser.parse_args()
    folder = options.folder.resolve()
    # In a process of its own: Linux counts the memory of whoever starts a process as that process's peak.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
        base, delta = maker.submit(make_checkpoints, folder, options.layers, options.container, options.pair).result()
    chosen = set(options.only or ("deltaweights", "original", "copy+sha256", "copy", "start-up"))
    if options.pair == "llava-med":
        chosen.discard("original")  # its model class exists only in the code of 2023
    target = folder / "target"
    runners = contestants(base, delta, target, chosen, options.workers)
    runs: dict[str, list[Run]] = {name: [] for name in runners}
    for number in range(-1, options.rounds):  # round -1 warms the page cache and does not count
        for name in list(runners) if number % 2 else reversed(list(runners)):
            run = runners[name]()
            if number >= 0:
                runs[name].append(run)
                print(f"round {number + 1}: {name:14} {run.seconds:7.2f} s {run.peak_mb:7.0f} MB", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    if options.json:
        print(json.dumps({name: [asdict(run) for run in of] for name, of in runs.items()}, indent=2))
    else:
        size = sum(path.stat().st_size for path in delta.iterdir())
        print("\n".join(table(runs, size)))


def table(runs: dict[str, list[Run]], size: int) -> list[str]:
    """Return the lines of the table: medians, and the median of each round's ratio to ours."""
    ours = runs.get("deltaweights", [])
    lines = [
        f"output {size / 1e9:.2f} GB, {len(next(iter(runs.values())))} rounds, medians; ratio = theirs / ours, round by round"
    ]
    lines.append(f"{'':14} {'seconds':>8} {'min':>7} {'max':>7} {'GB/s':>6} {'peak MB':>8} {'ratio':>6}")
    for name, of in runs.items():
        seconds = [run.seconds for run in of]
        ratio = (
            statistics.median(their.seconds / our.seconds for their, our in zip(of, ours, strict=True)) if ours else 0
        )
        middle = statistics.median(seconds)
        peak = max(run.peak_mb for run in of)
        lines.append(
            f"{name:14} {middle:8.2f} {min(seconds):7.2f} {max(seconds):7.2f} {size / middle / 1e9:6.2f} {peak:8.0f} {ratio:6.2f}"
        )
    if ours:
        stages = {stage: statistics.median(run.own[stage] for run in ours) for stage in ours[0].own}
        lines.append(
            "deltaweights by stage, s: " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items())
        )
    return lines


if __name__ == "__main__":
    main()
