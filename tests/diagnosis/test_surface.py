"""What the program says at its edges: swapped inputs, sizes, names, remedies that work, what is kept, counts that read right."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights import check_base
from deltaweights.errors import InputOutputError, Mismatch, TargetBusy, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.recipes.catalogue import load, load_file, names
from deltaweights.util.sizes import human_bytes, human_seconds
from deltaweights.util.text import counted, finished_of, shell_quoted
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

pytestmark = pytest.mark.diagnosis

Pair = tuple[Path, Path]

SUBMIT = Path(__file__).parents[2] / "scripts" / "slurm" / "submit"


# Base and delta swapped.


def _as(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


SWAPPED: dict[str, dict[str, Any]] = {
    "grown by four rows": {},
    "of the same shapes": {"new_tokens": 0, "projector": False},
    "with a projector alone": {"new_tokens": 0},
    "a step half as large": {"scale": 0.5},
    "a step four times as large": {"scale": 4.0},
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("how", SWAPPED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=["f16", "f32", "bf16"])
def test_swapped(tmp_path: Path, how: str, dtype: torch.dtype) -> None:
    """The sizes of the weights tell that base and delta are swapped, whatever their rows, dtype and the length of the step."""
    options = dict(SWAPPED[how])
    scale = options.pop("scale", 1.0)
    base = base_tensors()
    delta = {name: tensor * scale for name, tensor in delta_tensors(base, **options).items()}
    held = save(_as(dtype)(base), tmp_path / "base"), save(_as(dtype)(delta), tmp_path / "the delta")
    remedy = f"give --base {held[0]} --delta '{held[1]}'"
    problem = "you swapped --base and --delta"
    with refused(Mismatch, problem=problem, where=held[1], remedy=remedy, code="E-SWAPPED"):
        apply_delta(held[1], held[0], tmp_path / "out")
    with refused(Mismatch, problem=problem, code="E-SWAPPED"):
        check_base(held[1], held[0])
    words = iter(shlex.split(remedy.removeprefix("give ")))
    given = dict(zip(words, words, strict=True))
    assert apply_delta(given["--base"], given["--delta"], tmp_path / "out", prove=False).tensors


@pytest.mark.parametrize(
    "make",
    [
        delta_tensors,
        lambda base: {name: tensor * 1e-3 for name, tensor in delta_tensors(base).items()},
        lambda base: {name: torch.zeros_like(tensor) for name, tensor in base.items()},
    ],
    ids=["a delta", "a tiny delta", "zeros"],
)
def test_what_is_not_swapped(tmp_path: Path, make: Callable[[Tensors], Tensors]) -> None:
    """A pair in its order is merged, however small the delta."""
    base = base_tensors()
    held = save(base, tmp_path / "base"), save(make(base), tmp_path / "delta")
    assert apply_delta(*held, tmp_path / "out").tensors


# Sizes, names, flags.


@pytest.mark.parametrize("text", ["5", "1", "999", "20000"])
def test_a_shard_size_without_a_unit(run: Run, pair: Pair, tmp_path: Path, text: str) -> None:
    """A small number is refused with both readings of it, and each is accepted."""
    arguments = ("apply", "--base", pair[0], "--delta", pair[1], "--target", tmp_path / "out", "--max-shard-size")
    done = run(*arguments, text)
    assert done.returncode == 2
    assert done.stderr.endswith(f"write {text}GB if you mean gigabytes, {text}B if you mean bytes\n")
    for size in re.findall(r"[0-9]+G?B", done.stderr.rpartition("; ")[2]):
        assert run(*arguments, size, "--dry-run").returncode == 0


@pytest.mark.parametrize("size", [20_000, "20KB", "20000B", "1000000"])
def test_sizes_that_are_taken(pair: Pair, tmp_path: Path, size: str | int) -> None:
    """Units may be as small as they like; a whole number in Python counts bytes."""
    assert apply_delta(*pair, tmp_path / "out", max_shard_size=size).shards


@pytest.mark.parametrize("name", names())
def test_recipes_have_names_in_any_case(name: str) -> None:
    """``LLaVA-Med-7B`` is ``llava-med-7b``."""
    assert load(name.upper()) == load(name.title()) == load(name)


def test_a_file_over_a_recipe_in_any_case(run: Run, tmp_path: Path) -> None:
    """A recipe file is laid over a recipe that is named in another case, and commands take such names."""
    own = tmp_path / "own.toml"
    own.write_text('format = "deltaweights-recipe"\nversion = 1\nextends = "llava-med-7b"\ntitle = "mine"\n')
    assert load_file(own, over="LLaVA-Med-7B").title == "mine"
    assert run("recipes", "show", "LLaVA-Med-7B").stdout == run("recipes", "show", "llava-med-7b").stdout


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("command", "flag", "here"),
    [
        ("apply", "--base-model-path", "here it is --base"),
        ("apply", "--target-model-path", "here it is --target"),
        ("apply", "--delta-path", "here it is --delta"),
        ("apply", "--low-cpu-mem", "here leave it out: memory is always low"),
        ("make", "--base-model-path", "here it is --base"),
        ("make", "--delta-path=x", "here it is --delta"),
    ],
)
def test_flags_of_the_original_scripts(run: Run, command: str, flag: str, here: str) -> None:
    """A flag of the original scripts on our own command names the program that takes it, and our name of it."""
    done = run(command, flag, "x")
    name = flag.partition("=")[0]
    line = (
        f"deltaweights {command} has no option {name}; {command}-delta takes the flags of the original scripts; {here}"
    )
    assert (done.returncode, done.stderr) == (2, f"deltaweights: error: {line}\n")
    assert name in run("--help", program=f"{command}-delta").stdout or name == "--low-cpu-mem"


def test_other_flags_are_click_s(run: Run) -> None:
    """An option that nobody has is told of as before."""
    assert "No such option" in run("apply", "--base-model", "x").stderr


def test_check_base_fetches_the_delta_of_the_recipe(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``--delta``, ``check-base`` asks the Hub for the recipe's, as ``apply`` does; without a recipe it says what lacks."""
    repo = load("llava-med-7b").delta.repo
    assert repo is not None
    with HubServer({}) as hub:
        Machine(monkeypatch, tmp_path, hub)
        with refused(InputOutputError, code="E-NO-ACCESS"):
            check_base(pair[0], recipe="llava-med-7b")
        assert any(repo in request for request in map(str, hub.requests))
    with refused(UsageError, problem="--delta is missing", code="E-NO-INPUT-GIVEN"):
        check_base(pair[0])


# What is in the target.


def _file(place: Path) -> None:
    place.write_text("mine")


def _stranger(place: Path) -> None:
    place.mkdir()
    (place / "notes.txt").write_text("mine")


def _model_and_stranger(place: Path) -> None:
    save(base_tensors(layers=1), place)
    (place / "notes.txt").write_text("mine")


def _folder_with_a_model_s_name(place: Path) -> None:
    save(base_tensors(layers=1), place)
    (place / "tokenizer.json").mkdir()


def _tokenizer_alone(place: Path) -> None:
    place.mkdir()
    (place / "tokenizer.json").write_text("{}")


def _model(place: Path) -> None:
    save(base_tensors(layers=1), place)


@pytest.mark.parametrize(
    ("fill", "offered"),
    [
        (_file, False),
        (_stranger, False),
        (_model_and_stranger, False),
        (_folder_with_a_model_s_name, False),
        (_tokenizer_alone, False),
        (_model, True),
    ],
)
def test_overwrite_is_offered_where_it_works(
    pair: Pair, tmp_path: Path, fill: Callable[[Path], None], *, offered: bool
) -> None:
    """``--overwrite`` stands in the remedy exactly where it then replaces what is there."""
    target = tmp_path / "out"
    fill(target)
    with refused(TargetBusy, where=target, code="E-TARGET-NOT-EMPTY") as info:
        apply_delta(*pair, target)
    assert ("--overwrite" in str(info.value.remedy)) is offered
    if offered:
        assert apply_delta(*pair, target, overwrite=True).tensors
    else:
        with refused(TargetBusy, where=target, code="E-TARGET-NOT-EMPTY"):
            apply_delta(*pair, target, overwrite=True)


@pytest.mark.parametrize("stranger", [False, True])
def test_overwrite_of_a_damaged_result(pair: Pair, tmp_path: Path, *, stranger: bool) -> None:
    """A damaged result is replaced by ``--overwrite``, which is not offered where a file of the user's is beside it."""
    target = tmp_path / "out"
    apply_delta(*pair, target)
    (target / "README.md").write_text("changed")
    if stranger:
        (target / "notes.txt").write_text("mine")
    with refused(TargetBusy, where=target, code="E-TARGET-DAMAGED") as info:
        apply_delta(*pair, target)
    assert ("--overwrite" in str(info.value.remedy)) is not stranger
    assert "in another folder" not in str(info.value.remedy) or stranger
    if not stranger:
        assert apply_delta(*pair, target, overwrite=True).status == "merged"


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dtype": ({"dtype": "float32"}, {}, "dtype float32, not float16"),
    "arithmetic": (
        {"compute_dtype": "bfloat16", "dtype": "float16"},
        {},
        "compute dtype bfloat16, not float16",
    ),
    "both": ({"compute_dtype": "bfloat16"}, {}, "dtype bfloat16, not float16; compute dtype bfloat16, not float16"),
    "format": ({"weights": "bin"}, {}, "format bin, not safetensors"),
    "shards": ({}, {"max_shard_size": 30_000}, "shards of another size"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", OTHERS)
def test_in_what_the_other_content_differs(pair: Pair, tmp_path: Path, name: str) -> None:
    """A result of other options in the target is named by them."""
    first, second, found = OTHERS[name]
    target = tmp_path / "out"
    apply_delta(*pair, target, **first)
    remedy = "choose another output folder, or replace it with --overwrite"
    with refused(TargetBusy, problem="already there, with other content", found=found, remedy=remedy):
        apply_delta(*pair, target, **second)
    assert apply_delta(*pair, target, overwrite=True, **second).status == "merged"


def test_other_inputs_and_other_kinds(pair: Pair, tmp_path: Path) -> None:
    """The result of other inputs is named so, and so are those of other commands."""
    base = base_tensors(seed=3)
    other = save(base, tmp_path / "base"), save(delta_tensors(base), tmp_path / "delta")
    apply_delta(*other, tmp_path / "merged")
    with refused(TargetBusy, found="the result of other inputs"):
        apply_delta(*pair, tmp_path / "merged")
    convert_checkpoint(pair[0], tmp_path / "converted")
    with refused(TargetBusy, found="a converted or exported model, not a merged model"):
        apply_delta(*pair, tmp_path / "converted")
    smaller = base_tensors(layers=1)
    one = save(smaller, tmp_path / "one"), save(delta_tensors(smaller), tmp_path / "one-delta")
    with refused(TargetBusy, found="other tensors"):
        apply_delta(*one, tmp_path / "merged")


# Interruptions say what is kept.

STOPS = """
import os, signal, sys
from deltaweights.cli import main
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.merge import stream
import deltaweights.jobs.round_trip  # which reads blocks, too, before the merge

after, how = {after}, signal.{how}
keep, kept = StagedShards.keep, []


def keep_and_stop(self, fragment):
    keep(self, fragment)
    kept.append(fragment)
    if len(kept) == after:
        os.kill(os.getpid(), how)


StagedShards.keep = keep_and_stop
if not after:
    read = stream.read_block
    stream.read_block = lambda *given: (os.kill(os.getpid(), how), read(*given))[1]
main()
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interruption_says_what_is_kept(pair: Pair, tmp_path: Path, after: int, how: str) -> None:
    """The line counts finished shards, and the next run finds exactly those; the parts of the message are in JSON, too."""
    target = tmp_path / "out"
    arguments = ["apply", "--base", str(pair[0]), "--delta", str(pair[1]), "--target", str(target)]
    arguments += ["--max-shard-size", "30KB", "--workers", "1", "--json"]
    program = STOPS.format(after=after, how=how)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 128 + getattr(signal, how)
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["class"]) == ("E-INTERRUPTED", "Interrupted")
    found = re.fullmatch(r"(\d+) of (\d+) shards? (?:is|are) finished( and kept)?; (.*)", error["remedy"])
    assert found is not None
    assert found[4] == "run the same command again to continue"
    assert bool(found[3]) is (int(found[1]) > 0)
    assert done.stderr.endswith(f"{error['problem']}; {error['remedy']}\n")
    again = subprocess.run(
        [sys.executable, "-m", "deltaweights", *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    reused = re.search(r"(\d+) of \d+ shards? (?:is|are) finished already", again.stderr)
    assert (int(reused[1]) if reused else 0) == int(found[1])
    assert int(found[1]) >= after


# Counts and times.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (finished_of(0, 3, "shard"), "0 of 3 shards are finished"),
        (finished_of(1, 3, "shard"), "1 of 3 shards is finished"),
        (finished_of(0, 1, "shard"), "0 of 1 shard is finished"),
        (finished_of(1, 1, "shard"), "1 of 1 shard is finished"),
        (counted(1, "file"), "1 file"),
        (human_bytes(1), "1 byte"),
        (human_bytes(2), "2 bytes"),
        (human_seconds(0.0), "less than 0.1 s"),
        (human_seconds(0.04), "less than 0.1 s"),
        (human_seconds(0.06), "0.1 s"),
        (human_seconds(12), "12.0 s"),
    ],
)
def test_counts_read_right(text: str, expected: str) -> None:
    """One thing is in the singular, and no time is called zero."""
    assert text == expected


def test_parts_and_finish_read_right(run: Run, pair: Pair, tmp_path: Path) -> None:
    """A part of one shard, and a finish that merged nothing itself, are told so."""
    target = tmp_path / "out"
    done = run("apply", "--base", pair[0], "--delta", pair[1], "--target", target, "--part", "1/1")
    assert "part 1/1: 1 of 1 shard is finished, 1 of 1 of the plan" in done.stderr
    assert ": 1 of 1 shard is finished\n" in done.stdout
    assert re.search(r"1 shard made in (\d+\.\d|less than 0\.1) s\n", done.stdout)
    finished = run("finish", "--target", target)
    assert re.search(r"^status +merged in parts; published in (\d+\.\d|less than 0\.1) s$", finished.stdout, re.M)
    again = run("apply", "--base", pair[0], "--delta", pair[1], "--target", target)
    assert re.search(r"^status +already complete; looked at in (\d+\.\d|less than 0\.1) s$", again.stdout, re.M)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("export HERE/none --target HERE/out", "no merged model here"),
        ("convert --base HERE/none --target HERE/out", "no base here"),
        ("inspect HERE/none", "no checkpoint here"),
        ("apply --base HERE/none --delta HERE/none --target HERE/out", "no base here"),
    ],
)
def test_what_is_not_there(run: Run, tmp_path: Path, command: str, said: str) -> None:
    """What is missing has a noun."""
    done = run(*command.replace("HERE", str(tmp_path)).split())
    assert done.returncode == 5
    assert f": {said}: found nothing" in done.stderr


def test_sign_counts_as_verify_does(run: Run, pair: Pair, tmp_path: Path) -> None:
    """Both count the files that the manifest lists; of a signature the manifest and its sums are named besides."""
    target = Path(apply_delta(*pair, tmp_path / "out").target)
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    signed, verified = run("sign", target, "--private-key", key, "--json"), run("verify", target, "--json")
    assert json.loads(signed.stdout)["files"] == json.loads(verified.stdout)["files"]
    said = run("sign", target, "--private-key", key).stdout
    assert f"{json.loads(verified.stdout)['files']} files, manifest.json and SHA256SUMS\n" in said


# Names that the locale cannot decode.

C_LOCALES = {
    "utf-8 mode": {"LC_ALL": "C"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "posix": {"LC_ALL": "POSIX", "PYTHONUTF8": "0"},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("locale", C_LOCALES)
@pytest.mark.parametrize("name", ["modèle", "новая модель", "it's ü", "plain", "tab\there"])
def test_suggested_commands_in_the_c_locale(pair: Pair, tmp_path: Path, locale: str, name: str) -> None:
    """A suggested command works when it is pasted, and neither it nor a message has surrogates."""
    environment = os.environ | C_LOCALES[locale]
    program = [sys.executable, "-m", "deltaweights"]
    where = ["--base", str(pair[0]), "--delta", str(pair[1]), "--target", str(tmp_path / name)]
    done = subprocess.run(
        [*program, "apply", *where], capture_output=True, env=environment, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert b"\\udc" not in done.stdout + done.stderr
    suggested = done.stderr.rpartition(b"check it with   deltaweights ")[2].splitlines()[0]
    command = shlex.join(program).encode() + b" " + suggested
    again = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=False, timeout=PATIENCE)
    assert again.returncode == 0, (suggested, again.stderr)
    (tmp_path / name / "README.md").write_text("changed")
    failed = subprocess.run(
        [*program, "apply", *where], capture_output=True, env=environment, check=False, timeout=PATIENCE
    )
    assert failed.returncode == 7
    assert b"\\udc" not in failed.stderr
    assert failed.stderr.count(b"error:") == 1


@pytest.mark.parametrize(
    "name", [b"caf\xc3\xa9", b"caf\xe9", b"a b", b"it's", b"new\nline", b"back\\slash\x1b", b"$HOME"]
)
def test_quoted_names_are_one_word(name: bytes) -> None:
    """A quoted name is the same bytes again in bash, in any locale, and is printable."""
    quoted = shell_quoted(os.fsdecode(name))
    assert quoted.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env=os.environ | {"LC_ALL": "C"}
    )
    assert done.stdout == name


# scripts/slurm/submit.

SBATCHES = {
    "fails": ("echo 'sbatch: error: invalid partition specified: none' >&2; exit 1", "sbatch ended with 1", 1),
    "fails otherwise": (
        "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 3",
        "sbatch ended with 3",
        1,
    ),
    "says nothing": ("exit 0", "sbatch told no id of a job, but ''", 1),
    "says something else": (
        "echo 'Submitted batch job 17'",
        "sbatch told no id of a job, but 'Submitted batch job 17'",
        1,
    ),
}


def submit(folder: Path, pair: Pair, sbatch: str | None, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a program in place of sbatch, or with none, on a PATH of little else."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "realpath", "dirname", "basename", "mkdir", "grep", "cat"):
        found = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True, check=True)
        (tools / tool).symlink_to(found.stdout.strip())
    program = tools / "deltaweights"
    program.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m deltaweights "$@"\n')
    program.chmod(0o755)
    if sbatch is not None:
        (tools / "sbatch").write_text(f"#!/bin/bash\necho x >>{shlex.quote(str(folder / 'calls'))}\n{sbatch}\n")
        (tools / "sbatch").chmod(0o755)
    where = ["--base", str(pair[0]), "--delta", str(pair[1]), "--target", str(folder / "out")]
    environment = {key: value for key, value in os.environ.items() if key != "DELTAWEIGHTS"} | {"PATH": str(tools)}
    return subprocess.run(
        [str(SUBMIT), *where, *more], capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", SBATCHES)
def test_submit_stops_when_sbatch_fails(pair: Pair, tmp_path: Path, how: str) -> None:
    """The script ends with the scheduler's message, at the first job, and sends no other."""
    sbatch, problem, code = SBATCHES[how]
    done = submit(tmp_path, pair, sbatch)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == f"submit: {problem}: a job was not sent"
    assert ("sbatch: error:" in done.stderr) is ("fails" in how)
    assert (tmp_path / "calls").read_text() == "x\n"


def test_submit_names_what_it_had_sent(pair: Pair, tmp_path: Path) -> None:
    """Where the second job is refused, the first is named, to be cancelled."""
    done = submit(
        tmp_path, pair, f"[[ $(grep -c x {shlex.quote(str(tmp_path / 'calls'))}) == 1 ]] && echo '17;cluster'"
    )
    assert (done.returncode, done.stdout) == (1, "parts 17\n")
    assert done.stderr.endswith("a job was not sent; cancel those that were sent before it: scancel 17\n")


def test_submit_without_sbatch(pair: Pair, tmp_path: Path) -> None:
    """Where there is no scheduler, that is said, before anything is planned."""
    done = submit(tmp_path, pair, None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "submit: no sbatch on PATH: run it where jobs are submitted\n"
    assert not (tmp_path / "out.slurm").exists()


def test_submit_of_a_pair_that_does_not_fit(pair: Pair, tmp_path: Path) -> None:
    """A plan that is refused ends the script with the program's message and exit code; no job is sent."""
    done = submit(tmp_path, (pair[1], pair[0]), "echo 17")
    assert done.returncode == 4
    assert "you swapped --base and --delta" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "calls").exists()


def test_submit_that_is_accepted(pair: Pair, tmp_path: Path) -> None:
    """With a scheduler that takes the jobs, their ids are told, and the size of the shards has a unit."""
    done = submit(tmp_path, pair, f'printf "%s\\n" "$@" >>{shlex.quote(str(tmp_path / "arguments"))}; echo 17')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["parts 17", "finish 17"]
    given = (tmp_path / "arguments").read_text().splitlines()
    assert re.fullmatch(r"[0-9]+B", given[given.index("--max-shard-size") + 1])
