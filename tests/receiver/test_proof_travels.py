"""A base that is refuted is refused early, what was allowed is said everywhere, and a proof travels with the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights import (
    apply_delta,
    apply_part,
    check_base,
    convert_checkpoint,
    export_checkpoint,
    finish_parts,
    inspect_checkpoint,
    list_checkpoint,
    make_delta,
    verify,
)
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, Mismatch
from deltaweights.inference.model_folder import read_model_folder
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import parse_manifest
from tests.conftest import Run
from tests.support.base_pairs import STD, TUNING, noise
from tests.support.errors import refused
from tests.support.llava_2023 import publish
from tests.support.merging import manifest_of, recipe_file, save_pair
from tests.support.pairs import Tensors, load, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.receiver


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Path:
    """Save a plain LLaMA and its delta as they were published, and another model of the same norms: nothing but the sums tells."""
    published = publish(tmp_path, projector=False, container="safetensors", hidden=64)
    right = load(published.base)
    generator = torch.Generator().manual_seed(11)
    wrong = {
        name: (torch.randn(tensor.shape, generator=generator) * STD).to(tensor.dtype) if tensor.ndim == 2 else tensor
        for name, tensor in right.items()
    }
    save(wrong, tmp_path / "wrong", "safetensors", 1)
    return tmp_path


def merged(pair: Path, base: str = "base", **options: Any) -> Path:
    """Merge into ``merged``, whatever the base."""
    apply_delta(pair / base, pair / "delta", pair / "merged", allow_unproved_base=True, **options)
    return pair / "merged"


def source_proof_of(folder: Path) -> ProofRecord | None:
    """Return what the manifest of a copy says of its source's base."""
    return parse_manifest((folder / "manifest.json").read_bytes()).source_proof


def test_a_wrong_base_ends_early_and_leaves_nothing(run: Run, pair: Path) -> None:
    """Without a recipe, too, ``apply`` ends with 4 and one line before it has a target or a staging folder."""
    before = sorted(path.name for path in pair.iterdir())
    command = ("apply", "--base", "wrong", "--delta", "delta", "--target", "out")
    done = run(*command, "-q", cwd=pair)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert sorted(path.name for path in pair.iterdir()) == before
    assert run(*command, "-q", "--dry-run", cwd=pair).returncode == 4
    assert run(*command, "-q", "--part", "1/2", cwd=pair).returncode == 4
    assert sorted(path.name for path in pair.iterdir()) == before
    assert run(*command, "-q", "--allow-unproved-base", cwd=pair).returncode == 0


@pytest.mark.parametrize("stated", [None, True, False], ids=["no recipe", "stated", "not stated"])
def test_python_raises(pair: Path, stated: bool | None) -> None:
    """``apply_delta`` raises with any recipe and with none, unless the base is allowed."""
    options: dict[str, Any] = {} if stated is None else {"recipe_file": recipe_file(pair, stated=stated)}
    with refused(Mismatch, code=ErrorCode.WRONG_BASE, where=pair / "wrong"):
        apply_delta(pair / "wrong", pair / "delta", pair / "out", **options)
    result = apply_delta(pair / "wrong", pair / "delta", pair / "out", allow_unproved_base=True, **options)
    assert result.proof is not None
    assert (result.proof.refuted, result.proof.allowed) == (True, True)


def test_what_was_allowed_is_said_everywhere(run: Run, pair: Path) -> None:
    """``verify``, ``inspect``, ``check``, the card and the result's repr say that the base is refuted; ``verify`` exits with 0."""
    out = merged(pair, "wrong")
    done = run("verify", out)
    assert done.returncode == 0
    assert "base            NOT proved: " in done.stdout
    assert "--allow-unproved-base" in done.stdout
    assert done.stderr.startswith("deltaweights: warning: ")
    stated = json.loads(run("verify", out, "--json").stdout)["base"]
    assert (stated["verdict"], stated["refuted"], stated["allowed"], stated["of_source"]) == (
        "violated", True, True, False,
    )  # fmt: skip
    looked = run("inspect", out)
    assert "the base is refuted" in looked.stderr
    assert "base            NOT proved: " in looked.stdout
    assert "WARNING: the base is refuted" in (out / "README.md").read_text(encoding="utf-8")
    (out / "config.json").write_text("{}")
    claim = read_model_folder(out).base  # what check and try warn of
    assert claim is not None
    assert claim.warning is not None
    again = apply_delta(pair / "wrong", pair / "delta", pair / "again", allow_unproved_base=True)
    assert "NOT proved" in repr(again)


def test_locks_and_summaries_say_what_was_allowed(run: Run, pair: Path) -> None:
    """``pin`` and ``verify --lock`` warn of a refuted base, and a job's summary has it."""
    merged(pair, "wrong")
    pinned = run("pin", "merged", "--output", "deltaweights.lock", cwd=pair)
    assert pinned.returncode == 0
    assert "warning: merged: the base is refuted" in pinned.stderr
    done = run("verify", "--lock", "deltaweights.lock", "--summary", "s.md", "-q", cwd=pair)
    assert (done.returncode, done.stdout) == (0, "")
    assert "warning: merged: the base is refuted" in done.stderr
    assert "- **base**: `NOT proved: " in (pair / "s.md").read_text(encoding="utf-8")


def test_check_warns_of_a_refuted_base(run: Run, pair: Path) -> None:
    """``check`` says it beside what it finds itself."""
    out = merged(pair, "wrong")
    shutil.copy(pair / "base" / "config.json", out)
    warnings = json.loads(run("check", out, "--json").stdout)["warnings"]
    assert any(warning["problem"].startswith("the base is refuted") for warning in warnings)


COPIES: dict[str, Callable[..., Any]] = {"export": export_checkpoint, "convert": convert_checkpoint}


@pytest.mark.parametrize("copy", COPIES)
def test_a_proof_travels_through_copies(pair: Path, copy: str) -> None:
    """A copy of a proved merge, and a copy of that, have its proof in their manifests, as what their source said."""
    out = merged(pair)
    proof = parse_manifest((out / "manifest.json").read_bytes()).findings.proof
    assert proof is not None
    assert proof.verdict == "proved"
    told = RecordingReport()
    result = COPIES[copy](out, pair / "copy", report=told)
    assert told.warnings == []
    assert (result.proof, result.source_proof) == (None, proof)
    assert "proof" not in manifest_of(pair / "copy")
    assert source_proof_of(pair / "copy") == proof
    convert_checkpoint(pair / "copy", pair / "second")
    assert source_proof_of(pair / "second") == proof
    claim = verify(pair / "second").base
    assert claim is not None
    assert (claim.verdict, claim.of_source, claim.warning) == ("proved", True, None)
    assert COPIES[copy](out, pair / "copy").source_proof == proof  # already complete


def test_a_refuted_merge_is_exported_only_if_allowed(run: Run, pair: Path) -> None:
    """``export`` ends with 4 before it writes; ``convert`` warns; both carry the refutation on."""
    out = merged(pair, "wrong")
    done = run("export", out, "--target", "copy", "-q", cwd=pair)
    assert (done.returncode, done.stderr.count("\n"), (pair / "copy").exists()) == (4, 1, False)
    with refused(Mismatch, code=ErrorCode.WRONG_BASE, where=out):
        export_checkpoint(out, pair / "copy")
    assert run("export", out, "--target", "copy", "-q", "--allow-unproved-base", cwd=pair).returncode == 0
    told = RecordingReport()
    convert_checkpoint(out, pair / "converted", report=told)
    assert len(told.warnings) == 1
    for folder in ("copy", "converted"):
        claim = verify(pair / folder).base
        assert claim is not None
        assert (claim.refuted, claim.allowed, claim.of_source) == (True, True, True)
        assert "WARNING" in (pair / folder / "README.md").read_text(encoding="utf-8")
    with refused(Mismatch, code=ErrorCode.WRONG_BASE):
        export_checkpoint(pair / "converted", pair / "third")


NOT_CHECKED = "not checked (--no-prove)"
EXACT = "not proved: sums cannot prove it: the delta was computed in float16, not in float32: there its sums are exact"


@pytest.mark.parametrize(
    ("options", "text"),
    [({"prove": False}, NOT_CHECKED), ({"compute_dtype": "float32"}, EXACT)],
    ids=["no proof wanted", "another arithmetic"],
)
def test_what_nobody_looked_at_is_said_everywhere(run: Run, pair: Path, options: dict[str, Any], text: str) -> None:
    """That the sums were not looked at stands in manifest and card, and travels through parts and copies."""
    result = apply_delta(pair / "base", pair / "delta", pair / "merged", **options)
    assert text in repr(result)
    assert "Proof of the base: not checked" in (pair / "merged" / "README.md").read_text(encoding="utf-8")
    for part in ("1/2", "2/2"):
        apply_part(pair / "base", pair / "delta", pair / "parts", part=part, **options)
    finish_parts(pair / "parts")
    assert (pair / "parts" / "manifest.json").read_bytes() == (pair / "merged" / "manifest.json").read_bytes()
    export_checkpoint(pair / "merged", pair / "copy")
    convert_checkpoint(pair / "copy", pair / "second")
    for folder, of_source in (("merged", False), ("copy", True), ("second", True)):
        claim = verify(pair / folder).base
        assert claim is not None
        assert (claim.verdict, claim.of_source, claim.refuted, claim.warning) == (
            "not checked", of_source, False, None,
        )  # fmt: skip
        assert claim.text.startswith(text)
        for command in ("verify", "inspect"):
            assert f"base            {text}" in run(command, pair / folder).stdout


def test_another_arithmetic_that_was_allowed_is_recorded(pair: Path) -> None:
    """A recipe states how the delta was made, its numbers say otherwise, and the user insists: those who receive it are warned."""
    options: dict[str, Any] = {"recipe_file": recipe_file(pair, "float32", stated=True)}
    with refused(Mismatch, code=ErrorCode.BASE_NOT_PROVED):
        apply_delta(pair / "base", pair / "delta", pair / "out", **options)
    proof = apply_delta(pair / "base", pair / "delta", pair / "out", allow_unproved_base=True, **options).proof
    assert proof is not None
    assert (proof.verdict, proof.allowed) == ("not checked", True)
    claim = verify(pair / "out").base
    assert claim is not None
    assert str(claim.warning).startswith("the base is not proved, and was accepted all the same")


def test_a_merge_of_an_earlier_release_proves_nothing_through_copies(pair: Path) -> None:
    """Its manifest has no proof where nobody looked: the copy says so."""
    out = merged(pair, prove=False)
    document = json.loads((out / "manifest.json").read_bytes())
    del document["result"]["proof"]
    (out / "manifest.json").write_text(json.dumps(document))
    convert_checkpoint(out, pair / "copy")
    claim = verify(pair / "copy").base
    assert claim is not None
    assert (claim.verdict, claim.of_source) == ("not checked", True)
    assert claim.text.startswith("not checked: its manifest has no proof of it")


def test_parts_keep_what_was_allowed(pair: Path) -> None:
    """Parts and their end write the same manifest as one process."""
    out = merged(pair, "wrong", max_shard_size="300KB")
    for part in ("1/2", "2/2"):
        options: dict[str, Any] = {"max_shard_size": "300KB", "allow_unproved_base": True}
        apply_part(pair / "wrong", pair / "delta", pair / "parts", part=part, **options)
    with refused(Mismatch, code=ErrorCode.WRONG_BASE) as caught:
        finish_parts(pair / "parts")
    assert "deltaweights clean" in (caught.value.remedy or "")
    finish_parts(pair / "parts", allow_unproved_base=True)
    assert (pair / "parts" / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


def changed(folder: Path) -> None:
    """Change one weight, keeping header and size."""
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def test_a_proof_is_not_believed_of_other_weights(pair: Path) -> None:
    """Where the source's bytes are not those of its manifest, the copy fails, or, in another dtype, has no proof."""
    out = merged(pair)
    changed(out)
    with refused(CheckFailed):
        export_checkpoint(out, pair / "copy")
    told = RecordingReport()
    result = convert_checkpoint(out, pair / "wide", dtype="float32", report=told)
    assert result.source_proof is None
    assert any("is not carried over" in warning for warning in told.warnings)
    assert source_proof_of(pair / "wide") is None


def test_a_manifest_of_other_tensors_proves_nothing(pair: Path) -> None:
    """A manifest that lists other tensors than the folder has says nothing of its base."""
    out = merged(pair)
    tensors = load(out)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save(tensors, pair / "other", "safetensors", 1)
    shutil.copy(out / "manifest.json", pair / "other")
    told = RecordingReport()
    assert convert_checkpoint(pair / "other", pair / "copy", dtype="float16", report=told).source_proof is None
    assert any("is that of other tensors" in warning for warning in told.warnings)


HOSTILE: dict[str, dict[str, Any]] = {
    "weights are text": {"weights": "many"},
    "weights are negative": {"weights": -1},
    "more in the region than there are": {"region": 10**9},
    "more evidence than region": {"evidence": 10**9},
    "violations without region": {"region": 0, "violations": 1, "evidence": 0},
    "proved with violations": {"violations": 1},
    "violated without violations": {"verdict": "violated"},
    "a verdict that is an object": {"verdict": {"a": 1}},
    "a verdict that is a page": {"verdict": "x" * 10_000},
    "allowed is text": {"allowed": "no"},
    "rounded is a number": {"rounded": 3},
    "untested are numbers": {"untested": [1, 2]},
    "whole is text": {"whole": "all"},
    "tensors are a list": {"tensors": ["w"]},
    "counts of what was not looked at": {"verdict": "not checked"},
    "a reason not to look, of what was looked at": {"reason": "not checked"},
    "a reason that is a page": {"reason": "x" * 10_000},
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("of_source", [False, True], ids=["merge", "copy"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_proof_is_no_manifest(pair: Path, case: str, *, of_source: bool) -> None:
    """A proof of wrong types, or that contradicts itself, is an error of the manifest, wherever it stands."""
    out = merged(pair)
    if of_source:
        convert_checkpoint(out, pair / "copy")
        out = pair / "copy"
    path = out / "manifest.json"
    document = json.loads(path.read_bytes())
    (document["inputs"]["base"] if of_source else document["result"])["proof"].update(HOSTILE[case])
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"."):
        parse_manifest(path.read_bytes())
    assert not verify(out).ok


def test_a_verdict_of_a_later_version_is_shown(pair: Path) -> None:
    """Readers take verdicts that they do not know."""
    path = merged(pair) / "manifest.json"
    document = json.loads(path.read_bytes())
    document["result"]["proof"]["verdict"] = "sworn"
    path.write_text(json.dumps(document))
    claim = inspect_checkpoint(pair / "merged").manifest
    assert claim is not None
    assert claim.base is not None
    assert claim.base.verdict == "sworn"


def drawn_pair(seed: int, tuning: float, error: float, damaged: int) -> tuple[Tensors, Tensors]:
    """Return a pair of random tensors whose base is off by ``error`` standard deviations, and has ``damaged`` weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (60, 700), "b": (900, 90), "c": (50,), "d": (333, 101)}
    base, delta = {}, {}
    for name, shape in shapes.items():
        right = (torch.randn(shape, generator=generator) * STD).half()
        delta[name] = (right.float() + torch.randn(shape, generator=generator) * tuning).half() - right
        base[name] = (right.float() + torch.randn(shape, generator=generator) * STD * error).half()
    places = torch.randint(60 * 700, (damaged,), generator=generator)
    base["a"].view(-1)[places] *= 1.5
    return base, delta


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tuning=st.sampled_from([0.0, TUNING / 10, TUNING, STD / 4]),
    error=st.sampled_from([0.0, 0.0, 0.001, 0.1, 1.0]),
    damaged=st.sampled_from([0, 1, 30]),
)
def test_early_refutation_implies_the_full_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tuning: float, error: float, damaged: int
) -> None:
    """Whatever ``apply`` refuses from samples, a look at all weights refuses, too; and the right base passes."""
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder, *drawn_pair(seed, tuning, error, damaged))
    full = check_base(folder / "base", folder / "delta").proof
    try:
        apply_delta(folder / "base", folder / "delta", folder / "out")
    except Mismatch as refusal:
        early = "of a sample" in refusal.problem
        assert full is not None
        assert full.refuted, (early, full)
    else:
        assert full is None or not full.refuted
    shutil.rmtree(folder)


def test_another_arithmetic_is_not_refuted_early(pair: Path) -> None:
    """A delta that was computed in float32 is a warning without a recipe, as before."""
    base = {"w": (torch.randn(400, 300, generator=torch.Generator().manual_seed(1)) * STD).half()}
    delta = {"w": noise(base["w"]) * 300}
    save_pair(pair / "float32", base, delta)
    result = apply_delta(pair / "float32" / "base", pair / "float32" / "delta", pair / "out")
    assert result.proof is not None
    assert (result.proof.verdict, result.proof.refuted) == ("another arithmetic", False)


def test_results_have_a_short_repr(pair: Path) -> None:
    """Every result is one line of its facts."""
    out = merged(pair)
    results = [
        apply_delta(pair / "base", pair / "delta", pair / "merged"),
        make_delta(pair / "base", out, pair / "made"),
        convert_checkpoint(out, pair / "copy"),
        verify(out),
        check_base(pair / "base", pair / "delta"),
        inspect_checkpoint(out),
        list_checkpoint(pair / "base"),
    ]
    for result in results:
        line = repr(result)
        assert line.startswith(f"{type(result).__name__}(")
        assert "\n" not in line
        assert len(line) < 600
