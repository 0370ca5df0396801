"""What a manifest or recipe states is obeyed, and what contradicts it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.part import apply_part
from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import Mismatch, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import export_checkpoint
from deltaweights.jobs.make import MakeResult, make_delta
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.float_bits import DTYPES
from tests.support.merging import recipe_file
from tests.support.pairs import Tensors, base_tensors, load, reference, same_bits, save
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.0.input_layernorm.weight"
ROWS, HIDDEN = 800, 64  # of an embedding that is too large to be read before the merge


DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24}


def base_model(dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensors:
    base = base_tensors(2, ROWS, HIDDEN, seed=seed)
    return {name: tensor.to(dtype) for name, tensor in base.items() if not name.endswith("inv_freq")}


def tuned(base: Tensors, dtype: torch.dtype, step: float = 4e-4) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return {
        name: (tensor.float() + torch.randn(tensor.shape, generator=generator) * step).to(dtype)
        for name, tensor in base.items()
    }


def made(folder: Path, base: Tensors, target: Tensors, **options: Any) -> MakeResult:
    """Save base and target, and make the delta."""
    save(base, folder / "base", config=False)
    save(target, folder / "tuned", config=False)
    return make_delta(folder / "base", folder / "tuned", folder / "delta", **options)


@pytest.mark.parametrize("of_target", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_a_delta_is_added_as_it_was_made(tmp_path: Path, compute: str, of_target: str) -> None:
    """Without a flag the arithmetic is the manifest's, and the dtype the target's; nothing but the counted weights differs."""
    base = base_model()
    target = tuned(base, DTYPES[of_target])
    report = RecordingReport()
    result = made(tmp_path, base, target, compute_dtype=compute, report=report)
    narrower = DIGITS[compute] < DIGITS[of_target]
    assert ["come back rounded to it, which is not counted" in text for text in report.warnings] == [True] * narrower
    report = RecordingReport()
    back = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=report)
    tensors = load(tmp_path / "back")
    delta = load(tmp_path / "delta")
    assert same_bits(tensors, reference(base, delta, DTYPES[compute], DTYPES[of_target]))
    assert report.warnings == []
    assert any("by the digest in the delta's manifest" in note for note in report.notes)
    lost = sum((result.inexact or {}).values())
    rounded = {name: tensor.to(DTYPES[compute]).to(tensor.dtype) for name, tensor in target.items()}
    differing = sum(int((tensors[name] != tensor).sum()) for name, tensor in rounded.items())
    assert differing <= lost < 0.1 * back.parameters
    if DTYPES[compute] is DTYPES[of_target]:
        compared = diff_checkpoints(tmp_path / "tuned", tmp_path / "back")
        assert sum(each.elements or 0 for each in compared.tensors.differing) == lost


def other_dtype(was: str, given: str) -> tuple[dict[str, Any], str, dict[str, Any], dict[str, str]]:
    return {"compute_dtype": was}, "", {"compute_dtype": given}, {"found": given, "expected": was}


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, str]]] = {
    # how it was made, the recipe to apply it with, the options of apply, the fields
    "float16 for bfloat16": other_dtype("bfloat16", "float16"),
    "bfloat16 for float16": other_dtype("float16", "bfloat16"),
    "float32 for bfloat16": other_dtype("bfloat16", "float32"),
    "float16 for float32": other_dtype("float32", "float16"),
    "a recipe's arithmetic": ({"compute_dtype": "float32"}, "float16", {}, {"expected": "float32"}),
    "a recipe's new rows": ({}, 'float16"\n[rules]\nnew_rows = "zero', {}, {"expected": "copy"}),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_the_manifest_is_refused(tmp_path: Path, case: str) -> None:
    """A dtype or a recipe by which the delta was not made is a usage error (2), in apply and check-base."""
    how, rules, options, fields = CONTRADICTIONS[case]
    base = base_model()
    target = tuned(base, torch.float16)
    for name in (EMBEDDING, HEAD):
        target[name] = torch.cat([target[name], torch.ones(3, HIDDEN).half()])
    made(tmp_path, base, target, **how)
    if rules:
        text = f'format = "deltaweights-recipe"\nversion = 1\nname = "own"\n[arithmetic]\ncompute_dtype = "{rules}"\n'
        (tmp_path / "own.toml").write_text(text)
        options = {"recipe_file": tmp_path / "own.toml"}
    inputs, where = (tmp_path / "base", tmp_path / "delta"), f"delta {tmp_path / 'delta'}"
    with refused(UsageError, where=where, **fields) as caught:
        apply_delta(*inputs, tmp_path / "out", **options)
    assert caught.value.exit_code == 2
    assert "leave " in (caught.value.remedy or "")
    with refused(UsageError, where=where, **fields):
        check_base(*inputs, **options)
    assert not (tmp_path / "out").exists()
    apply_delta(*inputs, tmp_path / "out")  # the remedy: leave it out


@dataclass(frozen=True)
class OtherBase:
    """A base, whether it is refused, and whether before the merge."""

    change: Callable[[Tensors], Tensors]
    refused: bool = True
    early: bool = True


def one_late(base: Tensors) -> Tensors:
    embedding = base[EMBEDDING].clone()
    embedding[ROWS // 2, 3] += 1 / 64
    return base | {EMBEDDING: embedding}


BASES = {
    "another model": OtherBase(lambda _: base_model(seed=3)),
    "a sibling, further trained": OtherBase(lambda base: tuned(base, torch.float16, 2e-5)),
    "one norm edited": OtherBase(lambda base: base | {NORM: base[NORM] * 0.5}),
    "one weight of a large tensor": OtherBase(one_late, early=False),
    "a float32 copy": OtherBase(lambda base: {name: t.float() for name, t in base.items()}, refused=False),
    "with buffers": OtherBase(
        lambda base: base | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, refused=False
    ),
    "a rounded copy": OtherBase(lambda base: {name: t.bfloat16() for name, t in base.items()}, early=False),
}


@pytest.mark.parametrize("case", BASES)
def test_the_base_is_the_one_that_the_manifest_states(tmp_path: Path, case: str) -> None:
    """Another base is refused (4) by the digests in the delta's manifest, or by the sums; the right one passes in any form."""
    row, base = BASES[case], base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    shutil.rmtree(tmp_path / "base")
    save(row.change(base), tmp_path / "base", "safetensors", 1, config=False)
    inputs = tmp_path / "base", tmp_path / "delta"
    if not row.refused:
        told = RecordingReport()
        apply_delta(*inputs, tmp_path / "out", report=told)
        assert same_bits(load(tmp_path / "out"), reference(base, load(tmp_path / "delta")))
        assert told.warnings == []
        return
    with pytest.raises(Mismatch) as caught:
        apply_delta(*inputs, tmp_path / "out", prove=case != "one weight of a large tensor")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
    assert (caught.value.problem == "not the base that the delta was made from") == (case != "a rounded copy")
    assert (caught.value.tensor is not None) == row.early
    # Samples refute a rounded copy; a base whose digest is stated is read whole before it is judged by that.
    assert (tmp_path / ".out.deltaweights").exists() == (not row.early and case != "a rounded copy")
    assert "--allow-unproved-base" in (caught.value.remedy or "")
    told = RecordingReport()
    apply_delta(*inputs, tmp_path / "out", allow_unproved_base=True, report=told)  # the remedy
    assert told.warnings
    with pytest.raises(Mismatch):
        apply_delta(*inputs, tmp_path / "out")  # what is complete is judged again
    if row.early:
        with pytest.raises(Mismatch):
            check_base(*inputs)


def test_parts_are_judged_by_the_manifest_too(tmp_path: Path) -> None:
    """``finish`` opens no input, and yet refuses another base by its digest."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    save(one_late(base), tmp_path / "base", config=False)
    apply_part(tmp_path / "base", tmp_path / "delta", tmp_path / "out", part="1/1")
    with refused(Mismatch, problem="not the base that the delta was made from"):
        finish_parts(tmp_path / "out")
    assert finish_parts(tmp_path / "out", allow_unproved_base=True) is not None


def test_a_delta_that_was_rounded_when_it_was_stored_does_not_accuse_the_base(tmp_path: Path) -> None:
    """The manifest says that it was computed in float32 and stored in bfloat16: no proof is claimed, and none missed."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="float32", dtype="bfloat16")
    told = RecordingReport()
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=told)
    assert (result.proof, told.warnings) == (None, [])


def with_layout(folder: Path) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["result"]["options"]["layout"] = "transformers"
    path.write_text(json.dumps(document))


@dataclass(frozen=True)
class WrongKind:
    """A folder in a place that its own manifest says it is not for, and the fields of the refusal."""

    do: Callable[[Path], object]
    fields: dict[str, str] = field(default_factory=dict)


def layout_as_base(folder: Path) -> None:
    with_layout(folder / "out")
    apply_delta(folder / "out", folder / "delta", folder / "again")


def layout_as_target(folder: Path) -> None:
    with_layout(folder / "out")
    make_delta(folder / "base", folder / "out", folder / "again")


WRONG_KINDS = {
    "a merge as the delta": WrongKind(
        lambda at: apply_delta(at / "base", at / "out", at / "again"),
        {"problem": "already a merged model, not a delta"},
    ),
    "a merge as the delta of check-base": WrongKind(
        lambda at: check_base(at / "base", at / "out"), {"problem": "already a merged model, not a delta"}
    ),
    "a merge in the layout of transformers as the base": WrongKind(
        layout_as_base, {"remedy": "give the base in the original layout: make it again without --layout transformers"}
    ),
    "the same as the target of make": WrongKind(
        layout_as_target,
        {"remedy": "give the target in the original layout: make it again without --layout transformers"},
    ),
    "a delta as the target of make": WrongKind(
        lambda at: make_delta(at / "base", at / "delta", at / "again"), {"problem": "is a delta, not a model"}
    ),
    "a delta that is exported": WrongKind(
        lambda at: export_checkpoint(at / "delta", at / "again"), {"problem": "is a delta, not a model"}
    ),
}


@pytest.mark.parametrize("case", WRONG_KINDS)
def test_what_the_manifest_says_that_a_folder_is(tmp_path: Path, case: str) -> None:
    """A result of ours in the wrong place is refused (4) by its own manifest, and nothing is written."""
    base, row = base_model(), WRONG_KINDS[case]
    made(tmp_path, base, tuned(base, torch.float16))
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    with refused(Mismatch, **row.fields):
        row.do(tmp_path)
    assert not (tmp_path / "again").exists()


def test_a_manifest_of_other_tensors_is_said_and_not_used(tmp_path: Path) -> None:
    """Beside a delta that was saved anew the manifest is stale: a warning, and the usual arithmetic."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="float32")
    anew = {name: tensor.half() for name, tensor in load(tmp_path / "delta").items()}
    save(anew, tmp_path / "delta", "safetensors", 1, config=False)
    told = RecordingReport()
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=told)
    assert [warning for warning in told.warnings if "was the delta saved anew?" in warning]
    assert same_bits(load(tmp_path / "out"), reference(base, anew))


def test_the_commands_of_the_issue(run: Run, tmp_path: Path) -> None:
    """make-delta --compute-dtype bfloat16, apply-delta, diff: identical but for the counted weights."""
    base = base_model(torch.bfloat16)
    save(base, tmp_path / "base", config=False)
    save(tuned(base, torch.bfloat16), tmp_path / "tuned", config=False)
    done = run(
        "make",
        "--base",
        "base",
        "--target",
        "tuned",
        "--delta",
        "delta",
        "--compute-dtype",
        "bfloat16",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    counted = sum(json.loads(done.stdout)["inexact"].values())
    assert run("apply", "--base", "base", "--delta", "delta", "--target", "back", "-q", cwd=tmp_path).returncode == 0
    compared = diff_checkpoints(tmp_path / "tuned", tmp_path / "back")
    assert sum(each.elements or 0 for each in compared.tensors.differing) == counted
    other = run(
        "apply", "--base", "base", "--delta", "delta", "--target", "o", "--compute-dtype", "float16", cwd=tmp_path
    )
    assert (other.returncode, other.stdout) == (2, "")


def test_a_recipe_keeps_the_dtype_of_its_makers_script(tmp_path: Path) -> None:
    """With a recipe the result has the arithmetic's dtype, as the script that publishes it."""
    base, own = base_model(), recipe_file(tmp_path, "float32")
    made(tmp_path, base, tuned(base, torch.float16), recipe_file=own)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", recipe_file=own)
    assert {tensor.dtype for tensor in load(tmp_path / "out").values()} == {torch.float32}
