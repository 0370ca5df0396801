"""A machine that uses the loopback Hub (tests/support/hub_server.py): its own cache, state folder and environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import pytest
from huggingface_hub import constants

from deltaweights.hub import retry
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.piece_storage import DiskPieces
from deltaweights.jobs.download import Downloaded, download
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.reports import RecordingReport

Done = subprocess.CompletedProcess[str]

SOON = PATIENCE
"""Seconds that a test waits for something."""


class Said(RecordingReport):
    """Keeps also how many requests the Hub had received at each note."""

    def __init__(self) -> None:
        super().__init__()
        self.hub: HubServer | None = None
        self.requests_at: dict[str, int] = {}

    def note(self, text: str) -> None:
        super().note(text)
        self.requests_at.setdefault(text, len(self.hub.requests) if self.hub else 0)


class Machine:
    """A machine with an empty cache, no token, short waits, and connections that time out after a second."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, hub: HubServer) -> None:
        self._patch, self.folder, self.cache = patch, folder, folder / "cache"
        for name in list(os.environ):
            if name.startswith(("HF_", "HUGGING")):
                patch.delenv(name)
        for name, value in {
            "XDG_STATE_HOME": str(folder / "state"),
            "HF_HOME": str(folder / "home"),
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "home" / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        patch.setattr(retry, "FIRST_WAIT", 0.003)
        self.said = Said()
        self.told = ""
        self.turn_to(hub)

    def turn_to(self, hub: HubServer | str) -> None:
        """Use another Hub, or address."""
        address = hub if isinstance(hub, str) else hub.endpoint
        self.said.hub = None if isinstance(hub, str) else hub
        self._patch.setenv("HF_ENDPOINT", address)
        self._patch.setattr(constants, "ENDPOINT", address)
        template = (
            "{repo_id}/resolve/{revision}/{filename}"  # which the client makes of the endpoint when it is imported
        )
        self._patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{template}")

    def fetch(self, model: str, *include: str, **options: Any) -> Downloaded:
        """Download one repository in this process."""
        (found,) = download(model, include=include, options=HubOptions(**options), report=self.said)
        return found

    @contextmanager
    def start(self, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Start ``deltaweights ARGUMENTS``, which is killed with the context."""
        command = [sys.executable, "-m", "deltaweights", *map(str, arguments)]
        if self.told:
            command[1:3] = ["-c", f"{self.told}; from deltaweights.cli import main; main()"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def ask_for_little(self, piece: int, run: int) -> None:
        """Use small pieces and requests, in bytes, so that small files have many, as large ones do."""
        self._patch.setattr(DiskPieces, "piece_size", piece)
        self._patch.setattr(PieceMap.next_request, "__defaults__", (run,))
        self.told = (
            "from deltaweights.hub.piece_map import PieceMap; from deltaweights.hub.piece_storage import DiskPieces"
        )
        self.told += f"; DiskPieces.piece_size, PieceMap.next_request.__defaults__ = {piece}, ({run},)"

    def run(self, *arguments: str | Path) -> Done:
        """Run ``deltaweights ARGUMENTS``."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=SOON)
        return Done(process.args, process.returncode, out, err)

    def hf(self, *arguments: str | Path, **environment: str) -> Done:
        """Run ``hf ARGUMENTS``."""
        command = [Path(sys.executable).with_name("hf"), *arguments]
        surroundings = os.environ | environment
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=surroundings)

    def repository(self, name: str) -> Path:
        """Return the cache's folder of a repository."""
        return self.cache / f"models--{name.replace('/', '--')}"

    def blobs(self, name: str) -> dict[str, Path]:
        """Return the files under a repository's blobs, by name, complete or not."""
        return {path.name: path for path in (self.repository(name) / "blobs").glob("*")}

    def sizes(self) -> dict[str, int]:
        """Return all files of the cache, and their sizes."""
        found = (path for path in self.cache.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.relative_to(self.cache).as_posix(): path.stat().st_size for path in found}

    def log_in(self, token: str) -> None:
        """Store a token, as ``hf auth login`` does."""
        (self.folder / "home").mkdir(exist_ok=True)
        (self.folder / "home" / "token").write_text(f"{token}\n")


def wait_for(what: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Wait until ``what`` is true; fail when a process ends first."""
    until = time.monotonic() + SOON
    while not what():
        assert time.monotonic() < until, "waited in vain"
        assert not any(process.poll() for process in processes), "failed before"
        time.sleep(0.01)


def forget_connections() -> None:
    """Close the connections of huggingface_hub's client."""
    hf.close_session()
