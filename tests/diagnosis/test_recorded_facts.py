"""What a manifest or recipe states is obeyed, and what contradicts it is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.part import apply_part
from deltaweights.diff.compare import diff_checkpoints
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, MalformedInput, Mismatch, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint, export_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import MakeResult, make_delta
from deltaweights.manifest.verify import verify
from deltaweights.merge.kernels_cpu import CpuKernels
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.float_bits import DTYPES
from tests.support.merging import block_size, recipe_file
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("of_target", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_a_delta_is_added_as_it_was_made(tmp_path: Path, compute: str, of_target: str) -> None:
    """Without a flag the arithmetic is the manifest's, and the dtype the target's; nothing but the counted weights differs."""
    base = base_model()
    target = tuned(base, DTYPES[of_target])
    report = RecordingReport()
    result = made(tmp_path, base, target, compute_dtype=compute, report=report)
    narrower = DIGITS[compute] < DIGITS[of_target]
    assert ["come back rounded to it; give --compute-dtype" in text for text in report.warnings] == [True] * narrower
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
    assert differing_by_tensor(tmp_path) == (result.inexact if compute == of_target else result.not_restored)


def differing_by_tensor(folder: Path) -> dict[str, int]:
    """Return what ``diff`` counts between the target and what came back."""
    compared = diff_checkpoints(folder / "tuned", folder / "back").tensors
    assert (compared.other_shape, compared.only_in_a, compared.only_in_b) == ((), (), ())
    return {each.name: each.elements for each in compared.differing if each.elements}


ALL_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
STRANGE = torch.tensor(
    [float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-8, 1e-41, 7e4, 3e38, 1e300]
)


def strange(count: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Return random numbers of all sizes, among them NaN, infinities, zeros of both signs, and numbers that some dtype rounds."""
    sizes = 10.0 ** (torch.rand(count, generator=generator) * 12 - 9)
    numbers = (torch.randn(count, generator=generator) * sizes).double()
    places = torch.randint(0, count, (count // 20,), generator=generator)
    numbers[places] = STRANGE[torch.randint(0, len(STRANGE), (len(places),), generator=generator)].double()
    return numbers.to(dtype)


class Unproven(CpuKernels):
    """Kernels that fail the self-test, so that torch's are used."""

    def add(self, one: Any, other: Any, out: Any) -> None:
        """Leave ``out`` as it is."""


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    of_base=st.sampled_from(sorted(ALL_DTYPES)),
    of_target=st.lists(st.sampled_from(sorted(ALL_DTYPES)), min_size=1, max_size=2),
    compute=st.sampled_from(sorted(DTYPES)),
    stored=st.sampled_from([None, *sorted(DTYPES)]),
    engine=st.sampled_from(["ours", "torch"]),
)
def test_what_is_counted_is_what_differs(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    of_base: str,
    of_target: list[str],
    compute: str,
    stored: str | None,
    engine: str,
) -> None:
    """Of any numbers and dtypes: after make and apply, ``diff`` finds as many weights of each tensor as the manifest counts."""
    folder, generator = tmp_path_factory.mktemp("counted"), torch.Generator().manual_seed(seed)
    base, target = {}, {}
    dtypes = [ALL_DTYPES[name] for name in of_target]
    for number, (name, shape) in enumerate({EMBEDDING: (9, 8), "w": (40, 8), "v": (7,)}.items()):
        base[name] = strange(math.prod(shape), generator, torch.float64).reshape(shape).to(ALL_DTYPES[of_base])
        step = strange(math.prod(shape), generator, torch.float64).reshape(shape) / 100
        target[name] = (base[name].double() + step).to(dtypes[number % len(dtypes)])
    rows = strange(24, generator, torch.float64).reshape(3, 8)
    target[EMBEDDING] = torch.cat([target[EMBEDDING], rows.to(target[EMBEDDING].dtype)])
    target["model.mm_projector.bias"] = strange(5, generator, dtypes[-1])
    with block_size(100), pytest.MonkeyPatch.context() as patch:
        if engine == "torch":
            patch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", Unproven)
        result = made(folder, base, target, compute_dtype=compute, dtype=stored, allow_unproved_base=True)
        apply_delta(folder / "base", folder / "delta", folder / "back", allow_unproved_base=True)
    counted = result.inexact if result.not_restored is None else result.not_restored
    assert counted == differing_by_tensor(folder)
    stated = json.loads((folder / "delta" / "manifest.json").read_text())["result"]
    assert stated.get("not_restored") == result.not_restored
    assert (result.not_restored is None) == (set(dtypes) == {DTYPES[compute]})


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


@pytest.mark.sampled(2)
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


@pytest.mark.sampled(2)
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
    done = finish_parts(tmp_path / "out", allow_unproved_base=True)
    assert done is not None
    assert done.proof is not None
    assert done.proof.allowed


def test_a_delta_that_was_rounded_when_it_was_stored_does_not_accuse_the_base(tmp_path: Path) -> None:
    """The manifest says that it was computed in float32 and stored in bfloat16: no proof is claimed, and none missed."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="float32", dtype="bfloat16")
    told = RecordingReport()
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=told)
    assert told.warnings == []
    assert result.proof is not None
    assert result.proof.verdict == "not checked"


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


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", WRONG_KINDS)
def test_what_the_manifest_says_that_a_folder_is(tmp_path: Path, case: str) -> None:
    """A result of ours in the wrong place is refused (4) by its own manifest, and nothing is written."""
    base, row = base_model(), WRONG_KINDS[case]
    made(tmp_path, base, tuned(base, torch.float16))
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    with refused(Mismatch, **row.fields):
        row.do(tmp_path)
    assert not (tmp_path / "again").exists()


def test_what_was_merged_in_the_layout_of_transformers_is_merged_again(tmp_path: Path) -> None:
    """The same merge without --layout transformers is taken as a base, as the remedy says."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    with_layout(tmp_path / "out")
    remedy = "give the base in the original layout: make it again without --layout transformers"
    with refused(Mismatch, remedy=remedy):
        apply_delta(tmp_path / "out", tmp_path / "delta", tmp_path / "again", allow_unproved_base=True)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "original")
    apply_delta(tmp_path / "original", tmp_path / "delta", tmp_path / "again", allow_unproved_base=True)


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


def converted(folder: Path, name: str = "delta", **options: Any) -> Path:
    """Convert a folder, and put the copy in its place."""
    convert_checkpoint(folder / name, folder / "copy", **options)
    shutil.rmtree(folder / name)
    (folder / "copy").rename(folder / name)
    return folder / name


COPIES: dict[str, list[dict[str, Any]]] = {
    "as torch files": [{"weights": "bin"}],
    "in small shards": [{"max_shard_size": "20KB"}],
    "twice": [{"weights": "bin"}, {}],
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", COPIES)
def test_a_converted_delta_is_still_that_delta(tmp_path: Path, case: str, compute: str) -> None:
    """The copy states arithmetic, base and counts of the delta: it is added as before, and what contradicts is refused."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype=compute)
    wanted = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "wanted")
    for options in COPIES[case]:
        converted(tmp_path, **options)
    assert verify(tmp_path / "delta").ok
    assert inspect_checkpoint(tmp_path / "delta").identity.text.startswith("a delta that deltaweights made")
    card = (tmp_path / "delta" / "README.md").read_text()
    assert f"apply --base BASE --delta FOLDER --target OUT --compute-dtype {compute}" in card
    told = RecordingReport()
    back = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=told)
    assert (back.content_digest, told.warnings) == (wanted.content_digest, [])
    assert any("by the digest in the delta's manifest" in note for note in told.notes)
    inputs, where = (tmp_path / "base", tmp_path / "delta"), f"delta {tmp_path / 'delta'}"
    with refused(UsageError, where=where, found="float16", expected=compute):
        apply_delta(*inputs, tmp_path / "other", compute_dtype="float16")
    with refused(Mismatch, problem="is a delta, not a model"):
        export_checkpoint(tmp_path / "delta", tmp_path / "other")
    save(base_model(seed=3), tmp_path / "base", config=False)
    with refused(Mismatch, problem="not the base that the delta was made from"):
        apply_delta(*inputs, tmp_path / "other")


def test_a_delta_that_is_converted_to_another_dtype_is_added_in_its_own(tmp_path: Path) -> None:
    """Its stored dtype is the copy's, its arithmetic its own; the counts hold no longer, and no proof is claimed."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="float32")
    converted(tmp_path, dtype="bfloat16")
    told = RecordingReport()
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=told)
    assert same_bits(load(tmp_path / "back"), reference(base, load(tmp_path / "delta"), torch.float32, torch.float16))
    assert result.proof is not None
    assert result.proof.verdict == "not checked"
    assert not [note for note in told.notes if "will not be as in the target" in note]


def test_a_converted_merge_is_still_that_merge(tmp_path: Path) -> None:
    """As a delta it is refused; in the layout of transformers it is no base."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    converted(tmp_path, "out", weights="bin")
    with refused(Mismatch, problem="already a merged model, not a delta"):
        apply_delta(tmp_path / "base", tmp_path / "out", tmp_path / "again")


def test_a_manifest_of_a_source_that_was_changed_is_said_and_not_used(tmp_path: Path) -> None:
    """What it says is then not known, and that is said."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="float32")
    beside = converted(tmp_path) / "SOURCE_MANIFEST.json"
    beside.write_text(beside.read_text() + " ")
    told = RecordingReport()
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", compute_dtype="float32", report=told)
    assert [text for text in told.warnings if "so arithmetic and base of the delta are not known" in text]


def cut(text: str) -> str:
    return text[: len(text) // 2]


DAMAGED: dict[str, Callable[[str], str]] = {
    "cut short": cut,
    "nothing but its beginning": lambda _: "{",
    "empty": lambda _: "",
    "of a later version": lambda text: text.replace('"version": 1', '"version": 2', 1),
    "without its result": lambda text: text.replace('"result"', '"results"', 1),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_manifest_of_ours_is_not_passed_over(tmp_path: Path, case: str) -> None:
    """Of a delta, or of what is copied, it is refused (3), since it decides the result; of other inputs it is said."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16), compute_dtype="bfloat16")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    for folder in (tmp_path / "delta", tmp_path / "out"):
        manifest = folder / "manifest.json"
        manifest.write_text(DAMAGED[case](manifest.read_text()))
    inputs, path = (tmp_path / "base", tmp_path / "delta"), tmp_path / "delta" / "manifest.json"
    with refused(MalformedInput, where=str(path)) as caught:
        apply_delta(*inputs, tmp_path / "back")
    assert "give --compute-dtype" in (caught.value.remedy or "")
    with refused(MalformedInput, where=str(path)):
        check_base(*inputs)
    with refused(MalformedInput, where=str(path)):
        convert_checkpoint(tmp_path / "delta", tmp_path / "copy")
    told = RecordingReport()
    apply_delta(*inputs, tmp_path / "back", compute_dtype="bfloat16", report=told)  # the remedy
    assert [text for text in told.warnings if str(path) in text and "are not known" in text]
    path.unlink()
    convert_checkpoint(tmp_path / "delta", tmp_path / "copy")  # the remedy there
    told = RecordingReport()
    make_delta(tmp_path / "base", tmp_path / "out", tmp_path / "again", report=told)
    assert [text for text in told.warnings if str(tmp_path / "out" / "manifest.json") in text]


@pytest.mark.parametrize("text", ['{"name": "a web page", "icons": []}', '{"format": "other", "version": 9}', "[1, 2]"])
def test_a_manifest_of_another_program_alarms_nobody(tmp_path: Path, text: str) -> None:
    """It is mentioned, and the inputs are taken as if it were not there."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    for name in ("manifest.json", "SHA256SUMS"):
        (tmp_path / "delta" / name).unlink()
    for folder in ("base", "delta"):
        (tmp_path / folder / "manifest.json").write_text(text)
    told = RecordingReport()
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=told)
    assert told.warnings == []
    assert len([note for note in told.notes if "is not one of deltaweights" in note]) == 2


def test_json_that_is_none_is_said_without_a_sign_of_ours(tmp_path: Path) -> None:
    """Nothing tells whose it was: a warning, with what is not known."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    (tmp_path / "delta" / "SHA256SUMS").unlink()
    (tmp_path / "delta" / "manifest.json").write_text("{")
    told = RecordingReport()
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", report=told)
    assert [text for text in told.warnings if "so arithmetic and base of the delta are not known" in text]


def flip(folder: Path) -> None:
    """Change one weight of a large tensor, which samples do not see."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    tensors = load(folder)
    needle = tensors[EMBEDDING].numpy().tobytes()
    at = data.index(needle) + len(needle) // 2 + 20
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("role", ["base", "delta", "target"])
def test_weights_that_are_not_those_of_their_own_manifest_are_refused(tmp_path: Path, role: str) -> None:
    """Every byte is read anyhow, so its digests are compared with those that the input's own manifest states (6)."""
    base = base_model()
    made(tmp_path, base, tuned(base, torch.float16))
    converted(tmp_path, "base")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "target")
    flip(tmp_path / role)

    def run_it() -> None:
        if role == "target":
            make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "again")
        else:
            apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "again", allow_unproved_base=True)

    with refused(CheckFailed, problem=f"the {role} is not what its own manifest.json says") as caught:
        run_it()
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.NOT_AS_RECORDED, 6)
    assert not (tmp_path / "again").exists()
    assert not verify(tmp_path / role).ok  # the first remedy
    (tmp_path / role / "manifest.json").unlink()
    if role != "delta":
        run_it()  # the second


def test_a_merge_whose_base_was_refuted_says_so_later(tmp_path: Path) -> None:
    """What the user insisted on is in its manifest, and whoever uses the merge is told."""
    base = base_model()
    save(base, tmp_path / "base", config=False)
    delta = {name: (tensor.float() * 1e-3).half() for name, tensor in base_model(seed=4).items()}
    save(delta, tmp_path / "delta", config=False)
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", allow_unproved_base=True)
    assert result.proof is not None
    path = tmp_path / "out" / "manifest.json"
    document = json.loads(path.read_text())
    document["result"]["proof"] |= {"verdict": "violated", "allowed": True}
    path.write_text(json.dumps(document))
    for use in (
        lambda told: convert_checkpoint(tmp_path / "out", tmp_path / "copy", report=told),
        lambda told: make_delta(tmp_path / "base", tmp_path / "out", tmp_path / "again", report=told),
        lambda told: make_delta(tmp_path / "base", tmp_path / "copy", tmp_path / "more", report=told),
    ):
        told = RecordingReport()
        use(told)
        assert [text for text in told.warnings if "the base is refuted" in text]


def test_another_recipe_than_the_manifests_is_said(tmp_path: Path) -> None:
    """A delta that was made by one recipe, and is added by another of the same arithmetic."""
    base, own = base_model(), recipe_file(tmp_path, "float16")
    made(tmp_path, base, tuned(base, torch.float16), recipe_file=own)
    other = tmp_path / "other.toml"
    other.write_text(own.read_text().replace('"own"', '"other"') + '[rules]\ndelta_only = ["w"]\n')
    for recipe, is_said in ((own, False), (other, True)):
        told = RecordingReport()
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / recipe.stem, recipe_file=recipe, report=told)
        assert any("says that it was made by the recipe own" in text for text in told.warnings) == is_said
