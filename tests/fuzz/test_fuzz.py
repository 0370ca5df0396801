"""Readers of bytes from strangers, fed with damaged examples; ``scripts/fuzz`` does the same for longer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest

from deltaweights.errors import MalformedInput
from tests.fuzz.law import hold
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target
from tests.support.limits import PATIENCE

ROOT = Path(__file__).parents[2]
GUIDED = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no build for this system")

MUTATIONS = 300


@pytest.mark.trust
@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"ending"}))  # its example names files that do not exist here
def test_examples_are_read(name: str) -> None:
    """The undamaged examples are accepted: a reader that refuses everything would keep the law, too."""
    target = TARGETS[name]
    assert all(hold(target, example) for example in target.examples())


@pytest.mark.sampled(7)
@pytest.mark.trust
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_examples_are_read_or_refused(name: str) -> None:
    """A damaged example is read, or refused in one printable line, quickly."""
    target, random = TARGETS[name], Random(zlib.crc32(name.encode()))  # noqa: S311
    examples = target.examples()
    refused = 0
    for _ in range(MUTATIONS):
        data = random.choice(examples)
        for _ in range(random.choice((1, 1, 2, 5))):
            data = mutated(data, 2**20, random)
        refused += not hold(target, data)
    assert refused or name in {"file type", "hub id"}


FOUND: dict[str, tuple[str, bytes]] = {
    "a default that does not fit": ("config", json.dumps({"hidden_size": 64}).encode()),
    "a side that is a list": ("config", json.dumps({"size": {"height": []}}).encode()),
}
"""Inputs that broke the law once."""


@pytest.mark.trust
@pytest.mark.parametrize(("name", "data"), FOUND.values(), ids=FOUND)
def test_what_was_found_stays_mended(name: str, data: bytes) -> None:
    """Each is refused in one printable line."""
    assert not hold(TARGETS[name], data)


# The law itself, and the search for inputs that break it.


def raising(error: Exception) -> Target:
    """Return a target that raises ``error``."""

    def read(data: bytes) -> None:
        raise error

    return Target(read, list)


def test_what_breaks_the_law() -> None:
    """An unexpected exception, or an endless message, is a finding."""
    assert not hold(raising(MalformedInput("\x1b[2J", where="x")), b"")
    assert not hold(raising(ValueError("\x1b[2J")), b"")
    for error in (KeyError("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), RecursionError(), MemoryError()):
        with pytest.raises(type(error)):
            hold(raising(error), b"")
    with pytest.raises(AssertionError, match="a message of"):
        hold(raising(MalformedInput("x" * 6000)), b"")


PLANT = """
import sys
from tests.fuzz import guided
from tests.fuzz.targets import Target
def read(data):
    if data[:1] == b"!" and data[1:2] == b"?":
        raise KeyError("found")
def broken():
    raise KeyError("in an example")
guided.TARGETS["planted"] = Target(read, lambda: [b"!.", b".?"])
guided.TARGETS["broken"] = Target(read, broken)
import os, pathlib
work = pathlib.Path(sys.argv[1])
_, status = os.waitpid(guided.start("planted", work, 60, 1), 0)
done = guided.finished("planted", work, os.waitstatus_to_exitcode(status))
_, status = os.waitpid(guided.start("broken", work / "broken", 60, 1), 0)
dead = guided.finished("broken", work / "broken", os.waitstatus_to_exitcode(status))
print(len(done.findings), done.findings[0].read_bytes()[:2], "KeyError" in done.said, "in an example" in dead.said)
"""


@GUIDED
@pytest.mark.slow
def test_a_fault_is_found(tmp_path: Path) -> None:
    """An input that makes a reader fail is found, although no example has its bytes, and is kept."""
    command = [sys.executable, "-c", PLANT, str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.splitlines()[-1] == "1 b'!?' True True"


@GUIDED
@pytest.mark.slow
@pytest.mark.trust
def test_the_script(tmp_path: Path) -> None:
    """``scripts/fuzz`` reads each example and its mutations, and finds nothing."""
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--seconds", "10", "--work", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout
    found = re.fullmatch(r"executions (\d+), findings 0", done.stdout.splitlines()[-1])
    assert found is not None
    assert int(found[1]) > 10 * len(TARGETS)
    for name in TARGETS:
        assert re.search(rf"^{name}: executions [1-9]\d*, findings 0$", done.stdout, re.MULTILINE)
