"""Recording the system calls of a run, and injecting a fault into one of them, with strace.

The program is unchanged, except that its random file names are the same in every run.
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

from tests.support.limits import PATIENCE

DRIVER = Path(__file__).with_name("driver.py")

OPENS = frozenset({"openat"})
WRITES = frozenset({"write", "pwrite64", "pwritev", "pwritev2"})
READS = frozenset({"read", "pread64", "preadv", "preadv2", "getdents64"})
OTHERS = frozenset(
    {
        "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir",
        "mkdirat", "fallocate", "ftruncate", "flock", "fchmod",
    }
)  # fmt: skip
CALLS = OPENS | WRITES | READS | OTHERS

KILL = "signal=SIGKILL"

SIGNALS = {"signal=SIGINT": 130, "signal=SIGTERM": 143}
"""What a user or a system sends to end a run, and the exit code that it should give."""

LISTENS = "rt_sigaction(SIGTERM, {"
"""How the command installs its handlers: before that, Python handles signals."""

NO_EXCHANGE = "FAULTS_NO_EXCHANGE"
"""The variable that makes the driver pretend that the file system cannot exchange folders."""


@dataclass(frozen=True)
class Call:
    """The ``nth`` time that a thread makes this call on ``path``; ``wanted`` are the bytes that it asks for, if any.

    ``changes`` says that it may change what is on the disk. ``named`` is how the call names the path: in full, or relative to a
    folder that is open.
    """

    name: str
    path: str
    nth: int
    wanted: int
    changes: bool
    named: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.path} #{self.nth}"


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
"""Only absolute paths of modules, so that no import is mistaken for a call in the working folder."""


def is_possible() -> bool:
    """Return whether strace is installed, and may trace."""
    if not sys.platform.startswith("linux") or shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
    )


def command(arguments: Sequence[str | Path]) -> list[str]:
    """Return the command line of ``deltaweights ARGUMENTS``, its random names made the same in every run."""
    return [sys.executable, str(DRIVER), *map(str, arguments)]


def recorded(
    arguments: Sequence[str | Path],
    cwd: Path,
    roots: Sequence[Path],
    log: Path,
    *,
    exchange: bool = True,
    listening: bool = False,
    code: int = 0,
) -> list[Call]:
    """Run the command, which ends with ``code``, and return the calls that it made on what is below ``roots``, in order, each once.

    With ``listening`` those are left out that it made before it listened to signals.
    """
    traced = ",".join(sorted(CALLS | {"rt_sigaction"}))
    tracing = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={traced}", "-e", "signal=none"]
    done = _run([*tracing, *command(arguments)], cwd, exchange=exchange)
    assert done.returncode == code, done.stderr
    return list(dict.fromkeys(calls_in(log.read_text(errors="replace"), roots, listening=listening)))


def calls_in(log: str, roots: Sequence[Path], *, listening: bool = False) -> Iterator[Call]:
    """Yield the calls of a log of strace -f -y on what is below ``roots``; see ``recorded``."""
    seen: Counter[tuple[str, str, str]] = Counter()
    waits = listening
    for line in log.splitlines():
        waits = waits and LISTENS not in line
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        if found is None or found[2] not in CALLS:
            continue
        thread, name, rest = found.groups()
        folders, names = re.findall(r"(?:^|, )\d+<([^>]*)>", rest), re.findall(r'"([^"]*)"', rest)[:2]
        names = [] if name in WRITES | READS else names
        for each in {*folders, *names}:
            seen[thread, name, each] += 1
        # Of a rename strace's -P knows the first path alone, and of a name in an open folder the name alone.
        named = (names or folders or [""])[0]
        path = f"{folders[0]}/{named}" if names and folders and not named.startswith("/") else named
        if not waits and any(path == str(root) or path.startswith(f"{root}/") for root in roots):
            wanted = re.search(r", (\d+)(?:, \d+)?\) += ", rest)
            changes = name not in READS | OPENS or "O_CREAT" in rest
            yield Call(name, path, seen[thread, name, named], int(wanted[1]) if wanted else 0, changes, named)


def faults_of(call: Call) -> list[str]:
    """Return the faults of ``call``, in strace's notation."""
    if call.name in WRITES:
        lies = [f"retval={count}" for count in sorted({0, call.wanted // 2, call.wanted})]
        return ["error=ENOSPC", "error=EIO", "error=EINTR", *lies, KILL]
    if call.name == "getdents64":
        return ["error=EIO"]  # a listing that is too short cannot be noticed
    if call.name in READS:
        return ["error=EIO", "retval=0"]
    if call.name in OPENS:
        return ["error=EIO", "error=ENOSPC", KILL] if call.changes else ["error=EIO", "error=EMFILE"]
    if call.name == "flock":
        return ["error=ENOLCK", "error=ENOSYS", "error=EINTR", KILL]
    if call.name == "fallocate":
        return ["error=ENOSPC", "error=EOPNOTSUPP", "error=EINTR", KILL]
    if call.name == "renameat2":  # that exchanges
        return ["error=EIO", "error=EINVAL", KILL]
    return ["error=EIO", "error=ENOSPC", KILL]


def is_lie(fault: str) -> bool:
    """Return whether a write claims bytes that it did not write."""
    return fault.startswith("retval=") and fault != "retval=0"


@dataclass(frozen=True)
class Injected:
    """How a run with an injected fault ended; ``met`` says whether the fault happened."""

    code: int
    err: str
    met: bool


def injected(
    call: Call, fault: str, arguments: Sequence[str | Path], cwd: Path, log: Path, *, exchange: bool = True
) -> Injected:
    """Run the command with ``fault`` injected into ``call``; strace's ``log`` says whether it happened."""
    tracing = ["strace", "-f", "-qq", "-o", str(log), "-P", call.named or call.path, "-e", f"trace={call.name}"]
    done = _run(
        [*tracing, "-e", f"inject={call.name}:{fault}:when={call.nth}", *command(arguments)], cwd, exchange=exchange
    )
    mark = f"--- {fault.partition('=')[2]} {{" if fault in SIGNALS else "(INJECTED)"
    met = done.returncode in KILLED if fault == KILL else mark in log.read_text(errors="replace")
    log.unlink()
    return Injected(done.returncode, done.stderr, met)


KILLED = frozenset({-9, 137})


def _run(command: list[str], cwd: Path, *, exchange: bool) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | ({} if exchange else {NO_EXCHANGE: "1"})
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
