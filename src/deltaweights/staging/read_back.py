"""Reading finished shards back from the disk, to compare them with what was written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from deltaweights.checkpoint.files import LocalFile
from deltaweights.errors import InputOutputError
from deltaweights.manifest.digest_files import digest_file
from deltaweights.manifest.records import Fragment
from deltaweights.report import Report
from deltaweights.staging.staged_shards import StagedShards
from deltaweights.util.workers import run_parallel


def read_back(shards: StagedShards, fragments: Mapping[str, Fragment], workers: int, report: Report) -> None:
    """Hash shards again. Raises ``InputOutputError`` for one that differs, after removing its fragment: it is made again."""

    def hash_one(_: None, fragment: Fragment) -> Iterator[int]:
        with contextlib.closing(shards.open(fragment.file)) as file:
            _drop_cached_pages(file)
            sha256 = (yield from digest_file(file))[0]
        if sha256 != fragment.record.sha256:
            shards.drop_fragment(fragment.file)
            problem, found = "the disk gives back other bytes than were written", f"sha256 {sha256}"
            expected = fragment.record.sha256
            remedy = "use another disk, or run the same command again: this shard will be made anew"
            raise InputOutputError(problem, where=file.path, found=found, expected=expected, remedy=remedy)

    todo, total = iter(fragments.values()), sum(fragment.record.size for fragment in fragments.values())
    run_parallel(todo, lambda: None, hash_one, workers=workers, report=report, doing="reading", total=total)


def _drop_cached_pages(file: LocalFile) -> None:
    """Advise the system to drop a flushed file's pages, so that the disk is read; it may ignore that."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # reading the file will say what is wrong
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
