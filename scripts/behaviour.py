"""What commands do on fixed tiny inputs: a yardstick for changes that must change nothing.

Of each command it records the exit code, the class of the error, what is printed (paths, times and rates taken out), and the
sha256 of every file that is written. Messages may be reworded: they are recorded, and compared apart from the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.llava_2023 import publish
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors, delta_tensors, save

from deltaweights.cli.group import deltaweights
from deltaweights.cli.log_report import Console
from deltaweights.errors import DeltaweightsError

Entry = dict[str, Any]

PAIR = ("--base", "{in}/base", "--delta", "{in}/delta")
LLAVA = ("--base", "{in}/llava/base", "--delta", "{in}/llava/delta")
TOWER = ("--layout", "transformers", "--vision-tower", "{in}/llava/clip")


@dataclass(frozen=True)
class Case:
    """A name, and the commands that are run one after the other in a new folder; the last one is recorded."""

    name: str
    commands: tuple[tuple[str, ...], ...]


def case(name: str, *commands: str) -> Case:
    """Return a case; a command is written as one line, with PAIR, LLAVA and TOWER for the usual inputs."""
    words = {"PAIR": PAIR, "LLAVA": LLAVA, "TOWER": TOWER}
    return Case(
        name, tuple(tuple(each for word in line.split() for each in words.get(word, (word,))) for line in commands)
    )


CASES = (
    case("apply", "apply PAIR --target out"),
    case("apply, torch", "apply --base {in}/base-torch --delta {in}/delta-torch --target out"),
    case("apply, one file", "apply --base {in}/base --delta {in}/delta-one/model.safetensors --target out"),
    case("apply, an index", "apply --base {in}/base/model.safetensors.index.json --delta {in}/delta --target out"),
    case("apply, an archive", "apply --base {in}/base --delta {in}/delta.zip --target out"),
    case("apply, Meta's format", "apply --base {in}/meta --delta {in}/delta --target out"),
    case("apply, bin", "apply PAIR --target out --format bin"),
    case("apply, bfloat16", "apply PAIR --target out --compute-dtype bfloat16"),
    case("apply, float32", "apply PAIR --target out --compute-dtype float32"),
    case("apply, stored as bfloat16", "apply PAIR --target out --dtype bfloat16"),
    case("apply, many shards", "apply PAIR --target out --max-shard-size 20KB"),
    case("apply, hashes", "apply PAIR --target out --hash-inputs --json"),
    case("apply, not proved", "apply PAIR --target out --no-prove --json"),
    case("apply, read back", "apply PAIR --target out --read-back --json"),
    case("apply, torch kernels", "apply PAIR --target out --workers 3 --quiet"),
    case("apply, json", "apply PAIR --target out --json"),
    case("apply, json log", "apply PAIR --target out --log-format json"),
    case("apply, dry run", "apply PAIR --target out --dry-run"),
    case("apply, dry run in json", "apply PAIR --target out --dry-run --json"),
    case("apply, transformers", "apply LLAVA TOWER --target out"),
    case("apply, transformers in shards", "apply LLAVA TOWER --target out --max-shard-size 20KB --json"),
    case("apply, a recipe's sizes", "apply llava-med-7b PAIR --target out"),
    case("apply, a recipe of one's own", "apply PAIR --recipe {in}/own.toml --target out --json"),
    case("apply, again", "apply PAIR --target out", "apply PAIR --target out --json"),
    case("apply, overwrite", "apply PAIR --target out", "apply PAIR --target out --dtype float32 --overwrite"),
    case("apply, other content", "apply PAIR --target out", "apply PAIR --target out --dtype float32"),
    case("apply, another base", "apply --base {in}/other --delta {in}/delta --target out --json"),
    case("apply, strict", "apply --base {in}/base --delta {in}/nan --target out --strict"),
    case("part", "apply PAIR --target out --max-shard-size 20KB --part 1/2 --json"),
    case(
        "finish",
        "apply PAIR --target out --max-shard-size 20KB --part 1/2",
        "apply PAIR --target out --max-shard-size 20KB --part 2/2",
        "finish --target out --json",
    ),
    case("finish, a part lacks", "apply PAIR --target out --max-shard-size 20KB --part 1/2", "finish --target out"),
    case("make", "apply PAIR --target out", "make --base {in}/base --target out --delta made --json"),
    case("make, float32", "make --base {in}/base --target {in}/other --delta made --compute-dtype float32"),
    case("make, not checked", "make --base {in}/base --target {in}/other --delta made --no-check"),
    case("convert", "convert --base {in}/meta --target out --json"),
    case("convert, bfloat16", "convert --base {in}/base-torch --target out --dtype bfloat16"),
    case("export", "apply LLAVA --target merged", "export merged --target out --vision-tower {in}/llava/clip --json"),
    case("inspect", "inspect {in}/base"),
    case("inspect, json", "inspect {in}/delta --json --hash-inputs"),
    case("inspect, Meta's format", "inspect {in}/meta --json"),
    case("diff, the same", "diff {in}/base {in}/base-torch --json"),
    case("diff, another", "diff {in}/base {in}/other"),
    case("check-base", "check-base PAIR"),
    case("check-base, another", "check-base --base {in}/other --delta {in}/delta --json"),
    case("verify", "apply PAIR --target out", "verify out --json"),
    case("verify, a wrong pin", "apply PAIR --target out", f"verify out --expect dw1:{'0' * 64}"),
    case("verify, damaged", "verify {in}/damaged"),
    case("verify, a file lacks", "verify {in}/lacking --json"),
    case("verify, a file too many", "verify {in}/extra"),
    case("verify, junit", "verify {in}/extra --junit report.xml"),
    case("manifest", "manifest {in}/base --output kept.json"),
    case("verify, a kept manifest", "manifest {in}/base --output kept.json", "verify {in}/base --manifest kept.json"),
    case("sign", "apply PAIR --target out", "sign out --private-key {in}/key.pem --json"),
    case("recipes", "recipes"),
    case("recipes, one", "recipes show vicuna-7b-v0 --json"),
    case("clean", "apply PAIR --target out --max-shard-size 20KB --part 1/2", "clean out"),
    case("no target", "apply PAIR"),
    case("an unknown dtype", "apply PAIR --target out --dtype float8"),
    case("a base that is not there", "apply --base {in}/nothing --delta {in}/delta --target out"),
    case("the same twice", "apply --base {in}/base --delta {in}/base --target out"),
    case("a delta of another size", "apply --base {in}/small --delta {in}/delta --target out"),
    case("a target in an input", "apply PAIR --target {in}/base/out"),
    case("a malformed file", "inspect {in}/malformed"),
    case("an unknown recipe", "apply no-such-recipe --target out"),
    case("nothing to verify", "verify {in}/base"),
)


# The inputs.

OWN = """
format = "deltaweights-recipe"
version = 1
extends = "llava-med-7b"
name = "tiny"

[delta]
files = {}

[shapes]
hidden_size = 32
intermediate_size = 92
layers = 2
base_rows = 48
delta_rows = 52
"""


def make_inputs(folder: Path) -> None:
    """Make every checkpoint that the cases read, the same at each call."""
    base = base_tensors()
    delta = delta_tensors(base)
    save(base, folder / "base", "safetensors")
    save(delta, folder / "delta", "safetensors")
    save(base, folder / "base-torch", "torch")
    save(delta, folder / "delta-torch", "torch")
    save(delta, folder / "delta-one", "safetensors", 1)
    save(base_tensors(seed=9), folder / "other", "safetensors")
    save(base_tensors(hidden=16), folder / "small", "safetensors")
    damaged = {name: tensor.clone() for name, tensor in delta.items()}
    damaged["model.norm.weight"][0] = torch.nan
    save(damaged, folder / "nan", "safetensors")
    save_meta(base, folder / "meta", 2)
    shutil.make_archive(str(folder / "delta"), "zip", folder, "delta")
    publish(folder / "llava")
    (folder / "malformed").mkdir()
    (folder / "malformed" / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    (folder / "own.toml").write_text(OWN)
    key = ec.derive_private_key(20_231_130, ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    result = folder / "damaged"
    run(["apply", *given(PAIR, folder), "--target", str(result), "--quiet"])
    for name in ("lacking", "extra"):
        shutil.copytree(result, folder / name)
    weights = next(result.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (folder / "lacking" / "config.json").unlink()
    (folder / "extra" / "extra.py").write_text("?")


def given(words: tuple[str, ...], inputs: Path) -> list[str]:
    """Return the words of a command with the folder of the inputs put in."""
    return [word.replace("{in}", str(inputs)) for word in words]


# One case.

NEVER_THE_SAME = {"staging.json", "model.sig", "report.xml"}
"""Files that name an inode, a random number, a time."""


def run(arguments: list[str]) -> Entry:
    """Run a command in this process; return how it ended and what it printed."""
    error: str | None = None
    with printed() as (out, err):
        console = Console("deltaweights")
        try:
            status = deltaweights.main(arguments, prog_name="deltaweights", standalone_mode=False, obj=console)
            code, message = status if isinstance(status, int) else 0, ""
        except DeltaweightsError as caught:
            code, error, message = caught.exit_code, type(caught).__name__, str(caught)
        except click.ClickException as caught:
            code, error, message = 2, "UsageError", caught.format_message()
        console.print_outcome()
        texts = [Path(stream.name).read_text(encoding="utf-8") for stream in (out, err)]
    return {"code": code, "error": error, "message": message, "stdout": texts[0], "stderr": texts[1]}


@contextlib.contextmanager
def printed() -> Iterator[tuple[IO[str], IO[str]]]:
    """Have what is printed go to two files, which are yielded."""
    with (
        tempfile.NamedTemporaryFile("w", buffering=1, encoding="utf-8") as out,
        tempfile.NamedTemporaryFile("w", buffering=1, encoding="utf-8") as err,
        contextlib.redirect_stdout(out.file),
        contextlib.redirect_stderr(err.file),
    ):
        yield out, err


def record(one: Case, inputs: Path, work: Path) -> Entry:
    """Run a case in the new folder ``work``; return what its last command did and which files there are then."""
    work.mkdir()
    before = Path.cwd()
    os.chdir(work)
    try:
        for command in one.commands:
            entry = run(given(command, inputs))
    finally:
        os.chdir(before)
    for key in ("message", "stdout", "stderr"):
        entry[key] = usual(entry[key], inputs, work)
    entry["files"] = {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.name not in NEVER_THE_SAME
    }
    return entry


NUMBERS = re.compile(r'("(?:seconds|total|prepare|stream|flush|publish|disk_free|time|[a-z ]*_seconds)": )[\d.e-]+')
TIMES = re.compile(r"\b\d+(\.\d+)? ?(s|ms|[kMG]?B/s)\b")


def usual(text: str, inputs: Path, work: Path) -> str:
    """Return what was printed without what is another one each time: paths, times, rates and free disk."""
    text = text.replace(str(inputs), "{in}").replace(str(work), "{work}")
    text = re.sub(r'"seconds": \{[^}]*\}', '"seconds": {}', text)
    return TIMES.sub("{time}", NUMBERS.sub(r"\1{number}", text))


def recorded() -> dict[str, Entry]:
    """Run all cases; return what each did by its name."""
    with tempfile.TemporaryDirectory(prefix="behaviour-") as name:
        folder = Path(name).resolve()
        (folder / "in").mkdir()
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        make_inputs(folder / "in")
        found = {}
        for number, one in enumerate(CASES):
            found[one.name] = record(one, folder / "in", folder / str(number))
            print(f"{found[one.name]['code']}  {one.name}", file=sys.stderr, flush=True)
        return found


def differences(old: dict[str, Entry], new: dict[str, Entry]) -> Iterator[str]:
    """Yield what is another one, a line each."""
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            yield f"{name}: only in the {'new' if name in new else 'old'} record"
            continue
        one, other = old[name], new[name]
        for key in ("code", "error"):
            if one[key] != other[key]:
                yield f"{name}: {key} {one[key]} -> {other[key]}"
        for file in sorted({*one["files"], *other["files"]}):
            before, after = one["files"].get(file), other["files"].get(file)
            if before != after:
                yield f"{name}: file {file} {'changed' if before and after else 'added' if after else 'gone'}"
        if _json(one["stdout"]) != _json(other["stdout"]):
            yield f"{name}: JSON on stdout"


def rewordings(old: dict[str, Entry], new: dict[str, Entry]) -> Iterator[str]:
    """Yield the texts that are others, a line each."""
    for name in sorted(old.keys() & new.keys()):
        for key in ("message", "stdout", "stderr"):
            if old[name][key] != new[name][key] and (key != "stdout" or _json(old[name][key]) is None):
                yield f"{name}: {key}\n  - {old[name][key]!r}\n  + {new[name][key]!r}"


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(prog="scripts/behaviour", description=str(__doc__).splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="FILE", help="write what is done now")
    what.add_argument("--compare", type=Path, metavar="FILE", help="compare what is done now with a record")
    parser.add_argument("--texts", action="store_true", help="with --compare, show reworded texts, too")
    options = parser.parse_args()
    file = Path(os.environ.get("CALLER", ".")) / (options.record or options.compare)
    found = recorded()
    if options.record:
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(f"{len(found)} cases recorded")
        return
    old = json.loads(file.read_text())
    lines = list(differences(old, found))
    texts = list(rewordings(old, found))
    for line in lines + (texts if options.texts else []):
        print(line)
    print(f"{len(found)} cases, {len(lines)} differences, {len(texts)} texts reworded")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
