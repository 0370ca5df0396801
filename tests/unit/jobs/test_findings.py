"""Tests of what is reported of NaN, infinite and uniform weights, and of ``strict``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import CheckFailed
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.findings import Findings
from deltaweights.staging.location import locate_target
from tests.support.base_pairs import moved
from tests.support.float_bits import words_of
from tests.support.merging import (
    EMBEDDING,
    PROJECTOR,
    block_size,
    manifest_of,
    merge,
    merge_and_load,
    merge_pair,
    merge_tensors,
    missing_facts,
    save_pair,
    small_base,
)
from tests.support.pairs import Tensors, delta_tensors, save
from tests.support.reports import RecordingReport


def test_strict_refuses_before_publishing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """With ``strict``, a NaN is an error before anything is published; a run without it reuses the finished shards."""
    base = small_base()
    delta = delta_tensors(base)
    delta["model.norm.weight"][2] = torch.nan
    with pytest.raises(CheckFailed) as caught:
        merge_tensors(tmp_path, base, delta, strict=True, max_shard_size=2500)
    assert caught.value.exit_code == 6
    assert "tensor model.norm.weight: " in str(caught.value)
    assert not (tmp_path / "merged").exists()
    place = locate_target(tmp_path / "merged")
    staged = {path.name: path.stat().st_ino for path in place.shards.glob("*.safetensors")}
    assert len(staged) >= 4
    merged = merge_and_load(tmp_path, max_shard_size=2500)
    assert {path.name: path.stat().st_ino for path in merged.folder.glob("*.safetensors")} == staged
    assert merged.result.nonfinite == {"model.norm.weight": 1}
    assert not place.root.exists()


def test_strict_also_refuses_a_complete_target(tmp_path: Path) -> None:
    """With ``strict``, a complete target with a NaN is an error, too."""
    base = small_base()
    delta = delta_tensors(base)
    delta["model.norm.weight"][2] = torch.nan
    merge_tensors(tmp_path, base, delta)
    with pytest.raises(CheckFailed):
        merge_and_load(tmp_path, strict=True)


TOO_LARGE = "too large for the dtype"


@dataclass(frozen=True)
class Sick:
    """Numbers to put somewhere (tensor, place, base's number or None, delta's), options, and what is to be found and told."""

    numbers: Sequence[tuple[str, int, float | None, float]]
    nonfinite: dict[str, int]
    base: dict[str, int]
    primary: dict[str, int]
    overflow: dict[str, int]
    causes: str
    dtype: torch.dtype = torch.float16
    options: dict[str, Any] = field(default_factory=dict)


NAN, INF = math.nan, math.inf

F32 = {"compute_dtype": "float32"}

SICK = {
    "base alone": Sick(
        [("w", 0, NAN, 1), ("w", 7, INF, 1), ("w", 14, -INF, -0.0)],
        {"w": 3}, {"w": 3}, {}, {}, "3 of the base",
    ),
    "delta alone": Sick(
        [("w", 0, 1, NAN), ("w", 14, 0, -INF)],
        {"w": 2}, {}, {"w": 2}, {}, "2 of the delta",
    ),
    "both, in one weight and in others": Sick(
        [("w", 0, INF, -INF), ("w", 3, NAN, INF), ("w", 4, NAN, 0), ("w", 9, 0, INF)],
        {"w": 4}, {"w": 3}, {"w": 3}, {}, "3 of the base, 3 of the delta",
    ),
    "a sum that is too large": Sick(
        [("w", 0, 65504, 16), ("w", 1, 65504, 15.99), ("w", 2, -65504, -65504), ("w", 3, 65504, -65504)],
        {"w": 2}, {}, {}, {"w": 2}, f"2 {TOO_LARGE}",
    ),
    "inputs that are too large": Sick(
        [("w", 0, 1e7, 1), ("w", 1, 0, -1e6), ("w", 2, 1e6, -1e6), ("w", 3, 65519, 0)],
        {"w": 3}, {}, {}, {"w": 3}, f"3 {TOO_LARGE}", torch.float32,
    ),
    "a result that is too large to be stored": Sick(
        [("w", 0, 40000, 40000), ("w", 1, 40000, 20000), ("w", 2, 3e38, 3e38), ("w", 3, INF, 3e38)],
        {"w": 3}, {"w": 1}, {}, {"w": 2}, f"1 of the base, 2 {TOO_LARGE}", torch.float32, F32 | {"dtype": "float16"},
    ),
    "a result that rounds to infinity in bfloat16": Sick(
        [("w", 0, 3.4e38, 0), ("w", 1, 3.3e38, 0)],
        {"w": 1}, {}, {}, {"w": 1}, f"1 {TOO_LARGE}", torch.float32, F32 | {"dtype": "bfloat16"},
    ),
    "a copy": Sick(
        [(PROJECTOR, 0, None, NAN), (PROJECTOR, 14, None, -INF)],
        {PROJECTOR: 2}, {}, {PROJECTOR: 2}, {}, "2 of the delta",
    ),
    "a copy that is too large": Sick(
        [(PROJECTOR, 0, None, 1e6)],
        {PROJECTOR: 1}, {}, {}, {PROJECTOR: 1}, f"1 {TOO_LARGE}", torch.float32,
    ),
    "the first of the delta, others too large": Sick(
        [(PROJECTOR, 0, None, NAN), ("v", 1, 65504, 16), ("w", 2, 65504, 16)],
        {PROJECTOR: 1, "v": 1, "w": 1}, {}, {PROJECTOR: 1}, {"v": 1, "w": 1},
        f"1 of the delta, 2 {TOO_LARGE}, as in v",
    ),
    "all at once": Sick(
        [("w", 0, NAN, 0), (PROJECTOR, 1, None, INF), ("v", 2, 65504, 65504), ("v", 3, NAN, INF)],
        {PROJECTOR: 1, "v": 2, "w": 1}, {"v": 1, "w": 1}, {PROJECTOR: 1, "v": 1}, {"v": 1},
        f"2 of the base, as in v, 2 of the delta, 1 {TOO_LARGE}, as in v",
    ),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", SICK)
def test_numbers_that_are_not_finite_are_counted_by_where_they_are_from(tmp_path: Path, case: str) -> None:
    """Result, inputs and overflow are counted exactly, in any blocks, with one warning, which ``strict`` makes an error."""
    sick = SICK[case]
    base = {name: torch.arange(1, 16).reshape(3, 5).to(sick.dtype) / 64 for name in "wv"}
    delta = {name: tensor / 64 for name, tensor in [*base.items(), (PROJECTOR, base["w"])]}
    for name, place, of_base, of_delta in sick.numbers:
        delta[name].view(-1)[place] = of_delta
        if of_base is not None:
            base[name].view(-1)[place] = of_base
    save_pair(tmp_path, base, delta)
    first, *others = sick.nonfinite
    tensors = f"{1 + len(others)} tensors" if others else "1 tensor"
    facts = f"tensor {first}: ", f"{sum(sick.nonfinite.values())} NaN or infinite", tensors, f"({sick.causes})"
    counts = {
        "nonfinite": sick.nonfinite,
        "nonfinite_base": sick.base,
        "nonfinite_lead": sick.primary,
        "overflow": sick.overflow,
    }
    for block in (1 << 20, 4):
        with block_size(block):
            result, told = merge(tmp_path, str(block), prove=False, **sick.options)
        assert {key: getattr(result, key) for key in counts} == counts
        manifest = manifest_of(tmp_path / str(block))
        assert {key: manifest[key] for key in counts if key in manifest} == {
            key: number for key, number in counts.items() if number or key == "nonfinite"
        }
        (warning,) = told.warnings
        assert missing_facts(warning, *facts) == []
    with pytest.raises(CheckFailed) as caught:
        merge(tmp_path, "strict", prove=False, strict=True, **sick.options)
    assert caught.value.exit_code == 6
    assert missing_facts(str(caught.value), *facts, "--strict") == []
    assert not (tmp_path / "strict").exists()
    assert merge(tmp_path, "strict", prove=False, **sick.options)[0].nonfinite == sick.nonfinite
    with pytest.raises(CheckFailed):
        merge(tmp_path, "strict", prove=False, strict=True, **sick.options)


@pytest.mark.parametrize("block", [1 << 20, 7, 3])
def test_numbers_of_a_grown_embedding_are_counted_where_they_meet(tmp_path: Path, block: int) -> None:
    """Each number of a narrower base is counted with the weight that it is added to; new rows and columns are the delta's."""
    base, delta = {EMBEDDING: torch.ones(3, 4).half()}, {EMBEDDING: torch.full((5, 6), 0.5).half()}
    base[EMBEDDING][1, 3], base[EMBEDDING][2, 0] = INF, 65504
    delta[EMBEDDING][1, 3], delta[EMBEDDING][2, 0] = -INF, 65504
    delta[EMBEDDING][1, 4], delta[EMBEDDING][4, 5] = NAN, INF
    with block_size(block):
        result, _ = merge_pair(tmp_path, base, delta)
    found = result.nonfinite, result.nonfinite_base, result.nonfinite_lead, result.overflow
    assert found == ({EMBEDDING: 4}, {EMBEDDING: 1}, {EMBEDDING: 3}, {EMBEDDING: 1})


def test_healthy_numbers_are_not_reported(tmp_path: Path) -> None:
    """If all is finite and no matrix uniform, ``strict`` passes, and the manifest has only an empty ``nonfinite``."""
    result, told = merge_pair(tmp_path, *moved(110_000), strict=True)
    assert told.warnings == []
    assert Findings(**{key: getattr(result, key) for key in vars(Findings())}) == Findings(proof=result.proof)
    keys = {*manifest_of(tmp_path / "merged")} & {*vars(Findings())}
    assert keys == {"nonfinite", "proof"}


ROWS, COLUMNS = 40, 30


def varied(*shape: int) -> torch.Tensor:
    """Return numbers of which no two neighbours are equal, and which are exact in float16, with halves added, too."""
    return (torch.arange(math.prod(shape)) % 7 + 1).reshape(shape).half()


UNIFORM: dict[str, tuple[Tensors, Tensors, dict[str, list[str]]]] = {
    "base of zeros": ({"w": torch.zeros(ROWS, COLUMNS)}, {"w": varied(ROWS, COLUMNS)}, {"w": ["base"]}),
    "base of halves": ({"w": torch.full((ROWS, COLUMNS), 0.5)}, {"w": varied(ROWS, COLUMNS)}, {"w": ["base"]}),
    "delta of zeros": ({"w": varied(ROWS, COLUMNS)}, {"w": torch.zeros(ROWS, COLUMNS)}, {"w": ["lead"]}),
    "result alone": ({"w": varied(ROWS, COLUMNS)}, {"w": 8 - varied(ROWS, COLUMNS)}, {"w": ["result"]}),
    "all": ({"w": torch.ones(2, 3)}, {"w": torch.zeros(2, 3)}, {"w": ["result", "base", "lead"]}),
    "a copy": (
        {"w": torch.rand(3)},
        {"w": torch.rand(3), PROJECTOR: torch.ones(9, 9)},
        {PROJECTOR: ["result", "lead"]},
    ),
    "a grown base": ({EMBEDDING: torch.zeros(5, 6)}, {EMBEDDING: varied(7, 6)}, {EMBEDDING: ["base"]}),
    "a narrower base": ({EMBEDDING: torch.ones(5, 4)}, {EMBEDDING: varied(7, 6)}, {EMBEDDING: ["base"]}),
    "three axes": ({"w": torch.ones(2, 3, 4)}, {"w": varied(2, 3, 4)}, {"w": ["base"]}),
    "several": (
        {name: torch.zeros(2, 3) for name in "cab"},
        {name: varied(2, 3) for name in "cab"},
        {name: ["base"] for name in "abc"},
    ),
    "vectors": ({"w": torch.ones(ROWS)}, {"w": torch.zeros(ROWS)}, {}),
    "scalars": ({"w": torch.tensor(1.0)}, {"w": torch.tensor(0.0)}, {}),
    "one element": ({"w": torch.ones(1, 1)}, {"w": torch.zeros(1, 1)}, {}),
    "no elements": ({"w": torch.ones(0, 3)}, {"w": torch.zeros(0, 3)}, {}),
}


def facts_of_warnings(uniform: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the facts of each expected warning: on base and result, never on a delta, which may well be zero."""
    facts = []
    for role in ("base", "result"):
        names = [name for name, roles in uniform.items() if role in roles]
        if names:
            more = {1: "", 2: " and 1 more tensor"}.get(len(names), f" and {len(names) - 1} more tensors")
            facts.append((f"tensor {names[0]}{more}: ", role))
    return facts


def check_warnings(told: RecordingReport, facts: list[tuple[str, str]]) -> None:
    """Compare the warnings on uniform matrices with the expected facts."""
    warnings = [text for text in told.warnings if "are equal" in text]
    for text, expected in zip(warnings, facts, strict=True):
        assert missing_facts(text, *expected) == []


@pytest.mark.sampled(7)
@pytest.mark.parametrize("block", [1 << 20, 64, 7])
@pytest.mark.parametrize("case", UNIFORM)
def test_matrices_of_one_number_are_named(tmp_path: Path, case: str, block: int) -> None:
    """The manifest says which of base, delta and result are uniform; for base and result there is a warning, an error if strict."""
    base, delta, uniform = UNIFORM[case]
    save_pair(tmp_path, base, {name: tensor.half() for name, tensor in delta.items()})
    alike: dict[str, Any] = {
        "prove": False,
        "allow_unproved_base": True,
    }  # to a check of samples some are models, not deltas
    with block_size(block):
        result, told = merge(tmp_path, **alike)
    assert {name: [*roles] for name, roles in result.uniform.items()} == uniform
    assert list(result.uniform) == list(uniform)
    assert manifest_of(tmp_path / "merged").get("uniform", {}) == uniform
    wanted = facts_of_warnings(uniform)
    check_warnings(told, wanted)
    again, told = merge(tmp_path, **alike)
    assert (again.status, again.uniform) == ("already complete", result.uniform)
    check_warnings(told, wanted)
    for name in ("merged", "strict"):
        if wanted:
            with pytest.raises(CheckFailed) as caught:
                merge(tmp_path, name, strict=True, **alike)
            assert missing_facts(str(caught.value), *wanted[0], "--strict") == []
        else:
            merge(tmp_path, name, strict=True, **alike)
    assert (tmp_path / "strict").exists() == (not wanted)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("block", [1 << 20, 600, 64, 7, 1])
@pytest.mark.parametrize("place", [0, 1, 6, 7, 63, 64, 65, 599, 600, ROWS * COLUMNS - 1])
def test_one_other_element_makes_a_matrix_ordinary(tmp_path: Path, place: int, block: int) -> None:
    """If one element differs in its lowest bit, first, last or at a block's border, the matrix is not reported."""
    base, delta = torch.full((ROWS, COLUMNS), 0.5).half(), torch.zeros(ROWS, COLUMNS).half()
    for tensor, other in ((base, 0.50048828125), (delta, 6e-8)):
        assert (words_of(tensor)[0] ^ words_of(torch.tensor(other).half())[0]) == 1
    pair = (
        {"spoiled base": base.clone(), "spoiled delta": base},
        {"spoiled base": delta, "spoiled delta": delta.clone()},
    )
    pair[0]["spoiled base"].view(-1)[place] = 0.50048828125
    pair[1]["spoiled delta"].view(-1)[place] = 6e-8
    with block_size(block):
        result, _ = merge_pair(tmp_path, *pair, prove=False)
    assert result.uniform == {"spoiled base": ("lead",), "spoiled delta": ("result", "base")}


def test_a_delta_that_is_made_may_be_zero_for_some_tensors(tmp_path: Path) -> None:
    """A tensor that was not tuned gives a delta of zeros, without a warning or an error."""
    base = {"w": varied(3, 4), "v": varied(5, 6)}
    save(base, tmp_path / "base")
    save(base | {"w": base["w"] * 1.5}, tmp_path / "target")
    told = RecordingReport()
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "made", strict=True, report=told)
    assert told.warnings == []
