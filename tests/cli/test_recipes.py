"""``deltaweights recipes``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deltaweights.cli.recipes import command
from deltaweights.recipes import catalogue, models
from deltaweights.recipes.recipe import Recipe, parse_recipe
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.recipes import FACTS, FULL

LIST = """\
recipe                   model                                    base         delta
alpaca-7b                Alpaca, 7B                               llama-1-7b   tatsu-lab/alpaca-7b-wdiff
llava-7b-v0              LLaVA v0, 7B                             llama-1-7b   liuhaotian/LLaVA-7b-delta-v0
llava-13b-v0             LLaVA v0, 13B                            llama-1-13b  liuhaotian/LLaVA-13b-delta-v0
llava-13b-v0-science-qa  LLaVA v0, 13B, fine-tuned on ScienceQA   llama-1-13b  liuhaotian/LLaVA-13b-delta-v0-science_qa
llava-13b-v1-1           LLaVA v1.1, 13B                          llama-1-13b  liuhaotian/LLaVA-13b-delta-v1-1
llava-lightning-7b-v1-1  LLaVA Lightning v1.1, 7B                 llama-1-7b   liuhaotian/LLaVA-Lightning-7B-delta-v1-1
llava-med-7b             LLaVA-Med v1, 7B                         llama-1-7b   microsoft/llava-med-7b-delta
llava-med-7b-pathvqa     LLaVA-Med v1, 7B, fine-tuned on PathVQA  llama-1-7b   katielink/llava-med-7b-pathvqa-delta
llava-med-7b-slake       LLaVA-Med v1, 7B, fine-tuned on SLAKE    llama-1-7b   katielink/llava-med-7b-slake-delta (NO WEIGHTS)
llava-med-7b-vqarad      LLaVA-Med v1, 7B, fine-tuned on VQA-RAD  llama-1-7b   katielink/llava-med-7b-vqarad-delta
vicuna-7b-v0             Vicuna v0, 7B                            llama-1-7b   lmsys/vicuna-7b-delta-v0
vicuna-7b-v1.1           Vicuna v1.1, 7B                          llama-1-7b   lmsys/vicuna-7b-delta-v1.1
vicuna-13b-v0            Vicuna v0, 13B                           llama-1-13b  lmsys/vicuna-13b-delta-v0
vicuna-13b-v1.1          Vicuna v1.1, 13B                         llama-1-13b  lmsys/vicuna-13b-delta-v1.1
"""

SLAKE = """\
recipe          llava-med-7b-slake
model           LLaVA-Med v1, 7B, fine-tuned on SLAKE
                LLaVA-Med v1.0.0, the model that was fine-tuned on SLAKE.
delta           katielink/llava-med-7b-slake-delta (NO WEIGHTS) at 1515369
archive         Slake1.0-9epoch_delta.zip
                The repository has no weights. Whoever holds the archive can use that.
base            LLaMA-1 7B (llama-1-7b): huggyllama/llama-7b at 8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16
base files      700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d  consolidated.00.pth
                7e89e242ddc0dd6f060b43ca219ce8b3e8f08959a72cb3c0855df8bb04d46265  params.json
                7935c843a25ae265d60bf4543b90bfd91c4911b728412b5c1d5cff42a3cd5645  checklist.chk
                0087155d6df07106c1d910bfeb6aab1be8e612dfbf2b56ddfb4ccbde7dbd50d0  pytorch_model-00001-of-00002.bin
                461bc5e50200db7813ff99cc0b9316c48ccbd6aaaa31bf8cf7bee0b64bc3eda3  pytorch_model-00002-of-00002.bin
                aca3c1facc89d12311a667c32e85ac86e625990992ea8a189e3b036ba371b931  pytorch_model.bin.index.json
                d43476fdd2fca0c44d55ee930039dd5dafb6331764dc0b5e5f89c60b551fcc12  model-00001-of-00002.safetensors
arithmetic      float16, in which the delta was made
new rows        kept as they are
in delta only   model.mm_projector.bias
                model.mm_projector.weight (required)
shapes          hidden size 4096, intermediate size 11008, layers 32, heads 32, base rows 32000, delta rows 32004
digest          recipe1:037acecc347007c4ea24677c1d3b69f388409c106142926101916a6f6977b513
notice          LLaVA-Med is for research use only. It is not for clinical care or for any clinical decision. \
The merged weights are subject to the terms of LLaMA, Vicuna and GPT-4, and to the licence of the delta.
notes           The repository holds a README and no weights: the archive Slake1.0-9epoch_delta.zip is the only known source.
                The archive is one of the four of LLaVA-Med v1.0.0; the links to it are reported dead, people still hold it.
                The revision is the beginning of a commit id, as far as it was seen.
                A text begins with </s>, id 2: so says special_tokens_map.json, and transformers 4.28.1, with which the code was \
run, obeys it.
                The commit that v1.0.0 pins, transformers cae78c46, would take <s>, id 1, from tokenizer.model, whatever \
the files say.
sources         https://huggingface.co/katielink/llava-med-7b-slake-delta
                https://github.com/microsoft/LLaVA-Med/tree/v1.0.0
                https://github.com/microsoft/LLaVA-Med/blob/v1.0.0/llava/train/train.py
                https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/llama/tokenization_llama.py
                https://github.com/huggingface/transformers/blob/cae78c46/src/transformers/models/llama/tokenization_llama.py
"""


@pytest.mark.parametrize("arguments", [(), ("list",)], ids=["alone", "list"])
def test_the_list_is_for_people(run: Run, arguments: tuple[str, ...]) -> None:
    """``recipes`` and ``recipes list`` print the same table, on stdout alone."""
    done = run("recipes", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, LIST, "")


def test_slake_says_that_it_has_no_weights(run: Run) -> None:
    """``recipes show`` of SLAKE says that the repository has no weights, and which archive has them."""
    done = run("recipes", "show", "llava-med-7b-slake")
    assert (done.returncode, done.stdout, done.stderr) == (0, SLAKE, "")


@pytest.mark.parametrize("arguments", [("--json",), ("list", "--json"), ("--json", "list")], ids=" ".join)
def test_the_list_is_for_programs(run: Run, arguments: tuple[str, ...]) -> None:
    """With --json, in either place, the list is one JSON object that says which repositories have weights."""
    done = run("recipes", *arguments)
    entries = {entry.pop("name"): entry for entry in json.loads(done.stdout)["recipes"]}
    assert list(entries) == list(FACTS)
    assert {name: (entry["repo"], entry["base"]) for name, entry in entries.items()} == {
        n: f[:2] for n, f in FACTS.items()
    }
    assert [name for name, entry in entries.items() if not entry["has_weights"]] == ["llava-med-7b-slake"]


@pytest.mark.parametrize("arguments", [("show", "--json"), ("--json", "show")], ids=" ".join)
def test_a_recipe_is_for_programs(run: Run, arguments: tuple[str, ...]) -> None:
    """With --json, in either place, a recipe is one JSON object with every field."""
    done = run("recipes", *arguments, "alpaca-7b")
    document = json.loads(done.stdout)
    assert set(document) == set(Recipe.__dataclass_fields__)
    assert (document["delta_only"], document["new_rows"], document["checks"]["sum"]) == ([], "mean", 50637.1836)
    assert document["digest"] == catalogue.load("alpaca-7b").digest


@pytest.mark.parametrize("name", FACTS)
def test_every_recipe_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``recipes show`` of each recipe names its delta, base and digest, and every hash of delta and base."""
    command.main(["show", name], standalone_mode=False)
    shown, recipe = capsys.readouterr().out, catalogue.load(name)
    for words in (recipe.delta.repo, recipe.base_model, recipe.digest, recipe.notice, *recipe.notes, *recipe.sources):
        assert words is not None
        assert words in shown
    assert recipe.base_model is not None
    files = [*recipe.delta.files, *models.model(recipe.base_model).files]
    assert all(f"{file.sha256}  {file.name}\n" in shown for file in files)


def test_the_files_of_a_base_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``recipes show`` lists the files that a recipe itself accepts as its base's before those of its base model."""
    recipe = parse_recipe(FULL, "own.toml")
    monkeypatch.setattr("deltaweights.cli.recipes.load", {"own": recipe}.__getitem__)
    command.main(["show", "own"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index(f"base files      {'4' * 64}  d.bin")
    shown = [line[16:] for line in lines[begin : begin + 3 + len(models.model("llama-1-7b").files)]]
    known = [f"{file.sha256}  {file.name}" for file in models.model("llama-1-7b").files]
    assert shown == [f"{'4' * 64}  d.bin", f"{'5' * 64}  e.bin", f"{'6' * 64}  e.bin", *known]


def test_without_files_of_a_base_none_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``recipes show`` has no line for the files of a base where none are known."""
    own = {key: value for key, value in FULL.items() if key != "base"}
    monkeypatch.setattr("deltaweights.cli.recipes.load", {"own": parse_recipe(own, "own.toml")}.__getitem__)
    command.main(["show", "own"], standalone_mode=False)
    assert "\nbase" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("show", "alpaca"),
            "no recipe has this name: found alpaca, expected one of alpaca-7b; `deltaweights recipes` lists them",
        ),
        (("show",), "Missing argument 'NAME' (see deltaweights recipes show --help)"),
        (("list", "x"), "Got unexpected extra argument (x) (see deltaweights recipes list --help)"),
    ],
    ids=["unknown", "no-name", "too-many"],
)
def test_a_wrong_command_line_ends_with_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    """An unknown name, none or one too many ends with 2 and one line."""
    done = run("recipes", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"deltaweights: error: {message}\n")


def test_the_command_loads_nothing_that_computes() -> None:
    """``recipes`` loads neither torch nor numpy nor numkong."""
    program = """
import sys
from deltaweights.cli.group import deltaweights
deltaweights.main(["recipes"], standalone_mode=False)
print({"torch", "numpy", "numkong"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.endswith("\nset()\n")
