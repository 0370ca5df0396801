"""Every recipe of the package at work, on tiny stand-ins of its structure: the bits, the words, and what is refused.

The merged bits are compared with each recipe's arithmetic as its original script has it, done here in torch on whole tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from deltaweights.checkpoint.companions import NOTICE
from deltaweights.cli.group import deltaweights
from deltaweights.errors import Mismatch, UsageError
from deltaweights.jobs.apply import ApplyResult, apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.recipes import catalogue
from tests.conftest import Run
from tests.support.fork_server import run as forked
from tests.support.identity import LLAVA_MED, cached
from tests.support.pairs import GROWN, Tensors, base_tensors, delta_tensors, load, same_bits, save
from tests.support.prepared import prepare_merge
from tests.support.reports import RecordingReport

Done = subprocess.CompletedProcess[str]

PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Structure:
    """What a published delta is made of.

    ``added`` counts new rows, ``rows`` says what they meet, ``projector`` where it is, ``layers`` is the stand-in's number.
    ``known`` says whether the rows of the delta are.
    """

    added: int
    rows: str = "copy"
    projector: str | None = "inside"
    layers: int = 2
    known: bool = True
    compute: torch.dtype = torch.float16


STRUCTURES = {
    "llava-med-7b": Structure(4),
    "llava-med-7b-vqarad": Structure(4),
    "llava-med-7b-pathvqa": Structure(4, known=False),
    "llava-7b-v0": Structure(3, projector="beside", known=False),
    "llava-13b-v0": Structure(3, layers=3),
    "llava-13b-v0-science-qa": Structure(3, layers=3, known=False),
    "llava-13b-v1-1": Structure(3, layers=3, known=False),
    "llava-lightning-7b-v1-1": Structure(3, known=False),
    "vicuna-7b-v0": Structure(1, "zero", None),
    "vicuna-13b-v0": Structure(1, "zero", None, layers=3),
    "vicuna-7b-v1.1": Structure(0, projector=None),
    "vicuna-13b-v1.1": Structure(0, projector=None, layers=3),
    "alpaca-7b": Structure(1, "mean", None, compute=torch.float32),
}
"""All recipes that have weights; SLAKE's, which people hold in an archive alone, has a test of its own."""

SLAKE = "llava-med-7b-slake"
ROWS, HIDDEN, HEADS = 320, 64, 4

HEAD = 'format = "deltaweights-recipe"\nversion = 1\n'


def sizes_of(structure: Structure) -> dict[str, int]:
    """Return what the stand-in's ``[shapes]`` say: every size that the recipe knows."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN - 4, "layers": structure.layers, "heads": HEADS}
    sizes["base_rows"] = ROWS
    return sizes | ({"delta_rows": ROWS + structure.added} if structure.known else {})


class StandIn:
    """A tiny pair of a recipe's structure, and the recipe file that gives it the pair's sizes."""

    def __init__(self, folder: Path, name: str, container: str = "torch") -> None:
        """Make the pair from weights that are the same every time."""
        structure = STRUCTURES.get(name, STRUCTURES["llava-med-7b"])
        self.name, self.folder, self.structure = name, folder, structure
        self.base = base_tensors(structure.layers, ROWS, HIDDEN)
        self.delta = delta_tensors(
            self.base, structure.added, projector=structure.projector is not None, dtype=structure.compute
        )
        for grown in GROWN if structure.added else ():
            self.delta[grown][ROWS:, ::3] = -0.0  # which a row of zeros turns into +0
        save(self.base, folder / "base", container)
        beside = PROJECTOR if structure.projector == "beside" else ()
        save({n: t for n, t in self.delta.items() if n not in beside}, folder / "delta", container)
        if beside:
            torch.save({n: self.delta[n] for n in beside}, folder / "delta" / "mm_projector.bin")
        sum_ = f"[checks]\nsum = {self.published_sum!r}\n" if name == "alpaca-7b" else ""
        self.recipe = write_recipe(folder / f"tiny-{name}.toml", name, sizes_of(structure), sum_)

    @property
    def expected(self) -> Tensors:
        """The merged weights by the recipe's own arithmetic."""
        compute = self.structure.compute
        merged = {}
        for name, tensor in self.delta.items():
            if name.endswith("inv_freq"):
                continue
            total = tensor.to(compute).clone()
            if name in self.base:
                rows = self.base[name].to(compute)
                new = len(total) - len(rows)
                if new and self.structure.rows != "copy":
                    mean = rows.mean(dim=0)
                    below = mean if self.structure.rows == "mean" else torch.zeros_like(mean)
                    rows = torch.cat([rows, below.expand(new, -1)])
                total[: len(rows)] += rows
            merged[name] = total
        return merged

    @property
    def published_sum(self) -> float:
        """The sum over the whole state dict of 2023, rotary buffers included."""
        frequencies = [1.0 / 10000 ** (2 * k / (HIDDEN // HEADS)) for k in range(HIDDEN // HEADS // 2)]
        weights = (value for tensor in self.expected.values() for value in tensor.double().flatten().tolist())
        return math.fsum([*weights, *frequencies * self.structure.layers])

    def apply(self, target: str = "out", **options: Any) -> ApplyResult:
        """Merge the pair by the recipe file, through the Python API."""
        options.setdefault("recipe_file", self.recipe)
        return apply_delta(self.folder / "base", self.folder / "delta", self.folder / target, **options)

    def refusal(self, kind: type[Exception], **options: Any) -> str:
        """Return the line that refuses the pair, having checked that nothing was written."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(kind) as caught:
            self.apply(**options)
        assert before == sorted(self.folder.rglob("*"))
        return str(caught.value)

    def arguments(self, *names: str) -> tuple[str, ...]:
        """Return the arguments that name base, delta and target, as the working folder holds them."""
        flags = names or ("--base", "--delta", "--target")
        return tuple(word for flag, path in zip(flags, ("base", "delta", "out"), strict=True) for word in (flag, path))


def write_recipe(path: Path, extends: str, shapes: dict[str, int], more: str = "", head: str = "") -> Path:
    """Write a recipe file that is laid over one of the package; ``head`` are further keys of its top."""
    sizes = "".join(f"{key} = {size}\n" for key, size in shapes.items())
    path.write_text(f'{HEAD}extends = "{extends}"\n{head}[delta]\nfiles = {{}}\n[shapes]\n{sizes}{more}')
    return path


def zipped(folder: Path, archive: Path, method: int) -> Path:
    """Zip a folder, in a folder that is called as the archive is."""
    with zipfile.ZipFile(archive, "w", method) as target:
        for path in sorted(folder.iterdir()):
            target.write(path, f"{archive.stem}/{path.name}")
    return archive


def digest_by_hand(stand_in: StandIn) -> str:
    """Return the recipe's digest as docs/recipes.md states it."""
    structure = stand_in.structure
    sums = {"sum": stand_in.published_sum, "tolerance": 0.01, "with_buffers": True}
    decisive = {
        "name": stand_in.name,
        "arithmetic": {"compute_dtype": str(structure.compute).removeprefix("torch."), "stated": True},
        "rules": {"new_rows": structure.rows, "delta_only": sorted(PROJECTOR) if structure.projector else []},
        "shapes": sizes_of(structure),
        "checks": sums if stand_in.name == "alpaca-7b" else None,
    }
    return f"recipe1:{blake3(json.dumps(decisive, sort_keys=True, separators=(',', ':')).encode()).hexdigest()}"


def drop_in(*arguments: str | Path, cwd: Path) -> Done:
    """Run ``apply-delta ARGUMENTS``."""
    command = [sys.executable, "-c", "from deltaweights.cli import apply_delta; apply_delta()", *map(str, arguments)]
    return forked(command, cwd=cwd)


def line_of(done: Done, code: int, name: str = "deltaweights") -> str:
    """Return the one line of error, having checked that there is nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix(f"{name}: error: ")


def test_the_table_lists_every_recipe() -> None:
    """Each recipe of the package has a stand-in below, and those without weights are the one that has a test of its own."""
    assert {*STRUCTURES, SLAKE} == {*catalogue.names()}
    assert [name for name in catalogue.names() if not catalogue.load(name).delta.has_weights] == [SLAKE]


# The bits.


@pytest.mark.sampled(4)
@pytest.mark.fidelity
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_recipe_merges_by_its_own_arithmetic(tmp_path: Path, name: str) -> None:
    """Every bit is that of the recipe's arithmetic in torch; manifest, fates, proof and notice are those of the recipe."""
    pair, report = StandIn(tmp_path, name), RecordingReport()
    result = pair.apply(report=report)
    assert same_bits(load(tmp_path / "out"), pair.expected)
    assert (result.recipe, report.warnings) == (name, [])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["result"]["recipe"] == {"name": name, "digest": digest_by_hand(pair)}
    grown = {"copy": "add_block", "zero": "add_zero_rows", "mean": "add_float32_mean_rows"}[pair.structure.rows]
    fates = {tensor: entry["fate"] for tensor, entry in manifest["result"]["tensors"].items()}
    assert {fates[tensor] for tensor in GROWN} == {grown if pair.structure.added else "add"}
    assert {tensor for tensor, fate in fates.items() if fate == "copy"} == set(PROJECTOR) & pair.delta.keys()
    assert result.proof is not None
    assert (result.proof.violations, result.proof.region > 100_000) == (0, True)
    recipe = catalogue.load(name)
    notice = (tmp_path / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text()
    assert notice == f"{NOTICE}\n{recipe.title}: {recipe.notice}\n"
    assert report.notes[0] == f"licence         {recipe.title}: {recipe.notice}"
    assert verify(tmp_path / "out").ok


def test_the_rules_for_new_rows_differ_on_these_pairs(tmp_path: Path) -> None:
    """The stand-ins can tell the rules apart: kept, added to zero and added to the mean are three different results."""
    pair = StandIn(tmp_path, "vicuna-7b-v0")
    found = {}
    for rule in ("copy", "zero"):
        path = write_recipe(
            tmp_path / f"{rule}.toml", "vicuna-7b-v0", sizes_of(pair.structure), f'[rules]\nnew_rows = "{rule}"\n'
        )
        pair.apply(rule, recipe_file=path)
        found[rule] = load(tmp_path / rule)[EMBEDDING][ROWS:]
    assert torch.equal(found["copy"], found["zero"]), "as numbers they are the same"
    assert torch.signbit(found["copy"]).sum() > torch.signbit(found["zero"]).sum(), "the sign of zero tells them apart"
    alpaca = StandIn(tmp_path / "alpaca", "alpaca-7b")
    assert not torch.equal(alpaca.expected[EMBEDDING][ROWS:], alpaca.delta[EMBEDDING][ROWS:])


def test_slake_merges_from_its_archive(tmp_path: Path) -> None:
    """SLAKE's delta, which has no repository with weights, is merged from the archive that people hold."""
    pair = StandIn(tmp_path, SLAKE)
    archive = zipped(tmp_path / "delta", tmp_path / "Slake1.0-9epoch_delta.zip", zipfile.ZIP_DEFLATED)
    result = apply_delta(tmp_path / "base", archive, tmp_path / "out", recipe_file=pair.recipe)
    assert (result.recipe, same_bits(load(tmp_path / "out"), pair.expected)) == (SLAKE, True)


@pytest.mark.parametrize("name", ["llava-med-7b", "alpaca-7b", "vicuna-13b-v1.1"])
def test_the_container_changes_no_byte(tmp_path: Path, name: str) -> None:
    """Torch or safetensors, the weights and their index have the same bytes under a recipe, too."""
    found = []
    for container in ("torch", "safetensors"):
        pair = StandIn(tmp_path / container, name, container)
        pair.apply(max_shard_size="200KB")
        files = sorted((tmp_path / container / "out").glob("model*"))
        assert len(files) > 2
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]


# The command line.


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["llava-med-7b", "vicuna-13b-v0", "alpaca-7b"])
@pytest.mark.parametrize("program", ["apply", "apply-delta"])
def test_the_command_merges_by_a_recipe(run: Run, tmp_path: Path, name: str, program: str) -> None:
    """Named and overridden by a file, or by the file alone: the same bits; the licence is shown before the work begins."""
    pair = StandIn(tmp_path, name)
    if program == "apply":
        done = run("apply", name, "--recipe", pair.recipe, *pair.arguments(), cwd=tmp_path)
    else:
        flags = ("--base-model-path", "--delta-path", "--target-model-path")
        done = drop_in("--recipe", pair.recipe, *pair.arguments(*flags), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same_bits(load(tmp_path / "out"), pair.expected)
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["base"].strip().startswith("proved: ")
    recipe, said = catalogue.load(name), done.stderr.splitlines()
    assert said[0] == f"licence         {recipe.title}: {recipe.notice}"
    if name == "llava-med-7b":
        assert "It is not for clinical care or for any clinical decision." in said[0]
    sums = [line for line in said if line.startswith("sum ")]
    if name == "alpaca-7b":
        total = pair.published_sum
        assert sums == [f"sum             agrees: sum of all elements {total:.4f}, published {total!r} (within 0.01)"]
    else:
        assert sums == []
    assert not any("warning" in line for line in said)


def test_a_sum_that_is_not_the_published_one_is_told(run: Run, tmp_path: Path) -> None:
    """A sum outside the tolerance is a warning and a field of the JSON, and ends nothing."""
    pair = StandIn(tmp_path, "alpaca-7b")
    total, published = pair.published_sum, round(pair.published_sum) + 7.25
    path = write_recipe(
        tmp_path / "r.toml", "alpaca-7b", sizes_of(pair.structure), f"[checks]\nsum = {published}\ntolerance = 0.5\n"
    )
    done = run("apply", "--recipe", path, *pair.arguments(), "--json", "-q", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        f"deltaweights: warning: sum does not agree: sum of all elements {total:.4f}, published {published} (within 0.5); "
        "base or delta may be another, or damaged\n"
    )
    found = json.loads(done.stdout)["published_sum"]
    assert found.pop("found") == pytest.approx(total, abs=1e-9)
    assert found == {"published": published, "tolerance": 0.5, "agrees": False}
    assert same_bits(load(tmp_path / "out"), pair.expected)


@pytest.mark.parametrize("inside", [True, False])
def test_the_sum_is_compared_within_its_tolerance(tmp_path: Path, *, inside: bool) -> None:
    """A published sum that is less than the tolerance away agrees, one that is more does not; without buffers, none is added."""
    pair = StandIn(tmp_path, "alpaca-7b")
    weights = math.fsum(x for tensor in pair.expected.values() for x in tensor.double().flatten().tolist())
    away = 0.009 if inside else 0.011
    checks = f"[checks]\nsum = {weights + away!r}\nwith_buffers = false\n"
    path = write_recipe(tmp_path / "r.toml", "alpaca-7b", sizes_of(pair.structure), checks)
    found = pair.apply(recipe_file=path).published_sum
    assert found is not None
    assert found.agrees is inside
    assert found.found == pytest.approx(weights, abs=1e-9)


# What does not fit a recipe.

USE_THE_BASE = "; use the original LLaMA-1 of the delta's size as the base"
LEAVE_ONE_OUT = (
    "; leave them out: load the base in transformers, resize_token_embeddings(319), save_pretrained to a new folder"
    ", or use the original LLaMA-1 of the delta's size as the base"
)
USE_THE_DELTA = "; use the delta that the recipe names, or another recipe"

OTHER_SIZES = {
    "base-rows": (
        {"base_rows": 319},
        "base",
        f"tensor {EMBEDDING}: ",
        "likely it has 1 added row, such as that of [PAD]: found 320 rows, expected 319",
    ),
    "delta-rows": ({"delta_rows": 323}, "delta", f"tensor {EMBEDDING}: ", "found 324 rows, expected 323"),
    "hidden-size": ({"hidden_size": 63}, "base", f"tensor {EMBEDDING}: ", "found 64 columns, expected 63"),
    "intermediate-size": (
        {"intermediate_size": 176},
        "base",
        "tensor model.layers.0.mlp.gate_proj.weight: ",
        "found 188 rows, expected 176",
    ),
    "layers": ({"layers": 3}, "base", "", "found 2 layers, expected 3"),
}


@pytest.mark.parametrize(("shapes", "role", "tensor", "facts"), OTHER_SIZES.values(), ids=OTHER_SIZES)
def test_row58_other_sizes_than_the_recipes(
    run: Run, tmp_path: Path, shapes: dict[str, int], role: str, tensor: str, facts: str
) -> None:
    """A base or delta of other sizes than the recipe states ends with 4: which, which tensor, both sizes, and the way out."""
    pair = StandIn(tmp_path, "llava-med-7b")
    path = write_recipe(tmp_path / "r.toml", pair.name, sizes_of(pair.structure) | shapes)
    remedy = LEAVE_ONE_OUT if "added row" in facts else USE_THE_BASE if role == "base" else USE_THE_DELTA
    expected = f"{role} {tmp_path / role}: {tensor}not the {role} of recipe llava-med-7b: {facts}{remedy}"
    assert pair.refusal(Mismatch, recipe_file=path) == expected
    done = run("apply", "--recipe", path, *pair.arguments(), "-q", cwd=tmp_path)
    assert line_of(done, 4) == expected.replace(str(tmp_path / role), role)


def test_row58_a_delta_of_another_model(tmp_path: Path) -> None:
    """Where the base is right, the delta alone is named: its layers, its columns, and the rows of its head."""
    pair = StandIn(tmp_path, "llava-med-7b")
    shutil.rmtree(tmp_path / "delta")
    start = f"delta {tmp_path / 'delta'}: "
    problem = "not the delta of recipe llava-med-7b: found "
    for wrong, words in (
        (delta_tensors(base_tensors(3, ROWS, HIDDEN)), "3 layers, expected 2"),
        (delta_tensors(base_tensors(2, ROWS, 56)), "56 columns, expected 64"),
        (pair.delta | {"lm_head.weight": torch.zeros(ROWS + 3, HIDDEN).half()}, "323 rows, expected 324"),
    ):
        save(wrong, tmp_path / "delta", "torch", 1)
        tensor = "" if "layers" in words else f"tensor {'lm_head.weight' if '323' in words else EMBEDDING}: "
        assert pair.refusal(Mismatch) == f"{start}{tensor}{problem}{words}{USE_THE_DELTA}"


def test_without_known_rows_any_delta_of_the_structure_fits(tmp_path: Path) -> None:
    """A recipe whose rows were not seen states none, so that the delta's number of rows is free, and its own rules still hold."""
    pair = StandIn(tmp_path, "llava-7b-v0")
    pair.delta = delta_tensors(pair.base, 9)
    shutil.rmtree(tmp_path / "delta")
    save(pair.delta, tmp_path / "delta")
    pair.apply()
    assert same_bits(load(tmp_path / "out"), pair.expected)


def test_row58_vicuna_has_no_projector(tmp_path: Path) -> None:
    """A recipe that names no tensors of its own refuses a delta with a projector, which plain rules would copy."""
    pair = StandIn(tmp_path, "vicuna-7b-v1.1")
    save(delta_tensors(pair.base, 0), tmp_path / "delta", "torch", 2)
    assert pair.refusal(Mismatch) == (
        "delta pytorch_model-00002-of-00002.bin: tensor model.mm_projector.weight: is in the delta, not in the base: "
        "found no such tensor, expected F16 [64, 24] (and 1 more tensor not fitting); all of the base fits, "
        "and the delta has more: model.mm_projector.weight, model.mm_projector.bias; "
        "if they belong to it whole, list them in a recipe of your own as delta_only (docs/recipes.md)"
    )
    assert pair.apply(recipe_file=None).fates["copy"] == 2


def test_row58_new_rows_that_the_rules_have_no_place_for(tmp_path: Path) -> None:
    """Zeros and means are rows of the base's width: a delta with more columns, too, is refused under such a recipe."""
    pair = StandIn(tmp_path, "vicuna-7b-v0")
    wide = pair.delta | {name: torch.zeros(ROWS + 1, HIDDEN + 1).half() for name in GROWN}
    save(wide, tmp_path / "delta", "torch", 2)
    sizes = {key: size for key, size in sizes_of(pair.structure).items() if key in {"layers", "base_rows"}}
    path = tmp_path / "r.toml"
    path.write_text(
        f'{HEAD}name = "wide"\n[arithmetic]\ncompute_dtype = "float16"\n[rules]\nnew_rows = "zero"\n[shapes]\n'
        + "".join(f"{key} = {size}\n" for key, size in sizes.items())
    )
    assert "shapes do not fit: found [320, 64] in the base, expected [321, 65], as in the delta" in pair.refusal(
        Mismatch, recipe_file=path
    )
    assert pair.apply(recipe_file=None).fates["add_block"] == 2


# A delta that is not whole.

NO_PROJECTOR = [name for name in catalogue.names() if not catalogue.load(name).required]


def without_projector(tmp_path: Path, name: str, drop: tuple[str, ...] = PROJECTOR) -> StandIn:
    """Make a pair whose delta lacks some of its projector, and whose recipe wants it as the package's does."""
    pair = StandIn(tmp_path, name)
    shutil.rmtree(tmp_path / "delta")
    save({name: tensor for name, tensor in pair.delta.items() if name not in drop}, tmp_path / "delta")
    return pair


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name not in NO_PROJECTOR])
def test_row58_a_llava_delta_without_its_projector(tmp_path: Path, name: str) -> None:
    """A LLaVA or LLaVA-Med delta that lacks the projector is refused with 4, with what is likely missing."""
    pair = without_projector(tmp_path, name)
    assert pair.refusal(Mismatch) == (
        f"delta {tmp_path / 'delta'}: tensor {PROJECTOR[0]}: not the whole delta of recipe {name}: found no such tensor; "
        "is mm_projector.bin missing beside the shards?"
    )


def test_the_projector_may_lie_beside_the_shards(tmp_path: Path) -> None:
    """With ``mm_projector.bin`` beside its shards the same delta is whole."""
    pair = without_projector(tmp_path, "llava-7b-v0")
    torch.save({name: pair.delta[name] for name in PROJECTOR}, tmp_path / "delta" / "mm_projector.bin")
    assert pair.apply().fates["copy"] == 2
    assert same_bits(load(tmp_path / "out"), pair.expected)


def test_a_projector_need_not_have_a_bias(tmp_path: Path) -> None:
    """A delta whose projector is a weight alone is whole."""
    assert without_projector(tmp_path, "llava-7b-v0", PROJECTOR[1:]).apply().fates["copy"] == 1


def test_without_a_recipe_no_tensor_is_required(tmp_path: Path) -> None:
    """The plain rules take a delta without a projector as it is."""
    assert without_projector(tmp_path, "llava-7b-v0").apply(recipe_file=None).fates["copy"] == 0


def test_row58_a_required_tensor_that_is_no_projector(tmp_path: Path) -> None:
    """Of any other tensor that a recipe requires, it is said to fetch the delta again."""
    pair = StandIn(tmp_path, "llava-med-7b")
    rules = f'[rules]\ndelta_only = {[*PROJECTOR, "x"]}\nrequired = ["x"]\n'
    path = write_recipe(tmp_path / "r.toml", pair.name, sizes_of(pair.structure), rules)
    assert pair.refusal(Mismatch, recipe_file=path) == (
        f"delta {tmp_path / 'delta'}: tensor x: not the whole delta of recipe llava-med-7b: found no such tensor; "
        "fetch it again"
    )


# Command lines that make no sense.


def test_a_dtype_against_the_recipe(run: Run, tmp_path: Path) -> None:
    """``--compute-dtype`` other than the recipe's ends with 2 before an input is looked for; the recipe's own is accepted."""
    absent = ("--base", "absent", "--delta", "absent", "--target", "out")
    line = line_of(run("apply", "alpaca-7b", "--compute-dtype", "float16", *absent, cwd=tmp_path), 2)
    assert line == (
        "recipe alpaca-7b adds in another dtype: found float16, expected float32; "
        "leave --compute-dtype out, or give the recipe in a file of your own"
    )
    dry = line_of(run("apply", "alpaca-7b", "--compute-dtype", "float16", "--dry-run", *absent, cwd=tmp_path), 2)
    assert dry == line
    pair = StandIn(tmp_path, "alpaca-7b")
    assert pair.apply(compute_dtype="float32").status == "merged"
    assert pair.apply("halved", dtype="float16").status == "merged"
    halved = {name: tensor.half() for name, tensor in pair.expected.items()}
    assert same_bits(load(tmp_path / "halved"), halved)


WHERE = {
    "base-13b": (
        ("vicuna-13b-v0", "--delta", "d"),
        "recipe vicuna-13b-v0 does not say where its base is; give --base",
    ),
    "base-no-recipe": (
        ("--delta", "d"),
        "--base is missing; give it, or name a recipe: deltaweights recipes",
    ),
    "delta-no-recipe": (
        ("--base", "b"),
        "--delta is missing; give it, or name a recipe: deltaweights recipes",
    ),
    "delta-of-a-file": (
        ("--recipe", "own.toml", "--base", "b"),
        "recipe own does not say where its delta is; give --delta",
    ),
    "base-of-a-file": (
        ("--recipe", "own.toml", "--delta", "d"),
        "recipe own does not say where its base is; give --base",
    ),
    "unknown": (
        ("llava-med", "--base", "b", "--delta", "d"),
        (
            "no recipe has this name: found llava-med, expected one of llava-med-7b, llava-med-7b-slake, llava-med-7b-vqarad; "
            "`deltaweights recipes` lists them"
        ),
    ),
    "unknown-option": (
        ("--recipe", "vicuna-7b", "--base", "b", "--delta", "d"),
        (
            "no recipe has this name: found vicuna-7b, expected one of vicuna-7b-v0, vicuna-7b-v1.1, vicuna-13b-v0; "
            "`deltaweights recipes` lists them"
        ),
    ),
    "two-names": (
        ("llava-med-7b", "--recipe", "alpaca-7b", "--base", "b", "--delta", "d"),
        "two recipes are named: found llava-med-7b and alpaca-7b, expected one, or one and a file",
    ),
    "one-name-twice": (
        ("alpaca-7b", "--recipe", "alpaca-7b", "--base", "b", "--delta", "d"),
        "two recipes are named: found alpaca-7b and alpaca-7b, expected one, or one and a file",
    ),
    "a-file-in-place-of-a-name": (
        ("own.toml", "--base", "b", "--delta", "d"),
        "a recipe in a file is given as an option: found own.toml; --recipe own.toml",
    ),
    "a-path-in-place-of-a-name": (
        ("./absent", "--base", "b", "--delta", "d"),
        "a recipe in a file is given as an option: found ./absent; --recipe ./absent",
    ),
    "a-file-in-place-of-a-name-and-a-name": (
        ("own.toml", "--recipe", "alpaca-7b", "--base", "b", "--delta", "d"),
        "a recipe in a file is given as an option: found own.toml; --recipe own.toml",
    ),
    "a-file-of-another": (
        ("alpaca-7b", "--recipe", "over.toml", "--base", "b", "--delta", "d"),
        "over.toml: extends another recipe than the one that is named: found vicuna-7b-v0, expected alpaca-7b; name one of them",
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("arguments", "message"), WHERE.values(), ids=WHERE)
def test_what_is_missing_or_too_much(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """A missing input or a recipe that cannot be meant ends with 2 and one line, which says where to get what is missing."""
    (tmp_path / "own.toml").write_text(f'{HEAD}name = "own"\n[arithmetic]\ncompute_dtype = "float16"\n')
    (tmp_path / "over.toml").write_text(f'{HEAD}extends = "vicuna-7b-v0"\n')
    before = sorted(tmp_path.rglob("*"))
    assert line_of(run("apply", *arguments, "--target", "out", cwd=tmp_path), 2) == message
    assert before == sorted(tmp_path.rglob("*"))


def test_a_repository_without_weights(run: Run, tmp_path: Path) -> None:
    """A recipe whose repository holds no weights ends with 5 before anything is fetched, and names the archive."""
    line = line_of(run("apply", SLAKE, "--base", "b", "--target", "out", cwd=tmp_path), 5)
    assert line == (
        "katielink/llava-med-7b-slake-delta: the repository holds no weights; "
        "give the archive, if you have it: Slake1.0-9epoch_delta.zip"
    )


def test_the_drop_in_takes_a_name_by_the_option(tmp_path: Path) -> None:
    """``apply-delta --recipe NAME`` is that recipe: its sizes are held against the pair, and an unknown name ends with 2."""
    pair = StandIn(tmp_path, "llava-med-7b")
    line = line_of(drop_in("--recipe", "llava-med-7b", *pair.arguments(), "-q", cwd=tmp_path), 4, "apply-delta")
    assert line == (
        f"base base: tensor {EMBEDDING}: not the base of recipe llava-med-7b: "
        f"found 320 rows, expected 32000{USE_THE_BASE}"
    )
    unknown = line_of(drop_in("--recipe", "nonsense", *pair.arguments(), cwd=tmp_path), 2, "apply-delta")
    assert unknown.startswith("no recipe has this name: found nonsense, expected one of ")


def test_a_recipe_file_without_a_suffix_is_a_file(run: Run, tmp_path: Path) -> None:
    """What ``--recipe`` names is a file when it is one, whatever its name, or has a slash or ``.toml`` in it."""
    pair = StandIn(tmp_path, "llava-med-7b")
    pair.recipe.rename(tmp_path / "ours")
    done = run("apply", "--recipe", "ours", *pair.arguments(), "--dry-run", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["fates"]["add_block"]) == (0, 2)
    for absent in ("./ours2", "absent.toml"):
        line = line_of(run("apply", "--recipe", absent, *pair.arguments(), cwd=tmp_path), 5)
        assert line == f"{Path(absent)}: cannot open: No such file or directory"


# The plan.


def plan_of(pair: StandIn, recipe: Path | None) -> str:
    """Return the identity of the plan of the pair under a recipe file."""
    with prepare_merge(pair.folder / "base", pair.folder / "delta", pair.folder / "out", recipe_file=recipe) as job:
        return job.plan.identity


def test_another_recipe_is_another_plan(tmp_path: Path) -> None:
    """No recipe, a recipe, and that recipe under another name, digest or notice have different plans; sources change nothing."""
    pair = StandIn(tmp_path, "llava-med-7b")
    sizes = sizes_of(pair.structure)
    heads = {
        "same": "",
        "source": 'sources = ["https://example.org"]\n',
        "renamed": 'name = "tiny"\n',
        "notice": 'notice = "x"\n',
    }
    plans = {
        key: plan_of(pair, write_recipe(tmp_path / f"{key}.toml", pair.name, sizes, "", head))
        for key, head in heads.items()
    }
    plans["unstated"] = plan_of(
        pair, write_recipe(tmp_path / "u.toml", pair.name, sizes, "[arithmetic]\nstated = false\n")
    )
    plans["none"] = plan_of(pair, None)
    assert plans.pop("same") == plans["source"] == plan_of(pair, pair.recipe)
    assert len(set(plans.values())) == len(plans) == 5


def test_the_result_of_another_recipe_is_other_content(run: Run, tmp_path: Path) -> None:
    """The same recipe again finds its result complete; without it, the same pair ends with 7 and leaves what is there."""
    pair = StandIn(tmp_path, "llava-med-7b")
    pair.apply()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = run("apply", "--recipe", pair.recipe, *pair.arguments(), "--json", cwd=tmp_path)
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "already complete")
    assert "already there, with other content" in line_of(run("apply", *pair.arguments(), "-q", cwd=tmp_path), 7)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# Recognised by where it is, or by its hashes.

OTHER = {name: str(number) * 64 for number, name in enumerate(LLAVA_MED)}
"""InputHashes that no recipe lists, of files of the names that LLaVA-Med's have."""

RECOGNISED = {
    "by-its-repository": ("microsoft--llava-med-7b-delta", OTHER),
    "whatever-its-case": ("Microsoft--LLaVA-Med-7B-delta", OTHER),
    "by-its-hashes": ("somebody--mirror", LLAVA_MED),
}


@pytest.mark.parametrize(("repository", "blobs"), RECOGNISED.values(), ids=RECOGNISED)
def test_row58_a_recognised_delta_has_the_recipes_sizes(
    run: Run, tmp_path: Path, repository: str, blobs: dict[str, str]
) -> None:
    """A delta in the Hub's cache is known without being named: it says so, and a tiny one is refused for its shapes."""
    pair = StandIn(tmp_path, "llava-med-7b")
    delta = cached(tmp_path / "delta", blobs, repository)
    done = run("apply", "--base", "base", "--delta", delta, "--target", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    note, licence, error = done.stderr.splitlines()
    assert note.startswith("recipe          llava-med-7b: the delta is that of LLaVA-Med v1, 7B (")
    assert licence.startswith("licence         LLaVA-Med v1, 7B: LLaVA-Med is for research use only.")
    assert error == (
        f"deltaweights: error: base base: tensor {EMBEDDING}: not the base of recipe llava-med-7b: "
        f"found 320 rows, expected 32000{USE_THE_BASE}"
    )
    assert not (tmp_path / "out").exists()
    named = run("apply", "--recipe", pair.recipe, "--base", "base", "--delta", delta, "--target", "out", cwd=tmp_path)
    assert (named.returncode, "recipe  " in named.stderr) == (0, False), "what is named need not be recognised"
    assert same_bits(load(tmp_path / "out"), pair.expected)


def how_recognised(pair: StandIn, blobs: dict[str, str], repository: str) -> str:
    """Return what is said of how a delta of LLaVA-Med's in the Hub's cache was recognised."""
    delta, report = cached(pair.folder / "delta", blobs, repository), RecordingReport()
    with pytest.raises(Mismatch):
        apply_delta(pair.folder / "base", delta, pair.folder / "out", report=report)
    return report.notes[0].removeprefix("recipe          llava-med-7b: the delta is that of LLaVA-Med v1, 7B ")


def test_how_a_delta_was_recognised_is_said(tmp_path: Path) -> None:
    """Of a delta that was recognised by its place, the repository is named, spelled as there."""
    pair = StandIn(tmp_path, "llava-med-7b")
    how = how_recognised(pair, OTHER, "Microsoft--llava-med-7b-delta")
    assert how == "(a snapshot of Microsoft/llava-med-7b-delta)"


def test_that_hashes_told_is_said(tmp_path: Path) -> None:
    """Of a delta in a repository that no recipe names, known by its files' hashes, it is said that these told."""
    pair = StandIn(tmp_path, "llava-med-7b")
    assert how_recognised(pair, LLAVA_MED, "somebody--mirror") == "(by the sha256 of its files)"


def test_a_recognised_delta_is_merged_by_its_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of a recipe that was recognised are applied, whoever named none: Alpaca's float32, mean row and sum."""
    pair, report = StandIn(tmp_path, "alpaca-7b"), RecordingReport()
    delta = cached(tmp_path / "delta", OTHER, "tatsu-lab--alpaca-7b-wdiff")
    tiny = catalogue.load_file(pair.recipe)
    monkeypatch.setattr("deltaweights.jobs.recognised_recipe.load", {"alpaca-7b": tiny}.__getitem__)
    result = apply_delta(tmp_path / "base", delta, tmp_path / "out", report=report)
    assert result.recipe == "alpaca-7b"
    assert result.published_sum is not None
    assert result.published_sum.agrees
    assert same_bits(load(tmp_path / "out"), pair.expected)
    how = "a snapshot of tatsu-lab/alpaca-7b-wdiff"
    assert report.notes[0] == f"recipe          alpaca-7b: the delta is that of Alpaca, 7B ({how})"
    with pytest.raises(UsageError, match="recipe alpaca-7b adds in another dtype: found float16, expected float32"):
        apply_delta(tmp_path / "base", delta, tmp_path / "other", compute_dtype="float16")
    assert not (tmp_path / "other").exists()


def alpaca_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Make a pair whose delta's files have the hashes of Alpaca's, as far as the recipes know."""
    pair = StandIn(tmp_path, "alpaca-7b")
    tiny = catalogue.load_file(pair.recipe)
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): pair.name for path in (tmp_path / "delta").glob("*.bin")}
    monkeypatch.setattr("deltaweights.jobs.recognised_recipe.load", {pair.name: tiny}.__getitem__)
    for module in ("jobs.recognised_recipe", "recipes.identify"):
        monkeypatch.setattr(f"deltaweights.{module}.recipe_of_file", files.get)
    return pair


def test_hashes_that_are_made_tell_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``hash_inputs`` a delta of known files is merged by its recipe's rules; how and the notice are said once."""
    pair, report = alpaca_by_hash(tmp_path, monkeypatch), RecordingReport()
    result = pair.apply(recipe_file=None, hash_inputs=True, report=report)
    assert (result.recipe, result.fates["add_float32_mean_rows"]) == ("alpaca-7b", 2)
    assert same_bits(load(tmp_path / "out"), pair.expected)
    recipe = catalogue.load("alpaca-7b")
    assert report.notes[:2] == [
        "recipe          alpaca-7b: the delta is that of Alpaca, 7B (by the sha256 of its files)",
        f"licence         Alpaca, 7B: {recipe.notice}",
    ]
    assert len({*report.notes}) == len(report.notes)
    named = [note for note in report.notes if note.split()[0] in {"licence", "recipe", "base", "delta"}]
    assert [note.split()[0] for note in named] == ["recipe", "licence", "base", "delta"]
    assert report.warnings == [
        (
            f"{tmp_path / 'base' / 'pytorch_model-00001-of-00002.bin'}: "
            "its sha256 is not a known one of LLaMA-1 7B: another copy, or damaged"
        )
    ]


def test_without_hashes_the_recipe_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``hash_inputs`` the same delta is merged by the plain rules: nobody looked."""
    pair, report = alpaca_by_hash(tmp_path, monkeypatch), RecordingReport()
    result = pair.apply(recipe_file=None, report=report)
    assert (result.recipe, result.fates["add_block"]) == (None, 2)
    assert [note for note in report.notes if note.startswith(("recipe", "licence"))] == []


def test_a_dry_run_with_hashes_shows_the_plan_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--dry-run --hash-inputs`` hashes, too: recipe, notice and plan are those of the run, and nothing is written."""
    pair = alpaca_by_hash(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    before, command = sorted(tmp_path.rglob("*")), ["apply", *pair.arguments(), "--json", "--hash-inputs"]
    deltaweights.main([*command, "--dry-run"], standalone_mode=False)
    planned = capsys.readouterr()
    assert before == sorted(tmp_path.rglob("*"))
    deltaweights.main(command, standalone_mode=False)
    done = capsys.readouterr()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert json.loads(planned.out)["plan"] == manifest["inputs"]["plan"]
    assert json.loads(done.out)["recipe"] == "alpaca-7b"
    assert planned.err.splitlines() == done.err.splitlines()[: planned.err.count("\n")]
    assert planned.err.count("recipe          alpaca-7b: ") == planned.err.count("licence  ") == 1


MED_ARCHIVE = "llava_med_in_text_60k_ckpt2_delta.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_delta_is_known_by_the_name_of_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    """A delta in the archive that was distributed is merged by its recipe, and it is said how it was known."""
    pair, report = StandIn(tmp_path, "llava-med-7b"), RecordingReport()
    monkeypatch.setattr(
        "deltaweights.jobs.recognised_recipe.load", {pair.name: catalogue.load_file(pair.recipe)}.__getitem__
    )
    archive = zipped(tmp_path / "delta", tmp_path / MED_ARCHIVE, method)
    result = apply_delta(tmp_path / "base", archive, tmp_path / "out", report=report)
    assert (result.recipe, same_bits(load(tmp_path / "out"), pair.expected)) == ("llava-med-7b", True)
    assert report.notes[0] == (
        "recipe          llava-med-7b: the delta is that of LLaVA-Med v1, 7B (by the name of its archive)"
    )
    assert report.warnings == []


def test_an_archive_of_another_name_is_not_known(tmp_path: Path) -> None:
    """The same archive under another name is merged by the plain rules."""
    pair = StandIn(tmp_path, "llava-med-7b")
    archive = zipped(tmp_path / "delta", tmp_path / f"copy-of-{MED_ARCHIVE}", zipfile.ZIP_STORED)
    result = apply_delta(tmp_path / "base", archive, tmp_path / "out")
    assert (result.recipe, same_bits(load(tmp_path / "out"), pair.expected)) == (None, True)


def test_row58_a_known_archive_has_the_recipes_sizes(run: Run, tmp_path: Path) -> None:
    """What the recipe of an archive's name states is held against the pair: a tiny one ends with 4, and nothing is left."""
    StandIn(tmp_path, "llava-med-7b")
    archive = zipped(tmp_path / "delta", tmp_path / MED_ARCHIVE, zipfile.ZIP_DEFLATED)
    before = sorted(tmp_path.rglob("*"))
    done = run("apply", "--base", "base", "--delta", archive, "--target", "out", "-q", cwd=tmp_path)
    assert line_of(done, 4) == (
        f"base base: tensor {EMBEDDING}: not the base of recipe llava-med-7b: "
        f"found 320 rows, expected 32000{USE_THE_BASE}"
    )
    assert before == sorted(tmp_path.rglob("*"))


def test_another_repository_is_not_recognised(tmp_path: Path) -> None:
    """A snapshot of a repository that no recipe names, of files that none lists, is merged by the plain rules."""
    pair, report = StandIn(tmp_path, "llava-med-7b"), RecordingReport()
    delta = cached(tmp_path / "delta", OTHER, "microsoft--llava-med")
    result = apply_delta(tmp_path / "base", delta, tmp_path / "out", report=report)
    assert (result.recipe, [note for note in report.notes if note.startswith("recipe")]) == (None, [])
    assert same_bits(load(tmp_path / "out"), pair.expected)


# Recipes of one's own.


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], RecordingReport]:
    """Return what is said of a LLaVA-Med-like merge by a recipe of one's own with these keys on its top."""
    pair = StandIn(tmp_path, "llava-med-7b")

    def merge(head: str) -> RecordingReport:
        path, report = tmp_path / "own.toml", RecordingReport()
        path.write_text(f'{HEAD}name = "own"\n{head}[arithmetic]\ncompute_dtype = "float16"\n')
        pair.apply(recipe_file=path, report=report)
        assert same_bits(load(tmp_path / "out"), pair.expected)
        return report

    return merge


def test_a_notice_of_ones_own(own: Callable[[str], RecordingReport], tmp_path: Path) -> None:
    """A recipe file's title and notice are shown, and stand below ours."""
    report = own('title = "Ours"\nnotice = "For this ward only."\n')
    assert report.notes[0] == "licence         Ours: For this ward only."
    notice = (tmp_path / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text()
    assert notice == f"{NOTICE}\nOurs: For this ward only.\n"


def test_without_a_notice_none_is_shown(own: Callable[[str], RecordingReport], tmp_path: Path) -> None:
    """A recipe file without a notice shows none, and our own stands alone."""
    report = own("")
    assert (tmp_path / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text() == NOTICE
    assert [note for note in report.notes if note.startswith("licence")] == []


def test_a_notice_of_two_lines_is_shown_as_two(run: Run, tmp_path: Path) -> None:
    """Line feeds, which a notice may hold, are line feeds on the terminal, too."""
    pair = StandIn(tmp_path, "llava-med-7b")
    path = tmp_path / "own.toml"
    path.write_text(f'{HEAD}name = "own"\nnotice = "One.\\nTwo."\n[arithmetic]\ncompute_dtype = "float16"\n')
    done = run("apply", "--recipe", path, *pair.arguments(), cwd=tmp_path)
    assert done.returncode == 0
    assert "\\n" not in done.stderr


def test_a_mean_in_another_dtype_has_a_way_out(tmp_path: Path) -> None:
    """A recipe that wants a mean in float16 is refused by what it says, and not with an option that is refused in turn."""
    pair = StandIn(tmp_path, "alpaca-7b")
    path = write_recipe(
        tmp_path / "r.toml", "alpaca-7b", sizes_of(pair.structure), '[arithmetic]\ncompute_dtype = "float16"\n'
    )
    message = pair.refusal(Exception, recipe_file=path)
    assert 'expected mean only with arithmetic.compute_dtype = "float32"' in message
    assert "--compute-dtype" not in message
