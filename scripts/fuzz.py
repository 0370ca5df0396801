"""Fuzzes every reader of bytes from strangers, guided by coverage.

Enters: for how long. Leaves: a line for each reader, and what broke the law in files; exit code 1 when something did. Never: the
same inputs again, unless a seed is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

try:
    from tests.fuzz.guided import Fuzzed, finished, start
    from tests.fuzz.targets import TARGETS
except ModuleNotFoundError as error:
    if error.name != "atheris":
        raise
    sys.exit("fuzz: atheris is not there: pip install atheris (there are builds for Linux, CPython 3.11 to 3.13)")


def run(names: list[str], work: Path, seconds: float, seed: int, jobs: int) -> list[Fuzzed]:
    """Fuzz all targets, some at a time, ``seconds`` in all."""
    each = max(1, round(seconds * jobs / len(names)))
    waiting, running, done = list(names), dict[int, str](), list[Fuzzed]()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            running[start(name, work / name.replace(" ", "-"), each, seed)] = name
        process, status = os.wait()
        name = running.pop(process)
        fuzzed = finished(name, work / name.replace(" ", "-"), os.waitstatus_to_exitcode(status))
        found = len(fuzzed.findings) or bool(fuzzed.said)
        print(f"{name}: executions {fuzzed.executions}, findings {found:d}", flush=True)
        print(fuzzed.said, end="\n" if fuzzed.said else "", flush=True)
        done.append(fuzzed)
    return done


def main() -> None:
    """Fuzz, and say what was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (60)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one; may be given again")
    parser.add_argument("--seed", type=int, help="for the same inputs again; another one each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--work", type=Path, help="a folder for findings; a new one in the folder for temporary files")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="fuzz-"))
    seed = given.seed if given.seed is not None else time.time_ns() % 2**31
    names = given.target or list(TARGETS)
    print(f"{len(names)} targets, seed {seed}, findings in {work}", flush=True)
    done = run(names, work, given.seconds, seed, min(given.jobs, len(names)))
    for fuzzed in done:
        for path in fuzzed.findings:
            print(f"{fuzzed.name}: {path}")
    findings = sum(len(fuzzed.findings) or bool(fuzzed.said) for fuzzed in done)
    print(f"executions {sum(fuzzed.executions for fuzzed in done)}, findings {findings}")
    sys.exit(1 if findings else 0)


main()
