"""A test that hangs is stopped, reports what it waits for, and leaves no child process."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hang import below, told
from tests.support.limits import AT_ONCE, HANG, LONG, PATIENCE

ROOT = Path(__file__).parents[2]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HANGS = """
import subprocess, sys, threading

def test_hangs():
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(3000)"
    child = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE)
    open(NOTE, "w").write(str(int(child.stdout.readline())))
    lock = threading.Lock()
    lock.acquire()
    threading.Thread(target=lock.acquire, name="waits-for-ever", daemon=True).start()
    child.wait()
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a system without Linux's /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("how", [[], ["--capture=no"], ["--numprocesses=1"]], ids=["captured", "not-captured", "xdist"])
def test_a_test_that_hangs_tells_what_the_kernel_knows(tmp_path: Path, how: list[str]) -> None:
    """The report has every thread of the process and of its child, then Python's stacks; the child is killed."""
    note = tmp_path / "child"
    (tmp_path / "test_it.py").write_text(f"NOTE = {str(note)!r}\n{HANGS}")
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_timeout_set_timer\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=8", "--timeout-method=thread", *how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "test_it.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode != 0
    assert "test_hangs hangs: what the kernel says of all its threads" in done.stdout
    child = int(note.read_text())
    (part,) = re.findall(rf"process {child}: .*time.sleep\(3000\)\n((?:  .*\n)+)", done.stdout)
    assert re.match(rf"  thread {child} \(\S+\) \w .*, in \S+, call ", part)
    assert "    " in part
    assert len(re.findall(r"^  thread \d+ ", done.stdout, re.MULTILINE)) >= 4, (
        "two of the test's, the timer's, the child's"
    )
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert re.search(r'File ".*test_it.py", line \d+ in test_hangs', done.stdout), "Python's own stacks"


@needs_proc
def test_children_of_children_are_found() -> None:
    """Children that another than the main thread started are included."""
    sleeper = "print(1, flush=True); import time; time.sleep(3000)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grandchild = [process for process in below(os.getpid()) if process in set(below(child.pid))]
        assert len(grandchild) == 1
        assert any(line.startswith(f"process {grandchild[0]}: ") for line in told(os.getpid()))
        for process in (child.pid, *grandchild):
            os.kill(process, signal.SIGKILL)


def test_what_a_test_waits_for_does_not_outlast_it() -> None:
    """The limits are defined in one place, in this order, and no test states seconds of its own."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["timeout"] == HANG
    assert 2 * AT_ONCE < PATIENCE < HANG < LONG
    stated = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            waits = isinstance(node.func, ast.Attribute) and node.func.attr in {"wait", "join", "communicate"}
            values = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"] + (
                node.args if waits else []
            )
            if any(isinstance(value, ast.Constant) and isinstance(value.value, int | float) for value in values):
                stated.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    # A poll, in a loop that has its own limit.
    assert [place for place in stated if not place.startswith("tests/unit/hub/test_files.py")] == []
