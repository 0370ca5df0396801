"""What is shown while files arrive: bytes that are fetched, from the first second, and from where an earlier run ended."""

from __future__ import annotations

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.download import download
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, serve, weights_of
from tests.support.hub_server import Fault, HubServer
from tests.support.reports import RecordingReport


class Bars(RecordingReport):
    """Keeps each bar: what it is of, how much, where it began, and how far it came."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[tuple[str, int]] = []
        self.before: list[int] = []
        self.steps: list[list[int]] = []

    def begin(self, doing: str, total: int) -> None:
        self.bars.append((doing, total))
        self.before.append(0)
        self.steps.append([])

    def resumed(self, done: int) -> None:
        self.before[-1] = done

    def progress(self, done: int) -> None:
        assert self.bars, "there is no bar"
        self.steps[-1].append(done)


def test_a_merge_counts_what_it_fetches(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """The first bar is there before the plan is; it counts fetched bytes, never back, never beyond its total."""
    serve(hub, large_torch)
    machine.ask_for_little(1 << 16, 1 << 17)
    hub.faults.append(Fault("late", "*.bin", seconds=0.6, on="files", times=2))
    bars = Bars()
    apply_delta("acme/base", "acme/delta", machine.folder / "out", report=bars)
    assert bars.bars[0][0] == "fetching"
    assert weights_of(large_torch) <= bars.bars[0][1] < 1.1 * weights_of(large_torch)
    assert bars.steps[0], "nothing was shown while it waited"
    for (_, total), before, steps in zip(bars.bars, bars.before, bars.steps, strict=True):
        assert steps == sorted(steps)
        assert all(before <= step <= total for step in steps)
    assert {"merging", "fetching and merging"} & {doing for doing, _ in bars.bars}
    again = Bars()
    apply_delta("acme/base", "acme/delta", machine.folder / "again", report=again)
    assert [doing for doing, _ in again.bars] == ["merging"]


@pytest.mark.parametrize("kind", ["download", "merge"])
def test_a_resumed_bar_begins_where_it_was(machine: Machine, hub: HubServer, large_torch: Pair, kind: str) -> None:
    """What an earlier run has fetched is counted as done, and not again."""
    serve(hub, large_torch)
    machine.ask_for_little(1 << 16, 1 << 17)
    hub.faults.append(Fault("drop", "*.bin", at=400_000, times=1000))
    fetch = (
        (lambda bars: apply_delta("acme/base", "acme/delta", machine.folder / "out", report=bars))
        if kind == "merge"
        else (lambda bars: download("acme/base", report=bars))
    )
    with pytest.raises(InputOutputError):
        fetch(Bars())
    hub.faults.clear()
    bars = Bars()
    fetch(bars)
    assert 0 < bars.before[0] <= bars.bars[0][1]  # to within a piece
    assert min(bars.steps[0], default=bars.before[0]) >= bars.before[0]
