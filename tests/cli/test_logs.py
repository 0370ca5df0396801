"""Logs for machines, as docs/logs.md promises them: real commands, of which every line on stderr is parsed."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.cli.log_report import VARIABLE
from tests.support.fork_server import run as forked
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, save

Done = subprocess.CompletedProcess[str]
Event = dict[str, Any]

BASE = base_tensors(layers=1, vocabulary=8, hidden=8)
DELTA = delta_tensors(BASE)

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "logs.md").read_text()

KEYS = {
    event: {"event", "time", *re.findall(r"`(\w+)`", keys)}
    for event, keys in re.findall(r"^\| `(\w+)` \| (`\w+`[^|]*) \|", DOCUMENT, re.MULTILINE)
}
"""The keys that an event must have, by its name, as documented."""

ENDS = {"result", "error", "interrupted"}

APPLY = ("apply", "--base", "base", "--delta", "delta", "--target", "out")
SHARDS = ("--max-shard-size", "400B")

SLOWLY = """\
import time
from deltaweights.merge.open_shard import OpenShard
digest = OpenShard.digest
def slowly(*arguments):
    time.sleep(0.15)
    digest(*arguments)
OpenShard.digest = slowly
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a small pair, ``base`` and ``delta``; tests only read it."""
    folder = tmp_path_factory.mktemp("inputs")
    save(BASE, folder / "base", "safetensors", 1)
    save(DELTA, folder / "delta", "safetensors", 2)
    return folder


@pytest.fixture
def work(tmp_path: Path, inputs: Path) -> Path:
    """Copy the pair to a folder of the test's own."""
    shutil.copytree(inputs, tmp_path / "work")
    return tmp_path / "work"


def program(*arguments: str | Path, before: str = "", entry: str = "main") -> list[str]:
    """Return the command line of a program of ours; ``before`` is run in it first."""
    return [sys.executable, "-c", f"{before}\nfrom deltaweights.cli import {entry}; {entry}()", *map(str, arguments)]


def start(work: Path, command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    """Begin a command in the folder ``work``."""
    environment = os.environ | {"COLUMNS": "200"} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=work, env=environment)


def finish(work: Path, command: Sequence[str], **variables: str) -> Done:
    """Run a command in the folder ``work`` to its end."""
    return forked(command, cwd=work, env=os.environ | {"COLUMNS": "200"} | variables)


def logged(work: Path, *arguments: str | Path, **more: str) -> tuple[Done, list[Event]]:
    """Run ``deltaweights ARGUMENTS --log-format json``; return how it ended, and its events."""
    done = finish(work, program(*arguments, "--log-format", "json", **more))
    return done, events_of(done.stderr, done.returncode)


def events_of(text: str, code: int | None = None) -> list[Event]:
    """Return the events of a log, having checked what holds for all; of a run that ended with ``code``, if it was not killed."""
    assert text.isascii()
    assert not text or text.endswith("\n")
    events = [json.loads(line) for line in text.split("\n")[:-1]]
    for event in events:
        more = {"traceback"} if event.get("exit_code") == 1 else set()
        assert event.keys() == KEYS[event["event"]] | more
    names, times = [event["event"] for event in events], [event["time"] for event in events]
    assert (names[0], names.count("start"), times[0]) == ("start", 1, 0.0)
    assert times == sorted(times)
    if code is not None:
        assert names[-1] == ("result" if code == 0 else "interrupted" if code > 128 else "error")
        assert events[-1].get("exit_code", 0) == code
        assert names.count("error") + names.count("interrupted") == (code != 0)
        assert not ENDS & {*names[:-2]}
    return events


def named(events: Sequence[Event], *names: str) -> list[Event]:
    return [event for event in events if event["event"] in names]


def test_a_merge_as_events(work: Path) -> None:
    """A merge says its plan, each shard when it begins and when it is there, how far it is, and, last, what ``--json`` prints."""
    done, events = logged(work, *APPLY, *SHARDS, "--json", "--workers", "4")
    assert done.returncode == 0, done.stderr
    head, (plan,) = events[0], named(events, "plan")
    assert (head["format"], head["version"], head["program"]) == ("deltaweights-log", 1, "deltaweights")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", head["utc"])
    files = [shard["file"] for shard in plan["shards"]]
    assert len(files) >= 4
    begun, finished = named(events, "shard_started"), named(events, "shard_finished")
    assert sorted(event["file"] for event in begun) == sorted(event["file"] for event in finished) == files
    assert events.index(plan) < events.index(begun[0])
    for event in finished:
        data = (work / "out" / event["file"]).read_bytes()
        assert (event["size"], event["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        (first,) = [other for other in begun if other["file"] == event["file"]]
        assert events.index(first) < events.index(event)
        assert 0 <= event["seconds"] <= event["time"] - first["time"] + 0.5
        assert (first["size"], first["bytes"]) == (event["size"], event["bytes"])
    assert sum(event["bytes"] for event in finished) == plan["bytes"]
    assert {shard["file"]: shard["size"] for shard in plan["shards"]} == {e["file"]: e["size"] for e in finished}
    progress = [(event["doing"], event["done"], event["total"]) for event in named(events, "progress")]
    assert (progress[0], progress[-1]) == (("merging", 0, plan["bytes"]), ("merging", plan["bytes"], plan["bytes"]))
    assert "14 tensors: 10 added, 2 added into a larger block, 2 copied" in [
        e["message"] for e in named(events, "note")
    ]
    assert events[-1]["result"] == json.loads(done.stdout)
    assert events[-1]["result"]["status"] == "merged"


def test_the_same_result_as_without_events(work: Path) -> None:
    """Stdout and the files are the same with and without events, and a run that finds nothing to do begins no shard."""
    text = finish(work, program(*APPLY, *SHARDS, "--dry-run"))
    done, events = logged(work, *APPLY, *SHARDS, "--dry-run")
    assert re.sub(r"disk .*", "", done.stdout) == re.sub(r"disk .*", "", text.stdout)
    plan, outcome = named(events, "plan")[0], events[-1]["result"]
    assert {key: plan[key] for key in KEYS["plan"] - {"event", "time"}}.items() <= outcome.items()
    logged(work, *APPLY, *SHARDS)
    first = {path.name: path.read_bytes() for path in (work / "out").iterdir()}
    _, events = logged(work, *APPLY, *SHARDS)
    assert events[-1]["result"]["status"] == "already complete"
    assert not named(events, "shard_started", "shard_finished", "shard_reused")
    shutil.rmtree(work / "out")
    assert finish(work, program(*APPLY, *SHARDS)).returncode == 0
    assert first == {path.name: path.read_bytes() for path in (work / "out").iterdir()}


def test_all_commands_that_run_long(work: Path) -> None:
    """Parts, ``finish``, ``verify``, ``convert``, ``make`` and the drop-ins write events, too; the variable is enough."""
    pair = ("--base", "base", "--target", "out")
    ours: list[tuple[str, ...]] = [
        (*APPLY[:5], "--target", "parts", "--part", "1/2"),
        (*APPLY[:5], "--target", "parts", "--part", "2/2"),
        ("finish", "--target", "parts"),
        ("verify", "parts"),
        ("convert", "--base", "base", "--target", "converted"),
        ("make", "--base", "base", "--target", "parts", "--delta", "made"),
    ]
    ends = []
    for command in ours:
        done = finish(work, program(*command, "--json"), **{VARIABLE: "json"})
        events = events_of(done.stderr, 0)
        assert events[-1]["result"] == json.loads(done.stdout)
        ends.append(events[-1]["result"].get("status"))
    assert ends == ["finished", "finished", "merged", None, "converted", "made"]
    done = finish(work, program(*pair, "--delta", "delta", "--low-cpu-mem", entry="apply_delta"), **{VARIABLE: "json"})
    events = events_of(done.stderr, 0)
    assert events[0]["program"] == "apply-delta"
    assert events[1]["message"] == "--low-cpu-mem: memory is always low here; the flag changes nothing"
    done = finish(work, program(*pair, "--delta", "d2", entry="make_delta"), **{VARIABLE: "json"})
    assert events_of(done.stderr, 0)[-1]["result"]["status"] == "made"


def test_a_download_as_events(work: Path) -> None:
    """A download says how far it is, and its result is the list that ``--json`` prints."""
    with HubServer({"ORG/NAME": work / "base"}) as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(work / "cache")}
        done = finish(work, program("download", "ORG/NAME", "--json", "--log-format", "json"), **variables)
    events = events_of(done.stderr, 0)
    assert events[-1]["result"] == json.loads(done.stdout)
    assert {event["doing"] for event in named(events, "progress")} == {"fetching"}


def test_a_warning_and_quiet(work: Path) -> None:
    """With ``--quiet`` warnings and the end are left, and nothing else; what is printed for people stays away."""
    save(DELTA | {"model.norm.weight": torch.full((8,), torch.inf).half()}, work / "delta", "safetensors", 2)
    done, events = logged(work, *APPLY, "--quiet")
    assert done.returncode == 0
    assert [event["event"] for event in events] == ["start", "warning", "result"]
    assert events[1]["message"].startswith("tensor model.norm.weight: result is not finite: found 8 NaN or infinite")
    assert events[2]["result"]["nonfinite"] == {"model.norm.weight": 8}
    _, loud = logged(work, *APPLY, "--overwrite")
    assert named(loud, "warning")[0]["message"] == events[1]["message"]


ERRORS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "unknown-option": (2, (*APPLY, "--tagret", "x"), "No such option '--tagret'"),
    "missing-option": (2, APPLY[:3], "Missing option '--target' (see deltaweights apply --help)"),
    "bad-value": (2, (*APPLY, "--device", "gpu"), "no such device: found gpu, expected cpu, cuda, cuda:N or auto"),
    "bad-choice": (2, (*APPLY, "--dtype", "int8"), "Invalid value for '--dtype': 'int8' is not one of"),
    "unknown-command": (2, ("aply",), "No such command 'aply'"),
    "no-such-option-there": (2, ("inspect", "base"), "No such option '--log-format'"),
    "malformed": (3, ("apply", "--base", "cut", "--delta", "delta", "--target", "out"), "cut/model.safetensors: "),
    "mismatch": (4, ("apply", "--base", "base", "--delta", "base", "--target", "out"), "base: "),
    "not-there": (5, ("apply", "--base", "nowhere", "--delta", "delta", "--target", "out"), "nowhere: no base here"),
    "busy": (7, ("apply", "--base", "base", "--delta", "delta", "--target", "base"), "output and input overlap"),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_errors(work: Path, name: str, place: str) -> None:
    """An error is the last event, with the exit code of the process and the line that people get, wherever the option stands."""
    code, command, message = ERRORS[name]
    (work / "cut").mkdir()
    (work / "cut" / "model.safetensors").write_bytes((work / "base" / "model.safetensors").read_bytes()[:-1])
    option = ("--log-format=json",)
    words = (command[0], *option, *command[1:]) if place == "before" else (*command, *option)
    done = finish(work, program(*words))
    assert (done.returncode, done.stdout) == (code, "")
    last = events_of(done.stderr, code)[-1]
    assert message in last["message"]
    people = finish(work, program(*command))
    if name != "no-such-option-there":
        assert people.stderr.splitlines()[-1] == f"deltaweights: error: {last['message']}"


def test_the_option_and_the_environment(work: Path) -> None:
    """The option wins over the environment, of which an unknown value is an error; commands without the option do not heed it."""
    wrong = (*APPLY, "--tagret", "x")
    as_json = {VARIABLE: "json"}
    assert events_of(finish(work, program(*wrong), **as_json).stderr, 2)
    for done in (
        finish(work, program(*wrong, "--log-format", "text"), **as_json),
        finish(work, program(*wrong, "--log-format=json", "--log-format", "text"), **as_json),
        finish(work, program("inspect", "nowhere"), **as_json),
        finish(work, program(*APPLY), **{VARIABLE: "xml"}),
        finish(work, program(*APPLY, "--log-format", "xml")),
    ):
        assert done.returncode in {2, 5}
        assert done.stderr.startswith("deltaweights: error: ")
    for command in (program("apply", "--help"), program("--version", entry="apply_delta")):
        done = finish(work, command, **as_json)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_check_that_fails_has_result_and_error(work: Path) -> None:
    """``verify`` of a damaged folder tells its findings as the result, and then the error."""
    finish(work, program(*APPLY))
    (work / "out" / "config.json").write_text("{}")
    done, events = logged(work, "verify", "out", "--json")
    assert done.returncode == 6
    assert [event["event"] for event in events[-2:]] == ["result", "error"]
    document = json.loads(done.stdout)
    assert document.pop("error")["code"] == events[-1]["code"] == "E-NOT-AS-RECORDED"
    assert events[-2]["result"] == document
    assert not document["ok"]


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", NUMBERS, ids=["Ctrl-C", "kill", "kill -9"])
def test_interrupted(work: Path, number: signal.Signals) -> None:
    """An interrupted run says so last, a killed one leaves whole lines; the next run says which finished shards it reuses."""
    with start(work, program(*APPLY, *SHARDS, "--log-format", "json", "--workers", "2", before=SLOWLY)) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if json.loads(line)["event"] == "shard_finished":
                break
        process.send_signal(number)
        out, rest = process.communicate(timeout=PATIENCE)
    text = "".join([*seen, rest])
    assert out == ""
    if number == signal.SIGKILL:
        assert process.returncode == -number
        events = events_of(text)
        assert not named(events, *ENDS)
    else:
        assert process.returncode == 128 + number
        events = events_of(text, process.returncode)
        word = "interrupted" if number == signal.SIGINT else "terminated"
        kept = r"[0-9]+ of [0-9]+ shards? (is|are) finished and kept; run the same command again to continue"
        assert re.fullmatch(f"{word}; {kept}", events[-1]["message"])
    finished = {event["file"]: event["sha256"] for event in named(events, "shard_finished")}
    _, again = logged(work, *APPLY, *SHARDS)
    reused = {event["file"]: event["sha256"] for event in named(again, "shard_reused")}
    made = {event["file"] for event in named(again, "shard_finished")}
    assert finished.items() <= reused.items()
    assert made == {shard["file"] for shard in named(again, "plan")[0]["shards"]} - reused.keys()
    assert made


def test_nothing_but_events_on_a_terminal(work: Path) -> None:
    """Where stderr is a terminal there is no bar either: tqdm, were it loaded, would end the run here."""
    before = "import sys; sys.modules['tqdm'] = None"
    master, slave = pty.openpty()
    chunks: list[bytes] = []

    def collect() -> None:
        try:
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        except OSError:  # what Linux says when nobody has the other end any more
            pass

    reader = threading.Thread(target=collect)
    reader.start()
    command = program(*APPLY, *SHARDS, "--log-format", "json", before=before)
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=slave, stdin=slave, cwd=work, timeout=PATIENCE, check=False
        )
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    assert done.returncode == 0
    assert len(events_of(b"".join(chunks).decode().replace("\r\n", "\n"), 0)) > 10


def in_command(body: str) -> str:
    """Return a program's beginning, with which ``apply`` does ``body`` and no more."""
    return f"""\
import os, sys, threading, warnings
import deltaweights.cli.apply as module
def apply(*arguments, **options):
    {body}
module.apply = apply
"""


def test_a_bug_is_an_event(work: Path) -> None:
    """An unexpected exception is an error event with exit code 1 and its traceback; without events the interpreter shows it."""
    before = in_command("raise RuntimeError('caf\\u00e9')")
    done, events = logged(work, *APPLY, before=before)
    assert (done.returncode, events[-1]["message"]) == (1, "a bug: RuntimeError: caf\u00e9")
    assert events[-1]["traceback"].startswith("Traceback (most recent call last):\n")
    plain = finish(work, program(*APPLY, before=before))
    assert (plain.returncode, plain.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")


def test_what_libraries_say_is_a_warning(work: Path) -> None:
    """What Python, libraries and threads write to stderr becomes warnings, a line each."""
    body = (
        "warnings.warn('old'); print('one\\ntwo', file=sys.stderr);"
        " thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    )
    done = finish(work, program(*APPLY, "--log-format", "json", before=in_command(body)))
    assert done.returncode == 0
    messages = [event["message"] for event in named(events_of(done.stderr), "warning")]
    assert messages[0].endswith("UserWarning: old")
    assert messages[messages.index("one") + 1] == "two"
    assert messages[-1] == "ZeroDivisionError: division by zero"


def test_no_memory(work: Path) -> None:
    """A process without memory says so in an event, and ends with 5."""
    _, events = logged(work, *APPLY, before=in_command("raise MemoryError"))
    assert events[-1]["message"] == "out of memory; run with fewer --workers"
    assert events[-1]["exit_code"] == 5


def test_a_reader_of_stdout_that_has_left(work: Path) -> None:
    """When nobody reads stdout the run ends with 141, and the last event says so, after the result."""
    with start(work, program(*APPLY, "--log-format", "json")) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        text = process.stderr.read()
    assert process.wait() == 141
    events = events_of(text, 141)
    assert [event["event"] for event in events[-2:]] == ["result", "interrupted"]


def test_a_log_that_cannot_be_written(work: Path) -> None:
    """A log whose disk is full, or whose reader has left, does not stop a merge."""
    command = program(*APPLY, "--log-format", "json")
    read, write = os.pipe()
    os.close(read)
    for target in (os.open("/dev/full", os.O_WRONLY), write):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=target, cwd=work, timeout=PATIENCE, check=False)
        os.close(target)
        assert done.returncode == 0
        shutil.rmtree(work / "out")


def test_lines_of_many_threads_are_whole(work: Path) -> None:
    """Events of 16 threads at once, longer than a pipe takes in one piece, are whole lines."""
    body = (
        "report = __import__('deltaweights.cli.log_report').cli.log_report.report_for('x', quiet=False);"
        " say = lambda n: [report.note(f'{n} {i} ' + 'x' * 9000) for i in range(20)];"
        " threads = [threading.Thread(target=say, args=(n,)) for n in range(16)];"
        " [t.start() for t in threads]; [t.join() for t in threads]"
    )
    done = finish(work, program(*APPLY, "--log-format", "json", before=in_command(body)))
    notes = [event["message"].rstrip("x") for event in named(events_of(done.stderr), "note")]
    assert sorted(notes) == sorted(f"{n} {i} " for n in range(16) for i in range(20))


def test_documented_exit_codes_are_those_of_the_guide() -> None:
    """The document lists the exit codes that docs/when-it-fails.md lists, with 141 besides."""
    codes = re.findall(r"^\| ([\d, ]+) \|", DOCUMENT, re.MULTILINE)
    guide = (ROOT / "docs" / "when-it-fails.md").read_text()
    table = guide.partition("## Exit codes")[2].partition("\n## ")[0]
    assert codes == [*re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE), "141"]
