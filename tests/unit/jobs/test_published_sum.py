"""Tests of sums that recipes publish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.jobs.findings import SumFound, check_sum
from deltaweights.manifest.records import TensorRecord
from deltaweights.manifest.tally import Tally
from deltaweights.recipes.recipe import Recipe, parse_recipe
from tests.support.base_pairs import moved
from tests.support.float_bits import DTYPES
from tests.support.merging import (
    Killed,
    block_size,
    files_of,
    killed_after,
    merge,
    merge_pair,
    missing_facts,
    recipe_file,
    save_pair,
    without_card,
)
from tests.support.pairs import base_tensors, delta_tensors, load
from tests.support.reports import RecordingReport

FREQUENCIES = 238.7185
"""The sum of the inv_freq buffers of LLaMA-1 7B, 32 layers of heads of 128, as docs/recipes.md has it."""


def recipe_with_sum(
    published: float, tolerance: float, *, buffers: bool = False, shapes: dict[str, int] | None = None
) -> Recipe:
    """Return a recipe with a published sum."""
    checks = {"sum": published, "tolerance": tolerance, "with_buffers": buffers}
    head = {"format": "deltaweights-recipe", "version": 1, "name": "own", "arithmetic": {"compute_dtype": "float32"}}
    return parse_recipe(head | {"checks": checks, "shapes": shapes or {}}, "own.toml")


def records(*sums: float | None) -> list[TensorRecord]:
    """Return records of tensors that have these sums."""
    return [TensorRecord(f"w{at}", "d", "b", "l", Tally(sum=total)) for at, total in enumerate(sums)]


LLAMA = {"hidden_size": 4096, "layers": 32, "heads": 32}


@pytest.mark.parametrize(
    ("sums", "recipe", "found"),
    [
        ((1.0, 2.5, None, -0.25), recipe_with_sum(3.0, 0.25), SumFound(found=3.25, published=3.0, tolerance=0.25, agrees=True)),
        ((1.0, 2.5), recipe_with_sum(3.25, 0.2), SumFound(found=3.5, published=3.25, tolerance=0.2, agrees=False)),
        ((-8.0,), recipe_with_sum(-8.0, 0), SumFound(found=-8.0, published=-8.0, tolerance=0.0, agrees=True)),
        ((1e16, 1.0, -1e16), recipe_with_sum(1, 0), SumFound(found=1.0, published=1.0, tolerance=0.0, agrees=True)),
        ((), recipe_with_sum(1, 0.5), SumFound(found=0.0, published=1.0, tolerance=0.5, agrees=False)),
    ],
)  # fmt: skip
def test_a_sum_agrees_within_its_tolerance(sums: Sequence[float | None], recipe: Recipe, found: SumFound) -> None:
    """The exact sum over all tensors is compared with the published one: a note if they agree, else a warning."""
    told = RecordingReport()
    assert check_sum(records(*sums), recipe, told) == found
    facts = f"{found.found:.4f}", str(found.published), str(found.tolerance)
    reported, silent = (told.notes, told.warnings) if found.agrees else (told.warnings, told.notes)
    assert silent == []
    assert missing_facts(reported[0], *facts) == []


def test_a_sum_over_buffers_adds_them() -> None:
    """``with_buffers`` adds the frequencies of every layer, 238.7185 for LLaMA-1 7B, and without it nothing is added."""
    exact = math.fsum(32 / 10000 ** (2 * i / 128) for i in range(64))
    assert round(exact, 4) == FREQUENCIES
    buffers = torch.cat([1.0 / 10000 ** (torch.arange(0, 128, 2).double() / 128)] * 32)
    assert abs(float(buffers.sum()) - exact) < 1e-9
    for with_buffers, more in ((True, FREQUENCIES), (False, 0)):
        recipe = recipe_with_sum(50637.1836, 0.01, buffers=with_buffers, shapes=LLAMA)
        found = check_sum(records(50000.0, 637.1836 - more), recipe, RecordingReport())
        assert found is not None
        assert found.agrees
        assert found.found is not None
        assert abs(found.found - 50637.1836) < 1e-4


def test_without_a_published_sum_nothing_is_compared() -> None:
    """Without a recipe, or a sum in it, there is no report."""
    told = RecordingReport()
    assert check_sum(records(1.0), None, told) is None
    assert check_sum(records(1.0), replace(recipe_with_sum(1, 1), checks=None), told) is None
    assert (told.notes, told.warnings) == ([], [])


def checks(total: float, tolerance: float) -> str:
    """Return a recipe's lines for a published sum."""
    return f"[checks]\nsum = {total!r}\ntolerance = {tolerance!r}\n"


@pytest.mark.parametrize("stored", DTYPES)
def test_the_sum_is_that_of_what_is_stored(tmp_path: Path, stored: str) -> None:
    """All elements of the result, as stored, with copies and new rows, are added up, in a resumed run, too."""
    save_pair(tmp_path, base_tensors(), delta_tensors(base_tensors()))
    options: dict[str, Any] = {"dtype": stored, "max_shard_size": 30_000}
    merge(tmp_path, "plain", **options)
    exact = math.fsum(x for tensor in load(tmp_path / "plain").values() for x in tensor.double().flatten().tolist())
    own = recipe_file(tmp_path, more=checks(exact, 1e-9))
    with block_size(100):
        result, told = merge(tmp_path, "one", recipe_file=own, workers=1, **options)
    assert result.published_sum is not None
    assert result.published_sum.agrees
    assert result.published_sum.found is not None
    assert abs(result.published_sum.found - exact) <= 1e-9
    assert any(missing_facts(note, f"{exact:.4f}", str(exact), "1e-09") == [] for note in told.notes)
    with block_size(100), killed_after(2), pytest.raises(Killed):
        merge(tmp_path, "two", recipe_file=own, workers=3, **options)
    with block_size(100):
        resumed, _ = merge(tmp_path, "two", recipe_file=own, workers=3, **options)
    assert resumed.published_sum == result.published_sum
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert without_card(tmp_path / "two") == without_card(tmp_path / "plain")
    assert merge(tmp_path, "two", recipe_file=own, **options)[0].published_sum is None


def test_a_sum_that_does_not_agree_is_never_fatal(tmp_path: Path) -> None:
    """Even with ``strict`` a sum that differs from the published one is only a warning."""
    base, delta = moved(110_000)
    own = recipe_file(tmp_path, more=checks(12.5, 0.01))
    result, told = merge_pair(tmp_path, base, delta, recipe_file=own, strict=True)
    assert result.status == "merged"
    found = result.published_sum
    assert found is not None
    assert found == SumFound(found=found.found, published=12.5, tolerance=0.01, agrees=False)
    assert found.found is not None
    assert abs(found.found - float((base["w"] + delta["w"]).double().sum())) < 1e-6
    (warning,) = told.warnings
    assert missing_facts(warning, f"{found.found:.4f}", "12.5", "0.01") == []


@pytest.mark.parametrize(
    "strange", [[[math.nan]], [[math.inf]], [[math.inf], [-math.inf]], [[math.inf, -math.inf]]], ids=str
)
def test_a_sum_with_nan_in_it_is_a_warning_like_any(tmp_path: Path, strange: list[list[float]]) -> None:
    """For a result with NaN or infinities there is a warning that the sum cannot be compared."""
    base, delta = moved(110_000)
    tensors = {f"w{at}": base["w"].clone() for at in range(len(strange))}
    for tensor, numbers in zip(tensors.values(), strange, strict=True):
        tensor[0, : len(numbers)] = torch.tensor(numbers)
    own = recipe_file(tmp_path, more=checks(12.5, 0.01))
    result, told = merge_pair(tmp_path, tensors, {name: delta["w"].clone() for name in tensors}, recipe_file=own)
    assert result.nonfinite == {name: len(numbers) for name, numbers in zip(tensors, strange, strict=True)}
    assert any("sum" in warning and "finite" in warning for warning in told.warnings)
