"""What is known of a pair is said with and without a recipe; the base is accused last, and a right pair never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights.errors import CheckFailed, Mismatch
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from tests.support.errors import refused
from tests.support.float_bits import DTYPES
from tests.support.merging import recipe_file
from tests.support.pairs import Tensors, base_tensors, load, reference, same_bits, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
GROWN = (EMBEDDING, HEAD)
ROWS, HIDDEN = 400, 128
STEP = 4e-4

MERGED = "likely already a merged model, not a delta"
ACCUSATIONS = (
    "merged model",
    "rounded through",
    "was computed in",
    "added row",
    "whole",
    "cannot be proved",
    "another",
)


def noise(shape: tuple[int, ...] | torch.Size, step: float, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * step


@cache
def base_model(seed: int = 0) -> Tensors:
    """Return a model in float16 whose norms are those of a trained one: around 0.5."""
    base = {name: t for name, t in base_tensors(2, ROWS, HIDDEN, seed=seed).items() if not name.endswith("inv_freq")}
    return {n: (0.5 + noise(t.shape, 0.05, seed + 9)).half() if t.ndim == 1 else t for n, t in base.items()}


def tuned(base: Tensors, step: float = STEP, dtype: torch.dtype = torch.float16) -> Tensors:
    return {n: (t.float() + noise(t.shape, step, seed)).to(dtype) for seed, (n, t) in enumerate(base.items(), 100)}


def delta_of(base: Tensors, target: Tensors, dtype: torch.dtype = torch.float16) -> Tensors:
    return {name: tensor.to(dtype) - base[name].to(dtype) for name, tensor in target.items()}


def grown(tensors: Tensors, count: int, size: float = 0.02) -> Tensors:
    """Return the tensors with new rows, those of tokens that somebody added; as many others at each count."""
    new = {n: torch.cat([tensors[n], noise((count, HIDDEN), size, 77 + count).to(tensors[n].dtype)]) for n in GROWN}
    return tensors | new


def cast(tensors: Tensors, *dtypes: torch.dtype) -> Tensors:
    for dtype in dtypes:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return tensors


def saved(folder: Path, base: Tensors, delta: Tensors) -> tuple[Path, Path]:
    return (
        save(base, folder / "base", "safetensors", 1, config=False),
        save(delta, folder / "delta", "safetensors", 1, config=False),
    )


def right() -> Tensors:
    return delta_of(base_model(), tuned(base_model()))


@dataclass(frozen=True)
class Refused:
    """A pair that is refused before the merge with and without a recipe: whose fault it is, and what is said."""

    base: Callable[[], Tensors]
    delta: Callable[[], Tensors]
    problem: str
    role: str = "delta"
    remedy: str = "--allow-unproved-base lets it pass"


FINISHED = {
    "the finished model": lambda: tuned(base_model()),
    "in float32": lambda: cast(tuned(base_model()), torch.float32),
    "in bfloat16": lambda: cast(tuned(base_model()), torch.bfloat16),
    "with new tokens": lambda: grown(tuned(base_model()), 4),
    "tuned far": lambda: tuned(base_model(), 0.01),
    "another model": lambda: base_model(seed=50),
    "another model, of larger weights": lambda: {
        n: t * 2 if t.ndim == 2 else t for n, t in base_model(seed=51).items()
    },
}

PAD = "the base has {}, such as that of [PAD], where the delta has tokens of its own"
REFUSED = {what: Refused(base_model, delta, MERGED) for what, delta in FINISHED.items()} | {
    "a [PAD] row, and LLaVA's tokens": Refused(
        lambda: grown(base_model(), 1, 1e-3), lambda: grown(right(), 3), PAD.format("1 added row"), "base", f"embeddings({ROWS})"
    ),
    "three rows": Refused(
        lambda: grown(base_model(), 3), lambda: grown(right(), 4), PAD.format("3 added rows"), "base", f"embeddings({ROWS})"
    ),
    "a [PAD] row in float32": Refused(
        lambda: cast(grown(base_model(), 1), torch.float32),
        lambda: grown(right(), 3),
        PAD.format("1 added row"),
        "base",
        f"embeddings({ROWS})",
    ),
}  # fmt: skip


@pytest.mark.sampled(7)
@pytest.mark.parametrize("stated", [True, False], ids=["recipe", "no-recipe"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_known_is_said_without_a_recipe_too(tmp_path: Path, case: str, stated: bool) -> None:
    """The same refusal (4) by apply, without the proof, and by check-base; nothing is written, and the user may insist."""
    row = REFUSED[case]
    inputs = saved(tmp_path, row.base(), row.delta())
    options: dict[str, Any] = {"recipe_file": recipe_file(tmp_path)} if stated else {}
    for prove in (True, False):
        with refused(Mismatch, where=tmp_path / row.role, problem=row.problem) as caught:
            apply_delta(*inputs, tmp_path / "out", prove=prove, **options)
        assert caught.value.exit_code == 4
        assert row.remedy in (caught.value.remedy or "")
    with refused(Mismatch, where=tmp_path / row.role, problem=row.problem) as caught:
        check_base(*inputs, **options)
    assert "--allow-unproved-base" not in (caught.value.remedy or "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "own.toml") == ["base", "delta"]
    told = RecordingReport()
    apply_delta(*inputs, tmp_path / "out", allow_unproved_base=True, report=told, **options)
    assert row.problem in told.warnings[0]


def test_rows_are_left_out_as_the_remedy_says(tmp_path: Path) -> None:
    """``resize_token_embeddings`` of transformers makes the base right again."""
    base, delta = base_model(), grown(right(), 3)
    config = LlamaConfig(
        vocab_size=ROWS + 1,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN - 4,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(grown(base, 1))
    model.save_pretrained(tmp_path / "padded")
    save(delta, tmp_path / "delta", "safetensors", 1, config=False)
    with refused(Mismatch, problem=PAD.format("1 added row")):
        apply_delta(tmp_path / "padded", tmp_path / "delta", tmp_path / "out")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "padded", dtype=torch.float16)
    again.resize_token_embeddings(ROWS)
    again.save_pretrained(tmp_path / "mended")
    result = apply_delta(tmp_path / "mended", tmp_path / "delta", tmp_path / "out")
    assert result.proof is not None
    assert result.proof.verdict == "proved"
    assert same_bits(load(tmp_path / "out"), reference(base, delta))


@pytest.mark.parametrize("count", [1, 3])
def test_a_base_with_more_rows_than_the_delta(tmp_path: Path, count: int) -> None:
    """Where the delta adds no tokens, the shapes alone say it, and the remedy is the same."""
    inputs = saved(tmp_path, grown(base_model(), count), right())
    with pytest.raises(Mismatch) as caught:
        apply_delta(*inputs, tmp_path / "out")
    rows = "1 added row" if count == 1 else f"{count} added rows"
    assert f"likely the base has {rows}, such as that of [PAD]" in str(caught.value)
    assert f"resize_token_embeddings({ROWS})" in str(caught.value)


ROUNDED = "likely the delta's numbers were rounded through bfloat16; or the base is "


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_delta_that_was_rounded_through_bfloat16(tmp_path: Path, dtype: torch.dtype) -> None:
    """It is named first, and the base last; with a recipe it is refused (4), by check-base always."""
    delta = cast(right(), torch.bfloat16, dtype)
    inputs, told = saved(tmp_path, base_model(), delta), RecordingReport()
    apply_delta(*inputs, tmp_path / "out", report=told)
    (warning,) = told.warnings
    assert ROUNDED in warning
    assert warning.startswith("the base cannot be proved: ")
    with pytest.raises(Mismatch) as caught:
        apply_delta(*inputs, tmp_path / "stated", recipe_file=recipe_file(tmp_path))
    assert ROUNDED in caught.value.problem
    assert "fetch the delta as it was published" in (caught.value.remedy or "")
    with pytest.raises((Mismatch, CheckFailed)) as found:
        check_base(*inputs).raise_unless_proved()
    assert ROUNDED in found.value.problem


@dataclass(frozen=True)
class Powerless:
    """A delta, and a compute dtype in which its sums prove no base: what is said."""

    delta: Callable[[], Tensors]
    says: str
    remedy: str
    options: dict[str, Any] = field(default_factory=dict)
    base: Callable[[], Tensors] = base_model


def in_bfloat16() -> Tensors:
    return delta_of(base_model(), tuned(base_model()), torch.bfloat16)


F32: dict[str, Any] = {"compute_dtype": "float32"}
IN_BFLOAT16 = "the delta was computed in bfloat16, not in float16"

POWERLESS = {
    "computed in bfloat16": Powerless(in_bfloat16, IN_BFLOAT16, "--compute-dtype bfloat16"),
    "computed in bfloat16, saved in float16": Powerless(
        lambda: cast(in_bfloat16(), torch.float16), IN_BFLOAT16, "--compute-dtype bfloat16"
    ),
    "rounded to bfloat16": Powerless(
        lambda: cast(right(), torch.bfloat16),
        "the delta is stored in bfloat16, and added in float16",
        "fetch the delta as it was published",
    ),
    "float16, added in float32": Powerless(
        right, "the delta was computed in float16, not in float32", "--compute-dtype float16", F32
    ),
    "the same with another base": Powerless(
        right, "the delta is stored in float16, and added in float32", "--compute-dtype float16", F32, lambda: base_model(7)
    ),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", POWERLESS)
def test_sums_in_another_arithmetic_prove_nothing(tmp_path: Path, case: str) -> None:
    """Nothing is said to be proved; a warning says why, and what to do; a recipe that states the arithmetic makes it an error."""
    row = POWERLESS[case]
    inputs, told = saved(tmp_path, row.base(), row.delta()), RecordingReport()
    result = apply_delta(*inputs, tmp_path / "out", report=told, **row.options)
    assert result.proof is not None
    assert result.proof.verdict == "not checked"
    (warning,) = told.warnings
    assert row.says in warning
    assert row.remedy in warning
    found = check_base(*inputs, **row.options)
    assert not found.proved
    with pytest.raises(CheckFailed, match="neither proved nor refuted"):
        found.raise_unless_proved()
    own = recipe_file(tmp_path, row.options.get("compute_dtype", "float16"))
    with refused(Mismatch, where=tmp_path / "delta", problem=f"the base cannot be proved: {found.powerless}"):
        apply_delta(*inputs, tmp_path / "stated", recipe_file=own)
    if row.remedy.startswith("--compute-dtype"):  # the remedy
        mended = check_base(*inputs, compute_dtype=row.remedy.split()[1])
        assert mended.proved is (case != "the same with another base")


def doubled_norms(base: Tensors) -> Tensors:
    return tuned(base) | {n: (t.float() * 2).half() for n, t in base.items() if t.ndim == 1}


RIGHT: dict[str, tuple[Callable[[], Tensors], Callable[[Tensors], Tensors], str]] = {
    # the base, the delta of it, the arithmetic
    "LLaVA's": (base_model, lambda b: grown(delta_of(b, tuned(b)), 3), "float16"),
    "Vicuna's": (base_model, lambda b: delta_of(b, tuned(b)), "float16"),
    "zeros": (base_model, lambda b: {n: torch.zeros_like(t) for n, t in b.items()}, "float16"),
    "zeros but for one matrix": (
        base_model,
        lambda b: {n: torch.zeros_like(t) for n, t in b.items()} | {HEAD: delta_of(b, tuned(b))[HEAD]},
        "float16",
    ),
    "a tiny step": (base_model, lambda b: delta_of(b, tuned(b, 2e-6)), "float16"),
    "a large step": (base_model, lambda b: delta_of(b, tuned(b, 0.004)), "float16"),
    "a step as large as the weights": (base_model, lambda b: delta_of(b, tuned(b, 0.02)), "float16"),
    "a target that was trained from nothing": (base_model, lambda b: delta_of(b, base_model(60)), "float16"),
    "an embedding that was trained anew": (
        base_model, lambda b: delta_of(b, tuned(b) | {n: noise(b[n].shape, 0.05).half() for n in GROWN}), "float16",
    ),
    "a huge embedding": (
        base_model, lambda b: delta_of(b, tuned(b) | {EMBEDDING: noise(b[EMBEDDING].shape, 3).half()}), "float16",
    ),
    "doubled norms": (base_model, lambda b: delta_of(b, doubled_norms(b)), "float16"),
    "Alpaca's in float32": (
        base_model, lambda b: delta_of(b, tuned(b, dtype=torch.float32), torch.float32), "float32",
    ),
    "float32, of a float32 base": (
        lambda: tuned(base_model(), 1e-3, torch.float32),
        lambda b: delta_of(b, tuned(b, dtype=torch.float32), torch.float32),
        "float32",
    ),
    "bfloat16, all of it": (
        lambda: cast(base_model(), torch.bfloat16),
        lambda b: delta_of(b, tuned(b, dtype=torch.bfloat16), torch.bfloat16),
        "bfloat16",
    ),
    "float16, saved in float32": (base_model, lambda b: cast(delta_of(b, tuned(b)), torch.float32), "float16"),
    "a base in float32": (
        lambda: cast(base_model(), torch.float32), lambda b: delta_of(cast(b, torch.float16), tuned(base_model())), "float16",
    ),
    "a base in bfloat16 all its life": (
        lambda: cast(base_model(), torch.bfloat16, torch.float16), lambda b: delta_of(b, tuned(b)), "float16",
    ),
    "base and target in bfloat16 all their lives": (
        lambda: cast(base_model(), torch.bfloat16, torch.float16),
        lambda b: delta_of(b, cast(tuned(b), torch.bfloat16, torch.float16)),
        "float16",
    ),
    "a base with a [PAD] row of its own": (
        lambda: grown(base_model(), 1), lambda b: grown(delta_of(b, tuned(b)), 3), "float16",
    ),
    "a [PAD] row that was trained anew": (
        lambda: grown(base_model(), 1, 1e-3),
        lambda b: grown(delta_of(b, grown(tuned(base_model()), 1)), 3),
        "float16",
    ),
    "a demo's tiny pair": (
        lambda: {n: t for n, t in base_tensors(1, 20, 16).items() if not n.endswith("inv_freq")},
        lambda b: delta_of(b, tuned(b)),
        "float16",
    ),
}  # fmt: skip


TOO_FAR = {
    "a step as large as the weights",
    "a target that was trained from nothing",
    "an embedding that was trained anew",
    "a huge embedding",
}
"""What a recipe that states its arithmetic refuses, since sums so far from the base prove nothing; no published delta is such."""


@pytest.mark.sampled(14)
@pytest.mark.parametrize("stated", [True, False], ids=["recipe", "no-recipe"])
@pytest.mark.parametrize("case", RIGHT)
def test_a_right_pair_is_never_accused(tmp_path: Path, case: str, stated: bool) -> None:
    """A real delta on its own base is merged with the bits of the original script, and nothing is held against it."""
    make_base, make_delta, dtype = RIGHT[case]
    base = make_base()
    delta = make_delta(base)
    inputs, told = saved(tmp_path, base, delta), RecordingReport()
    options: dict[str, Any] = {"recipe_file": recipe_file(tmp_path, dtype)} if stated else {"compute_dtype": dtype}
    far = stated and case in TOO_FAR
    apply_delta(*inputs, tmp_path / "out", report=told, allow_unproved_base=far, **options)
    assert same_bits(load(tmp_path / "out"), reference(base, delta, DTYPES[dtype]))
    doubts = [text for text in told.warnings if any(word in text for word in ACCUSATIONS)]
    assert [text for text in doubts if MERGED not in text and "in part only" not in text] == []
    assert far or not stated or doubts == []
