"""The command line as users meet it: processes of their own, their exit codes, and what they print where."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights import __version__
from deltaweights.cli.group import COMMANDS
from deltaweights.cli.group import deltaweights as group
from deltaweights.errors import TargetBusy
from deltaweights.jobs.apply import apply_delta
from tests.conftest import Run
from tests.support.fork_server import run as forked
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.staged import beside, make_staging

Done = subprocess.CompletedProcess[str]

RESULT_KEYS = {
    "target", "status", "content_digest", "manifest_sha256", "tensors", "parameters", "bytes", "shards", "seconds",
}  # fmt: skip

BASE = base_tensors(layers=1, vocabulary=8, hidden=8)
DELTA = delta_tensors(BASE)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a small pair, ``base`` and ``delta``; tests only read it."""
    folder = tmp_path_factory.mktemp("inputs")
    save(BASE, folder / "base", "safetensors", 1)
    save(DELTA, folder / "delta", "safetensors", 2)
    return folder


@pytest.fixture(scope="module")
def merged(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge the pair; tests only read it, or copy it."""
    target = tmp_path_factory.mktemp("merged") / "out"
    apply_delta(inputs / "base", inputs / "delta", target)
    return target


@pytest.fixture
def work(tmp_path: Path, inputs: Path) -> Path:
    """Copy the pair to a folder of the test's own, with nothing else in it."""
    shutil.copytree(inputs, tmp_path / "work")
    return tmp_path / "work"


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below the folder, hidden ones too, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(done: Done, code: int, name: str = "deltaweights") -> str:
    """Return the one line of error, having checked that there is nothing else, on either stream."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: error: ")
    assert line.isprintable()
    return line


def imported(importtime: str) -> set[str]:
    """Return the modules that ``python -X importtime`` lists on stderr."""
    rows = [line.rsplit("|", 1)[1].strip() for line in importtime.splitlines() if line.startswith("import time:")]
    assert "click" in rows, "the list is not empty"
    return set(rows)


def python(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """Run Python with these arguments."""
    environment = os.environ | {"COLUMNS": "200"}
    return forked([sys.executable, *arguments], cwd=cwd, env=environment)


def drop_in(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """Run ``apply-delta ARGUMENTS``."""
    return python("-c", "from deltaweights.cli import apply_delta; apply_delta()", *arguments, cwd=cwd)


# Results.


def test_apply(run: Run, work: Path) -> None:
    """``apply`` ends with 0 and the right weights, prints the result on stdout and remarks on stderr, and stops at nothing else."""
    done = run("apply", "--base", "base", "--delta", "delta", "--target", "out", cwd=work)
    assert done.returncode == 0
    assert same_bits(reference(BASE, DELTA), load(work / "out"))
    assert sorted(path.name for path in work.iterdir()) == ["base", "delta", "out"]
    manifest = json.loads((work / "out" / "manifest.json").read_text())
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(rows) == ["target", "status", "tensors", "content digest", "manifest", "base"]
    assert rows["base"].strip() == "no evidence: 843 weights moved; less than 100,000 say nothing"
    assert str(work / "out") == rows["target"].strip()
    assert manifest["result"]["content_digest"] == rows["content digest"]
    assert rows["status"].strip().startswith("merged in ")
    notes = done.stderr.splitlines()
    assert "14 tensors: 10 added, 2 added into a larger block, 2 copied" in notes
    assert "dropped from the base (buffer): model.layers.0.self_attn.rotary_emb.inv_freq" in notes
    assert notes[-2:] == [
        f"check it with   deltaweights verify {work / 'out'}",
        f"look at it with deltaweights inspect {work / 'out'}",
    ]
    for note in notes[-2:]:
        assert run(*shlex.split(note.partition("deltaweights ")[2]), cwd=work).returncode == 0
    assert not any("warning" in note or "error" in note for note in notes)


def test_apply_json_and_again(run: Run, work: Path) -> None:
    """``--json --quiet`` prints one object and no more; the same command again finds the target complete, and changes nothing."""
    arguments = ("apply", "--base", "base", "--delta", "delta", "--target", "out", "--json", "-q")
    first = run(*arguments, cwd=work)
    before = contents(work)
    again = run(*arguments, cwd=work)
    assert (first.returncode, first.stderr) == (0, "")
    assert (again.returncode, again.stderr) == (0, "")
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert one.keys() >= RESULT_KEYS
    assert (one["status"], two["status"]) == ("merged", "already complete")
    assert [str(work / "out"), 14, 1] == [one[key] for key in ("target", "tensors", "shards")]
    expected = reference(BASE, DELTA)
    assert sum(tensor.numel() for tensor in expected.values()) == one["parameters"]
    assert sum(tensor.nbytes for tensor in expected.values()) == one["bytes"]
    assert one["seconds"]["total"] > 0
    assert {key: one[key] for key in RESULT_KEYS - {"status", "seconds"}} == {
        key: two[key] for key in RESULT_KEYS - {"status", "seconds"}
    }
    assert before == contents(work)


def test_dry_run(run: Run, work: Path) -> None:
    """``--dry-run`` shows the plan and writes nothing, not even a folder; with ``--json`` as one object."""
    before = sorted(work.rglob("*"))
    arguments = (
        "apply",
        "--base",
        "base",
        "--delta",
        "delta",
        "--target",
        "new/out",
        "--max-shard-size",
        "1kB",
        "--dry-run",
    )
    shown, machine = run(*arguments, cwd=work), run(*arguments, "--json", cwd=work)
    assert (shown.returncode, machine.returncode) == (0, 0)
    plan = json.loads(machine.stdout)
    assert plan["plan"].startswith("plan1:")
    assert plan["fates"] == {"add": 10, "add_block": 2, "copy": 2, "dropped": 2}
    assert f"model-00001-of-{len(plan['shards']):05d}.safetensors" == plan["shards"][0]["file"]
    assert f"plan            {plan['plan']}" in shown.stdout
    for shard in plan["shards"]:
        assert f"  {shard['file']}  " in shown.stdout
    assert before == sorted(work.rglob("*"))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")
def test_target_that_is_no_text(run: Run, work: Path, merged: Path) -> None:
    """A target whose name is not UTF-8 is printed escaped, and as escaped JSON; it makes no command fail once all is done."""
    target = os.fsdecode(b"out\xff\x1b")
    arguments = ("apply", "--base", "base", "--delta", "delta", "--target", target, "--dry-run", "-q")
    plain, machine = run(*arguments, cwd=work), run(*arguments, "--json", cwd=work)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert f"target          {work}/out\\xff\\x1b\n" in plain.stdout
    assert json.loads(machine.stdout)["target"] == f"{work}/{target}"
    shutil.copytree(merged, work / target)
    verified = run("verify", target, cwd=work)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "verified        out\\xff\\x1b\n" in verified.stdout


# Errors, by exit code.

USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "no-such-command": (("nonsense",), "No such command 'nonsense' (see deltaweights --help)"),
    "missing-option": (
        ("apply", "--base", "base", "--delta", "delta"), "Missing option '--target' (see deltaweights apply --help)"
    ),
    "extra-argument": (("verify", "out", "more\x1b[2J\nand"), r"unexpected extra argument (more\x1b[2J\nand)"),
    "bad-choice": (
        ("apply", "--base", "base", "--delta", "delta", "--target", "out", "--dtype", "int8"), "'int8' is not one of"
    ),
    "no-workers": (("apply", "--base", "base", "--delta", "delta", "--target", "out", "--workers", "0"), "0 is not in"),
    "no-size": (
        ("apply", "--base", "base", "--delta", "delta", "--target", "out", "--max-shard-size", "5 parsecs"),
        "not a size: found 5 parsecs, expected a number above 0 with B, KB, MB",
    ),
    "no-digest": (("verify", "base", "--expect", "dw1:abc"), "not a content digest: found dw1:abc"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "part"), USAGE.values(), ids=USAGE)
def test_usage(run: Run, work: Path, arguments: tuple[str, ...], part: str) -> None:
    """A command line that makes no sense ends with 2 and one line that says why; nothing is written."""
    before = sorted(work.rglob("*"))
    assert part in error_of(run(*arguments, cwd=work), 2)
    assert before == sorted(work.rglob("*"))


def refused(run: Run, work: Path, code: int, *more: str, target: str = "out") -> str:
    """Apply the pair; return the line that refuses it, having checked that nothing was written."""
    before = contents(work)
    done = run("apply", "--base", "base", "--delta", "delta", "--target", target, *more, cwd=work)
    line = error_of(done, code)
    assert before == contents(work)
    assert sorted(path.name for path in work.iterdir() if path.name != "out") == ["base", "delta"]
    return line


def replace_shard(folder: Path, content: bytes) -> Path:
    """Make the folder's checkpoint one safetensors file with this content."""
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(content)
    return folder / "model.safetensors"


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_malformed_input(run: Run, work: Path) -> None:
    """A hostile file ends with 3; the control characters of its tensor's name reach the terminal escaped."""
    path = replace_shard(work / "delta", framed(b'{"a\\u001b]0;x\\u0007\\nb\\u009b2J":{}}'))
    line = refused(run, work, 3)
    assert f"delta/{path.name}: unusable tensor name: found a name with a control character" in line
    assert r"a\x1b]0;x\x07\nb\x9b2J" in line


def test_mismatch(run: Run, work: Path) -> None:
    """A pair that does not fit ends with 4; characters that would turn or break the line are escaped."""
    entry = b'{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
    replace_shard(work / "delta", framed(b'{"a\\u202eb\\u2028c":' + entry + b"}"))
    line = refused(run, work, 4)
    assert r"model.safetensors: tensor a\u202eb\u2028c: is in the delta, not in the base" in line
    assert line.endswith(r"its names: a\u202eb\u2028c; deltaweights inspect shows what each of them is")


def test_input_that_is_not_there(run: Run, work: Path) -> None:
    """An input that is not there ends with 5 and its path."""
    done = run("apply", "--base", "nowhere", "--delta", "delta", "--target", "out", cwd=work)
    assert "nowhere: no base here: found nothing" in error_of(done, 5)


def test_cut_input(run: Run, work: Path) -> None:
    """An input that a download left short ends with 3 and its path; no target and no staging are left."""
    path = work / "delta" / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert f"delta/{path.name}: tensor " in refused(run, work, 3)


def test_strict(run: Run, work: Path) -> None:
    """``--strict`` ends with 6 and the first tensor that is not finite, and publishes nothing."""
    delta = DELTA | {"model.norm.weight": torch.full_like(DELTA["model.norm.weight"], torch.inf)}
    save(delta, work / "delta", "safetensors", 2)
    done = run("apply", "--base", "base", "--delta", "delta", "--target", "out", "--strict", "-q", cwd=work)
    line = error_of(done, 6)
    assert "tensor model.norm.weight: result is not finite: found 8 NaN or infinite weights in 1 tensor" in line
    assert not (work / "out").exists()


def test_warning_is_no_error(run: Run, work: Path) -> None:
    """Without ``--strict`` the same weights are merged, with a warning on stderr that ``--quiet`` leaves."""
    delta = DELTA | {"model.norm.weight": torch.full_like(DELTA["model.norm.weight"], torch.inf)}
    save(delta, work / "delta", "safetensors", 2)
    done = run("apply", "--base", "base", "--delta", "delta", "--target", "out", "-q", "--json", cwd=work)
    assert done.returncode == 0
    assert json.loads(done.stdout)["nonfinite"] == {"model.norm.weight": 8}
    (line,) = done.stderr.splitlines()
    assert line == (
        "deltaweights: warning: tensor model.norm.weight: result is not finite: found 8 NaN or infinite weights "
        "in 1 tensor (8 of the delta)"
    )


TARGETS = {
    "row69-equal-to-base": "base",
    "row69-inside-base": "base/out",
    "row69-inside-delta": "delta/new/out",
    "row69-holds-inputs": ".",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_target_and_input_overlap(run: Run, work: Path, target: str) -> None:
    """A target that is an input, is inside one, or holds one ends with 7, and both stay as they were."""
    line = refused(run, work, 7, target=target)
    assert "output and input overlap: found input" in line


def test_target_with_other_content(run: Run, work: Path) -> None:
    """A target that holds something else ends with 7 and what it holds, and stays as it was."""
    (work / "out").mkdir()
    (work / "out" / "thesis.tex").write_text("years of work")
    done = run("apply", "--base", "base", "--delta", "delta", "--target", "out", "-q", cwd=work)
    line = error_of(done, 7)
    assert "out: already there, with other content: found thesis.tex" in line
    assert contents(work / "out") == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["plain", "overwrite"])
@pytest.mark.parametrize("command", ["apply", "make", "convert"])
def test_a_taken_target_is_refused_before_inputs_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    work: Path,
    command: str,
    options: tuple[str, ...],
) -> None:
    """A target with something else in it ends with 7 before an input is opened, hashed or unpacked, by any command."""

    def never(*_: object) -> None:
        raise AssertionError("no input need be looked at")

    for name in ("open_checkpoint", "collect_hashes"):
        monkeypatch.setattr(f"deltaweights.jobs.inputs.{name}", never)
    monkeypatch.chdir(work)
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    before, output = contents(work), {"make": "--delta"}.get(command, "--target")
    with pytest.raises(TargetBusy) as caught:
        group.main([command, *GIVEN[command], output, "out", "--hash-inputs", *options], standalone_mode=False)
    problem = "will not overwrite a folder that is not a checkpoint" if options else "already there, with other content"
    assert str(caught.value).startswith(f"{work / 'out'}: {problem}: found thesis.tex; ")
    assert (caught.value.exit_code, capsys.readouterr().out) == (7, "")
    assert before == contents(work)


GIVEN = {
    "apply": ("--base", "base", "--delta", "delta"),
    "make": ("--base", "base", "--target", "base"),
    "convert": ("--base", "base"),
}
"""The inputs of each command that writes a checkpoint."""


def test_a_taken_target_is_refused_before_an_archive_is_unpacked(run: Run, work: Path) -> None:
    """A target with something else in it leaves compressed archives as they are: no staging, and no complaint of theirs."""
    (work / "delta.zip").write_bytes(b"not even an archive")
    (work / "out").mkdir()
    (work / "out" / "thesis.tex").write_text("years of work")
    before = sorted(work.rglob("*"))
    done = run("apply", "--base", "base", "--delta", "delta.zip", "--target", "out", cwd=work)
    assert "out: already there, with other content: found thesis.tex" in error_of(done, 7)
    assert before == sorted(work.rglob("*"))


@pytest.mark.parametrize("target", ["base", "delta", "."])
def test_an_overlap_is_told_before_what_stands_there(run: Run, work: Path, target: str) -> None:
    """A target that is an input holds something, but that it is an input is what is said, with ``--overwrite`` and without."""
    (work / target / "thesis.tex").write_text("years of work")
    arguments = ("apply", "--base", "base", "--delta", "delta", "--target", target)
    for options in ((), ("--overwrite",)):
        line = error_of(run(*arguments, *options, cwd=work), 7)
        assert "output and input overlap: found input" in line


def test_an_earlier_result_is_no_foreign_content(run: Run, work: Path) -> None:
    """A target that holds a result of other options ends with 7 once its plan is known, and its own result with 0."""
    arguments = ("apply", "--base", "base", "--delta", "delta", "--target", "out", "-q", "--hash-inputs")
    assert run(*arguments, cwd=work).returncode == 0
    before = contents(work)
    again = run(*arguments, cwd=work)
    assert (again.returncode, again.stdout.splitlines()[1].split()[1:3]) == (0, ["already", "complete;"])
    assert "already there, with other content" in error_of(run(*arguments, "--dtype", "float32", cwd=work), 7)
    assert before == contents(work)


@pytest.mark.parametrize("command", ["apply", "make", "convert"])
def test_hashes_are_no_part_of_a_dry_run_s_plan(run: Run, work: Path, command: str) -> None:
    """``--dry-run --hash-inputs`` hashes, writes nothing, and shows the plan that it shows without."""
    before, output = contents(work), {"make": "--delta"}.get(command, "--target")
    arguments = (command, *GIVEN[command], output, "out", "--dry-run", "--json")
    plain, hashed = run(*arguments, cwd=work), run(*arguments, "--hash-inputs", cwd=work)
    assert (plain.returncode, hashed.returncode) == (0, 0), hashed.stderr
    one, two = json.loads(plain.stdout), json.loads(hashed.stdout)
    assert one.pop("disk_free") >= 0
    assert two.pop("disk_free") >= 0
    assert one == two
    unlisted = "the sha256 of its files are not among those that are known"
    assert (unlisted in plain.stderr, unlisted in hashed.stderr) == (False, True)
    assert before == contents(work)


# verify and clean.


def test_verify(run: Run, merged: Path) -> None:
    """``verify`` of a sound folder ends with 0, prints what it checked, recomputes a pinned digest, and is silent with ``-q``."""
    digest = json.loads((merged / "manifest.json").read_text())["result"]["content_digest"]
    plain = run("verify", merged)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert f"content digest  {digest} (as the manifest states)" in plain.stdout
    pinned = run("verify", merged, "--expect", digest, "--json")
    assert (pinned.returncode, pinned.stderr) == (0, "")
    report = json.loads(pinned.stdout)
    assert (report["ok"], report["content_digest"], report["recomputed"]) == (True, digest, True)
    quiet = run("verify", merged, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_verify_finds_a_flipped_bit(run: Run, merged: Path, tmp_path: Path) -> None:
    """``verify`` of a folder with one bit flipped ends with 6, the file on stdout, and one line of error on stderr."""
    folder = shutil.copytree(merged, tmp_path / "out")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run("verify", folder)
    assert done.returncode == 6
    assert done.stdout.startswith("FAILED          model.safetensors: has another sha256: found ")
    assert done.stderr.splitlines() == [
        f"deltaweights: error: {folder}: 1 problem; do not use these weights: merge or fetch them again"
    ]
    report = run("verify", folder, "--json")
    assert report.returncode == 6
    assert [problem["file"] for problem in json.loads(report.stdout)["problems"]] == ["model.safetensors"]


def test_verify_nothing(run: Run, tmp_path: Path) -> None:
    """``verify`` of a folder that is not there ends with 5."""
    assert f"{tmp_path / 'x'}: cannot verify: No such file" in error_of(run("verify", tmp_path / "x"), 5)


def test_verify_loads_no_torch(merged: Path) -> None:
    """``verify`` checks a whole model, its tensors too, without importing torch."""
    digest = json.loads((merged / "manifest.json").read_text())["result"]["content_digest"]
    done = python("-X", "importtime", "-m", "deltaweights", "verify", merged, "--expect", digest)
    assert done.returncode == 0
    modules = imported(done.stderr)
    assert "deltaweights.manifest.verify" in modules
    assert modules & {"torch", "numpy", "transformers"} == set()


def test_clean(run: Run, work: Path) -> None:
    """``clean`` removes the staging of a target, says so, and leaves everything else; a second time there is nothing to do."""
    before = contents(work)
    staging = make_staging(beside(work / "out")).root
    (staging / "shards").mkdir()
    done, again = run("clean", "out", cwd=work), run("clean", "out", cwd=work)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"removed {staging}\n", "")
    assert (again.returncode, again.stdout, again.stderr) == (0, f"nothing to clean for {work / 'out'}\n", "")
    assert not staging.exists()
    assert before == contents(work)


# Help.


@pytest.mark.sampled(6)
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None) -> None:
    """``--help`` of every command ends with 0, on stdout, within a width that fits, and imports no torch."""
    arguments = [command] if command else []
    done = python("-X", "importtime", "-m", "deltaweights", *arguments, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['deltaweights', *arguments])} ")
    assert "\\b" not in done.stdout
    assert imported(done.stderr) & {"torch", "numpy", "transformers"} == set()
    if command:
        assert COMMANDS[command].split()[0] in done.stdout


def test_version(run: Run) -> None:
    """``--version`` prints the version."""
    assert run("--version").stdout == f"deltaweights, version {__version__}\n"


# apply-delta.

FORMS: dict[str, tuple[str, ...]] = {
    "written-out": ("--base-model-path", "base", "--target-model-path", "out", "--delta-path", "delta"),
    "shortened": ("--base", "base", "--target", "out", "--delta", "delta"),
    "as-argparse-allows": ("--base-m", "base", "--targ", "out", "--del", "delta"),
    "joined": ("--base-model=base", "--target=out", "--delta-p=delta", "--low-cpu"),
}


def plan_of(done: Done) -> tuple[Any, Any]:
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    return plan["plan"], plan["target"]


def test_drop_in_flags(run: Run, work: Path) -> None:
    """``apply-delta`` takes the original scripts' flags, written out, shortened or joined, for the same plan."""
    expected = plan_of(
        run("apply", "--base", "base", "--delta", "delta", "--target", "out", "--dry-run", "--json", cwd=work)
    )
    found = {name: plan_of(drop_in(*form, "--dry-run", "--json", cwd=work)) for name, form in FORMS.items()}
    assert dict.fromkeys(FORMS, expected) == found


def test_drop_in(work: Path) -> None:
    """``apply-delta`` with an old script's whole line merges, and says that ``--low-cpu-mem`` changes nothing."""
    done = drop_in(*FORMS["written-out"], "--low-cpu-mem", cwd=work)
    assert done.returncode == 0
    assert same_bits(reference(BASE, DELTA), load(work / "out"))
    assert "--low-cpu-mem: memory is always low here; the flag changes nothing" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--base", "base", "--target", "out"), "Missing option '--delta-path' / '--delta' (see apply-delta --help)"),
        ((*FORMS["shortened"], "--nonsense"), "No such option"),
    ],
    ids=["missing", "unknown"],
)
def test_drop_in_usage(work: Path, arguments: tuple[str, ...], part: str) -> None:
    """A wrong line ends with 2 and one line under ``apply-delta``'s own name."""
    assert part in error_of(drop_in(*arguments, cwd=work), 2, "apply-delta")


def test_drop_in_help() -> None:
    """``apply-delta --help`` names the original flags and ends with 0."""
    done = drop_in("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: apply-delta ")
    for flag in ("--base-model-path", "--target-model-path", "--delta-path", "--low-cpu-mem"):
        assert flag in done.stdout


# Pipes.


def test_reader_that_leaves(merged: Path) -> None:
    """When whoever reads stdout has left, the command ends without a word, as a program that SIGPIPE ends."""
    command = [sys.executable, "-m", "deltaweights", "verify", str(merged)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("target", "code"), [("merged", 0), ("nothing", 5)])
def test_streams_that_were_closed_before(work: Path, merged: Path, closed: str, target: str, code: int) -> None:
    """A command whose stdin, stdout or stderr was closed by whoever started it does its work and ends."""
    shutil.copytree(merged, work / "merged")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "deltaweights", "verify", target]
    done = subprocess.run(command, cwd=work, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == code


@pytest.mark.sampled(4)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("full", [">/dev/full", ">/dev/full 2>/dev/full", "2>/dev/full"])
@pytest.mark.parametrize("command", ["--version", "verify merged", "inspect merged --json", "verify nothing"])
def test_streams_on_a_full_disk(work: Path, merged: Path, full: str, command: str) -> None:
    """What cannot be printed ends with 5 and at most one line, not with the interpreter's complaints and 120."""
    shutil.copytree(merged, work / "merged")
    line = ["sh", "-c", f'exec "$@" {full}', "sh", sys.executable, "-m", "deltaweights", *command.split()]
    done = subprocess.run(line, cwd=work, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == (0 if full == "2>/dev/full" and command != "verify nothing" else 5)
    assert done.stderr.count(b"\n") <= 1
