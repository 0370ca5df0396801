"""Tests of the stream: its result equals the straightforward merge, whatever the containers, dtypes, workers and blocks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deltaweights.merge import stream
from deltaweights.merge.arithmetic import BlockCombiner, Kernels, Task
from tests.support.float_bits import DTYPES
from tests.support.merging import EMBEDDING, block_size, files_of, merge_and_load, merge_tensors, small_base
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, same_bits, save
from tests.support.params import few

CONTAINERS = ("torch", "safetensors")


@pytest.mark.sampled(5)
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
        merged = merge_and_load(tmp_path, f"merged-{number}", max_shard_size=size // number + (number > 1) * 4096)
        assert len(list(merged.folder.glob("*.safetensors"))) == merged.result.shards == number
        assert same_bits(merged.tensors, expected)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("compute", "stored"), few(((compute, stored) for stored in DTYPES for compute in DTYPES), len(DTYPES))
)
def test_every_combination_of_dtypes_gives_the_reference(tmp_path: Path, compute: str, stored: str) -> None:
    """Inputs of any float dtype, also mixed within one checkpoint, computed in one and stored in another: the reference's bits."""
    full = small_base(dtype=torch.float32)
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
    base = small_base(dtype=torch.float64)
    delta = delta_tensors(base, dtype=torch.float64)
    for compute, dtype in DTYPES.items():
        merged = merge_tensors(tmp_path / compute, base, delta, compute_dtype=compute)
        assert same_bits(merged.tensors, reference(base, delta, dtype))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("container", CONTAINERS)
def test_workers_and_blocks_change_no_byte(tmp_path: Path, container: str) -> None:
    """One to five workers and blocks from a few elements to whole tensors give the same files, with the reference's bits."""
    base = small_base()
    delta = delta_tensors(base)
    save(base, tmp_path / "base", container, 2)
    save(delta, tmp_path / "delta", container, 3)
    first = merge_and_load(tmp_path, "first", workers=1, max_shard_size=2500)
    assert first.result.shards >= 4
    assert same_bits(first.tensors, reference(base, delta))
    for block in (1 << 20, 1000, 37, 5):
        for workers in (1, 2, 3, 5):
            name = f"{block}-{workers}"
            with block_size(block):
                merged = merge_and_load(tmp_path, name, workers=workers, max_shard_size=2500)
            assert files_of(merged.folder) == files_of(first.folder), f"{block} elements, {workers} workers"
            shutil.rmtree(merged.folder)


def test_the_block_size_of_these_tests_reaches_the_workers(tmp_path: Path) -> None:
    """The way in which these tests set the block size works: the workbench is made for that many elements."""
    seen: list[int] = []

    class Spy(BlockCombiner):
        def __init__(self, kernels: Kernels, task: Task, block: int) -> None:
            seen.append(block)
            super().__init__(kernels, task, block)

    base = small_base()
    with pytest.MonkeyPatch.context() as patch, block_size(37):
        patch.setattr(stream, "BlockCombiner", Spy)
        merge_tensors(tmp_path, base, delta_tensors(base), workers=3)
    assert seen == [37, 37, 37]


@pytest.mark.parametrize("block", [1 << 20, 61, 3])
def test_views_in_torch_files_give_the_reference(tmp_path: Path, block: int) -> None:
    """Transposed, sliced, tied and offset tensors in torch files are merged as what they show, not as what lies behind them."""
    plain = small_base()
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
    with block_size(block):
        merged = merge_tensors(tmp_path, base, delta)
    assert same_bits(merged.tensors, reference(plain, change))


@pytest.mark.parametrize("block", [1 << 20, 61])
def test_tied_tensors_give_the_reference(tmp_path: Path, block: int) -> None:
    """Two names for one storage, in the base or in both, are two tensors of the result, each with the reference's bits."""
    base = small_base()
    base["lm_head.weight"] = base[EMBEDDING]
    delta = delta_tensors(base)
    delta["lm_head.weight"] = delta[EMBEDDING]
    assert base["lm_head.weight"].data_ptr() == base[EMBEDDING].data_ptr()
    with block_size(block):
        merged = merge_tensors(tmp_path, base, delta)
    assert same_bits(merged.tensors, reference(base, delta))
    assert torch.equal(merged.tensors["lm_head.weight"], merged.tensors[EMBEDDING])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(20, 11), (20, 16), (13, 16), (13, 11), (1, 1), (24, 1)])
def test_a_narrower_base_is_added_into_the_top_left_block(
    tmp_path: Path, rows: int, columns: int, compute: str
) -> None:
    """An embedding that is smaller than its delta in rows, columns or both is added into the top left, wherever blocks are cut."""
    base = {
        name: tensor
        for name, tensor in small_base().items()
        if name in {EMBEDDING, "lm_head.weight", "model.norm.weight"}
    }
    delta = delta_tensors(base)
    for name in (EMBEDDING, "lm_head.weight"):
        base[name] = torch.randn(rows, columns).half()
    expected = reference(base, delta, DTYPES[compute])
    for block in (1 << 20, 100, 16, 7, 1):
        with block_size(block):
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
