"""olah, a mirror of the Hub that others wrote, from the registry, in an environment of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.support import foreign
from tests.support.limits import PATIENCE

VERSION = "0.5.4"

POLL = 0.2  # seconds


def install(folder: Path) -> Path:
    """Return olah's command."""
    return foreign.install(folder, f"olah=={VERSION}") / "olah-cli"


@contextmanager
def mirror(command: Path, endpoint: str, folder: Path) -> Iterator[str]:
    """Run the mirror of the Hub at ``endpoint``; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub, here = urlsplit(endpoint).netloc, f"127.0.0.1:{port}"
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--hf-scheme": "http",
        "--hf-netloc": hub,
        "--hf-lfs-netloc": hub,
        "--mirror-scheme": "http",
        "--mirror-netloc": here,
        "--mirror-lfs-netloc": here,
        "--repos-path": str(folder / "repos"),
        "--log-path": str(folder / "logs"),
    }
    arguments = [text for pair in options.items() for text in pair]
    with (folder / "olah.log").open("w") as log:
        process = subprocess.Popen([command, *arguments], stdout=log, stderr=log, cwd=folder)
        try:
            _wait_for(port, process)
            yield f"http://{here}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=POLL).close()
        except OSError:
            assert process.poll() is None, "the mirror did not start"
            assert time.monotonic() < until, "the mirror does not answer"
            time.sleep(POLL)
        else:
            return
