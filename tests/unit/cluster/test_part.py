"""Merges in parts: several processes, on one machine or many, write the bytes that one would."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltaweights import (
    ApplyResult,
    CheckFailed,
    InputOutputError,
    MalformedInput,
    TargetBusy,
    UsageError,
    apply_delta,
    verify,
)
from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.part import apply_part
from deltaweights.hub.locate import HubOptions
from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.util.limits import HANDOFF
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.unit.cluster import SIZE, Pair, files_of


def part(tiny: Pair, target: Path, which: str, **options: Any) -> Any:
    """Do a part of the pair's merge."""
    return apply_part(*tiny, target, part=which, max_shard_size=SIZE, **options)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("of", [1, 2, 3, 7, 40])
def test_parts_give_the_bytes_of_one_process(
    tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path, of: int
) -> None:
    """However many parts there are, in whatever order they run, the published folder is that of one process, file by file."""
    target = tmp_path / "out"
    numbers = [*range(1, of + 1)]
    done = [part(tiny, target, f"{number}/{of}") for number in reversed(numbers)]
    assert sorted(shard for each in done for shard in each.shards) == sorted(
        path.name for path in whole[0].glob("*.safetensors")
    )
    assert all(each.made == tuple(sorted(each.shards)) for each in done)
    assert (of < 40) == all(each.shards for each in done)
    assert not target.exists()
    finished = finish_parts(target)
    assert finished is not None
    assert (finished.status, finished.content_digest) == ("merged", whole[1].content_digest)
    assert files_of(target) == files_of(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert verify(target, expect=whole[1].content_digest).ok


def test_parts_of_the_other_layout_and_container(tiny: Pair, tmp_path: Path) -> None:
    """``finish`` uses the options of the parts: torch files made in parts are those of one process."""
    apply_delta(*tiny, tmp_path / "one", max_shard_size=SIZE, weights="bin")
    for number in (1, 2):
        part(tiny, tmp_path / "two", f"{number}/2", weights="bin")
    finish_parts(tmp_path / "two", read_back=True)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_a_missing_part_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """While a shard is missing nothing is published (6); the error names it and says what to do, which works."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    with refused(CheckFailed, where=locate_target(target).root, remedy="run the missing parts again") as info:
        finish_parts(target)
    assert str(info.value.found).startswith("no model-0")
    assert not target.exists()
    part(tiny, target, "2/2")
    assert finish_parts(target) is not None


def test_without_parts_there_is_nothing_to_finish(tmp_path: Path) -> None:
    """Where no part has run and nothing is published, finish ends with 5 and says what to run; it leaves nothing."""
    with refused(InputOutputError, where=tmp_path / "out", problem="no part of a merge here"):
        finish_parts(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_is_not_made_again(tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path) -> None:
    """A part that is requeued after publication, and finish once more, end well and change nothing."""
    target = shutil.copytree(whole[0], tmp_path / "out")
    done = part(tiny, target, "2/3")
    assert (done.status, done.made, done.finished) == ("already complete", (), whole[1].shards)
    assert finish_parts(target) is None
    assert files_of(target) == files_of(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_part_again_makes_nothing(tiny: Pair, tmp_path: Path) -> None:
    """A part that ran already finds its shards by their hashes, and makes only those that are gone or damaged."""
    target = tmp_path / "out"
    first = part(tiny, target, "1/2")
    assert part(tiny, target, "1/2").made == ()
    shards = locate_target(target).shards
    (shards / first.shards[0]).unlink()
    data = bytearray((shards / first.shards[1]).read_bytes())
    data[-1] ^= 1
    (shards / first.shards[1]).write_bytes(data)
    assert part(tiny, target, "1/2").made == first.shards[:2]


def test_parts_of_two_plans_never_mix(tiny: Pair, tmp_path: Path) -> None:
    """A part with other options or inputs is refused while another plan is in staging (7); the remedy is ``clean``."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    before = files_of(locate_target(target).shards)
    for options in ({"dtype": "float32"}, {"prove": False}):
        with pytest.raises(TargetBusy, match=r"staging holds another plan.*deltaweights clean"):
            part(tiny, target, "2/2", **options)
    other = save(delta_tensors(base_tensors(), seed=9), tmp_path / "other")
    with pytest.raises(TargetBusy, match="staging holds another plan"):
        part((tiny[0], other), target, "2/2")
    assert files_of(locate_target(target).shards) == before


@pytest.mark.slow
def test_finish_does_not_wait(tiny: Pair, tmp_path: Path) -> None:
    """While a part holds staging, finish and a merge by one process end with 7; other parts go on."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    with StagingLock(locate_target(target), shared=True):
        with refused(TargetBusy, where=locate_target(target).root):
            finish_parts(target)
        with refused(TargetBusy, where=locate_target(target).root):
            apply_delta(*tiny, target, max_shard_size=SIZE)
        part(tiny, target, "2/2")
    with StagingLock(locate_target(target)), refused(TargetBusy, where=locate_target(target).root):
        part(tiny, target, "2/2")
    assert finish_parts(target) is not None


def test_one_process_takes_over_what_parts_made(tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path) -> None:
    """A merge by one process reuses the shards that parts of the same plan have finished, and publishes the same."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    apply_delta(*tiny, target, max_shard_size=SIZE)
    assert files_of(target) == files_of(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_part_is_done_again(tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path) -> None:
    """A killed part leaves its half-written shard in a folder of its own; finish removes all traces."""
    target = tmp_path / "out"
    place = locate_target(target)
    part(tiny, target, "1/2")
    room = place.root / "parts" / "elsewhere-1"
    room.mkdir(parents=True)
    (room / "model-00001-of-00012.safetensors").write_bytes(b"half")
    (place.fragments / "x.json.elsewhere.1.new").write_bytes(b"half")
    part(tiny, target, "2/2")
    finish_parts(target)
    assert files_of(target) == files_of(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_part_twice_at_once(tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path) -> None:
    """The same parts in four processes at once, as after a requeue while the first run still lives, give the same bytes."""
    target = tmp_path / "out"
    command = [sys.executable, "-m", "deltaweights", "apply", "--base", str(tiny[0]), "--delta", str(tiny[1])]
    command += ["--target", str(target), "--max-shard-size", f"{SIZE}B", "-q", "--part"]
    running = [
        subprocess.Popen([*command, f"{1 + number % 2}/2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for process in running:
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    finish_parts(target)
    assert files_of(target) == files_of(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_part_killed_at_any_time(
    tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path, number: signal.Signals
) -> None:
    """A part that is killed while it streams is finished by the same command."""
    target = tmp_path / "out"
    program = (
        "import os, signal, sys, time\n"
        "from deltaweights.cluster.part import StagedShards\n"
        "keep, kept = StagedShards.adopt, []\n"
        "def count(self, folder, fragment):\n"
        "    keep(self, folder, fragment)\n"
        "    kept.append(fragment)\n"
        "    if len(kept) == 2:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(0.5)\n"  # until the main thread, which is told of it, has run
        "StagedShards.adopt = count\n"
        "from deltaweights.cli import main\n"
        "main()\n"
    )
    arguments = ["apply", "--base", str(tiny[0]), "--delta", str(tiny[1]), "--target", str(target)]
    arguments += ["--max-shard-size", f"{SIZE}B", "-q", "--part", "1/1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == (143 if number is signal.SIGTERM else -9), done.stderr
    assert len(list(locate_target(target).fragments.glob("*.json"))) >= 2
    again = part(tiny, target, "1/1")
    assert 0 < len(again.made) < len(again.shards)
    finish_parts(target)
    assert files_of(target) == files_of(whole[0])


def test_parts_with_an_overwritten_target(tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path) -> None:
    """A checkpoint in the target is replaced only by finish, and only when parts and finish have ``overwrite``."""
    target = tmp_path / "out"
    apply_delta(*tiny, target)
    old = files_of(target)
    with refused(TargetBusy, where=target):
        part(tiny, target, "1/1")
    part(tiny, target, "1/1", overwrite=True)
    assert files_of(target) == old
    with refused(TargetBusy, where=target):
        finish_parts(target)
    finish_parts(target, overwrite=True)
    assert files_of(target) == files_of(whole[0])


def test_text_that_is_no_part(tiny: Pair, tmp_path: Path) -> None:
    """Text that does not name a part is a usage error, before anything is written."""
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/1000000"):
        with refused(UsageError, found=text):
            part(tiny, tmp_path / "out", text)
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_archive(tiny: Pair, tmp_path: Path) -> None:
    """An archive with compressed weights is refused in one line: it cannot be unpacked for one part alone."""
    archive = shutil.make_archive(str(tmp_path / "delta"), "zip", tiny[1].parent, "delta")
    with pytest.raises((InputOutputError, MalformedInput)) as caught:
        part((tiny[0], Path(archive)), tmp_path / "out", "1/2", hub=HubOptions())
    assert "\n" not in str(caught.value)
    assert not locate_target(tmp_path / "out").root.exists()


def test_two_parts_begin_at_once(tiny: Pair, tmp_path: Path) -> None:
    """Parts that find no staging at the same time agree on one plan, or all but those of one plan are refused."""
    outcomes: list[str] = []

    def run(size: int) -> None:
        try:
            apply_part(*tiny, tmp_path / "out", part="1/2", max_shard_size=size)
            outcomes.append(f"done {size}")
        except TargetBusy:
            outcomes.append(f"refused {size}")

    threads = [threading.Thread(target=run, args=(size,)) for size in (SIZE, SIZE + 4000) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = {outcome for outcome in outcomes if outcome.startswith("done")}
    assert len(done) == 1
    assert len(outcomes) == 6


def test_a_plan_that_finish_could_not_read_back(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before a shard is written; without --part the merge needs no plan in staging."""
    monkeypatch.setattr("deltaweights.cluster.handoff.HANDOFF_LIMIT", replace(HANDOFF, size=1000))
    with refused(MalformedInput, problem="too large for a merge in parts: finish could not read the plan back") as info:
        part(tiny, tmp_path / "out", "1/2")
    assert info.value.remedy == "merge without --part"
    assert apply_delta(*tiny, tmp_path / "out", max_shard_size=SIZE, allow_unproved_base=True).status == "merged"
