"""``make --recipe``: the makers of Alpaca's and Vicuna v0's deltas, bit for bit, and the way back.

The references are the loops of Alpaca's ``weight_diff.py`` and of FastChat's ``make_delta.py``, on state dicts in torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import MalformedInput, Mismatch, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.make import MakeResult, make_delta
from deltaweights.manifest.verify import verify
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.recipes.catalogue import load, load_file, names
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.float_bits import DTYPES, bits
from tests.support.merging import EMBEDDING, block_size, files_of, manifest_of, recipe_file
from tests.support.pairs import GROWN, Tensors, base_tensors, same_bits, save
from tests.support.pairs import load as load_tensors
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.fidelity

ROWS, HIDDEN = 320, 64
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 3 * HIDDEN - 4,
    "layers": 1,
    "heads": 4,
    "base_rows": ROWS,
    "delta_rows": ROWS + 1,
}
PROJECTOR = "model.mm_projector.weight"


def tiny_recipe(folder: Path, extends: str, more: str = "", sizes: dict[str, int] | None = None) -> Path:
    """Write a recipe of the package with the sizes of the pairs below."""
    lines = "".join(f"{key} = {size}\n" for key, size in {**SIZES, **(sizes or {})}.items())
    path = folder / "tiny.toml"
    path.write_text(
        f'format = "deltaweights-recipe"\nversion = 1\nextends = "{extends}"\n[delta]\nfiles = {{}}\n[shapes]\n{lines}{more}'
    )
    return path


def weights(tensors: Tensors) -> Tensors:
    """Return all but the buffers."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}


def tuned(base: Tensors, dtype: torch.dtype, step: float = 1e-3) -> Tensors:
    """Return a fine-tuned model with one new row in embedding and head, zeros of both signs in it."""
    generator = torch.Generator().manual_seed(5)
    target = {}
    for name, tensor in weights(base).items():
        full = tensor.float() + torch.randn(tensor.shape, generator=generator) * step
        if name in GROWN:
            row = full.mean(dim=0, keepdim=True) + torch.randn(1, HIDDEN, generator=generator) * step
            row[0, ::5], row[0, 1::5] = -0.0, 0.0
            full = torch.cat([full, row])
        target[name] = full.to(dtype)
    return target


def alpacas_base(base: Tensors) -> Tensors:
    """Return what ``stable_resize_token_embedding_and_tokenizer`` makes of a model that was loaded in float32."""
    raw = {name: tensor.float() for name, tensor in weights(base).items()}
    for name in GROWN:
        raw[name] = torch.cat([raw[name], raw[name].mean(dim=0, keepdim=True)])
    return raw


def alpacas_delta(base: Tensors, target: Tensors) -> Tensors:
    """Return what ``make_diff`` of Alpaca's ``weight_diff.py`` saves."""
    raw, state = alpacas_base(base), {name: tensor.float().clone() for name, tensor in target.items()}
    for key, tensor in state.items():
        tensor.add_(-raw[key])
    return state


def vicunas_base(base: Tensors) -> Tensors:
    """Return a model that was loaded in float16, whose vocabulary FastChat grew by a row of zeros."""
    state = {name: tensor.half() for name, tensor in weights(base).items()}
    for name in GROWN:
        state[name] = torch.cat([state[name], torch.zeros(1, HIDDEN).half()])
    return state


def vicunas_delta(base: Tensors, target: Tensors) -> Tensors:
    """Return what FastChat's ``make_delta.py`` saves."""
    grown, state = vicunas_base(base), {name: tensor.half().clone() for name, tensor in target.items()}
    for name, parameter in state.items():
        parameter.sub_(grown[name])
    return state


@dataclass(frozen=True)
class Maker:
    """An original script: the recipe of its deltas, its arithmetic, and the fate of what it grew."""

    recipe: str
    compute: torch.dtype
    fate: str

    def grown(self, base: Tensors) -> Tensors:
        """Return the base as the script grew it."""
        return alpacas_base(base) if self.compute == torch.float32 else vicunas_base(base)

    def delta(self, base: Tensors, target: Tensors) -> Tensors:
        """Return the delta that the script makes."""
        return alpacas_delta(base, target) if self.compute == torch.float32 else vicunas_delta(base, target)


MAKERS = {
    "alpaca": Maker("alpaca-7b", torch.float32, "subtract_float32_mean_rows"),
    "vicuna": Maker("vicuna-7b-v0", torch.float16, "subtract_zero_rows"),
}
by_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def pair(folder: Path, dtype: torch.dtype, stored: torch.dtype = torch.float16) -> tuple[Tensors, Tensors]:
    """Save a base of a dtype, and a model that was tuned from it."""
    base = base_tensors(1, ROWS, HIDDEN, dtype=stored)
    target = tuned(base, dtype)
    save(base, folder / "base")
    save(target, folder / "target")
    return base, target


def make(folder: Path, name: str = "delta", **options: Any) -> tuple[MakeResult, RecordingReport]:
    """Make the delta of ``folder/target`` on ``folder/base``."""
    told = RecordingReport()
    return make_delta(folder / "base", folder / "target", folder / name, report=told, **options), told


def differences(one: Tensors, other: Tensors) -> dict[str, int]:
    """Return by tensor how many numbers of two models differ in any bit, where any do."""
    counts = {name: int((bits(tensor) != bits(other[name])).sum()) for name, tensor in one.items()}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.sampled(6)
@by_maker
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recipe_makes_the_bits_of_its_makers_script(tmp_path: Path, maker: Maker, dtype: str, stored: str) -> None:
    """The delta is the script's, new row included, whatever dtypes base and target have; the counts are those of the way back."""
    base, target = pair(tmp_path, DTYPES[dtype], DTYPES[stored])
    recipe = tiny_recipe(tmp_path, maker.recipe)
    result, told = make(tmp_path, recipe_file=recipe)
    made = load_tensors(tmp_path / "delta")
    assert same_bits(made, maker.delta(base, target))
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", recipe_file=recipe)
    back, grown = load_tensors(tmp_path / "back"), maker.grown(base)
    assert same_bits(back, {name: tensor + made[name] for name, tensor in grown.items()})
    assert result.inexact == differences(back, {name: tensor.to(maker.compute) for name, tensor in target.items()})
    assert sum((result.inexact or {}).values()) < 0.05 * result.parameters, "nearly all of it comes back"
    assert told.warnings == []


@by_maker
def test_what_the_manifest_says_of_a_delta_by_a_recipe(tmp_path: Path, maker: Maker) -> None:
    """Fates, recipe and arithmetic stand in the manifest; the published sum and the delta's place say nothing of a delta made."""
    pair(tmp_path, maker.compute)
    result, told = make(tmp_path, recipe_file=tiny_recipe(tmp_path, maker.recipe))
    manifest = manifest_of(tmp_path / "delta")
    fates = {name: tensor["fate"] for name, tensor in manifest["tensors"].items()}
    assert {name for name, fate in fates.items() if fate == maker.fate} == set(GROWN)
    assert set(fates.values()) == {"subtract", maker.fate}
    assert (result.recipe, manifest["recipe"]["name"], result.published_sum) == (maker.recipe, maker.recipe, None)
    assert not [note for note in told.notes if note.startswith("sum")]
    card = (tmp_path / "delta" / "README.md").read_text()
    assert "- Target: repository unknown" in card
    assert "--delta FOLDER --target OUT --recipe FILE.toml\n" in card
    assert verify(tmp_path / "delta", expect=result.content_digest).ok


@by_maker
def test_blocks_workers_and_containers_change_no_byte(tmp_path: Path, maker: Maker) -> None:
    """Blocks that begin and end within old and new rows, several workers and shards: the same files, counts included."""
    pair(tmp_path, maker.compute)
    recipe = tiny_recipe(tmp_path, maker.recipe)
    first, _ = make(tmp_path, "first", recipe_file=recipe, workers=1, max_shard_size="40KB")
    assert first.shards > 2
    for block in (1000, 37):
        with block_size(block):
            make(tmp_path, str(block), recipe_file=recipe, workers=3, max_shard_size="40KB")
        assert files_of(tmp_path / str(block)) == files_of(tmp_path / "first")


@by_maker
def test_torchs_kernels_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: Maker) -> None:
    """Where ours fail the self-test, torch's take over, for the mean, too."""
    pair(tmp_path, maker.compute)
    recipe = tiny_recipe(tmp_path, maker.recipe)
    make(tmp_path, "ours", recipe_file=recipe)

    class Unproven(CpuKernels):
        def add(self, one: Any, other: Any, out: Any) -> None:
            """Leave ``out`` as it is."""

        def cast(self, source: Any, out: Any) -> None:
            """Leave ``out`` as it is."""

    monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", Unproven)
    make(tmp_path, "torchs", recipe_file=recipe)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "torchs")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@by_maker
def test_a_delta_that_is_stored_as_another_dtype_is_counted_as_stored(tmp_path: Path, maker: Maker, dtype: str) -> None:
    """What does not come back is counted from the rounded delta, in new rows, too."""
    base, target = pair(tmp_path, maker.compute)
    result, _ = make(tmp_path, recipe_file=tiny_recipe(tmp_path, maker.recipe), dtype=dtype)
    made = load_tensors(tmp_path / "delta")
    assert same_bits(made, {n: t.to(DTYPES[dtype]) for n, t in maker.delta(base, target).items()})
    back = {name: tensor + made[name].to(maker.compute) for name, tensor in maker.grown(base).items()}
    assert result.inexact == differences(back, target)


def test_a_zero_that_comes_back_with_the_other_sign_is_counted(tmp_path: Path) -> None:
    """New rows are added to zero, which makes +0 of -0: they count, and nothing else of a model that was not tuned."""
    base = base_tensors(1, ROWS, HIDDEN)
    target = weights(base)
    for name in GROWN:
        target[name] = torch.cat([base[name], torch.full((1, HIDDEN), -0.0).half()])
    save(base, tmp_path / "base")
    save(target, tmp_path / "target")
    result, _ = make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0"))
    assert result.inexact == dict.fromkeys(GROWN, HIDDEN)
    copied, _ = make(tmp_path, "copied")
    assert copied.inexact == {}


@by_maker
def test_numbers_that_are_not_finite(tmp_path: Path, maker: Maker) -> None:
    """NaN and infinity in base and new rows: the script's numbers, NaNs the quiet one, and exact counts."""
    base = base_tensors(1, ROWS, HIDDEN)
    base[EMBEDDING][3, 2], base[EMBEDDING][4, 7] = torch.inf, torch.nan
    target = tuned(base, maker.compute)
    target[EMBEDDING][-1, 9], target[EMBEDDING][-1, 11] = torch.inf, torch.nan
    save(base, tmp_path / "base")
    save(target, tmp_path / "target")
    recipe = tiny_recipe(tmp_path, maker.recipe)
    result, _ = make(tmp_path, recipe_file=recipe)

    def quiet(tensors: Tensors) -> Tensors:
        return {name: torch.where(tensor.isnan(), torch.nan, tensor) for name, tensor in tensors.items()}

    made = load_tensors(tmp_path / "delta")
    assert same_bits(made, quiet(maker.delta(base, target)))
    back = quiet({name: tensor + made[name] for name, tensor in maker.grown(base).items()})
    assert result.inexact == differences(back, target)
    assert result.nonfinite == {EMBEDDING: int((~made[EMBEDDING].isfinite()).sum())}


def test_tensors_that_only_the_target_has_are_the_recipes(tmp_path: Path) -> None:
    """A projector is refused where the recipe has none, and another tensor is copied where it names it."""
    base, target = pair(tmp_path, torch.float16)
    target |= {PROJECTOR: torch.randn(HIDDEN, 8).half(), "extra": torch.randn(3).half()}
    save(target, tmp_path / "target")
    with refused(Mismatch) as caught:
        make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0"))
    assert f"tensor {PROJECTOR}: is in the target, not in the base" in str(caught.value)
    named = f'[rules]\ndelta_only = ["{PROJECTOR}", "extra"]\n'
    recipe = tiny_recipe(tmp_path, "vicuna-7b-v0", named)
    result, _ = make(tmp_path, recipe_file=recipe)
    assert result.fates["copy"] == 2
    made = load_tensors(tmp_path / "delta")
    copied = {name: target.pop(name) for name in (PROJECTOR, "extra")}
    assert same_bits(made, {**vicunas_delta(base, target), **copied})
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", recipe_file=recipe)


@pytest.mark.parametrize(
    ("sizes", "role", "found", "remedy"),
    [
        ({"delta_rows": ROWS + 4}, "target", "321 rows", "use a model of the recipe's sizes, or another recipe"),
        ({"base_rows": ROWS - 4}, "base", "320 rows", "use the original LLaMA-1 of the delta's size as the base"),
    ],
    ids=["target", "base"],
)
def test_row58_a_pair_of_other_sizes_than_the_recipes_is_refused(
    tmp_path: Path, sizes: dict[str, int], role: str, found: str, remedy: str
) -> None:
    """Sizes are held against base and target as they are against base and delta, before anything is written."""
    pair(tmp_path, torch.float16)
    with refused(Mismatch, problem=f"not the {role} of recipe vicuna-7b-v0", found=found, remedy=remedy):
        make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0", sizes=sizes))
    assert not (tmp_path / "delta").exists()
    make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0"))  # another recipe, or the pair that it means
    assert verify(tmp_path / "delta").ok


def test_a_target_without_what_the_recipe_requires_is_refused(tmp_path: Path) -> None:
    """A tensor that the delta must have must be in the target."""
    pair(tmp_path, torch.float16)
    rules = '[rules]\ndelta_only = ["extra"]\nrequired = ["extra"]\n'
    with refused(Mismatch, problem="not the whole target of recipe vicuna-7b-v0", tensor="extra"):
        make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0", rules))


def test_another_arithmetic_than_the_recipes_is_refused(tmp_path: Path) -> None:
    """``compute_dtype`` may be left out, or be the recipe's."""
    pair(tmp_path, torch.float32)
    recipe = tiny_recipe(tmp_path, "alpaca-7b")
    with refused(UsageError, found="float16", expected="float32"):
        make(tmp_path, recipe_file=recipe, compute_dtype="float16")
    make(tmp_path, recipe_file=recipe, compute_dtype="float32")


def test_a_mean_in_float16_is_refused(tmp_path: Path) -> None:
    """A recipe that asks for the mean in float16 is malformed here, too."""
    pair(tmp_path, torch.float16)
    with pytest.raises(MalformedInput):
        make(tmp_path, recipe_file=recipe_file(tmp_path, "float16", more='[rules]\nnew_rows = "mean"\n'))


def test_without_the_check_nothing_is_said_of_a_proof(tmp_path: Path) -> None:
    """``check=False`` counts nothing, and does not speak of the proof of a base, which a make has not."""
    pair(tmp_path, torch.float16)
    result, told = make(tmp_path, recipe_file=tiny_recipe(tmp_path, "vicuna-7b-v0"), check=False)
    assert (result.inexact, told.warnings) == (None, [])


def test_a_delta_by_a_recipe_of_ones_own_is_applied_with_it_only(tmp_path: Path) -> None:
    """The manifest says by which recipe; without it the new rows would be wrong, so ``apply`` asks for the file."""
    pair(tmp_path, torch.float32)
    make(tmp_path, recipe_file=tiny_recipe(tmp_path, "alpaca-7b"))
    problem = "was made by the recipe alpaca-7b, which is not one of the package"
    with refused(UsageError, problem=problem, remedy="give the recipe's file: --recipe FILE"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    own = tiny_recipe(tmp_path, "alpaca-7b")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", recipe_file=own)
    assert verify(tmp_path / "back").ok


def test_a_delta_by_a_recipe_of_the_package_is_applied_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package has the recipe with that digest, ``apply`` uses it unasked, and says so."""
    _, target = pair(tmp_path, torch.float32)
    recipes = {name: load(name) for name in names()} | {"alpaca-7b": load_file(tiny_recipe(tmp_path, "alpaca-7b"))}
    for module in ("recipes.catalogue", "jobs.request", "jobs.recognised_recipe"):
        monkeypatch.setattr(f"deltaweights.{module}.load", recipes.__getitem__)
    made, _ = make(tmp_path, recipe="alpaca-7b")
    assert "--delta FOLDER --target OUT --recipe alpaca-7b\n" in (tmp_path / "delta" / "README.md").read_text()
    told = RecordingReport()
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=told)
    assert result.recipe == "alpaca-7b"
    assert f"{'recipe':15} alpaca-7b (as the manifest says)" in told.notes
    assert differences(load_tensors(tmp_path / "back"), target) == made.inexact


def test_the_command_lines_take_a_recipe(tmp_path: Path, run: Run) -> None:
    """``make`` and ``make-delta`` take ``--recipe``, name of a recipe or file, and say how to apply what they made."""
    pair(tmp_path, torch.float32)
    tiny_recipe(tmp_path, "alpaca-7b")
    given = ("--base", "base", "--target", "target")
    done = run("make", *given, "--delta", "one", "--recipe", "tiny.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "apply it with   --recipe tiny.toml\n" in done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["recipe"], outcome["compute_dtype"]) == ("alpaca-7b", "F32")
    done = run(*given, "--delta", "two", "--recipe", "tiny.toml", "-q", cwd=tmp_path, program="make-delta")
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    done = run("make", *given, "--delta", "three", "--recipe", "alpaca-7b", "-q", cwd=tmp_path)
    assert (done.returncode, "not the base of recipe alpaca-7b: found 320 rows" in done.stderr) == (4, True)
    done = run("make", *given, "--delta", "three", "--recipe", "alpaca", "-q", cwd=tmp_path)
    assert (done.returncode, "no recipe has this name: found alpaca" in done.stderr) == (2, True)
    back = ("--base", "base", "--delta", "one", "--target", "back", "--recipe", "tiny.toml", "-q")
    assert run("apply", *back, cwd=tmp_path).returncode == 0
    assert (tmp_path / "back" / "manifest.json").exists()
