"""Tests of the base proof: what is counted in the round trip, and the verdict."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.proof_text import proof_line
from deltaweights.manifest.tally import Proof
from deltaweights.merge.base_proof import DELTA_CHANGED, likely_cause, untested, verdict
from tests.support.base_pairs import (
    DAMAGED,
    MOVED,
    OTHER_ARITHMETIC,
    ROUNDED,
    SIBLING,
    STD,
    TUNING,
    UNRELATED,
    moved,
    proof_of_pair,
)
from tests.support.float_bits import DTYPES, FLOAT_NAMES, every_or_random, of_bits
from tests.support.merging import (
    EMBEDDING,
    PROJECTOR,
    block_size,
    files_of,
    manifest_of,
    merge,
    merge_pair,
    missing_facts,
    recipe_file,
    save_pair,
    small_base,
)
from tests.support.pairs import GROWN, base_tensors, delta_tensors, save


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", FLOAT_NAMES)
def test_blocks_and_workers_do_not_change_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Any block size and number of workers gives the same manifest, with the proof as defined; ``check_base`` gives the same."""
    base, delta = small_base(), delta_tensors(small_base())
    if dtype == "F32":  # of a delta in float16, sums in float32 prove nothing
        delta = {name: tensor.float() for name, tensor in delta.items()}
    base["lm_head.weight"] = base["lm_head.weight"][:, :11].clone()
    base["model.norm.weight"] = base["model.norm.weight"].flip(0)
    for seed, other in enumerate(DTYPES):
        base[f"sum.{other}"], delta[f"sum.{other}"] = (
            of_bits(row[::2999], DTYPES[other]) for row in every_or_random(other, seed)
        )
    proofs = proof_of_pair(base, delta, dtype)
    whole = sum(proofs.values(), Proof())
    save_pair(tmp_path, base, delta)
    options: dict[str, Any] = {"compute_dtype": FLOAT_NAMES[dtype], "max_shard_size": 9000, "allow_unproved_base": True}
    first, _ = merge(tmp_path, "first", workers=1, **options)
    assert first.proof is not None
    assert whole.violations
    assert Proof(first.proof.weights, first.proof.region, first.proof.violations, first.proof.evidence) == whole
    assert first.proof.tensors == {name: proof.violations for name, proof in proofs.items() if proof.violations}
    assert first.shards > 1
    assert parse_manifest((tmp_path / "first" / "manifest.json").read_bytes()).findings.proof == first.proof
    for block, workers in ((1 << 20, 3), (1000, 2), (37, 4), (5, 1)):
        with block_size(block):
            merge(tmp_path, "again", workers=workers, **options)
        assert files_of(tmp_path / "again") == files_of(tmp_path / "first"), f"{block} elements, {workers} workers"
        shutil.rmtree(tmp_path / "again")
        monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", block)
        looked = check_base(tmp_path / "base", tmp_path / "delta", compute_dtype=FLOAT_NAMES[dtype], workers=workers)
        assert looked.proof == replace(first.proof, allowed=False)


SHAPE = (1000, 2000)

Given = tuple[torch.Tensor, torch.Tensor]


class Model:
    """A base of one dtype and what it was tuned to, in float64; and the bases and deltas that users may have."""

    def __init__(self, name: str) -> None:
        self.name, self.dtype = name, DTYPES[name]
        self.base = self.unrelated(seed=0)
        self.tuned = self.base.double() + _normal(TUNING, seed=1)

    def delta(self, by_way_of: torch.dtype | None = None) -> torch.Tensor:
        """Return target - base, in the dtype of both; the target may have been saved in another one before."""
        return self.tuned.to(by_way_of or self.dtype).to(self.dtype) - self.base

    def base_and(self, step: float) -> torch.Tensor:
        """Return a base that is ``step`` away."""
        return (self.base.double() + _normal(step, seed=2)).to(self.dtype)

    def unrelated(self, seed: int = 3) -> torch.Tensor:
        """Return weights of the same kind."""
        return _normal(STD, seed).to(self.dtype)

    def damaged(self) -> torch.Tensor:
        """Return the base with 500 weights doubled."""
        base = self.base.clone()
        base.view(-1)[:: base.numel() // 500] *= 2
        return base


def _normal(std: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64) * std


@dataclass(frozen=True)
class Case:
    """What the user gives, the range of the rate of violations, and the verdict."""

    given: Callable[[Model], Given]
    least: float
    most: float
    verdict: str
    likely: str = ""


CASES = {
    "right": Case(lambda m: (m.base, m.delta()), 0, 0, "proved"),
    "right, target saved from bfloat16": Case(lambda m: (m.base, m.delta(torch.bfloat16)), 0, 0, "proved"),
    "right, both stored in float32": Case(lambda m: (m.base.float(), m.delta().float()), 0, 0, "proved"),
    "damaged": Case(lambda m: (m.damaged(), m.delta()), 1e-5, 0.001, "violated", DAMAGED),
    "rounded through bfloat16": Case(
        lambda m: (m.base.bfloat16().to(m.dtype), m.delta()), 0.01, 0.025, "violated", ROUNDED
    ),
    "sibling, 0.1 % away": Case(lambda m: (m.base_and(STD * 0.001), m.delta()), 0.013, 0.023, "violated", ROUNDED),
    "sibling, 2 % away": Case(lambda m: (m.base_and(STD * 0.02), m.delta()), 0.03, 0.042, "violated", SIBLING),
    "unrelated": Case(lambda m: (m.unrelated(), m.delta()), 0.27, 0.32, "violated", UNRELATED),
    "right, delta from wider arithmetic": Case(
        lambda m: (m.base, (m.tuned - m.base.double()).to(m.dtype)), 0.9, 0.99, "another arithmetic", OTHER_ARITHMETIC
    ),
}
"""The table of docs/design.md, "The round trip"."""


@pytest.fixture(scope="module", params=DTYPES)
def model(request: pytest.FixtureRequest) -> Model:
    """Make two million weights of each dtype, tuned by 2 %."""
    return Model(request.param)


OF_EACH = [
    (dtype, case) for dtype in DTYPES for case in CASES if (dtype, case) != ("bfloat16", "rounded through bfloat16")
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("model", "case"), OF_EACH, indirect=["model"])
def test_the_table_of_the_round_trip(tmp_path: Path, model: Model, case: str) -> None:
    """The right base has no violation; rates of others are as measured, and the warning names the likely cause."""
    wanted = CASES[case]
    base, delta = wanted.given(model)
    result, told = merge_pair(tmp_path, {"w": base}, {"w": delta}, compute_dtype=model.name, allow_unproved_base=True)
    proof = result.proof
    assert proof is not None
    assert proof.weights == base.numel()
    assert 0.975 < proof.region / proof.weights < 0.987
    assert proof.evidence > proof.region * 0.85
    rate = proof.violations / proof.region
    assert wanted.least <= rate <= wanted.most
    assert proof.verdict == wanted.verdict
    assert proof.tensors == ({"w": proof.violations} if proof.violations else {})
    line = proof_line(proof) or ""
    facts = [f"{proof.weights:,} weights", f"{proof.region / proof.weights:.1%}", f"{proof.violations:,} violations"]
    assert missing_facts(line, *facts) == []
    assert line.startswith("proved" if wanted.verdict == "proved" else "NOT proved")
    if wanted.verdict == "proved":
        assert told.warnings == []
    else:
        (warning,) = told.warnings
        facts = [f"{proof.violations:,} of {proof.region:,} weights", f"{rate:.2%}", "in w", wanted.likely]
        assert missing_facts(warning, *facts) == []


@pytest.mark.parametrize(
    ("violations", "likely"),
    [
        (1, DAMAGED), (1_000, DAMAGED), (1_001, ROUNDED), (25_000, ROUNDED), (25_001, SIBLING), (120_000, SIBLING),
        (120_001, UNRELATED), (410_000, UNRELATED),
        (410_001, DELTA_CHANGED), (800_000, DELTA_CHANGED), (800_001, OTHER_ARITHMETIC), (1_000_000, OTHER_ARITHMETIC),
    ],
)  # fmt: skip
def test_the_likely_cause_depends_on_the_rate_of_violations(violations: int, likely: str) -> None:
    """The rates, per million, at which one likely cause gives way to the next; only the last has a verdict of its own."""
    proof = Proof(weights=2_000_000, region=1_000_000, violations=violations, evidence=900_000)
    assert likely_cause(proof) == likely
    assert verdict({"w": proof}).value == ("another arithmetic" if likely == OTHER_ARITHMETIC else "violated")


UNTESTED: dict[str, tuple[dict[str, Proof], tuple[str, ...]]] = {
    "three quarters lie in the region": ({"w": Proof(1024, 768, 0, 700)}, ()),
    "less than three quarters": ({"w": Proof(1024, 767, 0, 700)}, ("w",)),
    "a tensor that is too small to count": ({"w": Proof(1023, 0, 0, 0)}, ()),
    "no weights": ({"w": Proof()}, ()),
    "a tensor that did not move": ({"w": Proof(4096, 4096, 0, 0)}, ()),
    "several, in natural order": (
        {f"layers.{at}": Proof(2048, 100, 0, 100) for at in (10, 2, 1)}, ("layers.1", "layers.2", "layers.10"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTESTED)
def test_a_base_is_proved_if_every_sizeable_tensor_is(case: str) -> None:
    """If less than three quarters of a tensor of 1,024 weights or more lie in the region, the proof is partial."""
    proofs, names = UNTESTED[case]
    assert untested({"moved": MOVED} | proofs) == names
    assert verdict({"moved": MOVED} | proofs).value == ("partial" if names else "proved")


def test_violations_and_too_little_evidence_come_before_holes() -> None:
    """Violations, and too little evidence, decide the verdict before untested tensors do."""
    hole, lost = Proof(4096, 0, 0, 0), Proof(4096, 4096, 1, 4096)
    assert verdict({"moved": MOVED, "hole": hole, "lost": lost}).value == "violated"
    assert verdict({"hole": hole, "few": Proof(99_999, 99_999, 0, 99_999)}).value == "no evidence"
    assert verdict({}).value == "no evidence"


@pytest.mark.sampled(1)
def test_the_stored_dtype_does_not_change_the_proof(tmp_path: Path, model: Model) -> None:
    """The proof is made in the compute dtype, whatever the result is stored in."""
    save_pair(tmp_path, {"w": model.unrelated()}, {"w": model.delta()})
    proofs = [
        merge(tmp_path, stored, compute_dtype=model.name, dtype=stored, allow_unproved_base=True)[0].proof
        for stored in DTYPES
    ]
    assert proofs[0] is not None
    assert proofs[0].violations
    assert proofs[0] == proofs[1] == proofs[2]


@pytest.mark.parametrize(("count", "verdict"), [(100_000, "proved"), (99_999, "no evidence"), (0, "no evidence")])
def test_weights_that_do_not_move_are_no_evidence(tmp_path: Path, count: int, verdict: str) -> None:
    """100,000 moved weights prove a base; with one less, or a delta of zeros, a note says that it is not proved."""
    result, told = merge_pair(tmp_path, *moved(count))
    assert result.proof == ProofRecord(
        weights=120_000, region=120_000, violations=0, evidence=count, verdict=verdict, tensors={}
    )
    assert any(f"{count:,} weights" in note for note in told.notes) == (verdict == "no evidence")
    assert told.warnings == []
    line = proof_line(result.proof) or ""
    assert line.startswith(verdict)
    assert (f"{count:,} weights" in line) == (verdict == "no evidence")


def test_one_violation_outweighs_all_evidence(tmp_path: Path) -> None:
    """One violation among a hundred thousand weights refutes the base, and the warning names its tensor."""
    base, delta = moved(110_000)
    delta["w"][299, 399] = 1e-5  # less than half a place of its base: the sum stays, the delta is gone
    result, told = merge_pair(
        tmp_path, base | {"v": base["w"]}, delta | {"v": delta["w"] * 0}, allow_unproved_base=True
    )
    assert result.proof is not None
    assert (result.proof.violations, result.proof.tensors, result.proof.verdict) == (1, {"w": 1}, "violated")
    (warning,) = told.warnings
    assert missing_facts(warning, "1 of 240,000 weights", "less than 0.01%", "in w", DAMAGED) == []


def test_the_three_worst_tensors_are_named(tmp_path: Path) -> None:
    """Of five tensors with violations the three with the most are named, most first, ties by name."""
    base = {name: torch.ones(4, 50).half() for name in "edcba"}
    delta = {name: torch.zeros(4, 50).half() for name in base}
    for name, lost in zip("edcba", (3, 9, 5, 5, 4), strict=True):
        delta[name][0, :lost] = 1e-5
    result, told = merge_pair(tmp_path, base, delta, allow_unproved_base=True)
    assert result.proof is not None
    assert list(result.proof.tensors.items()) == [("a", 4), ("b", 5), ("c", 5), ("d", 9), ("e", 3)]
    assert "in d, b, c;" in told.warnings[-1]


@pytest.mark.parametrize("rule", ["copy", "zero", "mean"])
def test_only_elements_that_are_added_count(tmp_path: Path, rule: str) -> None:
    """Of a grown embedding the base's block is counted; new rows and copied tensors are not, whatever they contain."""
    dtype = "float32" if rule == "mean" else "float16"
    base, delta = base_tensors(), delta_tensors(base_tensors(), dtype=DTYPES[dtype])
    own = recipe_file(tmp_path, dtype, more=f'[rules]\nnew_rows = "{rule}"\n')
    plain, _ = merge_pair(tmp_path / "plain", base, delta, recipe_file=own, allow_unproved_base=True)
    assert plain.proof is not None
    assert plain.proof.weights == sum(base[name].numel() for name in delta if name in base and "inv_freq" not in name)
    for name, tensor in delta.items():
        if name in GROWN:
            tensor[base[name].shape[0] :] = torch.tensor([torch.nan, 3e-8, 65504, -0.0])[:, None].to(tensor.dtype)
        elif name not in base:
            tensor[:] = torch.inf
    with block_size(100):
        spoiled, _ = merge_pair(tmp_path / "spoiled", base, delta, recipe_file=own, allow_unproved_base=True)
    assert spoiled.nonfinite
    assert spoiled.proof == plain.proof


def test_a_narrower_base_is_counted_exactly(tmp_path: Path) -> None:
    """If the base has fewer columns, too, exactly its elements are counted, in blocks that begin anywhere."""
    target = torch.randn(9, 12, generator=torch.Generator().manual_seed(2)).half()
    base, delta = {EMBEDDING: target[:7, :5] * 0.75}, {EMBEDDING: target.clone()}
    delta[EMBEDDING][:7, :5] -= base[EMBEDDING]
    for block in (1 << 20, 17, 5, 1):
        with block_size(block):
            result, _ = merge_pair(tmp_path / str(block), base, delta)
        assert result.proof is not None
        assert (result.proof.weights, result.proof.region, result.proof.violations) == (35, 35, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_there_is_no_proof_if_nothing_is_added(tmp_path: Path, dtype: str) -> None:
    """A delta of copied tensors only, on a base of buffers only, gives no proof, cast or not."""
    base = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    result, _ = merge_pair(tmp_path, base, {PROJECTOR: torch.randn(3, 4).half()}, dtype=dtype)
    assert result.proof is None
    assert "proof" not in manifest_of(tmp_path / "merged")


def test_a_delta_that_is_made_has_no_proof(tmp_path: Path) -> None:
    """``make`` counts what does not come back, but records no base proof."""
    base = small_base()
    save(base, tmp_path / "base")
    save({name: tensor * 2 for name, tensor in base.items()}, tmp_path / "target")
    made = make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "made")
    assert made.proof is None
    assert "proof" not in manifest_of(tmp_path / "made")
