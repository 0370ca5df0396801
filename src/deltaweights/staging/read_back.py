"""Finished shards, read from the disk once more.

Enters: shards in staging, and their fragments. Leaves: nothing, when the disk gives back what was written. Never: the pages of
memory that the shard was written through, where the system lets go of them.
"""

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


def read_back(staging: StagedShards, fragments: Mapping[str, Fragment], workers: int, report: Report) -> None:
    """Hash the shards of ``fragments`` anew with ``workers`` threads, and hold them against what was written.

    Raises ``InputOutputError`` for a shard that is not what was written; its fragment is gone then, so that the next run makes
    it again.
    """

    def hash_one(_: None, fragment: Fragment) -> Iterator[int]:
        file = staging.open(fragment.file)
        try:
            _forget_pages(file)
            sha256 = (yield from digest_file(file))[0]
        finally:
            file.close()
        if sha256 != fragment.record.sha256:
            staging.forget(fragment.file)
            raise InputOutputError(
                "the disk gives back other bytes than were written",
                where=file.path,
                found=f"sha256 {sha256}",
                expected=fragment.record.sha256,
                remedy="use another disk, or run the same command again: this shard will be made anew",
            )

    total = sum(fragment.record.size for fragment in fragments.values())
    run_parallel(
        iter(fragments.values()), _no_desk, hash_one, workers=workers, report=report, doing="reading", total=total
    )


def _forget_pages(file: LocalFile) -> None:
    """Have the system drop what it holds of a flushed file, so that the disk is asked. It is advice: it may answer from memory."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # whoever reads the file will say what is wrong
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _no_desk() -> None:
    """Each file has a buffer of its own."""
