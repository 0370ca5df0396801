"""Signals at any time: when they are obeyed, what they leave, and what nobody may swallow.

The processes here are real. Most send the signal to themselves, at a place that the test names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Generator
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.place import locate
from deltaweights.util import interruption
from deltaweights.util.interruption import Interrupted, check
from deltaweights.util.workers import Crew
from tests.faults.sweep import files_of
from tests.support.fork_server import run as forked
from tests.support.limits import PATIENCE
from tests.unit.staging.test_staging import names_in, small_pair

Pair = tuple[Path, Path]
Done = subprocess.CompletedProcess[str]

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

GOES_ON = "; the same command goes on from what is finished"


def run_with(program: str, *arguments: str | Path, fork: bool = True, **options: Any) -> Done:
    """Run ``deltaweights ARGUMENTS`` after ``program``, in which ``send(number)`` sends this very process a signal.

    With ``fork`` False a new interpreter runs it, in which no module is loaded.
    """
    start = "import os, signal, sys, time\nsend = lambda number: os.kill(os.getpid(), number)\n"
    end = "\nfrom deltaweights.cli import main\nmain()\n"
    command = [sys.executable, "-c", start + textwrap.dedent(program) + end, *map(str, arguments)]
    if fork:
        return forked(command, **options)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)


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


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM noted in this process, as a command has that listens in this thread."""
    monkeypatch.setattr(interruption._Ear, "first", signal.SIGTERM)
    monkeypatch.setattr(interruption._Ear, "main", threading.get_ident())


# The flag.


def test_an_interruption_is_no_exception() -> None:
    """Whoever gets along with whatever is wrong, gets along with no signal."""
    assert not issubclass(Interrupted, Exception)


def test_nothing_happens_where_nobody_listens() -> None:
    """In a program that uses the package no handler is ours, and no check ends anything."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    check()
    assert interruption.aside(threading.get_ident) == threading.get_ident()


def test_a_check_ends_the_main_thread_alone(heard: None) -> None:
    """Where a signal was heard a check raises, as often as it is passed, and never in a worker's thread."""
    for _ in range(2):
        with pytest.raises(Interrupted, match=r"^terminated$") as caught:
            check()
        assert caught.value.exit_code == 143
    passed = threading.Event()
    worker = threading.Thread(target=lambda: (check(), passed.set()))  # type: ignore[func-returns-value]
    worker.start()
    worker.join()
    assert passed.is_set()


def test_what_tidies_up_is_not_ended(heard: None) -> None:
    """While the exception is on its way up checks do nothing, also within other exceptions; once it is caught they raise again."""
    passed = 0
    try:
        try:
            check()
        finally:
            check()
            try:
                Path("/no/such/file").stat()
            except OSError:
                check()
            passed += 1
    except Interrupted:
        check()
        passed += 1
    assert passed == 2
    with pytest.raises(Interrupted):
        check()


def test_what_breaks_of_a_signal_is_not_told(heard: None) -> None:
    """A child or a worker that a signal reached first is no error of theirs."""
    with pytest.raises(Interrupted), interruption.obeyed():
        raise OSError("broken by the signal")


@BOTH
def test_a_handler_leaves_no_lock_taken(number: signal.Signals) -> None:
    """A signal right after a condition took its lock, between two steps of Python's, leaves the lock as it finds it."""
    program = f"""
    import os, threading
    from deltaweights.util import interruption
    interruption.listen()
    enter = threading.Condition.__enter__
    def interrupted_enter(self):
        enter(self)
        os.kill(os.getpid(), {int(number)})
        return True
    threading.Condition.__enter__ = interrupted_enter
    condition = threading.Condition(threading.Lock())
    with condition:
        pass
    assert condition.acquire(blocking=False)
    try:
        interruption.check()
    except interruption.Interrupted as error:
        os._exit(error.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=PATIENCE, check=False)
    assert done.returncode == 128 + number


# A program that uses the package, where Ctrl-C is Python's own exception.


def test_ctrl_c_in_a_program_that_uses_us_stops_the_crew() -> None:
    """KeyboardInterrupt, raised as any function of Python's returns that took a lock, reaches the caller; all workers end."""
    began = threading.Event()

    def work() -> None:
        began.set()
        while not crew.is_off:
            time.sleep(0.001)

    def raise_in_conditions(frame: object, event: str, _argument: object) -> None:
        code = getattr(frame, "f_code")  # noqa: B009  (frames have no type here)
        if event == "return" and code.co_name == "__enter__" and code.co_filename == threading.__file__:
            raise KeyboardInterrupt

    crew = Crew(work, 2)
    running = cast(Generator[None, None, None], crew.run())
    next(running)
    assert began.wait(PATIENCE)
    sys.setprofile(raise_in_conditions)  # from here on, in this thread, entering a condition breaks off
    try:
        next(running)
        running.close()
    finally:
        sys.setprofile(None)
    for thread in crew._threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_downloads_enter_their_lock_itself() -> None:
    """A reader of a download takes the lock in C, not through its condition, where Ctrl-C could leave it taken."""
    source = Path(interruption.__file__).parents[1] / "hub" / "downloads.py"
    assert "with self._lock:" in source.read_text()
    assert "with self._changed" not in source.read_text()


# Nobody swallows one.


@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("name", ["manifest.json", "config.json"], ids=lambda name: f"row83-{name}")
@pytest.mark.parametrize("command", ["apply", "inspect"])
def test_while_a_document_is_read(pair: Pair, tmp_path: Path, number: signal.Signals, name: str, command: str) -> None:
    """A signal while one reads what a checkpoint says of itself ends the run, and nothing is made."""
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


# From the first byte to the last.

MODULES = ("gc", "deltaweights.cli.run", "click", "deltaweights.cli.group", "deltaweights.cli.job", "numpy", "numkong")


@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("module", MODULES, ids=lambda module: f"row83-{module}")
def test_while_something_is_imported(pair: Pair, tmp_path: Path, number: signal.Signals, module: str) -> None:
    """A signal during an import ends the run with its line, whoever imports what."""
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
    done = run_with(program, *arguments_of(pair, tmp_path / "out"), fork=False)
    assert_told(done, number, done.stderr.removesuffix("\n").partition(WORDS[number])[2])
    assert names_in(tmp_path) == []


@BOTH
def test_an_early_signal_is_an_event_too(tmp_path: Path, number: signal.Signals) -> None:
    """Where events were asked for, so is what came before the command line was read."""
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
    """Once the last line is written the exit code stands."""
    plain = run_with("", *arguments)
    done = run_with("import atexit\natexit.register(lambda: [send(2), send(15), time.sleep(0.05)])", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.trust
@BOTH
def test_row83_a_second_one_while_the_first_is_told(pair: Pair, tmp_path: Path, number: signal.Signals) -> None:
    """Another signal while a run tidies up, and while it says why it ends, changes neither line nor code."""
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
    interruption.WITHIN = 0.0  # three within two seconds would end it at once
    from deltaweights.merge import stream
    read = stream.read_block
    stream.read_block = lambda *given: (send({int(number)}), read(*given))[1]
    """
    done = run_with(program, *arguments_of(pair, tmp_path / "out"), "--workers", "1")
    assert_told(done, number, GOES_ON)
    assert not (tmp_path / "out").exists()


# What waits.


def sent_to(command: list[str], *numbers: signal.Signals, started: str = "begun\n") -> tuple[int, str, float]:
    """Start a command, send it signals once it has said that it has begun; return code, stderr and how long it took to end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == started
        time.sleep(0.1)
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err, time.monotonic() - began


WAITS = {
    "the system": "os.read(os.pipe()[0], 1)",
    "code in C": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.trust
@BOTH
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: f"row83-{wait.replace(' ', '-')}")
def test_the_third_ends_at_once(number: signal.Signals, wait: str) -> None:
    """What is held up where it cannot poll does not hear the first two signals; the third within two seconds ends it."""
    program = f"""
import os, sys
from deltaweights.util import interruption
interruption.listen()
interruption.count()
print("begun", flush=True)
{WAITS[wait]}
"""
    code, err, _ = sent_to([sys.executable, "-c", program], number, number, number)
    assert (code, err) == (128 + number, "")


@BOTH
@pytest.mark.parametrize(
    "wait",
    [
        "interruption.aside(lambda: time.sleep(600))",
        "run_python(['-c', 'import time; time.sleep(600)'], 'start')",
        "sys.stdout.write('much ' * 1_000_000)",
        "list(Crew(work, 2).run())",
    ],
    ids=["a call of others", "a child", "a pipe that nobody reads", "workers"],
)
def test_what_waits_ends(number: signal.Signals, wait: str) -> None:
    """Whatever a command waits for, one signal ends it."""
    program = f"""
import os, sys, time
from deltaweights import cli
from deltaweights.util import interruption
from deltaweights.inference.python_process import run_python
from deltaweights.util.workers import Crew
import click
def work():
    while not interruption.heard():
        time.sleep(0.01)
@click.command()
def command():
    print("begun", flush=True)
    {wait}
cli.command = command
cli._start("deltaweights.cli", "command", "deltaweights")
"""
    code, err, seconds = sent_to([sys.executable, "-c", program], number)
    assert (code, err) == (128 + number, f"deltaweights: error: {WORDS[number]}\n")
    assert seconds < 30


def test_what_is_ignored_stays_ignored(pair: Pair, tmp_path: Path) -> None:
    """A run in the background of a script, where Ctrl-C is ignored, goes on; SIGTERM ends it."""
    program = "from deltaweights.merge import stream\nread = stream.read_block\n"
    program += "stream.read_block = lambda *given: (send({}), read(*given))[1]"

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    arguments = arguments_of(pair, tmp_path / "out")
    done = run_with(program.format(15), *arguments, preexec_fn=ignore)
    assert done.returncode == 143
    done = run_with(program.format(2), *arguments, preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (0, "")


# Storms.

PROGRAM = """
import os, sys
from deltaweights.util import interruption
listen, told = interruption.listen, int(sys.argv.pop(1))
def listen_and_tell():
    listen()
    os.write(told, b".")
interruption.listen = listen_and_tell
from deltaweights.cli import main
main()
"""
"""``deltaweights``, which says when it listens: of what comes before, Python dies in its own way."""

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
    """Make a base, a delta and what is merged of them."""
    folder = tmp_path_factory.mktemp("storm")
    base, delta = small_pair(folder)
    apply_delta(base, delta, folder / "merged")
    for path, name in ((base, "base"), (delta, "delta")):
        if path != folder / name:
            path.rename(folder / name)
    return folder


def storm(arguments: list[str | Path], numbers: list[signal.Signals], pauses: list[float]) -> tuple[int, str, str]:
    """Run a command, and send it a signal after each pause from when it listens on; return code, stdout and stderr."""
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
    """Have a storm over one command, and look at what is left."""
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
        assert errors or count >= interruption.IMPATIENT
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
    assert not locate(target).root.exists()


@pytest.mark.trust
@pytest.mark.parametrize("seed", range(16), ids=lambda seed: f"row83-{seed}")
def test_a_storm(storm_inputs: Path, tmp_path: Path, seed: int) -> None:
    """Signals at random times, up to five of them: one line at most, 0, 130 or 143; the same command then ends well."""
    weather(seed, storm_inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.trust
@pytest.mark.parametrize("hundred", range(2), ids=lambda hundred: f"row83-{hundred}")
def test_a_longer_storm(storm_inputs: Path, tmp_path: Path, hundred: int) -> None:
    """The same, a hundred times."""
    for seed in range(100 * hundred + 16, 100 * hundred + 116):
        place = tmp_path / str(seed)
        place.mkdir()
        weather(seed, storm_inputs, place)
