"""What is due for every row of the table of bad inputs, asserted in one place.

Each case runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.fork_server import light_server
from tests.support.pairs import make_pair

SECONDS = 5.0
"""Of processor time: what the machine's other work cannot lengthen."""

MEBIBYTES = 200
"""Above the peak of a run in which all is well."""

Make = Callable[[Path], Sequence[str | Path]]


@dataclass(frozen=True)
class Outcome:
    """How a process ended: ``peak`` is its resident memory in MiB, ``seconds`` its processor time."""

    code: int
    out: str
    err: str
    seconds: float
    peak: float


@dataclass(frozen=True)
class Case:
    """One bad input.

    ``make(folder)`` puts it into a folder of its own and returns the arguments of the command, of which ``TARGET`` stands for the
    target. ``says`` must all be in the last line of stderr.
    """

    make: Make
    exit_code: int
    says: tuple[str, ...]


TARGET = "{target}"


def merging(
    change: Callable[[Path, Path], object], container: str = "safetensors", *more: str, shards: int = 2
) -> Make:
    """Return what makes a sound pair, has ``change(base, delta)`` spoil it, and names its merge."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, container, shards)
        change(base, delta)
        return ["apply", "--base", base, "--delta", delta, "--target", TARGET, *more]

    return make


def with_file(name: str, content: bytes, container: str = "safetensors") -> Make:
    """Return what makes a pair whose delta has ``content`` in the file ``name``, and names its merge."""
    return merging(lambda _, delta: (delta / name).write_bytes(content), container)


def case(make: Make, exit_code: int, *says: str) -> Case:
    """Return a case: what is made, the exit code, and what the message says."""
    return Case(make, exit_code, says)


def run_command(arguments: Sequence[str | Path]) -> Outcome:
    """Run ``deltaweights ARGUMENTS`` in a process of its own, and measure it."""
    command = ["-m", "deltaweights", *map(str, arguments)]
    done = light_server().run(command, Path.cwd(), os.environ | {"COLUMNS": "200"})
    return Outcome(done.returncode, done.stdout, done.stderr, done.seconds, done.peak)


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file under ``folder``, by its path; links and folders are named, too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "other"
    return found


def hold(subject: Case, folder: Path, normal: float) -> None:
    """Assert all that is due: with a target that is not there, and with one to be replaced, which must stay as it is.

    ``normal`` is the peak in MiB of a run in which all is well.
    """
    standing = folder / "standing"
    for place, more in ((folder / "absent", []), (standing, ["--overwrite"])):
        inputs = folder / f"inputs-{place.name}"
        inputs.mkdir(parents=True)
        arguments = list(subject.make(inputs))
        writes = TARGET in arguments
        if place == standing:
            if not writes:
                break
            _stand(standing)
        before = contents(place)
        filled = [place if argument == TARGET else argument for argument in arguments]
        outcome = run_command([*filled, *(more if writes else [])])
        assert outcome.code == subject.exit_code, outcome.err
        assert_one_line(outcome, subject.says)
        assert contents(place) == before, "the target was touched"
        assert place.exists() == bool(before), "something stands under the final name"
        assert outcome.seconds < SECONDS
        assert outcome.peak < normal + MEBIBYTES


def assert_one_line(outcome: Outcome, says: Sequence[str]) -> None:
    """Assert that the error is the last line of stderr, printable, no traceback, and that all of ``says`` is said.

    ``verify`` lists its problems on stdout; of other commands that fail, stdout is empty.
    """
    lines = outcome.err.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("deltaweights: error: ")]
    assert errors == lines[-1:], outcome.err
    assert "Traceback" not in outcome.err
    assert all(line.isprintable() for line in [*lines, *outcome.out.splitlines()]), outcome.err
    for part in says:
        assert part in lines[-1] + outcome.out
    assert "; " in lines[-1], "what to do is not said"


def _stand(target: Path) -> None:
    """Make a checkpoint that ``--overwrite`` could replace."""
    base, _ = make_pair(target.parent / "of-target", "safetensors", 1)
    base.rename(target)
