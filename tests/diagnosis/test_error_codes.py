"""The codes of errors: one closed list, documented, and told on stdout and in logs as docs/errors.md promises."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltaweights.cli.group import COMMANDS
from deltaweights.error_codes import OF_ERRNO, ErrorCode
from deltaweights.errors import DeltaweightsError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from tests.conftest import Run
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer
from tests.support.pairs import base_tensors, delta_tensors, save

pytestmark = pytest.mark.diagnosis

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "deltaweights"

DOCUMENTED = re.findall(
    r"^\| `(E-[A-Z-]+)` \| ([0-9, ]+) \| (.+?) \| .+ \|$", (ROOT / "docs/errors.md").read_text(), re.M
)

PARTS = ("problem", "where", "tensor", "found", "expected", "remedy")


def test_codes_are_unique_and_alike() -> None:
    """No code or meaning occurs twice; each is in capitals, with its meaning on one line."""
    assert len({code.text for code in ErrorCode}) == len({code.meaning for code in ErrorCode}) == len(ErrorCode)
    for code in ErrorCode:
        assert re.fullmatch(r"E(-[A-Z]+)+", code.text)
        assert code.name == code.text.removeprefix("E-").replace("-", "_")
        assert code.meaning == code.meaning.strip()
        assert "\n" not in code.meaning


def test_every_code_is_documented() -> None:
    """The table of docs/errors.md has exactly the codes, in their order, with these meanings."""
    assert [(text, meaning) for text, _, meaning in DOCUMENTED] == [(code.text, code.meaning) for code in ErrorCode]


def test_every_class_begins_its_block() -> None:
    """The code of a class is the first of those that end with its exit code, and so it is in the document."""
    firsts: dict[str, str] = {}
    for text, exit_code, _ in DOCUMENTED:
        firsts.setdefault(exit_code, text)
    kinds: list[type[DeltaweightsError]] = [DeltaweightsError, *DeltaweightsError.__subclasses__()]
    defaults = {str(kind.exit_code): kind.default_code.text for kind in kinds}
    assert {exit_code: firsts[exit_code] for exit_code in defaults} == defaults


def test_every_code_is_raised() -> None:
    """Each code is named by a module other than its own, or stands for an error of the system."""
    named = {code.name for code in OF_ERRNO.values()}
    for path in SOURCE.rglob("*.py"):
        if path.name != "error_codes.py":
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
            named |= {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "ErrorCode"}
    assert named == {code.name for code in ErrorCode}


def test_a_code_is_no_part_of_the_message() -> None:
    """Messages stay what they were; without a code of its own an error has that of its class."""
    plain, named = MalformedInput("wrong"), MalformedInput("wrong", code=ErrorCode.DAMAGED)
    assert str(plain) == str(named) == "wrong"
    assert (plain.code, named.code) == (ErrorCode.MALFORMED, ErrorCode.DAMAGED)


# What commands print with --json.


def error_of(stdout: str) -> dict[str, Any]:
    """Return the error in the one JSON document on stdout, and check its form."""
    document = json.loads(stdout)
    error = document["error"]
    assert (error["format"], error["version"]) == ("deltaweights-error", 1)
    assert set(error) == {"format", "version", "code", "class", "exit_code", "message", *PARTS}
    assert all(error[name] is None or isinstance(error[name], str) for name in PARTS)
    assert error["message"].isprintable()
    assert error["code"] in {text for text, _, _ in DOCUMENTED}
    return dict(error)


def takes_json() -> list[str]:
    """Return the commands that have ``--json``."""
    commands = {
        name: import_module(f"deltaweights.cli.{'try_' if name == 'try' else name.replace('-', '_')}")
        for name in COMMANDS
    }
    return [name for name, module in commands.items() if any("--json" in p.opts for p in module.command.params)]


def test_the_commands_are_found() -> None:
    """All commands but those that only print for people take ``--json``."""
    assert set(COMMANDS) - set(takes_json()) == {"clean", "completion", "demo"}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("command", takes_json())
def test_a_wrong_command_line(run: Run, command: str) -> None:
    """Every command tells of an option that it does not have on stdout, too, wherever ``--json`` stands."""
    for arguments in (("--json", "--no-such-option"), ("--no-such-option", "--json")):
        done = run(command, *arguments)
        error = error_of(done.stdout)
        assert (done.returncode, error["exit_code"], error["code"], error["class"]) == (2, 2, "E-USAGE", "UsageError")
        assert "--no-such-option" in error["problem"]
        assert error["remedy"] == f"see deltaweights {command} --help"
        assert done.stderr == f"deltaweights: error: {error['message']}\n"
    assert run(command, "--no-such-option").stdout == "", "without --json nothing is on stdout"


class Place:
    """A folder with a tiny pair, and what people have in place of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = base_tensors()
        self.base, self.delta = save(base, folder / "base"), save(delta_tensors(base), folder / "delta")

    def arguments(self, text: str) -> list[str]:
        """Return the words of a command line; B, D and T are base, delta and target."""
        places = {"B": str(self.base), "D": str(self.delta), "T": str(self.folder / "out")}
        return [places.get(word, word.replace("HERE", str(self.folder))) for word in text.split()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Make the pair."""
    return Place(tmp_path)


Change = Callable[[Place], object]


def _pointer(place: Place) -> None:
    next(place.delta.glob("*.bin")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _page(place: Place) -> None:
    (place.folder / "model.safetensors").write_text("<!DOCTYPE html><html></html>")


def _cut(place: Place) -> None:
    path = place.folder / "model.safetensors"
    save_file({"w": torch.zeros(64)}, path)
    os.truncate(path, path.stat().st_size - 1)


def _flip(place: Place) -> None:
    path = next(place.delta.glob("*.bin"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _pickle(place: Place) -> None:
    torch.save({"w": torch.zeros(2), "run": shutil.rmtree}, place.folder / "pytorch_model.bin")


def _no_shard(place: Place) -> None:
    sorted(place.delta.glob("*.bin"))[-1].unlink()


def _two_sets(place: Place) -> None:
    save_file({"w": torch.zeros(2)}, place.delta / "model-00001-of-00009.safetensors")


def _notes(place: Place) -> None:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "notes.txt").write_text("mine")


def _other_base(place: Place) -> None:
    save(base_tensors(hidden=64), place.folder / "wide")


def _merge(place: Place) -> None:
    apply_delta(place.base, place.delta, place.folder / "merged")


def _link(place: Place) -> None:
    (place.folder / "secret").write_text("{}")
    (place.delta / "config.json").unlink()
    (place.delta / "config.json").symlink_to(place.folder / "secret")


def _nothing(_place: Place) -> None:
    pass


APPLY = "apply --base B --delta D --target T"

ROWS: list[tuple[str, Change, str, int, str, str, dict[str, str | None]]] = [
    ("no-input", _nothing, "apply --target T", 2, "E-NO-INPUT-GIVEN", "UsageError", {"problem": "--base is missing"}),
    (
        "no-delta",
        _nothing,
        "check-base --base B",
        2,
        "E-NO-INPUT-GIVEN",
        "UsageError",
        {"problem": "--delta is missing"},
    ),
    (
        "no-recipe",
        _nothing,
        "recipes show llava-med-8b",
        2,
        "E-UNKNOWN-RECIPE",
        "UsageError",
        {"found": "llava-med-8b"},
    ),
    ("no-unit", _nothing, f"{APPLY} --max-shard-size 5", 2, "E-NOT-A-SIZE", "UsageError", {"found": "5"}),
    (
        "dtype",
        _nothing,
        f"{APPLY} --recipe llava-med-7b --compute-dtype float32",
        2,
        "E-OTHER-DTYPE",
        "UsageError",
        {"found": "float32", "expected": "float16"},
    ),
    ("lfs", _pointer, APPLY, 3, "E-LFS-POINTER", "MalformedInput", {"found": "a git-LFS pointer", "tensor": None}),
    (
        "page",
        _page,
        "inspect HERE/model.safetensors",
        3,
        "E-UNSUPPORTED-FORMAT",
        "MalformedInput",
        {"found": "an HTML page"},
    ),
    ("cut", _cut, "inspect HERE/model.safetensors", 3, "E-INCOMPLETE", "MalformedInput", {"tensor": "w"}),
    ("no-shard", _no_shard, APPLY, 3, "E-INCOMPLETE", "MalformedInput", {"remedy": "finish the download"}),
    ("flipped", _flip, APPLY, 3, "E-DAMAGED", "MalformedInput", {"problem": "stored bytes are damaged"}),
    (
        "pickle",
        _pickle,
        "inspect HERE/pytorch_model.bin",
        3,
        "E-UNSAFE-PICKLE",
        "MalformedInput",
        {"found": "shutil.rmtree"},
    ),
    ("no-weights", _nothing, "inspect HERE", 3, "E-NO-WEIGHTS", "MalformedInput", {"problem": "no weights here"}),
    ("two-sets", _two_sets, APPLY, 3, "E-SEVERAL-WEIGHTS", "MalformedInput", {"expected": "one"}),
    ("link", _link, APPLY, 3, "E-LINK-OUTSIDE", "MalformedInput", {"problem": "a link that leaves the folder"}),
    ("swapped", _nothing, "apply --base D --delta B --target T", 4, "E-SWAPPED", "Mismatch", {"tensor": None}),
    ("itself", _nothing, "apply --base B --delta B --target T", 4, "E-NOT-A-DELTA", "Mismatch", {"found": None}),
    ("our-merge", _merge, "apply --base B --delta HERE/merged --target T", 4, "E-ALREADY-MERGED", "Mismatch", {}),
    ("our-delta", _nothing, "make --base B --target D --delta T", 4, "E-NOT-A-MODEL", "Mismatch", {}),
    (
        "sizes",
        _other_base,
        "apply --base HERE/wide --delta D --target T",
        4,
        "E-OTHER-TENSORS",
        "Mismatch",
        {"tensor": "model.embed_tokens.weight", "problem": "shapes do not fit"},
    ),
    ("not-there", _nothing, "inspect HERE/nothing", 5, "E-NOT-FOUND", "InputOutputError", {"found": "nothing"}),
    (
        "offline",
        _nothing,
        "inspect acme/none --offline",
        5,
        "E-NOT-IN-CACHE",
        "InputOutputError",
        {"where": "hf://acme/none"},
    ),
    (
        "no-parts",
        _nothing,
        "finish --target T",
        5,
        "E-NO-PARTS",
        "InputOutputError",
        {"problem": "no part of a merge here"},
    ),
    ("no-key", _notes, "verify T --public-key HERE/none.pem", 5, "E-NOT-FOUND", "InputOutputError", {}),
    ("unverified", _nothing, f"{APPLY} --require-verified", 6, "E-INPUTS-UNVERIFIED", "CheckFailed", {}),
    ("not-empty", _notes, APPLY, 7, "E-TARGET-NOT-EMPTY", "TargetBusy", {"found": "notes.txt"}),
    ("overlap", _nothing, "apply --base B --delta D --target B", 7, "E-TARGET-IS-INPUT", "TargetBusy", {}),
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("change", "command", "exit_code", "code", "kind", "parts"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_errors_as_json(
    run: Run,
    place: Place,
    change: Change,
    command: str,
    exit_code: int,
    code: str,
    kind: str,
    parts: dict[str, str | None],
) -> None:
    """Each situation has its code, class, exit code and parts; without ``--json`` the line on stderr is the same, and no more."""
    change(place)
    done = run(*place.arguments(command), "--json")
    error = error_of(done.stdout)
    assert (done.returncode, error["exit_code"], error["code"], error["class"]) == (exit_code, exit_code, code, kind)
    assert {name: error[name] for name in parts} == parts
    assert list(json.loads(done.stdout)) == ["error"]
    assert done.stderr.splitlines()[-1] == f"deltaweights: error: {error['message']}"
    plain = run(*place.arguments(command))
    assert (plain.returncode, plain.stdout) == (exit_code, "")


@pytest.mark.parametrize(
    ("command", "code", "key"),
    [
        ("verify T", "E-NOT-AS-RECORDED", "problems"),
        ("diff B T", "E-DIFFERENT", "tensors"),
        ("check-base --base B --delta D", "E-BASE-NOT-PROVED", "proof"),
        pytest.param("check B", "E-DOES-NOT-LOAD", "problems", marks=pytest.mark.slow),
    ],
)
def test_a_result_that_fails(run: Run, place: Place, command: str, code: str, key: str) -> None:
    """What a check found and its error are one object: stdout is one document."""
    assert run(*place.arguments(APPLY)).returncode == 0
    (place.folder / "out" / "extra.py").write_text("mine")
    config = json.loads((place.base / "config.json").read_text())
    (place.base / "config.json").write_text(json.dumps(config | {"vocab_size": 3}))
    done = run(*place.arguments(command), "--json")
    error = error_of(done.stdout)
    assert (done.returncode, error["exit_code"], error["code"], error["class"]) == (6, 6, code, "CheckFailed")
    assert key in json.loads(done.stdout)


def test_success_has_no_error(run: Run, place: Place) -> None:
    """The document of a command that succeeds is its result alone."""
    done = run(*place.arguments(APPLY), "--json")
    assert done.returncode == 0
    assert "error" not in json.loads(done.stdout)


def test_logs_have_the_code(run: Run, place: Place) -> None:
    """The last event has the code, the class and the parts; the document on stdout says the same."""
    done = run(*place.arguments("apply --base B --delta B --target T --log-format json --json"))
    event = json.loads(done.stderr.splitlines()[-1])
    error = error_of(done.stdout)
    assert event["event"] == "error"
    assert {key: event[key] for key in error.keys() - {"format", "version"}} == {
        key: value for key, value in error.items() if key not in {"format", "version"}
    }


def test_hostile_parts_are_bounded(run: Run, tmp_path: Path) -> None:
    """A value of a file is shown in 300 characters, and escaped, in JSON as on stderr."""
    header = json.dumps({"\x1b[2J" + "n" * 5000: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    done = run("inspect", tmp_path / "model.safetensors", "--json")
    error = error_of(done.stdout)
    assert (error["code"], error["exit_code"]) == ("E-MALFORMED", 3)
    assert len(done.stdout) < 3000
    assert "\x1b" not in json.dumps(error, ensure_ascii=False)


@pytest.mark.parametrize(
    ("status", "header", "code"),
    [(401, "GatedRepo", "E-GATED"), (404, "RepoNotFound", "E-NO-ACCESS"), (404, "RevisionNotFound", "E-NOT-FOUND")],
)
def test_refusals_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, header: str, code: str
) -> None:
    """What the Hub answers tells gated, private and missing repositories apart."""
    from deltaweights.hub.access import configured_access  # noqa: PLC0415
    from deltaweights.hub.ids import HubId  # noqa: PLC0415

    with HubServer({}) as hub:
        Machine(monkeypatch, tmp_path, hub)

        class Response:
            """An answer without a body."""

            status_code = status
            headers = {"x-error-code": header}  # noqa: RUF012

        error = configured_access(endpoint=hub.endpoint).refusal(Response(), HubId("acme/gated"))
    assert error.code.text == code


def test_no_network(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Hub that cannot be reached is told apart from one that refuses."""
    with HubServer({}) as hub:
        Machine(monkeypatch, tmp_path, hub)
        address = hub.endpoint
    monkeypatch.setenv("HF_ENDPOINT", address)
    done = run("download", "acme/none", "--json")
    assert error_of(done.stdout)["code"] == "E-NETWORK"
