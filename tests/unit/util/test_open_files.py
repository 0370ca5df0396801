"""The limit on open files."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from deltaweights.util.open_files import ENOUGH, allow_most, most_open


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """Lower this process's soft limit for the test; return the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_as_far_as_possible(hard_limit: int) -> None:
    """The soft limit becomes the hard one; where that is unlimited and not granted, enough is asked for."""
    assert most_open() == 200
    allow_most()
    limit = most_open()
    assert limit is None or limit >= min(hard_limit, ENOUGH)


def test_a_system_that_grants_less_than_it_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stated limit is not granted, as on macOS at times, smaller ones are tried until one is."""
    asked: list[int] = []

    def grudging(_which: int, limits: tuple[int, int]) -> None:
        asked.append(limits[0])
        if limits[0] == resource.RLIM_INFINITY or limits[0] > 10_240:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (200, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", grudging)
    allow_most()
    assert asked == [resource.RLIM_INFINITY, ENOUGH, 10_240]
