"""Makes every call of a small merge fail, lie or be the last one, or sends signals at every call, and looks at what is left.

Enters: how much of it to do. Leaves: a report, and exit code 1 when something was not as it should be. Never: a fault in anything
but the merges that it runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults.injection import is_possible
from tests.faults.sweep import OF_SIGNALS, SCENARIOS, make_inputs, sweep


def main() -> None:
    """Sweep, and say what was found."""
    parser = argparse.ArgumentParser(prog="scripts/fault-sweep", description=str(__doc__).splitlines()[0])
    names = [str(number) for number in range(len(OF_SIGNALS))]
    parser.add_argument("--every", type=int, default=1, metavar="N", help="inject only every Nth fault, or signal")
    numbered = ", ".join(f"{n}: {s.name}" for n, s in enumerate(OF_SIGNALS))
    only = f"; those from {len(SCENARIOS)} on are for signals only"
    parser.add_argument("--scenario", choices=names, help=numbered + only)
    parser.add_argument(
        "--signals",
        action="store_true",
        help="send SIGINT and SIGTERM in place of faults, to every command, also while it loads its modules",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="a new folder for what the runs leave that went wrong"
    )
    given = parser.parse_args()
    if not is_possible():
        sys.exit("fault-sweep: strace is not there, or may not trace: install it, or allow ptrace")
    work = given.keep or Path(tempfile.mkdtemp(prefix="fault-sweep-"))
    (work / "inputs").mkdir(parents=True)
    make_inputs(work / "inputs")
    injected_faults = unclean = 0
    for number, scenario in enumerate(OF_SIGNALS if given.signals else SCENARIOS):
        if given.scenario not in {None, str(number)}:
            continue
        found = sweep(scenario, work / "inputs", work / str(number), given.every, given.jobs, signals=given.signals)
        injected_faults, unclean = injected_faults + len(found.points), unclean + len(found.unclean)
        clean = len(found.points) - len(found.unclean)
        print(
            f"{scenario.name}: {found.calls} calls, points injected {len(found.points)}, points clean {clean}",
            flush=True,
        )
        print("\n".join(found.unclean), end="\n" if found.unclean else "", flush=True)
    if given.keep is None:
        shutil.rmtree(work)
    print(f"points injected {injected_faults}, points clean {injected_faults - unclean}")
    sys.exit(1 if unclean else 0)


if __name__ == "__main__":
    main()
