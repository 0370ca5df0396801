"""A tiny base and delta, whole runs on them, and runs that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from deltaweights.jobs.apply import apply_delta
from deltaweights.report import Report
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors

Done = subprocess.CompletedProcess[str]
Files = dict[str, bytes]

BASE = base_tensors(layers=4)
DELTA = delta_tensors(BASE)
BARE = {name: tensor for name, tensor in DELTA.items() if "mm_projector" not in name}
"""The delta without its projector, for which Meta's format has no name."""

PROJECTOR = {name: tensor for name, tensor in DELTA.items() if "mm_projector" in name}

SHARD = 30_000
"""Bytes per shard: enough for several shards and an index."""

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

MEMBERS = {
    "config.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "tokenizer_config.json",
}
"""The files of a checkpoint that are unpacked from its archive."""

merge = partial(apply_delta, max_shard_size=SHARD)


def weights_in(folder: Path) -> Files:
    """Return the shards and the index of a result."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*"))}


def files_in(folder: Path) -> Files:
    """Return all files of a result except those that depend on the inputs' file names."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {name: data for name, data in files.items() if name not in {"manifest.json", "SHA256SUMS"}}


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def tree_of(folder: Path) -> Files:
    """Return every file below a folder, and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def line_of(done: Done, code: int) -> str:
    """Return the error, which must be the only output."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("deltaweights: error: ")


class FileWatcher(Report):
    """Records which files are below a folder whenever work begins."""

    def __init__(self, folder: Path) -> None:
        self.seen: dict[str, set[str]] = {}
        self.notes: list[str] = []
        self._folder = folder

    def begin(self, doing: str, total: int) -> None:
        """Record the files; the last work of each kind counts."""
        self.seen[doing] = {str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file()}

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)


CUT = """
import itertools, os, signal, sys, time
from deltaweights.checkpoint.zipped_folder import unpack
from deltaweights.checkpoint.zip_format import archive as zip_archive
from deltaweights.cli import main
from deltaweights.merge import stream
import deltaweights.jobs.round_trip  # which reads blocks, too, before the merge

where, left, number = sys.argv[1], int(sys.argv[2]), signal.Signals[sys.argv[3]]
del sys.argv[1:4]
count = itertools.count()

def tick():
    if next(count) == left:
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            time.sleep(0.5)  # until the main thread, which handles it, has told the workers

if where == "unpacking":
    zip_archive.PIECE = 4096
    whole = unpack.read_member
    def read_member(file, member):
        for piece in whole(file, member):
            tick()
            yield piece
    unpack.read_member = read_member
else:
    read = stream.read_block
    def read_block(*arguments):
        tick()
        return read(*arguments)
    stream.read_block = read_block
main()
"""
"""Runs ``deltaweights``, which sends itself a signal at the N-th unpacked piece, or the N-th merged block."""


def cut_off_command(where: str, left: int, number: str, *arguments: str | Path) -> list[str]:
    """Return a command that sends itself the signal ``number`` after ``left`` pieces or blocks."""
    return [sys.executable, "-c", CUT, where, str(left), number, *map(str, arguments)]


def run_cut_off(where: str, left: int, number: str, *arguments: str | Path, **options: Any) -> Done:
    """Run that command."""
    command = cut_off_command(where, left, number, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)


def apply_arguments(archives: tuple[Path, Path], target: Path | str) -> list[str | Path]:
    """Return the arguments that merge the two archives."""
    return ["apply", "--base", archives[0], "--delta", archives[1], "--target", target, "--max-shard-size", f"{SHARD}B"]


def stamps_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each file, which show whether it was written again."""
    files = ((str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: (found.st_ino, found.st_mtime_ns) for name, found in files}


def json_in(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text())
