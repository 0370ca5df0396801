"""The merged bits: equal to the straightforward merge, to arithmetic done by other means, and to themselves on every road."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights.errors import CheckFailed
from deltaweights.jobs.apply import ApplyResult, apply_delta
from deltaweights.jobs.prepare import prepare
from deltaweights.manifest.parse import parse_manifest
from deltaweights.merge import stream
from deltaweights.merge.arithmetic import Kernels, Task, Workbench
from deltaweights.merge.operation import Operation
from deltaweights.staging.location import locate_target
from deltaweights.util.text import compact_pieces
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
CONTAINERS = ("torch", "safetensors")
QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000}
PROJECTOR = "model.mm_projector.weight"
EMBEDDING = "model.embed_tokens.weight"


@contextmanager
def blocks_of(elements: int) -> Iterator[None]:
    """Make the stream work in blocks of so many elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltaweights.jobs.run.Resources", partial(stream.Resources, block=elements))
        yield


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bit patterns of a tensor, as integers of its width."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(width)


def distinct_bits(tensor: torch.Tensor) -> set[int]:
    """Return the different bit patterns in a tensor, as unsigned integers."""
    mask = (1 << (8 * tensor.element_size())) - 1
    return {pattern & mask for pattern in bits(tensor).flatten().tolist()}


def of_bits(patterns: list[int] | np.ndarray[tuple[int], np.dtype[np.integer]], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of ``dtype`` that has these bit patterns."""
    unsigned = np.asarray(patterns, dtype=np.uint16 if dtype.itemsize == 2 else np.uint32)
    return torch.from_numpy(unsigned.view(np.int16 if dtype.itemsize == 2 else np.int32).copy()).view(dtype)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def model_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files that must not depend on how the inputs were stored."""
    return {name: data for name, data in files_of(folder).items() if name not in {"manifest.json", "SHA256SUMS"}}


def merge_tensors(folder: Path, base: Tensors, delta: Tensors, container: str = "torch", **options: Any) -> Merged:
    """Save a pair with one shard each, merge it, and return the outcome."""
    save(base, folder / "base", container, 1)
    save(delta, folder / "delta", container, 1)
    return merge(folder, **options)


class Merged:
    """A result and its tensors, as the safetensors library reads them."""

    def __init__(self, result: ApplyResult) -> None:
        self.result = result
        self.folder = Path(result.target)
        self.tensors = load(self.folder)


def merge(folder: Path, name: str = "merged", **options: Any) -> Merged:
    """Merge ``folder/base`` and ``folder/delta`` into ``folder/name``."""
    return Merged(apply_delta(folder / "base", folder / "delta", folder / name, **options))


SMALL = partial(base_tensors, layers=1, vocabulary=20, hidden=16)
"""A base of 5,000 elements, for proofs that need many runs or tiny blocks."""


@pytest.mark.parametrize("base_container", CONTAINERS)
@pytest.mark.parametrize("delta_container", CONTAINERS)
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_container_and_sharding_gives_the_reference(
    tmp_path: Path, base_container: str, delta_container: str, shards: int
) -> None:
    """Torch or safetensors, one to three shards in, one to three shards out: the bits are those of the reference."""
    base = base_tensors()
    delta = delta_tensors(base)
    save(base, tmp_path / "base", base_container, shards)
    save(delta, tmp_path / "delta", delta_container, 4 - shards)
    expected = reference(base, delta)
    size = sum(tensor.nbytes for tensor in expected.values())
    for number in (1, 2, 3):
        merged = merge(tmp_path, f"merged-{number}", max_shard_size=size // number + (number > 1) * 4096)
        assert len(list(merged.folder.glob("*.safetensors"))) == merged.result.shards == number
        assert same_bits(merged.tensors, expected)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_every_combination_of_dtypes_gives_the_reference(tmp_path: Path, compute: str, stored: str) -> None:
    """Inputs of any float dtype, also mixed within one checkpoint, computed in one and stored in another: the reference's bits."""
    full = SMALL(dtype=torch.float32)
    change = delta_tensors(full, dtype=torch.float32)
    expected_dtype = DTYPES[stored]
    for number, (base, delta) in enumerate(pairs_of_dtypes(full, change)):
        merged = merge_tensors(tmp_path / str(number), base, delta, compute_dtype=compute, dtype=stored)
        expected = reference(base, delta, DTYPES[compute], expected_dtype)
        assert {tensor.dtype for tensor in merged.tensors.values()} == {expected_dtype}
        assert same_bits(merged.tensors, expected), f"pair {number}"


def pairs_of_dtypes(base: Tensors, delta: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield the pair with each dtype of base and delta, and with float16 and float32 mixed."""

    def cast(tensors: Tensors, choose: Callable[[int], torch.dtype]) -> Tensors:
        return {
            name: tensor if name.endswith("inv_freq") else tensor.to(choose(number))
            for number, (name, tensor) in enumerate(tensors.items())
        }

    choices: list[Callable[[int], torch.dtype]] = [
        lambda _: torch.float16,
        lambda _: torch.bfloat16,
        lambda _: torch.float32,
        lambda number: (torch.float16, torch.float32)[number % 2],
    ]
    for of_base in choices:
        for of_delta in choices:
            yield cast(base, of_base), cast(delta, of_delta)


def test_float64_inputs_are_cast_like_the_reference(tmp_path: Path) -> None:
    """A base and a delta in float64, which some converters leave behind, give the reference's bits."""
    base = SMALL(dtype=torch.float64)
    delta = delta_tensors(base, dtype=torch.float64)
    for compute, dtype in DTYPES.items():
        merged = merge_tensors(tmp_path / compute, base, delta, compute_dtype=compute)
        assert same_bits(merged.tensors, reference(base, delta, dtype))


@pytest.mark.parametrize("container", CONTAINERS)
def test_workers_and_blocks_change_no_byte(tmp_path: Path, container: str) -> None:
    """One to five workers and blocks from a few elements to whole tensors give the same files, with the reference's bits."""
    base = SMALL()
    delta = delta_tensors(base)
    save(base, tmp_path / "base", container, 2)
    save(delta, tmp_path / "delta", container, 3)
    first = merge(tmp_path, "first", workers=1, max_shard_size=2500)
    assert first.result.shards >= 4
    assert same_bits(first.tensors, reference(base, delta))
    for block in (1 << 20, 1000, 37, 5):
        for workers in (1, 2, 3, 5):
            name = f"{block}-{workers}"
            with blocks_of(block):
                merged = merge(tmp_path, name, workers=workers, max_shard_size=2500)
            assert files_of(merged.folder) == files_of(first.folder), f"{block} elements, {workers} workers"
            shutil.rmtree(merged.folder)


def test_the_block_size_of_these_tests_reaches_the_workers(tmp_path: Path) -> None:
    """The way in which these tests set the block size works: the workbench is made for that many elements."""
    seen: list[int] = []

    class Spy(Workbench):
        def __init__(self, kernels: Kernels, task: Task, block: int) -> None:
            seen.append(block)
            super().__init__(kernels, task, block)

    base = SMALL()
    with pytest.MonkeyPatch.context() as patch, blocks_of(37):
        patch.setattr(stream, "Workbench", Spy)
        merge_tensors(tmp_path, base, delta_tensors(base), workers=3)
    assert seen == [37, 37, 37]


@pytest.mark.parametrize("block", [1 << 20, 61, 3])
def test_views_in_torch_files_give_the_reference(tmp_path: Path, block: int) -> None:
    """Transposed, sliced, tied and offset tensors in torch files are merged as what they show, not as what lies behind them."""
    plain = SMALL()
    change = delta_tensors(plain)
    base, delta = dict(plain), dict(change)
    layer = "model.layers.0."
    for tensors in (base, delta):
        for name in (f"{layer}self_attn.q_proj.weight", f"{layer}mlp.up_proj.weight", "lm_head.weight"):
            tensors[name] = tensors[name].T.contiguous().T
        wide = torch.randn(60, 40).half()
        key = tensors[f"{layer}self_attn.k_proj.weight"]
        rows, columns = key.shape
        window = wide[7 : 7 + rows, 11 : 11 + columns]
        window.copy_(key)
        tensors[f"{layer}self_attn.k_proj.weight"] = window
        both = torch.cat([tensors[f"{layer}self_attn.v_proj.weight"], tensors[f"{layer}self_attn.o_proj.weight"]])
        tensors[f"{layer}self_attn.v_proj.weight"], tensors[f"{layer}self_attn.o_proj.weight"] = (
            both[:rows],
            both[rows:],
        )
        every_other = torch.zeros(2 * len(tensors["model.norm.weight"])).half()[::2]
        every_other.copy_(tensors["model.norm.weight"])
        tensors["model.norm.weight"] = every_other
    assert not base["lm_head.weight"].is_contiguous()
    with blocks_of(block):
        merged = merge_tensors(tmp_path, base, delta)
    assert same_bits(merged.tensors, reference(plain, change))


@pytest.mark.parametrize("block", [1 << 20, 61])
def test_tied_tensors_give_the_reference(tmp_path: Path, block: int) -> None:
    """Two names for one storage, in the base or in both, are two tensors of the result, each with the reference's bits."""
    base = SMALL()
    base["lm_head.weight"] = base[EMBEDDING]
    delta = delta_tensors(base)
    delta["lm_head.weight"] = delta[EMBEDDING]
    assert base["lm_head.weight"].data_ptr() == base[EMBEDDING].data_ptr()
    with blocks_of(block):
        merged = merge_tensors(tmp_path, base, delta)
    assert same_bits(merged.tensors, reference(base, delta))
    assert torch.equal(merged.tensors["lm_head.weight"], merged.tensors[EMBEDDING])


@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(20, 11), (20, 16), (13, 16), (13, 11), (1, 1), (24, 1)])
def test_a_narrower_base_is_added_into_the_top_left_block(
    tmp_path: Path, rows: int, columns: int, compute: str
) -> None:
    """An embedding that is smaller than its delta in rows, columns or both is added into the top left, wherever blocks are cut."""
    base = {
        name: tensor for name, tensor in SMALL().items() if name in {EMBEDDING, "lm_head.weight", "model.norm.weight"}
    }
    delta = delta_tensors(base)
    for name in (EMBEDDING, "lm_head.weight"):
        base[name] = torch.randn(rows, columns).half()
    expected = reference(base, delta, DTYPES[compute])
    for block in (1 << 20, 100, 16, 7, 1):
        with blocks_of(block):
            merged = merge_tensors(tmp_path / str(block), base, delta, compute_dtype=compute, workers=3)
        assert merged.result.fates["add_block"] == 2
        assert same_bits(merged.tensors, expected), f"blocks of {block}"


def test_scalars_and_empty_tensors_are_merged(tmp_path: Path) -> None:
    """A tensor without axes and one without elements go through like any other, in files of their own too."""
    base = {"a": torch.tensor(1.5).half(), "b": torch.empty(0, 3).half(), "c": torch.ones(5).half()}
    delta = {"a": torch.tensor(-0.25).half(), "b": torch.empty(0, 3).half(), "c": torch.full((5,), 2.0).half()}
    for size in (1, 4, 100):
        merged = merge_tensors(tmp_path / str(size), base, delta, max_shard_size=size, workers=3)
        expected = reference(base, delta)
        assert merged.tensors["a"].shape == ()
        assert merged.tensors["a"].item() == 1.25
        del merged.tensors["a"], expected["a"]
        assert same_bits(merged.tensors, expected)


# Reproducibility.


def test_the_model_does_not_depend_on_how_the_inputs_were_stored(tmp_path: Path) -> None:
    """The same tensors and options give the same weights, index, configuration and content digest, whatever held them."""
    base = base_tensors()
    delta = delta_tensors(base)
    models, digests = [], set()
    roads = [("torch", "torch", 1, 1), ("safetensors", "torch", 3, 2), ("torch", "safetensors", 2, 3)]
    for number, (of_base, of_delta, base_shards, delta_shards) in enumerate(roads):
        folder = tmp_path / str(number)
        order = 1 if number % 2 else -1
        save(dict(list(base.items())[::order]), folder / "base", of_base, base_shards)
        save(dict(list(delta.items())[::order]), folder / "delta", of_delta, delta_shards)
        with blocks_of(10 ** (number + 2)):
            merged = merge(folder, workers=number + 1, max_shard_size=30_000)
        models.append(model_of(merged.folder))
        digests.add(merged.result.content_digest)
    assert {"model.safetensors.index.json", "config.json"} < set(models[0])
    assert models[1:] == models[:-1]
    assert len(digests) == 1


RUN = """
import sys
from deltaweights.jobs.apply import apply_delta
apply_delta(*sys.argv[1:4], workers=int(sys.argv[4]), max_shard_size=30_000)
"""


def test_nothing_written_depends_on_the_surroundings(tmp_path: Path) -> None:
    """The same input files give the same bytes in every file, whatever the paths, folder, clock, zone, umask and locale."""
    base = base_tensors()
    save(base, tmp_path / "one" / "base")
    save(delta_tensors(base), tmp_path / "one" / "delta")
    other = tmp_path / "another place"
    shutil.copytree(tmp_path / "one", other)
    for path in other.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    one = merge(tmp_path / "one", workers=1, max_shard_size=30_000)
    environment = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", RUN, "base", "./delta", "../target of another name", "4"]
    subprocess.run(command, check=True, cwd=other, env=os.environ | environment, umask=0o077, timeout=PATIENCE)
    assert files_of(tmp_path / "target of another name") == files_of(one.folder)


def test_manifest_and_plan_name_no_place(tmp_path: Path) -> None:
    """No part of the target's path is in any file of the target, and two places have one plan."""
    base = SMALL()
    merged = merge_tensors(tmp_path / "some-folder", base, delta_tensors(base))
    for name, data in files_of(merged.folder).items():
        assert b"some-folder" not in data, name
        assert str(tmp_path).encode() not in data, name
    shutil.copytree(tmp_path / "some-folder", tmp_path / "elsewhere")
    plans = []
    for place in ("some-folder", "elsewhere"):
        with prepare(
            Operation.APPLY, tmp_path / place / "base", tmp_path / place / "delta", tmp_path / place / "x"
        ) as job:
            plans.append("".join(compact_pieces(job.plan.document)))
            assert place not in plans[-1]
    assert plans[0] == plans[1]


def test_the_manifest_does_not_depend_on_the_order_in_which_shards_were_finished(tmp_path: Path) -> None:
    """A run that resumes with later shards finished before earlier ones writes the manifest of an uninterrupted run."""
    base = SMALL()
    delta = delta_tensors(base)
    for tensor in delta.values():
        tensor.view(-1)[0] = torch.inf  # so that every shard has something to tell
    whole = merge_tensors(tmp_path, base, delta, max_shard_size=2500)
    assert len(whole.result.nonfinite) >= 4
    with pytest.raises(CheckFailed):
        merge(tmp_path, "resumed", max_shard_size=2500, strict=True)
    place = locate_target(tmp_path / "resumed")
    first = sorted(place.fragments.iterdir())[0]
    first.unlink()
    resumed = merge(tmp_path, "resumed", max_shard_size=2500)
    assert list(resumed.result.nonfinite) == list(whole.result.nonfinite)
    assert files_of(resumed.folder) == files_of(whole.folder)


def digest_of(tensors: Tensors) -> str:
    """Compute the content digest as docs/manifest-format.md states it, without our code."""
    lines = []
    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name].contiguous()
        digest = blake3(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        row = [name, CODES[tensor.dtype], list(tensor.shape), f"blake3:{digest}"]
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return f"dw1:{blake3(''.join(lines).encode()).hexdigest()}"


@pytest.mark.parametrize("stored", DTYPES)
def test_the_content_digest_is_what_its_definition_says(tmp_path: Path, stored: str) -> None:
    """The content digest equals one computed here from the reference's tensors, however the result is sharded."""
    base = SMALL()
    delta = delta_tensors(base)
    delta["model.größe.weight"] = base["model.größe.weight"] = torch.ones(3).half()
    expected = digest_of(reference(base, delta, torch.float16, DTYPES[stored]))
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    for size in (2000, 9000, 10**9):
        merged = merge(tmp_path, f"merged-{size}", dtype=stored, max_shard_size=size)
        assert merged.result.content_digest == expected
        assert parse_manifest((merged.folder / "manifest.json").read_bytes()).content_digest == expected


# NaN, infinity, subnormal numbers.

STRANGE = {
    "float16": [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7DFF, 0x7F55, 0xFFFF, 0x3C00, 0x0000, 0x8000, 0x7BFF],
    "bfloat16": [0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0xFF81, 0x7FBF, 0x7FD5, 0xFFFF, 0x3F80, 0x0000, 0x8000, 0x7F7F],
    "float32": [
        0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FBFFFFF, 0x7FD55555, 0xFFFFFFFF,
        0x3F800000, 0x00000000, 0x80000000, 0x7F7FFFFF,
    ],
}  # fmt: skip
"""Infinities, quiet and signalling NaNs with odd payloads, one, both zeros, and the largest finite number."""


def strange_pair(dtype: str, repeat: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors that pair every strange number with every other, in an odd count so that vectors have tails."""
    patterns = np.array(STRANGE[dtype], dtype=np.uint32)
    one, other = (np.tile(grid.ravel(), repeat) for grid in np.meshgrid(patterns, patterns))
    return of_bits(one, DTYPES[dtype]), of_bits(other, DTYPES[dtype])


@pytest.mark.parametrize("block", [1 << 20, 100, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_computed_nan_is_the_quiet_nan(tmp_path: Path, dtype: str, block: int) -> None:
    """Whatever NaNs and infinities are added, a sum that is NaN has one bit pattern, and all other sums are exact."""
    base, delta = strange_pair(dtype)
    with blocks_of(block):
        merged = merge_tensors(tmp_path, {"w": base}, {"w": delta}, compute_dtype=dtype, workers=3)
    result = merged.tensors["w"]
    expected = base + delta
    is_nan = expected.isnan()
    assert is_nan.sum() > len(expected) // 3
    assert distinct_bits(result[is_nan]) == {QUIET_NAN[dtype]}
    assert torch.equal(bits(result)[~is_nan], bits(expected)[~is_nan])
    assert merged.result.nonfinite == {"w": int((~expected.isfinite()).sum())}


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_a_nan_that_a_cast_makes_is_the_quiet_nan(tmp_path: Path, compute: str, stored: str) -> None:
    """Sums and copies that pass through a cast, to the compute dtype or to the stored one, hold no other NaN than the quiet one."""
    for given, dtype in DTYPES.items():
        if given == compute == stored:
            continue  # no cast: another rule, proven below
        base, delta = strange_pair(given, 1)
        ones = {"w": torch.ones(2, 2, dtype=dtype)}
        merged = merge_tensors(
            tmp_path / given,
            ones | {"sum": base},
            ones | {"sum": delta, PROJECTOR: delta},
            compute_dtype=compute,
            dtype=stored,
        )
        for name in ("sum", PROJECTOR):
            result = merged.tensors[name]
            assert distinct_bits(result[result.isnan()]) == {QUIET_NAN[stored]}, f"{name} from {given}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_without_a_cast_keep_every_bit(tmp_path: Path, dtype: str) -> None:
    """A copied tensor, and the rows of a grown one that no base reaches, keep the payloads of their NaNs, and are counted."""
    strange = of_bits(STRANGE[dtype], DTYPES[dtype])
    width = len(strange)
    base = {EMBEDDING: torch.ones(2, width - 1, dtype=DTYPES[dtype])}
    delta = {EMBEDDING: strange.repeat(4, 1), PROJECTOR: strange.repeat(3, 1)}
    for block in (1 << 20, 5):
        with blocks_of(block):
            merged = merge_tensors(tmp_path / str(block), base, delta, compute_dtype=dtype)
        rows = merged.tensors[EMBEDDING]
        assert torch.equal(bits(merged.tensors[PROJECTOR]), bits(delta[PROJECTOR]))
        assert torch.equal(bits(rows[2:]), bits(delta[EMBEDDING][2:]))
        assert torch.equal(bits(rows[:2, -1]), bits(delta[EMBEDDING][:2, -1]))
        inside = rows[:2, :-1]
        assert distinct_bits(inside[inside.isnan()]) == {QUIET_NAN[dtype]}
        assert merged.result.nonfinite == {EMBEDDING: 4 * 9, PROJECTOR: 3 * 9}


def test_counts_of_nonfinite_weights_are_exact(tmp_path: Path) -> None:
    """Every tensor with NaN or infinities is reported with their number, in result and manifest, and no other tensor is."""
    base = SMALL()
    delta = delta_tensors(base)
    name = "model.layers.0.mlp.up_proj.weight"
    delta[name][3, 5] = torch.nan
    delta[name][-1, -1] = -torch.inf
    delta["model.norm.weight"][0] = torch.inf
    base["model.layers.0.mlp.gate_proj.weight"][0, 0] = delta["model.layers.0.mlp.gate_proj.weight"][0, 0] = 65504
    expected = {"model.layers.0.mlp.gate_proj.weight": 1, name: 2, "model.norm.weight": 1}
    for block in (1 << 20, 50):
        with blocks_of(block):
            merged = merge_tensors(tmp_path / str(block), base, delta, workers=3, max_shard_size=2500)
        assert merged.result.nonfinite == expected
        assert parse_manifest((merged.folder / "manifest.json").read_bytes()).findings.nonfinite == expected


def test_finite_weights_whose_sum_overflows_are_not_counted(tmp_path: Path) -> None:
    """Weights that are finite, though all together they are more than float32 can hold, are not reported."""
    base = {"w": torch.full((4000,), 3e38, dtype=torch.float32)}
    merged = merge_tensors(tmp_path, base, {"w": torch.zeros(4000)}, compute_dtype="float32")
    assert merged.result.nonfinite == {}


def test_strict_refuses_before_publishing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Strict, a NaN ends the run with nothing under the target's name; without it, the next run uses the finished shards."""
    base = SMALL()
    delta = delta_tensors(base)
    delta["model.norm.weight"][2] = torch.nan
    with pytest.raises(CheckFailed, match=r"tensor model\.norm\.weight: result is not finite") as caught:
        merge_tensors(tmp_path, base, delta, strict=True, max_shard_size=2500)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "merged").exists()
    place = locate_target(tmp_path / "merged")
    staged = {path.name: path.stat().st_ino for path in place.shards.glob("*.safetensors")}
    assert len(staged) >= 4
    merged = merge(tmp_path, max_shard_size=2500)
    assert {path.name: path.stat().st_ino for path in merged.folder.glob("*.safetensors")} == staged
    assert merged.result.nonfinite == {"model.norm.weight": 1}
    assert not place.root.exists()


def test_strict_also_refuses_what_stands_there_already(tmp_path: Path) -> None:
    """Strict on a target that an earlier run completed with NaN in it fails as on a fresh one."""
    base = SMALL()
    delta = delta_tensors(base)
    delta["model.norm.weight"][2] = torch.nan
    merge_tensors(tmp_path, base, delta)
    with pytest.raises(CheckFailed, match="result is not finite"):
        merge(tmp_path, strict=True)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_numbers_survive(tmp_path: Path, dtype: str, flush: bool) -> None:
    """Subnormal inputs, sums and casts keep their value, also when the calling thread flushes such numbers to zero."""
    width = {"float16": 10, "bfloat16": 7, "float32": 23}[dtype]
    generator = np.random.default_rng(5)
    patterns = generator.integers(0, 1 << width, (2, 5001)).astype(np.uint32)
    base, delta = (of_bits(row, DTYPES[dtype]) for row in patterns)
    pair = {"w": base}, {"w": delta, PROJECTOR: delta}
    wanted = of_bits(patterns.sum(0), DTYPES[dtype])  # without an exponent, significands add like integers
    stored = merge_in_thread_with(tmp_path / "same", pair, flush=flush, compute_dtype=dtype)
    assert torch.equal(bits(stored["w"]), bits(wanted))
    assert torch.equal(bits(stored[PROJECTOR]), bits(delta))
    widened = merge_in_thread_with(tmp_path / "wide", pair, flush=flush, compute_dtype=dtype, dtype="float32")
    value = 2.0 ** {"float16": -24, "bfloat16": -133, "float32": -149}[dtype]
    expected = torch.from_numpy((patterns.sum(0) * value).astype(np.float32))
    assert torch.equal(bits(widened["w"]), bits(expected))


def merge_in_thread_with(folder: Path, pair: tuple[Tensors, Tensors], *, flush: bool, **options: Any) -> Tensors:
    """Merge in a thread of its own, which flushes subnormal numbers to zero if asked to, and return the stored tensors."""
    outcome: list[Tensors] = []

    def work() -> None:
        if flush:
            assert torch.set_flush_denormal(True), "this processor cannot flush"
            assert not (torch.tensor([2.0**-140]) + 0).any(), "flushing has no effect here"
        outcome.append(merge_tensors(folder, *pair, workers=2, **options).tensors)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcome[0]


# Arithmetic, against another implementation.

Words = np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]


def widen(patterns: Words, dtype: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the numbers that bit patterns of ``dtype`` stand for, in float64."""
    if dtype == "bfloat16":
        patterns, dtype = np.left_shift(patterns.astype(np.uint32), np.uint32(16)), "float32"
    kind = np.float16 if dtype == "float16" else np.float32
    return patterns.view(kind).astype(np.float64)


def narrow(numbers: np.ndarray[tuple[int], np.dtype[np.float64]], dtype: str) -> Words:
    """Return the bit patterns of the numbers of ``dtype`` that are nearest to float64 numbers, ties to even, NaN quiet.

    Sums of two numbers that are rounded to float64 first round to the same, since float64 has more than twice the digits.
    """
    half = dtype == "float16"
    rounded: Words = numbers.astype(np.float16).view(np.uint16) if half else numbers.astype(np.float32).view(np.uint32)
    if dtype == "bfloat16":  # add half of the last place, less one when that place is even
        rounded = ((rounded.astype(np.uint64) + 0x7FFF + ((rounded >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(numbers)] = QUIET_NAN[dtype]
    return rounded


def every_or_random(dtype: str, seed: int) -> tuple[Words, Words]:
    """Return two rows of bit patterns: a million random ones, and every pattern of 16 bits against the awkward ones."""
    generator = np.random.default_rng(seed)
    kind = np.uint32 if dtype == "float32" else np.uint16
    one, other = generator.integers(0, 1 << (8 * kind().itemsize), (2, 1_000_000)).astype(kind)
    # Neighbours in exponent, where rounding is hard: random pairs are mostly too far apart to meet.
    sign = kind(1 << (8 * kind().itemsize - 1))
    near = one ^ generator.integers(0, 1 << {"float16": 12, "bfloat16": 9, "float32": 25}[dtype], len(one)).astype(kind)
    rows = [(one, other), (one, near), (one, near ^ sign)]
    if dtype != "float32":
        awkward = [0, 1, 2, 3, 0x3FF, 0x400, *STRANGE[dtype], *generator.integers(0, 1 << 16, 12)]
        every = np.arange(1 << 16, dtype=kind)
        rows += [(every, np.full_like(every, pattern)) for pattern in awkward]
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_correctly_rounded(tmp_path: Path, dtype: str) -> None:
    """Millions of sums over all exponents equal those that numpy makes in float64 and rounds once."""
    base, delta = every_or_random(dtype, seed=11)
    merged = merge_tensors(
        tmp_path,
        {"w": of_bits(base, DTYPES[dtype])},
        {"w": of_bits(delta, DTYPES[dtype])},
        "safetensors",
        compute_dtype=dtype,
    )
    with np.errstate(all="ignore"):
        expected = narrow(widen(base, dtype) + widen(delta, dtype), dtype)
    result = bits(merged.tensors["w"]).numpy().view(expected.dtype)
    wrong = np.flatnonzero(result != expected)
    assert not len(wrong), f"{len(wrong)} wrong, first {base[wrong[0]]:#x} + {delta[wrong[0]]:#x}"


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_casts_are_correctly_rounded(tmp_path: Path, given: str, stored: str) -> None:
    """Copies that are cast, every pattern of 16 bits or a million of 32, equal what numpy gives, rounded once."""
    if given == stored:
        patterns = np.arange(1 << 16, dtype=np.uint32) << (16 if given == "float32" else 0)
    elif given == "float32":
        patterns = np.random.default_rng(3).integers(0, 1 << 32, 1_000_000, dtype=np.uint32)
        # Most random numbers are too large or too small for float16: bring half of them near.
        patterns[::2] = (patterns[::2] & 0x87FFFFFF) | 0x38000000
        patterns[1::4] &= 0xFFFFE000 + (patterns[1::4] & 1) * 0x1FFF  # ties
    else:
        patterns = np.arange(1 << 16, dtype=np.uint32)
    words: Words = patterns.astype(np.uint32 if given == "float32" else np.uint16)
    pair = {"w": torch.ones(1)}, {"w": torch.zeros(1), PROJECTOR: of_bits(words, DTYPES[given])}
    merged = merge_tensors(tmp_path, *pair, compute_dtype=stored)
    result = bits(merged.tensors[PROJECTOR]).numpy()
    if given == stored:
        expected = words
    else:
        with np.errstate(all="ignore"):
            expected = narrow(widen(words, given), stored)
    assert np.array_equal(result.view(expected.dtype), expected)


# What the result is for.


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    """``from_pretrained`` loads a merged plain LLaMA: its parameters are the reference's, and so are its logits."""
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=92, num_hidden_layers=2, num_attention_heads=4, dtype="float16"
    )
    base = base_tensors()
    delta = delta_tensors(base, new_tokens=0, projector=False)
    save(base, tmp_path / "base", config=False)
    config.save_pretrained(save(delta, tmp_path / "delta", config=False))
    folder = merge(tmp_path, max_shard_size=30_000).folder
    expected = reference(base, delta)
    config.save_pretrained(save(expected, tmp_path / "tuned", "safetensors", 1, config=False))
    model, tuned = (
        LlamaForCausalLM.from_pretrained(path, dtype=torch.float16) for path in (folder, tmp_path / "tuned")
    )
    assert same_bits(model.state_dict(), expected)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = model(tokens).logits
        assert torch.equal(logits, tuned(tokens).logits)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_the_safetensors_library_reads_each_shard_of_the_index(tmp_path: Path) -> None:
    """The index names every tensor once, in the shard that holds it, and its total is the bytes of all tensors."""
    base = base_tensors()
    merged = merge_tensors(tmp_path, base, delta_tensors(base), max_shard_size=30_000)
    index = json.loads((merged.folder / "model.safetensors.index.json").read_bytes())
    found = {name: path.name for path in merged.folder.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.tensors.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here")
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_the_gpu_gives_the_same_files(tmp_path: Path, compute: str, stored: str) -> None:
    """A merge on a CUDA device writes the same SHA256SUMS as one on the CPU, NaN, subnormal and cast numbers included."""
    base, delta = SMALL(), delta_tensors(SMALL())
    for number, dtype in enumerate(DTYPES):
        patterns = every_or_random(dtype, seed=number)
        base[f"sum.{dtype}"], delta[f"sum.{dtype}"] = (of_bits(row[::5], DTYPES[dtype]) for row in patterns)
        base[f"strange.{dtype}"], delta[f"strange.{dtype}"] = strange_pair(dtype)
    base["lm_head.weight"] = base["lm_head.weight"][:, :11]
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    options = {"compute_dtype": compute, "dtype": stored}
    on_cpu = merge(tmp_path, "cpu", device="cpu", **options).folder
    assert same_sums(on_cpu, merge(tmp_path, "gpu", device="cuda", **options).folder)
    with blocks_of(777):
        assert same_sums(on_cpu, merge(tmp_path, "gpu-small", device="cuda", workers=4, **options).folder)


def same_sums(one: Path, other: Path) -> bool:
    """Tell whether two targets have the same checksums."""
    return (one / "SHA256SUMS").read_bytes() == (other / "SHA256SUMS").read_bytes()
