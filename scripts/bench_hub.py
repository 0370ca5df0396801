"""Downloads, and merges of models of a Hub, against ``hf download``: from a Hub of the loopback interface, at a set rate.

Enters: two checkpoints, a rate. Leaves: contestants. Never: the internet; or, by default, a rate that the machine could not keep up
with on its own, which would measure the processor.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_runs import Contestant, ours

AGAINST = {
    "hf download": "download",
    "hf download, apply": "apply from the Hub",
    "apply --stream": "apply from the Hub",
}

SERVER = Path(__file__).parents[1] / "tests" / "support" / "hub_server.py"


@contextmanager
def serving(folder: Path, rate: str, connection_rate: str | None = None) -> Iterator[None]:
    """Serve base and delta of ``folder`` as acme/base and acme/delta to the children of this process: it is their only Hub."""
    command = [sys.executable, str(SERVER), f"acme/base={folder / 'base'}", f"acme/delta={folder / 'delta'}"]
    command += ["--connection-rate", connection_rate] if connection_rate else []
    command += ["--rate", rate, "--hash-cache", str(folder / "hashes.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip() if server.stdout else ""
            if not address:
                raise SystemExit("bench: the Hub did not start")
            os.environ |= {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            yield
        finally:
            server.terminate()


def contestants(folder: Path) -> dict[str, Contestant]:
    """Return the commands to compare, by name: the pair fetched by ours and by ``hf``, and fetched and merged."""
    read, out = (folder / "base", folder / "delta"), folder / "from-hub"
    cache, hf = out / "cache", Path(sys.executable).with_name("hf")
    both = ("acme/base", "acme/delta")
    fetch = [[sys.executable, "-m", "deltaweights", "download", repo, "--cache-dir", str(cache), "-q"] for repo in both]
    theirs = [[str(hf), "download", repo, "--cache-dir", str(cache), "-q"] for repo in both]
    target = ("--base", both[0], "--delta", both[1], "--target", out / "target", "--cache-dir", cache)
    merge = ours("apply", *target, "-q")
    return {
        name: Contestant(
            ["sh", "-c", f"mkdir {shlex.quote(str(out))} && {_script(commands)}"],
            read,
            out,
            AGAINST.get(name, "download"),
        )
        for name, commands in (
            ("download", fetch),
            ("hf download", theirs),
            ("apply from the Hub", [merge]),
            ("hf download, apply", [*theirs, [*merge, "--offline"]]),
            ("apply --stream", [[*merge, "--stream"]]),
        )
    }


def _script(commands: list[list[str]]) -> str:
    return " && ".join(map(shlex.join, commands))
