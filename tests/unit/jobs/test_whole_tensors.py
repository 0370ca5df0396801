"""Tests of deltas that hold some tensors whole, as those of Ziya, HuatuoGPT and Panda do, and of deltas that only look so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.errors import Mismatch
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.findings import are_whole, doubt_of, judge_base
from deltaweights.jobs.inputs import Inputs, open_pair
from deltaweights.jobs.request import InputRequest
from deltaweights.jobs.whole_tensors import whole_tensors
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.tally import Proof
from deltaweights.manifest.verify import verify
from deltaweights.merge.base_proof import stored_whole
from deltaweights.merge.operation import Operation
from deltaweights.merge.record import proof_of
from deltaweights.staging.location import locate_target
from tests.conftest import Run
from tests.support.base_pairs import STD, TUNING, UNLIKE
from tests.support.errors import refused
from tests.support.float_bits import DTYPES
from tests.support.merging import manifest_of, merge, merge_pair, recipe_file, save_pair
from tests.support.pairs import Tensors
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.fidelity

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
NORMS = tuple(f"model.layers.{layer}.input_layernorm.weight" for layer in range(3))
MATRICES = tuple(f"model.layers.{layer}.self_attn.{what}_proj.weight" for layer in range(3) for what in "qkvo")
ROWS, HIDDEN = 500, 1024


def normal(shape: tuple[int, ...], std: float, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def base_model(hidden: int = HIDDEN, rows: int = ROWS) -> Tensors:
    """Return a model in float16 with weights of the usual sizes: norms around 0.5, matrices around 0."""
    shapes = {EMBEDDING: (rows, hidden), **dict.fromkeys(MATRICES, (hidden // 8, hidden)), HEAD: (rows, hidden)}
    base = {name: normal(shape, STD, seed).half() for seed, (name, shape) in enumerate(shapes.items())}
    return base | {
        name: (0.5 + normal((hidden,), 0.05, seed)).half() for seed, name in enumerate((*NORMS, NORM), start=100)
    }


def tuned(base: Tensors, step: float = TUNING) -> Tensors:
    """Return the model after fine-tuning: each tensor moved by a step that is small for its size."""
    return {
        name: (tensor.float() + normal(tensor.shape, step * float(tensor.float().std()) / STD, seed)).to(tensor.dtype)
        for seed, (name, tensor) in enumerate(base.items(), start=1000)
    }


def difference(base: Tensors, target: Tensors) -> Tensors:
    return {name: target[name] - tensor for name, tensor in base.items()}


WHOLE = {
    "embedding and head": (EMBEDDING, HEAD),
    "embedding": (EMBEDDING,),
    "head": (HEAD,),
    "norms": NORMS,
    "matrices of one kind": tuple(name for name in MATRICES if "q_proj" in name),
}
"""What is stored whole: as Ziya's and Panda's deltas have it, and others of the kind."""


@pytest.mark.sampled(5)
@pytest.mark.parametrize("what", WHOLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row58_whole_tensors_are_named_before_the_stream(tmp_path: Path, what: str, dtype: str) -> None:
    """A delta with tensors stored whole is refused, with their names, with and without a recipe; the base is not accused."""
    base = {name: tensor.to(DTYPES[dtype]) for name, tensor in base_model().items()}
    target = tuned(base)
    names = tuple(name for name in base if name in WHOLE[what])
    save_pair(tmp_path, base, difference(base, target) | {name: target[name] for name in names})
    for options in ({"compute_dtype": dtype}, {"recipe_file": recipe_file(tmp_path, dtype)}):
        with pytest.raises(Mismatch) as caught:
            merge(tmp_path, **options)
        assert caught.value.problem == are_whole(names)
        assert caught.value.where == tmp_path / "delta"
        assert "--allow-unproved-base" in (caught.value.remedy or "")
        assert not (tmp_path / "merged").exists()
        assert not locate_target(tmp_path / "merged").root.exists()
        with refused(Mismatch, problem=are_whole(names), where=tmp_path / "delta"):
            merge(tmp_path, prove=False, **options)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("embedding", "what"),
    [
        (lambda base: base, "the base's own, which violates nothing"),
        (lambda base: (base.float() * 1.1).half(), "scaled"),
        (lambda base: normal(base.shape, STD, 9).half(), "trained from nothing"),
        (lambda base: normal(base.shape, 3 * STD, 9).half(), "trained from nothing, and larger"),
        (lambda base: torch.cat([base, normal((37, base.shape[1]), STD, 9).half()]), "with more tokens"),
    ],
    ids=["same", "scaled", "unrelated", "larger", "grown"],
)
def test_whatever_the_whole_tensor_is(
    tmp_path: Path, embedding: Callable[[torch.Tensor], torch.Tensor], what: str
) -> None:
    """An embedding is found to be whole however far from the base's it was trained, and whatever its rows."""
    base = base_model()
    save_pair(tmp_path, base, difference(base, tuned(base)) | {EMBEDDING: embedding(base[EMBEDDING])})
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path)
    assert caught.value.problem == are_whole((EMBEDDING,)), what


def test_exact_in_float32(tmp_path: Path) -> None:
    """In float32 sums of float16 weights are exact, so that nothing is violated; it is found all the same (Panda's arithmetic)."""
    base = base_model()
    target = tuned(base)
    delta = {name: target[name].float() - tensor.float() for name, tensor in base.items()}
    save_pair(tmp_path, base, delta | {name: target[name] for name in (EMBEDDING, HEAD)})
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, compute_dtype="float32")
    assert caught.value.problem == are_whole((EMBEDDING, HEAD))


def test_what_the_user_insists_on_is_published_and_recorded(tmp_path: Path, run: Run) -> None:
    """With --allow-unproved-base the base is added to whole tensors, too; two warnings and the manifest say so."""
    base = base_model()
    target = tuned(base)
    delta = difference(base, target) | {name: target[name] for name in (EMBEDDING, HEAD)}
    result, told = merge_pair(tmp_path, base, delta, allow_unproved_base=True)
    assert result.proof is not None
    assert (result.proof.verdict, result.proof.whole, result.proof.allowed) == ("violated", (HEAD, EMBEDDING), True)
    first, last = told.warnings
    assert are_whole((EMBEDDING, HEAD)) in first
    assert last == doubt_of(result.proof)
    assert "all other tensors prove the base" in last
    assert "the base is not the one" not in last
    stated = manifest_of(tmp_path / "merged")["proof"]
    assert list(stated)[-3:] == ["untested", "whole", "allowed"]
    assert stated["whole"] == [HEAD, EMBEDDING]
    assert parse_manifest((tmp_path / "merged" / "manifest.json").read_bytes()).findings.proof == result.proof
    assert verify(tmp_path / "merged", expect=result.content_digest).ok
    again, told = merge(tmp_path, allow_unproved_base=True)
    assert (again.status, told.warnings) == ("already complete", [first, last])
    done = run("apply", "--base", "base", "--delta", "delta", "--target", "other", "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert are_whole((EMBEDDING, HEAD)) in done.stderr
    checked = run("check-base", "--base", "base", "--delta", "delta", "-q", cwd=tmp_path)
    assert (checked.returncode, checked.stderr.count("\n")) == (4, 1)
    assert are_whole((EMBEDDING, HEAD)) in checked.stderr
    assert "--allow-unproved-base" not in checked.stderr


def test_the_counts_find_what_the_samples_miss(tmp_path: Path) -> None:
    """One whole matrix of a kind that is not is found by the sums, before anything is published, and by ``check_base``."""
    base = base_model()
    target, lost = tuned(base), MATRICES[6]
    save_pair(tmp_path, base, difference(base, target) | {lost: target[lost]})
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path)
    assert caught.value.problem.startswith(are_whole((lost,)))
    assert "deltaweights clean" in (caught.value.remedy or "")
    assert not (tmp_path / "merged").exists()
    looked = check_base(tmp_path / "base", tmp_path / "delta")
    assert looked.proof is not None
    assert looked.proof.whole == (lost,)
    with refused(Mismatch, problem=doubt_of(looked.proof), where=tmp_path / "delta"):
        looked.raise_unless_proved()
    assert merge(tmp_path, allow_unproved_base=True)[0].proof is not None


PLACES = 250_000
RIGHT = Proof(PLACES, PLACES * 98 // 100, 0, 200_000)

COUNTS: dict[str, tuple[dict[str, Proof], tuple[str, ...]]] = {
    "one alone": ({"w": Proof(4096, 2048, 1024, 2000), "rest": RIGHT}, ("w",)),
    "several, in natural order": (
        {f"w.{at}": Proof(4096, 2048, 1024, 2000) for at in (10, 2)} | {"rest": RIGHT}, ("w.2", "w.10"),
    ),
    "too few violations": ({"w": Proof(4096, 2000, 799, 2000), "rest": RIGHT}, ()),
    "just enough": ({"w": Proof(4096, 2000, 800, 2000), "rest": RIGHT}, ("w",)),
    "a tensor that is a difference": ({"w": Proof(4096, 3072, 3000, 3000), "rest": RIGHT}, ()),
    "a base that is nearly zero": ({"w": Proof(4096, 409, 400, 400), "rest": RIGHT}, ()),
    "a small tensor": ({"w": Proof(1023, 500, 500, 500), "rest": RIGHT}, ()),
    "no rest": ({"w": Proof(400_000, 200_000, 100_000, 200_000)}, ()),
    "a rest that is violated, too": ({"w": Proof(4096, 2048, 1024, 2000), "rest": Proof(PLACES, 240_000, 1, 200_000)}, ()),
    "a rest that has holes": ({"w": Proof(4096, 2048, 1024, 2000), "rest": RIGHT, "hole": UNLIKE}, ()),
    "a rest that did not move": ({"w": Proof(4096, 2048, 1024, 2000), "rest": Proof(PLACES, PLACES, 0, 99_999)}, ()),
    "nothing": ({}, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_what_the_counts_say(case: str) -> None:
    """A tensor is whole if half of it lies in the region, half of that is violated, and all others prove the base."""
    proofs, names = COUNTS[case]
    assert stored_whole(proofs) == names
    assert stored_whole(dict(reversed(proofs.items()))) == names


def test_what_is_refused_without_a_recipe_is_recorded_as_allowed() -> None:
    """``allowed`` is recorded for whole tensors and for another base without a recipe, too."""
    whole = proof_of({"w": Proof(4096, 2048, 1024, 2000), "rest": RIGHT}, allowed=True)
    wrong = proof_of({"rest": Proof(PLACES, 240_000, 7000, 200_000)}, allowed=True)
    assert whole is not None
    assert wrong is not None
    assert (whole.whole, whole.allowed, wrong.whole, wrong.allowed) == (("w",), True, (), True)
    assert ProofRecord.from_document(whole.document()) == whole
    with refused(Mismatch, problem=doubt_of(whole)):
        judge_base(whole, RecordingReport(), stated=False, allowed=False)
    assert "whole" not in ProofRecord(**{**vars(wrong), "untested": ()}).document()


def strongly_changed(base: Tensors) -> Tensors:
    """Return the right delta of a model whose embedding and head were trained anew."""
    target = tuned(base) | {name: normal(base[name].shape, STD, 7).half() for name in (EMBEDDING, HEAD)}
    return difference(base, target)


def doubled(base: Tensors) -> Tensors:
    """Return the right delta of a model whose embedding moved as far as it is large."""
    target = tuned(base) | {EMBEDDING: (base[EMBEDDING].float() + normal(base[EMBEDDING].shape, STD, 7)).half()}
    return difference(base, target)


def zeros_but(base: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in base.items()}


def with_zero_embedding(base: Tensors) -> Tensors:
    return difference(base, tuned(base)) | {EMBEDDING: torch.zeros_like(base[EMBEDDING])}


def some_rows(base: Tensors) -> Tensors:
    """Return the right delta of a model of which every third row of the embedding was trained anew."""
    target = tuned(base)
    target[EMBEDDING][::3] = normal(target[EMBEDDING][::3].shape, 3 * STD, 7).half()
    return difference(base, target)


def not_finite(base: Tensors) -> Tensors:
    delta = difference(base, tuned(base))
    delta[EMBEDDING][::2] = torch.inf
    delta[HEAD][1::2] = torch.nan
    return delta


NOT_WHOLE = {
    "tuned": lambda base: difference(base, tuned(base)),
    "tuned by 20 %": lambda base: difference(base, tuned(base, STD / 5)),
    "trained anew": strongly_changed,
    "moved far": doubled,
    "zeros": zeros_but,
    "a zero embedding": with_zero_embedding,
    "some rows trained anew": some_rows,
    "not finite": not_finite,
}  # fmt: skip
"""Real deltas, by their differences, and others that hold nothing whole."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_difference_is_never_taken_for_a_whole_tensor(tmp_path: Path, case: str) -> None:
    """A strongly changed embedding, zeros, and numbers that are not finite do not make a tensor whole: the merge is published."""
    base = base_model()
    result, told = merge_pair(tmp_path, base, NOT_WHOLE[case](base))
    assert result.proof is not None
    assert (result.status, result.proof.whole) == ("merged", ())
    assert [warning for warning in told.warnings if "whole" in warning and "holes" not in warning] == []


def test_another_base_is_still_accused(tmp_path: Path) -> None:
    """With another base, or another embedding in it, a real delta is not said to hold anything whole."""
    base = base_model()
    delta = difference(base, tuned(base))
    for name, wrong in (
        ("all", {name: normal(t.shape, STD, 5).half() if t.ndim == 2 else t for name, t in base.items()}),
        ("embedding", base | {EMBEDDING: normal(base[EMBEDDING].shape, STD, 5).half()}),
        ("nearly zero", base | {EMBEDDING: normal(base[EMBEDDING].shape, 1e-6, 5).half()}),
    ):
        result, _ = merge_pair(tmp_path / name, wrong, delta, allow_unproved_base=True)
        assert result.proof is not None
        assert result.proof.whole == ()
        assert result.proof.verdict != "proved"


def samples_find(folder: Path, base: Tensors, delta: Tensors) -> tuple[str, ...]:
    """Return what the samples of a pair say."""
    save_pair(folder, base, delta)
    request: Any = {"hub": None, "recipe": None, "compute_dtype": None, "allow_other_base": True}
    with open_pair(
        InputRequest(operation=Operation.APPLY, base=folder / "base", primary=folder / "delta", **request),
        None,
        RecordingReport(),
    ) as inputs:
        return whole_of(inputs)


def whole_of(inputs: Inputs) -> tuple[str, ...]:
    assert inputs.base is not None
    return whole_tensors(inputs.base.tensors, inputs.primary.tensors, inputs.matching, inputs.compute)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.tuples(*[st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0, 3.0])] * 3),
    keep=st.sampled_from([0.0, 0.5, 1.0]),
    hidden=st.sampled_from([16, 64, 256]),
    rows=st.sampled_from([8, 48, 300]),
    seed=st.integers(0, 1000),
)
def test_no_real_difference_is_whole(
    tmp_path: Path, steps: tuple[float, float, float], keep: float, hidden: int, rows: int, seed: int
) -> None:
    """Whatever a model was tuned to, its difference from the base, tiny or not, holds nothing whole."""
    base = base_model(hidden, rows)
    target = {
        name: (
            keep * tensor.float() + normal(tensor.shape, steps[at % 3] * STD, 10_000 + seed + at)
        ).half()  # not the base's seeds
        for at, (name, tensor) in enumerate(base.items())
    }
    assert samples_find(tmp_path, base, difference(base, target)) == ()


def test_a_narrower_base_and_tiny_tensors_are_passed_over(tmp_path: Path) -> None:
    """Tensors of fewer than 256 elements, and those whose base has fewer columns, are not sampled."""
    base = base_model(64, 3)
    target = tuned(base)
    delta = difference(base, target) | {NORM: target[NORM], EMBEDDING: target[EMBEDDING]}
    assert samples_find(tmp_path / "tiny", base, delta) == ()
    base = base_model()
    target = tuned(base)
    narrow = base | {EMBEDDING: base[EMBEDDING][:, :-1].clone()}
    delta = difference(base, target) | {EMBEDDING: target[EMBEDDING], HEAD: target[HEAD]}
    assert samples_find(tmp_path / "narrow", narrow, delta) == (HEAD,)


def test_the_words_for_several() -> None:
    """One and two tensors are named; of more, the first."""
    assert are_whole(("a",)).startswith("a is stored whole")
    assert are_whole(("a", "b")).startswith("a and b are stored whole")
    assert are_whole(("a", "b", "c")).startswith("a and 2 more tensors are stored whole")
