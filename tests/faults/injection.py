"""The calls of a run to the system, and faults injected into single ones of them, by strace.

Enters: a command. Leaves: which calls it makes on which paths, and how it ends when one of them fails, lies or is the last.
Never: a change to the program, but for random file names, which are made the same in every run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.limits import PATIENCE

DRIVER = Path(__file__).with_name("driver.py")

OPENS = frozenset({"openat"})
WRITES = frozenset({"write", "pwrite64", "pwritev", "pwritev2"})
READS = frozenset({"read", "pread64", "preadv", "preadv2", "getdents64"})
OTHERS = frozenset(
    {
        "fsync", "fdatasync", "rename", "renameat2", "link", "unlink", "unlinkat", "rmdir", "mkdir", "fallocate", "ftruncate",
        "flock", "fchmod",
    }
)  # fmt: skip
CALLS = OPENS | WRITES | READS | OTHERS

KILL = "signal=SIGKILL"

NO_EXCHANGE = "FAULTS_NO_EXCHANGE"
"""The variable that has the driver tell that folders cannot be exchanged, as on file systems of which there is none at hand."""


@dataclass(frozen=True)
class Call:
    """The ``nth`` time that a thread makes this call on ``path``; ``wanted`` are the bytes that it asks for, if any.

    ``changes`` says that it may change what is on the disk.
    """

    name: str
    path: str
    nth: int
    wanted: int
    changes: bool

    def __str__(self) -> str:
        return f"{self.name} {self.path} #{self.nth}"


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
"""No place of modules that is not absolute: where the command runs, faults are for it alone."""


def is_possible() -> bool:
    """Tell whether strace is there and may trace."""
    if not sys.platform.startswith("linux") or shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
    )


def command(arguments: Sequence[str | Path]) -> list[str]:
    """Return the command line of ``deltaweights ARGUMENTS``, its random names made the same in every run."""
    return [sys.executable, str(DRIVER), *map(str, arguments)]


def recorded(
    arguments: Sequence[str | Path], cwd: Path, roots: Sequence[Path], log: Path, *, exchange: bool = True
) -> list[Call]:
    """Run the command, and return the calls that it made on what is below ``roots``, in order, each once."""
    tracing = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={','.join(sorted(CALLS))}"]
    done = _run([*tracing, *command(arguments)], cwd, exchange=exchange)
    assert done.returncode == 0, done.stderr
    return list(dict.fromkeys(calls_in(log.read_text(errors="replace"), roots)))


def calls_in(log: str, roots: Sequence[Path]) -> Iterator[Call]:
    """Yield the calls of a log of strace -f -y on what is below ``roots``."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for line in log.splitlines():
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        if found is None or found[2] not in CALLS:
            continue
        thread, name, rest = found.groups()
        paths = re.findall(r"^\d+<([^>]*)>", rest) or re.findall(r'"([^"]*)"', rest)[:2]
        below = [path for path in paths if any(path == str(root) or path.startswith(f"{root}/") for root in roots)]
        for path in set(below):
            seen[thread, name, path] += 1
        if below:
            wanted = re.search(r", (\d+)(?:, \d+)?\) += ", rest)
            changes = name not in READS | OPENS or "O_CREAT" in rest
            # Of a rename strace's -P knows the first path alone.
            yield Call(name, below[0], seen[thread, name, below[0]], int(wanted[1]) if wanted else 0, changes)


def faults_of(call: Call) -> list[str]:
    """Return what may happen to ``call``, as strace injects it."""
    if call.name in WRITES:
        lies = [f"retval={count}" for count in sorted({0, call.wanted // 2, call.wanted})]
        return ["error=ENOSPC", "error=EIO", "error=EINTR", *lies, KILL]
    if call.name == "getdents64":
        return ["error=EIO"]  # that a folder has no more files than are told, nobody can notice
    if call.name in READS:
        return ["error=EIO", "retval=0"]
    if call.name in OPENS:
        return ["error=EIO", "error=ENOSPC", KILL] if call.changes else ["error=EIO", "error=EMFILE"]
    if call.name == "flock":
        return ["error=ENOLCK", "error=ENOSYS", "error=EINTR", KILL]
    if call.name == "fallocate":
        return ["error=ENOSPC", "error=EOPNOTSUPP", "error=EINTR", KILL]
    if call.name == "renameat2":
        return ["error=EIO", "error=EINVAL", KILL]
    return ["error=EIO", "error=ENOSPC", KILL]


def is_lie(fault: str) -> bool:
    """Tell whether a write says that it took bytes which it did not take."""
    return fault.startswith("retval=") and fault != "retval=0"


@dataclass(frozen=True)
class Injected:
    """How a run ended that a fault was to happen to; ``met`` says whether it did."""

    code: int
    err: str
    met: bool


def injected(
    call: Call, fault: str, arguments: Sequence[str | Path], cwd: Path, log: Path, *, exchange: bool = True
) -> Injected:
    """Run the command, and have ``fault`` happen to ``call``; strace's ``log`` says whether it did."""
    tracing = ["strace", "-f", "-qq", "-o", str(log), "-P", call.path, "-e", f"trace={call.name}"]
    done = _run(
        [*tracing, "-e", f"inject={call.name}:{fault}:when={call.nth}", *command(arguments)], cwd, exchange=exchange
    )
    met = done.returncode in KILLED if fault == KILL else "(INJECTED)" in log.read_text(errors="replace")
    log.unlink()
    return Injected(done.returncode, done.stderr, met)


KILLED = frozenset({-9, 137})


def _run(command: list[str], cwd: Path, *, exchange: bool) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | ({} if exchange else {NO_EXCHANGE: "1"})
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
