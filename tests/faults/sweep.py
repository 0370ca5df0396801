"""Every system call of a small merge, made to fail, to lie, or to be the last one, and the checks after each.

After each fault the target is absent or complete (with a model there before: the old or the new one, complete), the run printed one
line and no traceback, and the next identical command succeeds, gives the same bytes, and leaves nothing else behind.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import deltaweights.errors
from deltaweights.jobs.apply import apply_delta
from tests.faults.injection import (
    ENVIRONMENT,
    KILL,
    SIGNALS,
    Call,
    Injected,
    command,
    faults_of,
    injected,
    is_lie,
    recorded,
)
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, save

Files = dict[str, bytes]

PACKAGE = Path(deltaweights.errors.__file__).parent

PAIR = ("--base", "@base", "--delta", "@delta")

ONE = ("--workers", "1")
"""With several workers the calls have another order each time."""

SMALL = (*ONE, "--max-shard-size", "8KB", "--quiet")


@dataclass(frozen=True)
class Scenario:
    """A command, by default a merge, and what was there before it.

    ``prepare(inputs, place)`` makes that; ``options`` are for the command, ``inside`` starts it in its target, where staging then
    is; ``exchange`` tells whether the file system can exchange folders. ``leaves`` is what is in the place in the end,
    and ``code`` that of a run to which nothing happens. In ``command``, what begins with ``@`` is one of the inputs, or the target.
    """

    name: str
    prepare: Callable[[Path, Path], object]
    options: tuple[str, ...] = ()
    inside: bool = False
    exchange: bool = True
    leaves: str = "out"
    code: int = 0
    command: tuple[str, ...] = ("apply", *PAIR, "--target", "@out", *SMALL)


@dataclass(frozen=True)
class Run:
    """One run with one fault: in the folder ``place``, from ``inputs``."""

    scenario: Scenario
    inputs: Path
    place: Path

    @property
    def target(self) -> Path:
        """The folder of the result."""
        return self.place / "out"

    @property
    def cwd(self) -> Path:
        """The working folder of the command."""
        return self.target if self.scenario.inside else self.place

    @property
    def arguments(self) -> list[str | Path]:
        """The command."""
        given = [*self.scenario.command, *self.scenario.options]
        return [self._place(word[1:]) if word.startswith("@") else word for word in given]

    def _place(self, name: str) -> Path:
        return self.target if name == "out" else self.inputs / name


# What was there before the run.


def nothing(_inputs: Path, _place: Path) -> None:
    """Leave the folder empty."""


def an_empty_target(_inputs: Path, place: Path) -> None:
    """Make the target an empty folder."""
    (place / "out").mkdir()


def an_old_model(inputs: Path, place: Path) -> None:
    """Put another model into the target."""
    shutil.copytree(inputs / "old", place / "out")


def finished_shards(inputs: Path, place: Path) -> None:
    """Leave what a run leaves that is killed after its last shard."""
    run = Run(SCENARIOS[0], inputs, place)
    notice = Call("openat", "shards/DELTAWEIGHTS_NOTICE.txt", 1, 0, True, "DELTAWEIGHTS_NOTICE.txt")
    assert injected(notice, KILL, run.arguments, run.cwd, place.parent / f"{place.name}.strace").met
    assert not run.target.exists()
    assert list((place / ".out.deltaweights" / "fragments").iterdir())


SCENARIOS = (
    Scenario("a new target", nothing),
    Scenario("finished shards in staging", finished_shards),
    Scenario("a model to be replaced", an_old_model, ("--overwrite",)),
    Scenario(
        "a model to be replaced, in two steps",
        an_old_model,
        ("--overwrite",),
        exchange=False,
    ),
    Scenario("a target that is staged inside", an_empty_target, inside=True),
)


def all_parts(inputs: Path, place: Path) -> None:
    """Make all parts of a merge."""
    arguments = Run(SCENARIOS[0], inputs, place).arguments
    subprocess.run(command([*arguments, "--part", "1/1"]), env=ENVIRONMENT, check=True, capture_output=True)


OF_SIGNALS = (
    *SCENARIOS,
    Scenario("a part", nothing, ("--part", "1/1"), leaves=".out.deltaweights"),
    Scenario("the end of parts", all_parts, command=("finish", "--target", "@out", "--quiet")),
    Scenario("verify", nothing, command=("verify", "@merged", *ONE)),
    Scenario("convert", nothing, command=("convert", "--base", "@base", "--target", "@out", *SMALL)),
    Scenario("make", nothing, command=("make", "--base", "@base", "--target", "@merged", "--delta", "@out", *SMALL)),
    Scenario("diff", nothing, command=("diff", "@merged", "@merged", *ONE)),
    Scenario("inspect", nothing, command=("inspect", "@delta")),
    Scenario("manifest", nothing, command=("manifest", "@delta", *ONE)),
    Scenario("check-base", nothing, command=("check-base", *PAIR, *ONE), code=6),  # too small to be proved
    Scenario("recipes", nothing, command=("recipes",)),
)
"""What signals are sent to."""


def make_inputs(folder: Path) -> None:
    """Make a base in safetensors, a delta in torch files, their merge, and a model to be replaced."""
    base = base_tensors(layers=1, vocabulary=20, hidden=16)
    delta = delta_tensors(base)
    save(base, folder / "base", "safetensors", 1)
    save(delta, folder / "delta", "torch", 1)
    old = folder / "old"
    old.mkdir()
    save_file({"old.weight": torch.ones(3)}, old / "model.safetensors")
    (old / "config.json").write_text("{}")
    apply_delta(folder / "base", folder / "delta", folder / "merged")


# One fault.


def files_of(folder: Path) -> Files:
    """Return the contents of all files below a folder; none when it does not exist."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def fault(run: Run, call: Call, what: str, expected: Files, old: Files) -> str | None:
    """Inject ``what`` into ``call``; return what was wrong afterwards, or None."""
    run.place.mkdir(parents=True)
    run.scenario.prepare(run.inputs, run.place)
    here = _moved(call, {"{place}": str(run.place), "{inputs}": str(run.inputs)})
    # A lie in the middle of a file is noticed only by reading the file.
    arguments = [*run.arguments, *(["--read-back"] if is_lie(what) else [])]
    log = run.place.parent / f"{run.place.name}.strace"
    done = injected(here, what, arguments, run.cwd, log, exchange=run.scenario.exchange)
    wrong = None if done.met else "it was not met"
    wrong = wrong or _wrong_end(done, what, run.scenario.code) or _wrong_target(run, done, what, expected, old)
    if wrong is None:
        again = _again(run)
        left = {path.name for path in run.place.iterdir()} - {run.scenario.leaves}
        if again.returncode != run.scenario.code:
            wrong = f"the next run ended with {again.returncode}: {again.stderr}"
        elif files_of(run.target) != expected:
            wrong = "the next run gave other bytes"
        elif left:
            wrong = f"left behind: {sorted(left)}"
    if wrong is None:
        shutil.rmtree(run.place)
    return wrong


def _moved(call: Call, places: dict[str, str]) -> Call:
    """Return the same call with other paths."""
    path, named = call.path, call.named
    for old, new in places.items():
        path, named = path.replace(old, new), named.replace(old, new)
    return replace(call, path=path, named=named)


def _wrong_end(done: Injected, what: str, usual: int) -> str | None:
    if what == KILL:
        return None
    codes = {usual, SIGNALS[what]} if what in SIGNALS else {0, 3, 5, 7}
    if "Traceback" in done.err or done.code not in codes:
        return f"ended with {done.code}: {done.err}"
    errors = [line for line in done.err.splitlines() if line.startswith("deltaweights: error: ")]
    if done.code and (len(errors) != 1 or not done.err.rstrip("\n").endswith(errors[0])):
        return f"said more or less than one line: {done.err}"
    return None


def _wrong_target(run: Run, done: Injected, what: str, expected: Files, old: Files) -> str | None:
    """Return what is wrong with the target: it must be absent, unchanged or complete, and complete after a success."""
    there = files_of(run.target) if run.target.is_dir() else {}
    there = {name: data for name, data in there.items() if not name.startswith(".deltaweights/")}
    if there == expected:
        return None
    if done.code == 0:
        return "it said that all is well, and the target is not the result"
    if (
        run.scenario.inside and there.items() <= expected.items()
    ):  # files that come one by one, the manifest when all are there
        early = "manifest.json" in there and there.keys() != expected.keys() - {"SHA256SUMS"}
        return "the manifest came before the files that it names" if early else None
    if what == KILL and not run.scenario.exchange and not run.target.exists():  # killed between two steps
        there = files_of(run.place / ".out.deltaweights" / "replaced")
    return None if there == old else f"the target is neither as it was nor the result: {sorted(there)}"


def _again(run: Run) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run.arguments),
        cwd=run.cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# All of them.


@dataclass
class Sweep:
    """The faults of one scenario: ``points`` are (call, fault), ``unclean`` says what was wrong after which."""

    scenario: Scenario
    calls: int
    points: list[tuple[Call, str]]
    unclean: list[str]


def sweep(
    scenario: Scenario,
    inputs: Path,
    work: Path,
    every: int = 1,
    jobs: int = 2,
    wanted: Callable[[Call, str], bool] = lambda _call, _what: True,
    *,
    signals: bool = False,
) -> Sweep:
    """Inject every fault that is ``wanted`` into every call of one scenario, or every so many of them.

    ``signals`` are sent in place of faults, also at calls that load the program's own modules, from when it listens on.
    """
    recording = Run(scenario, inputs, work / "recorded")
    recording.place.mkdir(parents=True)
    scenario.prepare(inputs, recording.place)
    old = files_of(recording.target) if recording.target.is_dir() else {}
    if signals:  # once in advance, so that all modules are compiled
        earlier = Run(scenario, inputs, work / "earlier")
        earlier.place.mkdir()
        scenario.prepare(inputs, earlier.place)
        _again(earlier)
    roots = [recording.place, inputs, *([PACKAGE] if signals else [])]
    found_calls = recorded(
        recording.arguments,
        recording.cwd,
        roots,
        work / "log",
        exchange=scenario.exchange,
        listening=signals,
        code=scenario.code,
    )
    calls = [_moved(call, {str(recording.place): "{place}", str(inputs): "{inputs}"}) for call in found_calls]
    expected = files_of(recording.target)
    all_points = [(call, what) for call in calls for what in (SIGNALS if signals else faults_of(call))]
    points = [(call, what) for call, what in all_points if wanted(call, what)][::every]

    def one(number: int) -> str | None:
        call, what = points[number]
        wrong = fault(Run(scenario, inputs, work / str(number)), call, what, expected, old)
        return None if wrong is None else f"{scenario.name}: {what} at {call}: {wrong}"

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(one, range(len(points))))
    return Sweep(scenario, len(calls), points, [wrong for wrong in found if wrong is not None])
