"""``check-base``: whether a delta was made from this base."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from deltaweights.errors import InputOutputError, Mismatch
from deltaweights.jobs.check_base import check_base
from deltaweights.merge.base_proof import LIKELY_CAUSES, OTHER_CAUSE
from deltaweights.report import Report
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.identity import archive_of, counted_reads
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save
from tests.support.whole_runs import DEFLATED, Done, FileWatcher, line_of, names_in, tree_of

LARGE = base_tensors(2, 320, 64)


TUNED = {
    name: t.float() + torch.randn(t.shape, generator=torch.Generator().manual_seed(5)) * 4e-4
    for name, t in LARGE.items()
}


def difference(name: str) -> torch.Tensor:
    """Return a delta's tensor as the original scripts made it, in float16."""
    return TUNED[name].half() - LARGE[name] if not name.endswith("inv_freq") else torch.zeros_like(LARGE[name])


GIVEN = {name: difference(name) for name in LARGE}
"""The delta of the large pair."""


@dataclass(frozen=True)
class Counts:
    """What the sums of one tensor, or of all, say of their base."""

    weights: int
    region: int
    violations: int
    evidence: int


def counts_of(base: torch.Tensor, delta: torch.Tensor) -> Counts:
    """Count by the definition, in integers of the bits and in float64."""
    total = base + delta
    gap = total.view(torch.int16).int() % 65536 - base.view(torch.int16).int() % 65536
    region = (gap.abs() <= 0x400) & total.isfinite()
    wrong = region & (total.double() - base.double() != delta.double())
    return Counts(total.numel(), int(region.sum()), int(wrong.sum()), int((region & (gap != 0)).sum()))


def expected_of(base: Tensors, delta: Tensors) -> tuple[Counts, dict[str, int]]:
    """Return the counts of all tensors together, and the violations of each tensor that has any."""
    found = {name: counts_of(base[name], delta[name]) for name in delta if not name.endswith("inv_freq")}
    fields = ("weights", "region", "violations", "evidence")
    whole = Counts(**{field: sum(getattr(counts, field) for counts in found.values()) for field in fields})
    return whole, {name: counts.violations for name, counts in found.items() if counts.violations}


def noisy(scale: float) -> Tensors:
    """Return a model tuned from the base: each weight with noise of this share of a typical weight, 0.02."""
    generator = torch.Generator().manual_seed(9)
    return {n: (t + 0.02 * scale * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in LARGE.items()}


def damaged() -> Tensors:
    """Return the base with some exponents changed."""
    gate = LARGE["model.layers.1.mlp.gate_proj.weight"].clone()
    gate.view(torch.int16).view(-1)[100:200] ^= 0x0400
    return LARGE | {"model.layers.1.mlp.gate_proj.weight": gate}


def unrelated() -> Tensors:
    """Return another model of the same shapes."""
    return base_tensors(2, 320, 64, seed=99)


WRONG_BASES: dict[str, tuple[Callable[[], Tensors], str]] = {
    "damaged": (damaged, LIKELY_CAUSES[0][1]),
    "rounded": (lambda: {n: t.bfloat16().to(t.dtype) for n, t in LARGE.items()}, LIKELY_CAUSES[1][1]),
    "sibling": (lambda: noisy(0.02), LIKELY_CAUSES[2][1]),
    "unrelated": (unrelated, LIKELY_CAUSES[3][1]),
}


def check(run: Run, base: Path, delta: Path, *more: str | Path) -> Done:
    """Run ``check-base`` in the inputs' folder, and check that it writes nothing."""
    before = tree_of(base.parent)
    done = run("check-base", *more, "--base", base.name, "--delta", delta.name, cwd=base.parent)
    assert before == tree_of(base.parent)
    assert {base.name, delta.name} <= {*names_in(base.parent)}
    return done


def shown(counts: Counts) -> str:
    """Return the expected line on stdout."""
    region = f"{counts.weights:,} weights, {counts.region / counts.weights:.1%} in the region"
    if not counts.violations:
        return f"base            proved: {region}, 0 violations\n"
    rate = f"{counts.violations:,} violations ({counts.violations / counts.region:.2%})"
    return f"base            NOT proved: {region}, {rate}\n"


def violations_text(counts: Counts, tensors: dict[str, int], suspicion: str) -> str:
    """Return what the error says about the violations."""
    worst = sorted(tensors, key=lambda name: (-tensors[name], name))[:3]
    share = (
        f"{counts.violations:,} of {counts.region:,} weights do not come back ({counts.violations / counts.region:.2%})"
    )
    return f"{share}, most in {', '.join(worst)}; likely {suspicion}"


def test_check_base_proves(run: Run, temporary_folder: Path) -> None:
    """The right base is proved: exit code 0, exact counts on stdout, the inputs on stderr; with ``-q`` only the counts."""
    base, delta = (
        save(LARGE, temporary_folder.parent / "base"),
        save(GIVEN, temporary_folder.parent / "delta", "safetensors"),
    )
    counts, tensors = expected_of(LARGE, GIVEN)
    assert (counts.violations, tensors, counts.evidence > 100_000) == (0, {}, True)
    done = check(run, base, delta)
    assert (done.returncode, done.stdout) == (0, shown(counts))
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["base", "delta"]
    quiet = check(run, base, delta, "-q", "--workers", "1")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, shown(counts), "")
    as_json = check(run, base, delta, "-q", "--json")
    assert (as_json.returncode, as_json.stderr) == (0, "")
    proof = {
        **vars(counts),
        "verdict": "proved",
        "tensors": {},
        "untested": [],
        "whole": [],
        "rounded": "",
        "reason": "",
        "allowed": False,
    }
    assert json.loads(as_json.stdout) == {
        "base": "base",
        "delta": "delta",
        "recipe": None,
        "compute_dtype": "float16",
        "stated": False,
        "sample": 1.0,
        "proof": proof,
        "powerless": "",
        "rounded": "",
        "proved": True,
    }
    assert names_in(temporary_folder) == []


@pytest.mark.parametrize(("make", "suspicion"), WRONG_BASES.values(), ids=WRONG_BASES)
def test_row58_check_base_refutes(run: Run, tmp_path: Path, make: Callable[[], Tensors], suspicion: str) -> None:
    """A wrong base is refuted: exit code 4, exact counts on stdout, and where and why on stderr."""
    wrong = make()
    base, delta = save(wrong, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    counts, tensors = expected_of(wrong, GIVEN)
    assert counts.violations
    done = check(run, base, delta, "-q")
    assert (done.returncode, done.stdout) == (4, shown(counts))
    assert done.stderr == (
        f"deltaweights: error: base: the base is not the one that the delta was made from: "
        f"{violations_text(counts, tensors, suspicion)}; use the base that the delta was made from\n"
    )


def test_check_base_with_too_little_evidence(run: Run, tmp_path: Path) -> None:
    """A pair that is too small, or a delta of zeros, is neither proved nor refuted: exit code 6, also in JSON."""
    small, delta = base_tensors(), delta_tensors(base_tensors(), 0, projector=False)
    base, tuned = save(small, tmp_path / "base"), save(delta, tmp_path / "delta")
    zeros = save({name: torch.zeros_like(tensor) for name, tensor in LARGE.items()}, tmp_path / "zeros")
    large = save(LARGE, tmp_path / "large")
    counts, _ = expected_of(small, delta)
    assert 0 < counts.evidence < 100_000
    for one, other, moved in ((base, tuned, counts.evidence), (large, zeros, 0)):
        done = check(run, one, other, "-q")
        assert done.returncode == 6
        assert done.stdout == f"base            no evidence: {moved:,} weights moved; less than 100,000 say nothing\n"
        assert done.stderr == (
            f"deltaweights: error: {one.name}: neither proved nor refuted: "
            f"found {moved:,} weights that moved, expected at least 100,000\n"
        )
    as_json = check(run, base, tuned, "-q", "--json")
    found = json.loads(as_json.stdout)
    assert (as_json.returncode, found["proved"], found["proof"]["verdict"]) == (6, False, "no evidence")


def test_check_base_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """A delta made in float32 and rounded cannot prove its base (exit code 6); an unrounded one can."""
    rounded = {name: (TUNED[name] - tensor.float()).to(tensor.dtype) for name, tensor in LARGE.items()}
    rounded |= {name: torch.zeros_like(tensor) for name, tensor in LARGE.items() if name.endswith("inv_freq")}
    exact = {name: TUNED[name] - tensor.float() for name, tensor in LARGE.items() if not name.endswith("inv_freq")}
    base, delta = save(LARGE, tmp_path / "base"), save(rounded, tmp_path / "delta")
    counts, tensors = expected_of(LARGE, rounded)
    done = check(run, base, delta, "-q")
    assert (done.returncode, done.stdout) == (6, shown(counts))
    assert done.stderr == (
        f"deltaweights: error: base: the base cannot be proved: {violations_text(counts, tensors, OTHER_CAUSE)}; "
        "try --compute-dtype, if you know in which arithmetic the delta was computed\n"
    )
    whole = save(exact, tmp_path / "whole")
    proved = check(run, base, whole, "-q", "--compute-dtype", "float32")
    assert proved.returncode == 0
    assert proved.stdout.startswith(f"base            proved: {counts.weights:,} weights, ")


def test_check_base_by_a_recipe(run: Run, tmp_path: Path) -> None:
    """A recipe's arithmetic, new rows and sizes are used: Alpaca's float32 and mean row are proved, other sizes exit with 4."""
    delta = delta_tensors(LARGE, 1, projector=False, dtype=torch.float32)
    base, given = save(LARGE, tmp_path / "base"), save(delta, tmp_path / "delta")
    text = 'format = "deltaweights-recipe"\nversion = 1\nextends = "alpaca-7b"\n[shapes]\nhidden_size = 64\n'
    sizes = "intermediate_size = 188\nlayers = 2\nheads = 4\nbase_rows = 320\ndelta_rows = 321\n"
    (tmp_path / "tiny.toml").write_text(text + sizes)
    weights = sum(tensor.numel() for name, tensor in LARGE.items() if not name.endswith("inv_freq"))
    for named in ((), ("alpaca-7b",)):
        done = check(run, base, given, *named, "--recipe", "tiny.toml", "--json", "-q")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["recipe"], found["compute_dtype"], found["proof"]["weights"]) == ("alpaca-7b", "float32", weights)
    assert line_of(check(run, base, given, "alpaca-7b", "-q"), 4) == (
        "base base: tensor model.embed_tokens.weight: not the base of recipe alpaca-7b: found 320 rows, expected 32000; "
        "use the original LLaMA-1 of the delta's size as the base"
    )
    against = check(run, base, given, "alpaca-7b", "--compute-dtype", "float16", "-q")
    assert line_of(against, 2).startswith("recipe alpaca-7b adds in another dtype: found float16, expected float32; ")


def test_check_base_does_not_read_new_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a larger vocabulary only the base's rows are compared; new rows say nothing about the base and are not read."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 1000)
    delta = delta_tensors(LARGE, 5000, projector=False)
    base, given = save(LARGE, tmp_path / "base"), save(delta, tmp_path / "delta", "safetensors", 1)
    with counted_reads() as read:
        report = check_base(base, given)
    block = {name: tensor[:320] if tensor.shape[0] == 5320 else tensor for name, tensor in delta.items()}
    counts, _ = expected_of(LARGE, block)
    assert report.proof is not None
    assert {field: getattr(report.proof, field) for field in vars(counts)} == vars(counts)
    new_rows = 2 * 2 * 5000 * 64
    assert read["model.safetensors"] < (given / "model.safetensors").stat().st_size - new_rows // 2


def test_row61_check_base_of_files_that_change(tmp_path: Path) -> None:
    """An input that changes while it is read is an input error, and proves nothing."""
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta", "safetensors", 1)

    class Touching(Report):
        def end(self) -> None:
            os.utime(delta / "model.safetensors", (1, 1))

    with refused(InputOutputError, where=delta / "model.safetensors"):
        check_base(base, delta, report=Touching())


def test_check_base_unpacks_where_temporary_files_are(temporary_folder: Path, run: Run) -> None:
    """Deflated archives are unpacked into a temporary folder, which is removed, also when a base is refuted."""
    folder = temporary_folder.parent
    base, delta = save(LARGE, folder / "base"), save(GIVEN, folder / "delta")
    wrong = save(unrelated(), folder / "wrong")
    archives = [archive_of(path, DEFLATED) for path in (base, delta, wrong)]
    report = FileWatcher(temporary_folder)
    assert check_base(archives[0], archives[1], report=report).proved
    assert {name.split("/")[1] for name in report.seen["checking the base"]} == {"base", "delta"}
    assert names_in(temporary_folder) == []
    assert check(run, archives[2], archives[1], "-q").returncode == 4
    assert names_in(temporary_folder) == []


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_a_sample_reads_its_share(tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample reads about that share of both inputs besides headers and names, and still finds a wrong base."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 512)
    monkeypatch.setattr("deltaweights.checkpoint.samples.FEW", 1)  # of tensors as small as these, samples are all
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    weights, _ = expected_of(LARGE, GIVEN)
    read = {}
    for sample in (share, 1.0):
        with counted_reads() as counts:
            report = check_base(base, delta, sample=sample)
        assert report.proof is not None
        read[sample] = sum(counts.values())
        assert report.proof.weights == pytest.approx(sample * weights.weights, abs=0.01 * weights.weights)
    beyond = read[1.0] - 2 * 2 * weights.weights
    assert 0 <= beyond < 0.5 * read[1.0]
    assert read[share] - beyond == pytest.approx(share * 2 * 2 * weights.weights, abs=0.01 * 2 * 2 * weights.weights)
    refuted = check_base(save(noisy(0.02), tmp_path / "sibling"), delta, sample=share).proof
    assert refuted is not None
    assert (refuted.verdict, refuted.violations > 0) == ("violated", True)


def test_a_sample_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same share of a pair gives the same report with any number of workers; a larger share samples other weights."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 1000)
    base, delta = save(noisy(0.02), tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    proofs = [check_base(base, delta, sample=0.3, workers=workers).proof for workers in (1, 2, 5, 1)]
    assert all(proof == proofs[0] for proof in proofs)
    assert proofs[0] is not None
    assert proofs[0].violations
    assert check_base(base, delta, sample=0.31).proof != proofs[0]


@pytest.mark.parametrize("share", ["0", "-0.5", "1.5", "nan"])
def test_invalid_share(run: Run, share: str) -> None:
    """A sample of nothing, or of more than all, exits with 2 before inputs are opened."""
    done = run("check-base", "--base", "b", "--delta", "d", "--sample", share)
    assert f"found {float(share)}, expected more than 0, at most 1" in line_of(done, 2)


def test_a_sample_of_less_than_a_block(run: Run, tmp_path: Path) -> None:
    """A share of less than one block does not report that nothing is added."""
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    assert "nothing is added to it" not in check(run, base, delta, "-q", "--sample", "0.001").stdout


def test_check_base_names_no_option_that_it_has_not(tmp_path: Path) -> None:
    """The remedy for a merged model given as the delta names no option that the command lacks."""
    merged = {name: t if name.endswith("inv_freq") else t + GIVEN[name] for name, t in LARGE.items()}
    text = 'format = "deltaweights-recipe"\nversion = 1\nname = "own"\n[arithmetic]\n'
    (tmp_path / "own.toml").write_text(f'{text}compute_dtype = "float16"\nstated = true\n')
    base, delta = save(LARGE, tmp_path / "base"), save(merged, tmp_path / "merged")
    with pytest.raises(Mismatch, match="likely already a merged model") as caught:
        check_base(base, delta, recipe_file=tmp_path / "own.toml")
    assert "--allow-unproved-base" not in str(caught.value)
