"""A right base is not refused, whatever was trained and how; of a wrong pair, what is wrong is said by the evidence."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaweights.errors import DeltaweightsError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from tests.support.merging import recipe_file
from tests.support.pairs import GROWN, Tensors, base_tensors, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
Pair = tuple[Tensors, Tensors]


def model(layers: int = 2, dtype: torch.dtype = HALF) -> Tensors:
    """Return a LLaMA of a million weights a layer, whose matrices are larger than what is sampled of them."""
    tensors = base_tensors(layers, 512, 256, dtype=dtype)
    return {name: each for name, each in tensors.items() if not name.endswith("inv_freq")}


def tuned(base: Tensors, step: float = 4e-4, dtype: torch.dtype = HALF) -> Tensors:
    return {name: (each.float() + torch.randn(each.shape) * step).to(dtype) for name, each in base.items()}


def difference(target: Tensors, base: Tensors, compute: torch.dtype = HALF) -> Tensors:
    return {name: each.to(compute) - base[name].to(compute) for name, each in target.items()}


def changed(of: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor], layers: int = 2) -> Callable[[], Pair]:
    """Return what makes a pair whose target is ``of(name, base, tuned)``."""

    def pair() -> Pair:
        base = model(layers)
        target = {name: of(name, base[name], each.clone()) for name, each in tuned(base).items()}
        return base, difference(target, base)

    return pair


def of_dtypes(base_dtype: torch.dtype, target: torch.dtype) -> Callable[[], Pair]:
    def pair() -> Pair:
        base = model(dtype=base_dtype)
        return base, difference(tuned(base, dtype=target), base)

    return pair


def low_rank(name: str, base: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Merge adapters into two kinds of matrices, and leave the others as they are."""
    if not name.endswith(("q_proj.weight", "v_proj.weight")):
        return base.clone()
    return (base.float() + torch.randn(base.shape[0], 8) @ torch.randn(8, base.shape[1]) * 1e-3).half()


def odd_numbers(_: str, base: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    for at, number in enumerate((math.nan, math.inf, -math.inf, -0.0, 6e-8, 65504.0)):
        target.view(-1)[at] = number
    return target


def zero_rows(_: str, base: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    target[::2] = base[::2]
    return target


def grown() -> Pair:
    base = model()
    delta = difference(tuned(base), base)
    more = {name: torch.cat([delta[name], (torch.randn(7, 256) * 0.02).half()]) for name in GROWN}
    return base, delta | more


def tied() -> Pair:
    base = model()
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    target = tuned(base)
    target["lm_head.weight"] = target["model.embed_tokens.weight"].clone()
    return base, difference(target, base)


def wide_norms() -> Pair:
    """Keep the norms in float32, as some trainings do, and subtract each tensor in its own dtype."""
    base = {name: each.float() if each.dim() == 1 else each for name, each in model().items()}
    target = {name: each.float() if each.dim() == 1 else each for name, each in tuned(base).items()}
    exact = {name: base[name] + torch.randn(256) * 1e-3 for name in base if base[name].dim() == 1}
    return base, {name: each - base[name] for name, each in (target | exact).items()}


def one_norm(name: str, base: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target if name == "model.norm.weight" else base.clone()


RIGHT: dict[str, Callable[[], Pair]] = {
    "all": changed(lambda _, __, target: target),
    "sparse": changed(lambda _, base, target: torch.where(torch.rand(base.shape) < 0.01, target, base)),
    "zero-rows": changed(zero_rows),
    "frozen-layers": changed(lambda name, base, target: target if "layers.3." in name else base.clone(), 4),
    "the-head-alone": changed(lambda name, base, target: target if "lm_head" in name else base.clone()),
    "one-norm-alone": changed(one_norm),
    "nothing-trained": changed(lambda _, base, __: base.clone()),
    "adapters": changed(low_rank),
    "odd-numbers": changed(odd_numbers),
    "quantized-target": changed(lambda _, __, target: (torch.round(target.float() * 512) / 512).half()),
    "bfloat16-target": of_dtypes(HALF, BRAIN),
    "bfloat16-base": of_dtypes(BRAIN, HALF),
    "float32-both": of_dtypes(FULL, FULL),
    "grown": grown,
    "tied": tied,
}
"""Pairs that were made as the known scripts do: ``float16(target) - float16(base)``."""


@pytest.mark.parametrize("stated", [False, True], ids=["plain", "stated"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pair_is_merged(tmp_path: Path, name: str, stated: bool) -> None:
    """Without a word of doubt, with a recipe that states the arithmetic and without."""
    torch.manual_seed(3)
    base, delta = RIGHT[name]()
    save(base, tmp_path / "base", "safetensors", 1, config=False)
    save(delta, tmp_path / "delta", "safetensors", 1, config=False)
    report = RecordingReport()
    own = recipe_file(tmp_path) if stated else None
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", recipe_file=own, report=report)
    assert result.proof is not None
    assert result.proof.verdict in {"proved", "no evidence"}
    assert not [text for text in report.warnings if "not finite" not in text]


def save_pair(folder: Path, base: Tensors, delta: Tensors) -> None:
    save(base, folder / "base", "torch", 1, config=False)
    save(delta, folder / "delta", "torch", 1, config=False)


def test_tensors_of_a_wider_dtype_do_not_refute_a_base(tmp_path: Path) -> None:
    """They were not computed in the dtype of the others: a warning, an error where it is stated, and told how, nothing."""
    torch.manual_seed(3)
    save_pair(tmp_path, *wide_norms())
    report = RecordingReport()
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=report)
    assert result.proof is not None
    assert not result.proof.refuted
    (said,) = report.warnings
    assert said.startswith("the base cannot be proved: ")
    assert "these tensors were computed in the wider dtype that they are stored in (--compute-dtype float32)" in said
    assert not check_base(tmp_path / "base", tmp_path / "delta").proof.refuted  # type: ignore[union-attr]
    with pytest.raises(DeltaweightsError) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "stated", recipe_file=recipe_file(tmp_path))
    assert str(caught.value.code) == "E-BASE-NOT-PROVED"
    assert str(caught.value.remedy).startswith("give --compute-dtype float32")
    told = RecordingReport()
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "told", compute_dtype="float32", report=told)
    assert told.warnings == []


def test_a_wrong_base_is_refuted_beside_tensors_of_a_wider_dtype(tmp_path: Path) -> None:
    """Only where all violations are in them do they excuse it."""
    torch.manual_seed(3)
    base, delta = wide_norms()
    other = {name: each if each.dim() == 1 else (torch.randn(each.shape) * 0.02).half() for name, each in base.items()}
    save_pair(tmp_path, other, delta)
    with pytest.raises(DeltaweightsError) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert str(caught.value.code) == "E-WRONG-BASE"
    assert "of a sample: nothing was written" in caught.value.problem


@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("count", [1, 4])
def test_damage_is_told_from_another_base(tmp_path: Path, role: str, count: int) -> None:
    """The ends of some tensors, which are sampled, are damaged: their checksums say so, and the base is not accused."""
    torch.manual_seed(3)
    save_pair(tmp_path, *RIGHT["all"]())
    damage(tmp_path / role / "pytorch_model.bin", count)
    with pytest.raises(DeltaweightsError) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert str(caught.value.code) == "E-DAMAGED"
    assert role in str(caught.value.where)


def damage(path: Path, count: int) -> None:
    """Flip bits of every other byte at the end of the first large records."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        large = [info for info in archive.infolist() if info.file_size > 100_000][:count]
    for info in large:
        lengths = data[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        end = start + info.file_size
        for at in range(end - 20_000, end, 2):
            data[at] ^= 21
    path.write_bytes(data)


def in_metas_order(delta: Tensors) -> Tensors:
    """Order the rows of q and k as Meta does: the halves of each head are interleaved."""
    return {
        name: each.view(4, 2, -1, 256).transpose(1, 2).reshape(each.shape).contiguous()
        if name.endswith(("q_proj.weight", "k_proj.weight"))
        else each
        for name, each in delta.items()
    }


def with_one_of_another(delta: Tensors) -> Tensors:
    name = "model.layers.1.mlp.up_proj.weight"
    return delta | {name: torch.randn(delta[name].shape).half() * 4e-4}


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "rows-of-q-and-k": (in_metas_order, "the rows of q_proj and k_proj are in another order in one of the two"),
    "one-tensor": (with_one_of_another, "only there base or delta is damaged, was edited, or is of another model"),
    "halved": (
        lambda delta: {name: each * 0.5 for name, each in delta.items()},
        "the delta was changed since it was made, as by scaling or averaging; or the base is another model",
    ),
    "averaged": (
        lambda delta: {name: (each + each.flip(0)) / 2 for name, each in delta.items()},
        "the delta was changed since it was made, as by scaling or averaging; or the base is another model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", ["apply", "check-base"])
def test_the_base_is_accused_last(tmp_path: Path, name: str, command: str) -> None:
    """Where the violations lie, or how many there are, says more than that there are some."""
    change, says = WRONG[name]
    torch.manual_seed(3)
    base, delta = RIGHT["all"]()
    save_pair(tmp_path, base, change(delta))
    actions: dict[str, Callable[[], object]] = {
        "apply": lambda: apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out"),
        "check-base": lambda: check_base(tmp_path / "base", tmp_path / "delta").raise_unless_proved(),
    }
    with pytest.raises(DeltaweightsError) as caught:
        actions[command]()
    assert str(caught.value.code) == "E-WRONG-BASE"
    assert caught.value.problem.startswith("base and delta do not belong together: ")
    assert f"likely {says}" in caught.value.problem
