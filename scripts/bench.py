"""Measures whole commands, side by side, on random checkpoints with the tensor shapes of LLaMA-7B.

Enters: how many layers, which container, how many rounds, against whom. Leaves: a table (or JSON) of medians and of ratios within a
round. Never: a figure that is not that of a whole command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import bench_cores
import bench_hub
import bench_llava
import bench_stages
from bench_checkpoints import Model, make
from bench_runs import Contestant, ours, rounds, table

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

HASHLIB = """
import hashlib, os, sys
from concurrent.futures import ThreadPoolExecutor
def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else whole(file)
def whole(file):
    made, buffer = hashlib.sha256(), bytearray(1 << 20)
    while count := file.readinto(buffer):
        made.update(memoryview(buffer)[:count])
    return made.hexdigest()
with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
    print(list(pool.map(digest, [entry.path for entry in os.scandir(sys.argv[1])])))
"""
"""What hashlib does with all shards on all processors."""

META = """
import sys
from pathlib import Path
from safetensors.torch import load_file
from tests.support.meta import save_meta
base, meta, parts = sys.argv[1:]
tensors = {name: tensor for path in sorted(Path(base).glob("*.safetensors")) for name, tensor in load_file(path).items()}
save_meta(tensors, Path(meta), int(parts), tensors["model.norm.weight"].shape[0] // 32)
"""
"""Writes a base in Meta's format, as the tests do."""

MERGEKIT = """\
merge_method: linear
models:
  - {{model: {base}, parameters: {{weight: 1.0}}}}
  - {{model: {delta}, parameters: {{weight: 1.0}}}}
parameters: {{normalize: false}}
dtype: float16
"""


def contestants(folder: Path, workers: int | None) -> dict[str, Contestant]:
    """Return all commands that can be compared, by name; ``tuned`` and ``twin`` are made by ``prepare``."""
    base, delta, out, tuned, twin, meta = (folder / name for name in ("base", "delta", "out", "tuned", "twin", "meta"))
    pair = (base, delta)
    threads = ["--workers", str(workers)] if workers else []
    copy, tuned_digest = f"cp -r '{delta}' '{out}'", _content_digest(tuned)
    mergekit, config = shutil.which("mergekit-yaml"), folder / "mergekit.yaml"
    found = {
        "apply": Contestant(
            ours("apply", "--base", base, "--delta", delta, "--target", out, "-q", *threads), pair, out
        ),
        "apply --no-prove": Contestant(
            ours("apply", "--base", base, "--delta", delta, "--target", out, "-q", "--no-prove", *threads), pair, out
        ),
        "apply --workers 1": Contestant(
            ours("apply", "--base", base, "--delta", delta, "--target", out, "-q", *PARTED), pair, out
        ),
        "two parts": Contestant(["sh", "-c", _two_parts(base, delta, out)], pair, out),
        "apply --layout transformers": Contestant(
            ours("apply", "--base", base, "--delta", delta, "--target", out, "-q", *threads, *_layout(folder)),
            (*pair, folder / "clip"),
            out,
        ),
        "apply from Meta's": Contestant(
            ours("apply", "--base", meta, "--delta", delta, "--target", out, "-q", *threads), (meta, delta), out
        ),
        "original": Contestant([sys.executable, "-c", ORIGINAL, *map(str, (*pair, out))], pair, out),
        "mergekit": Contestant([mergekit or "", str(config), str(out), "--quiet", "--lazy-unpickle"], pair, out),
        "copy+sha256": Contestant(["sh", "-c", f"{copy} && openssl dgst -sha256 '{out}'/*"], (delta,), out),
        "copy": Contestant(["sh", "-c", copy], (delta,), out),
        "make": Contestant(
            ours("make", "--base", base, "--target", tuned, "--delta", out, "-q", *threads), (base, tuned), out
        ),
        "verify": Contestant(ours("verify", tuned), (tuned,), None, "hashlib"),
        "verify --expect": Contestant(ours("verify", tuned, "--expect", tuned_digest), (tuned,), None, "hashlib"),
        "hashlib": Contestant([sys.executable, "-c", HASHLIB, str(tuned)], (tuned,), None, "hashlib"),
        "diff": Contestant(ours("diff", tuned, twin, "-q"), (tuned, twin), None, "cmp"),
        "cmp": Contestant(
            ["sh", "-c", f"for file in '{tuned}'/*; do cmp \"$file\" '{twin}'/\"${{file##*/}}\"; done"],
            (tuned, twin),
            None,
            "cmp",
        ),
        "dd": Contestant(
            ["sh", "-c", f"for file in '{tuned}'/*; do dd if=\"$file\" of=/dev/null bs=1M; done"], (tuned,), None, "dd"
        ),
        "torch": Contestant([sys.executable, "-c", "import torch"], (), None),
    }
    if mergekit is None:
        del found["mergekit"]
    return found


PARTED = ("--workers", "1", "--max-shard-size", "500MB")
"""How one process and two are compared: a worker each, and enough shards to share."""


def _two_parts(base: Path, delta: Path, out: Path) -> str:
    """Return the shell's words for two processes at once, and the end of their job."""
    one, other = (
        shlex.join(ours("apply", "--base", base, "--delta", delta, "--target", out, "-q", *PARTED, "--part", f"{k}/2"))
        for k in (1, 2)
    )
    finish = shlex.join(ours("finish", "--target", out, "-q"))
    return f"{one} >&2 & {other} >&2; wait; {finish}"


def _layout(folder: Path) -> list[object]:
    return ["--layout", "transformers", "--vision-tower", folder / "clip"]


def _content_digest(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["result"]["content_digest"])


def prepare(model: Model, folder: Path, parts: int) -> None:
    """Make base and delta, their merge in shards of 1 GB as ``tuned``, its copy as ``twin``, and mergekit's configuration."""
    # In a process of its own: Linux counts the memory of whoever starts a process as that process's peak.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
        maker.submit(make, model, folder).result()
    base, delta, tuned, twin = (folder / name for name in ("base", "delta", "tuned", "twin"))
    if not tuned.exists():
        command = ours("apply", "--base", base, "--delta", delta, "--target", tuned, "-q", "--max-shard-size", "1GB")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if not twin.exists():
        shutil.copytree(tuned, twin)
    meta = folder / "meta"
    if parts and not meta.exists():
        made = folder / "meta.new"
        command = [sys.executable, "-c", META, str(base), str(made), str(parts)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        made.rename(meta)
    if model.projector:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            maker.submit(partial(bench_llava.make, folder, model.vocabulary, toy=model.toy)).result()
    (folder / "mergekit.yaml").write_text(MERGEKIT.format(base=base, delta=delta))


GROWTH = {
    "2 GB": (Model(layers=4), None),
    "4 GB": (Model(layers=8), None),
    "4 GB, 1 worker": (Model(layers=8), 1),
    "4 GB, 2 workers": (Model(layers=8), 2),
    "4 GB, one tensor": (Model("huge", 9), None),
    "4 GB, 10,000 tensors": (Model("small", 9), None),
    "8 GB": (Model(layers=18), None),
}
"""How the cost grows: models of about so many bytes, and workers."""


def growth(folder: Path, count: int, names: Iterable[str] | None, *, toy: bool) -> Iterator[str]:
    """Yield the lines of a table of seconds, seconds per GB and memory for cases of ``GROWTH``, run in turns."""
    chosen = {}
    sizes = {}
    for name in names or GROWTH:
        model, workers = GROWTH[name]
        case = replace(model, toy=toy)
        place = folder / case.name
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            maker.submit(make, case, place).result()
        command = ours("apply", "--base", place / "base", "--delta", place / "delta", "--target", place / "out", "-q")
        command += ["--workers", str(workers)] if workers else []
        chosen[name] = Contestant(command, (place / "base", place / "delta"), place / "out")
        sizes[name] = _size(place / "delta")
    runs = rounds(chosen, count, cold=False)
    yield f"{'':22} {'GB':>6} {'median s':>9} {'s per GB':>9} {'peak MB':>8}"
    for name, of in runs.items():
        middle = statistics.median(run.seconds for run in of)
        peak = max(run.peak_mb for run in of)
        yield f"{name:22} {sizes[name] / 1e9:6.2f} {middle:9.2f} {middle / sizes[name] * 1e9:9.2f} {peak:8.0f}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def choose(names: Iterable[str] | None, known: dict[str, Contestant], model: Model) -> dict[str, Contestant]:
    """Return the contestants that were named, or those of the merge."""
    wanted = list(names or ("apply", "original", "mergekit", "copy+sha256", "copy", "make"))
    if unknown := set(wanted) - set(known) - {"mergekit"}:
        raise SystemExit(f"bench: no such contestant: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if model.projector or model.shape != "llama":
        wanted = [name for name in wanted if name not in {"original", "mergekit"}]  # they want a LLaMA
    return {name: known[name] for name in wanted if name in known}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description="Measure our commands against the original algorithm, copying, and others."
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of 405 MB each; 4 give 2.1 GB of output, 32 LLaMA-7B"
    )
    parser.add_argument("--container", choices=("safetensors", "torch"), default="safetensors", help="of both inputs")
    parser.add_argument("--llava-med", action="store_true", help="a delta with LLaVA-Med's extra tensors")
    parser.add_argument(
        "--shape", choices=("llama", "huge", "small"), default="llama", help="one huge tensor, 10,000 small"
    )
    parser.add_argument("--toy", action="store_true", help="tiny checkpoints, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=5, help="each contestant runs once per round, in turns")
    parser.add_argument("--workers", type=int, help="for apply and make")
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--parts", type=int, default=1, help="of the base in Meta's format, where that is measured")
    parser.add_argument(
        "--growth", action="store_true", help="how our cost grows with size, workers and kinds of tensors"
    )
    parser.add_argument("--hub", action="store_true", help="downloads, and merges from a Hub on the loopback interface")
    parser.add_argument(
        "--stages",
        action="store_true",
        help="processor time of a merge with one worker, by stage, and what more would bring",
    )
    parser.add_argument(
        "--without",
        choices=("avx512", "library"),
        default="",
        help="with --stages: as on a processor without AVX-512 (but for BLAKE3), or where kernels.c was not compiled",
    )
    parser.add_argument("--rate", default="400MB", help="of that Hub, per second, over all connections")
    parser.add_argument("--connection-rate", metavar="RATE", help="of that Hub, over each connection")
    parser.add_argument(
        "--pair", type=Path, metavar="DIR", help="with --hub: DIR/base and DIR/delta, whatever they are"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="contestants: apply, original, mergekit, copy+sha256, ...; or cases of --growth",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where checkpoints are made and kept")
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.growth:
        for line in growth(folder, options.rounds, options.only, toy=options.toy):
            print(line)
        return
    model = Model(options.shape, options.layers, options.container, options.llava_med, options.toy)
    place = folder / model.name
    if options.hub and options.pair:
        place = options.pair.resolve()
    else:
        prepare(model, place, options.parts if "apply from Meta's" in (options.only or ()) else 0)
    size = _size(place / "delta")
    if options.stages:
        pair = place / "base", place / "delta"
        found = bench_stages.stages(*pair, place / "out", options.rounds, hides=options.without)
        for line in chain(bench_stages.stage_table(found), bench_cores.cores(found)):
            print(line)
        return
    if options.hub:
        with bench_hub.serving(place, options.rate, options.connection_rate):
            everyone = bench_hub.contestants(place)
            chosen = {name: each for name, each in everyone.items() if name in (options.only or everyone)}
            runs = rounds(chosen, options.rounds, cold=options.cold)
    else:
        chosen = choose(options.only, contestants(place, options.workers), model)
        runs = rounds(chosen, options.rounds, cold=options.cold)
    if options.json:
        print(json.dumps({name: [asdict(run) for run in of] for name, of in runs.items()}, indent=2))
    else:
        print("\n".join(table(runs, chosen, size)))


if __name__ == "__main__":
    main()
