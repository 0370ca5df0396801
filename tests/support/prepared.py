"""Merges that are prepared, and go no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.jobs.apply import apply_request
from deltaweights.jobs.prepare import Prepared, prepare
from deltaweights.report import Report


@contextmanager
def prepare_merge(base: ModelLocation, delta: ModelLocation, target: PathLike, **options: Any) -> Iterator[Prepared]:
    """Prepare a merge as a dry run does: what is in the target does not matter."""
    with prepare(apply_request(base, delta, target, dry_run=True, **options), Report()) as prepared:
        yield prepared
