"""What is left when a result is refused at the end, and how to be rid of it: said with the error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deltaweights.errors import CheckFailed, Mismatch
from deltaweights.manifest.records import Fragment
from deltaweights.staging.location import TargetLocation
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import shell_quoted


@contextmanager
def saying_what_is_kept(location: TargetLocation, fragments: Mapping[str, Fragment]) -> Iterator[None]:
    """Add to a refusal where the finished shards are, how large, and how to remove them."""
    size = human_bytes(sum(fragment.record.size for fragment in fragments.values()))
    clean = f"deltaweights clean {shell_quoted(location.target)}"
    with _adding(f"the finished shards are kept in {location.root} ({size}): {clean} removes them"):
        yield


@contextmanager
def saying_what_is_there(target: Path) -> Iterator[None]:
    """Add to a refusal of a result that an earlier run published that it is there, and stays."""
    with _adding(f"what an earlier run published is still at {target}: remove it yourself"):
        yield


@contextmanager
def _adding(what: str) -> Iterator[None]:
    try:
        yield
    except (Mismatch, CheckFailed) as error:
        raise type(error)(
            error.problem,
            where=error.where,
            tensor=error.tensor,
            found=error.found,
            expected=error.expected,
            remedy=f"{error.remedy}; {what}" if error.remedy else what,
            code=error.code,
        ) from None
