"""Commands that get signals at any time: what they print, what they leave, and what may not swallow a signal.

The processes are real. Most send the signal to themselves, at the place that the test names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random

import pytest

from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import locate_target
from deltaweights.util import interruption
from tests.support.killed_merges import names_in, small_pair
from tests.support.limits import PATIENCE
from tests.support.merging import files_of
from tests.support.params import few

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


Pair = tuple[Path, Path]


Done = subprocess.CompletedProcess[str]


GOES_ON = "; run the same command again to continue"


def run_with(program: str, *arguments: str | Path, **options: object) -> Done:
    """Run ``deltaweights ARGUMENTS`` after ``program``, in which ``send(number)`` sends the process a signal."""
    start = "import os, signal, sys, time\nsend = lambda number: os.kill(os.getpid(), number)\n"
    end = "\nfrom deltaweights.cli import main\nmain()\n"
    command = [sys.executable, "-c", start + textwrap.dedent(program) + end, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)  # type: ignore[call-overload,no-any-return]


def assert_told(done: Done, number: signal.Signals, more: str = "") -> None:
    """Assert that a run ended with the signal's code and its one line."""
    assert (done.returncode, done.stderr) == (128 + number, f"deltaweights: error: {WORDS[number]}{more}\n")


def arguments_of(pair: Pair, target: Path) -> list[str | Path]:
    """Return the arguments of a merge in several shards."""
    return ["apply", "--base", pair[0], "--delta", pair[1], "--target", target, "--max-shard-size", "10KB", "-q"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a small pair whose base has a manifest and a configuration beside it."""
    folder = tmp_path_factory.mktemp("pair")
    base, delta = small_pair(folder)
    (base / "manifest.json").write_text("{}")
    (base / "config.json").write_text("{}")
    return base, delta


@pytest.mark.sampled(3)
@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("name", ["manifest.json", "config.json"], ids=lambda name: f"row83-{name}")
@pytest.mark.parametrize("command", ["apply", "inspect"])
def test_while_a_document_is_read(pair: Pair, tmp_path: Path, number: signal.Signals, name: str, command: str) -> None:
    """A signal while a checkpoint's documents are read ends the run, and nothing is created."""
    program = f"""
    from deltaweights.checkpoint.directory import LocalDirectory
    opened, copied = LocalDirectory.open, LocalDirectory.read_companion
    def open_and_send(self, name):
        if name == {name!r}:
            send({int(number)})
        return opened(self, name)
    def copy_and_send(self, name, most):
        if name == {name!r}:
            send({int(number)})
        return copied(self, name, most)
    LocalDirectory.open, LocalDirectory.read_companion = open_and_send, copy_and_send
    """
    target = tmp_path / "out"
    done = run_with(program, *(arguments_of(pair, target) if command == "apply" else ["inspect", pair[0]]))
    assert_told(done, number, GOES_ON if command == "apply" else "")
    assert done.stdout == ""
    assert names_in(tmp_path) == []


MODULES = (
    "gc",
    "deltaweights.cli.run",
    "click",
    "deltaweights.cli.group",
    "deltaweights.cli.writing",
    "numpy",
    "numkong",
)


@pytest.mark.sampled(5)
@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("module", MODULES, ids=lambda module: f"row83-{module}")
def test_while_something_is_imported(pair: Pair, tmp_path: Path, number: signal.Signals, module: str) -> None:
    """A signal during an import, of our modules or others, ends the run with its line."""
    program = f"""
    from deltaweights.util import interruption
    class Sender:
        def find_spec(name, path=None, target=None):
            if name == {module!r} or {module == "gc"}:
                send({int(number)})
    listen = interruption.listen
    def listen_and_send():
        listen()
        sys.meta_path.insert(0, Sender)
    interruption.listen = listen_and_send
    """
    done = run_with(program, *arguments_of(pair, tmp_path / "out"))
    assert_told(done, number, done.stderr.removesuffix("\n").partition(WORDS[number])[2])
    assert names_in(tmp_path) == []


@BOTH
def test_an_early_signal_is_an_event_too(tmp_path: Path, number: signal.Signals) -> None:
    """With --log-format json, a signal before the command line was parsed is an event, too."""
    program = f"""
    from deltaweights.util import interruption
    listen = interruption.listen
    interruption.listen = lambda: (listen(), send({int(number)}))
    """
    done = run_with(program, "apply", "--log-format", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 128 + number
    assert [event["event"] for event in events] == ["start", "interrupted"]


@pytest.mark.trust
@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "--no-such"]], ids=["row83-well", "row83-badly"])
def test_while_the_interpreter_ends(arguments: list[str]) -> None:
    """Once the last line is written, the exit code is final."""
    plain = run_with("", *arguments)
    done = run_with("import atexit\natexit.register(lambda: [send(2), send(15), time.sleep(0.05)])", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.trust
@BOTH
def test_row83_a_second_signal_while_the_first_is_reported(pair: Pair, tmp_path: Path, number: signal.Signals) -> None:
    """A second signal, while a run cleans up or reports the first one, changes neither line nor code."""
    program = f"""
    from deltaweights.cli.log_report import Console
    from deltaweights.staging.lock import StagingLock
    fail, leave = Console.fail, StagingLock.__exit__
    def fail_and_send(*arguments, **more):
        code = fail(*arguments, **more)
        send(15)
        return code
    def send_and_leave(*arguments):
        send(2)
        time.sleep(0.05)
        return leave(*arguments)
    Console.fail, StagingLock.__exit__ = fail_and_send, send_and_leave
    from deltaweights.util import interruption
    interruption.FORCE_QUIT_SECONDS = 0.0  # three within two seconds would end it at once
    from deltaweights.merge import stream
    import deltaweights.jobs.round_trip  # which reads blocks, too, before the merge
    read = stream.read_block
    stream.read_block = lambda *given: (send({int(number)}), read(*given))[1]
    """
    done = run_with(program, *arguments_of(pair, tmp_path / "out"), "--workers", "1")
    kept = "([0-9]+) of [0-9]+ shards? (is|are) finished( and kept)?"
    assert done.returncode == 128 + number
    assert re.fullmatch(f"deltaweights: error: {WORDS[number]}; {kept}{GOES_ON}\n", done.stderr)
    assert not (tmp_path / "out").exists()


def test_what_is_ignored_stays_ignored(pair: Pair, tmp_path: Path) -> None:
    """A background job of a script, where Ctrl-C is ignored, continues; SIGTERM ends it."""
    program = "import deltaweights.jobs.round_trip\nfrom deltaweights.merge import stream\nread = stream.read_block\n"
    program += "stream.read_block = lambda *given: (send({}), read(*given))[1]"

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    arguments = arguments_of(pair, tmp_path / "out")
    done = run_with(program.format(15), *arguments, preexec_fn=ignore)
    assert done.returncode == 143
    done = run_with(program.format(2), *arguments, preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (0, "")


PROGRAM = """
import os, sys
from deltaweights.util import interruption
listen, told = interruption.listen, int(sys.argv.pop(1))
def listen_and_say():
    listen()
    os.write(told, b".")
interruption.listen = listen_and_say
from deltaweights.cli import main
main()
"""
"""``deltaweights``, which says when its handlers are installed: before that, Python dies in its own way."""


COMMANDS = ("apply", "verify", "convert", "diff", "make", "inspect", "manifest", "part")


def storm_command(kind: str, inputs: Path, target: Path) -> list[str | Path]:
    """Return the arguments of a command of this kind, whose result, if it has one, is ``target``."""
    base, delta, merged = (inputs / name for name in ("base", "delta", "merged"))
    small: list[str | Path] = ["--max-shard-size", "10KB", "-q"]
    commands: dict[str, list[str | Path]] = {
        "apply": ["apply", "--base", base, "--delta", delta, "--target", target, *small],
        "part": ["apply", "--base", base, "--delta", delta, "--target", target, *small, "--part", "1/1"],
        "convert": ["convert", "--base", base, "--target", target, *small],
        "make": ["make", "--base", base, "--target", merged, "--delta", target, *small],
        "verify": ["verify", merged, "-q"],
        "diff": ["diff", base, base, "-q"],
        "inspect": ["inspect", base],
        "manifest": ["manifest", base],
    }
    return commands[kind]


@pytest.fixture(scope="module")
def storm_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base, a delta and their merge."""
    folder = tmp_path_factory.mktemp("storm")
    base, delta = small_pair(folder)
    apply_delta(base, delta, folder / "merged")
    for path, name in ((base, "base"), (delta, "delta")):
        if path != folder / name:
            path.rename(folder / name)
    return folder


def storm(arguments: list[str | Path], numbers: list[signal.Signals], pauses: list[float]) -> tuple[int, str, str]:
    """Run a command, and send it a signal after each pause once its handlers are installed; return code, stdout and stderr."""
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PROGRAM, str(writer), *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[writer]
    ) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"."
        os.close(reader)
        for number, pause in zip(numbers, pauses, strict=True):
            time.sleep(pause)
            process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def weather(seed: int, inputs: Path, place: Path) -> None:
    """Send one command a storm of signals, and check what is left."""
    random = Random(seed)  # noqa: S311  (no secret)
    kind = COMMANDS[seed % len(COMMANDS)]
    target = place / "out"
    arguments = storm_command(kind, inputs, target)
    count = random.choice([1, 1, 2, 3, 5])
    numbers = [random.choice([signal.SIGINT, signal.SIGTERM]) for _ in range(count)]
    pauses = [random.uniform(0, 0.6), *(random.choice([0, random.uniform(0, 0.3)]) for _ in range(count - 1))]
    code, _, err = storm(arguments, numbers, pauses)
    assert code in {0, *(128 + number for number in numbers)}, err
    assert "Traceback" not in err
    errors = re.findall(r"^deltaweights: error: .*$", err, re.MULTILINE)
    assert len(errors) <= 1
    if code > 128:
        assert not errors or re.search("error: (interrupted|terminated)", errors[0])
        assert errors or count >= interruption.FORCE_QUIT_SIGNALS
    there = files_of(target) if target.exists() else None
    code, _, err = storm(arguments, [], [])
    assert code == 0, err
    if kind in {"verify", "diff", "inspect", "manifest"}:
        assert names_in(place) == []
        return
    if kind == "part":
        code, _, err = storm(["finish", "--target", target, "-q"], [], [])
        assert code == 0, err
    assert there is None or there == files_of(target)
    assert names_in(place) == ["out"]
    assert not locate_target(target).root.exists()


@pytest.mark.sampled(1)
@pytest.mark.trust
@pytest.mark.parametrize("seed", few(range(16), 4), ids=lambda seed: f"row83-{seed}")
def test_a_storm(storm_inputs: Path, tmp_path: Path, seed: int) -> None:
    """Up to five signals at random times: at most one line, and 0, 130 or 143; the same command then succeeds."""
    weather(seed, storm_inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.trust
@pytest.mark.parametrize(
    "seeds",
    [range(16, 56), pytest.param(range(56, 216), marks=pytest.mark.exhaustive)],
    ids=["row83-some", "row83-more"],
)
def test_a_longer_storm(storm_inputs: Path, tmp_path: Path, seeds: range) -> None:
    """The same for many seeds."""
    for seed in seeds:
        place = tmp_path / str(seed)
        place.mkdir()
        weather(seed, storm_inputs, place)
