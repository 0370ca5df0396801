"""Parts: several processes, on one machine or many, write the bytes that one would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from deltaweights.cluster.handoff import load_handoff as load
from deltaweights.cluster.handoff import store_handoff as store
from deltaweights.cluster.part import apply_part
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.planned_result import PlannedResult, planned_result
from deltaweights.jobs.request import find_recipe
from deltaweights.merge.parts import Part, parse_part, share_of
from deltaweights.merge.plan import Shard
from deltaweights.merge.torch_frame import TorchFrame
from deltaweights.recipes.recipe import Recipe
from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import StagingLock
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.support.prepared import prepare_merge

SIZE = 6_000

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair whose merge has more than ten shards of ``SIZE`` bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    base = base_tensors()
    return save(base, folder / "base"), save(delta_tensors(base), folder / "delta")


@pytest.fixture(scope="module")
def whole(tiny: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ApplyResult]:
    """Merge the pair in one process."""
    target = tmp_path_factory.mktemp("whole") / "out"
    return target, apply_delta(*tiny, target, max_shard_size=SIZE)


def part(tiny: Pair, target: Path, which: str, **options: Any) -> Any:
    """Do a part of the pair's merge."""
    return apply_part(*tiny, target, part=which, max_shard_size=SIZE, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    """Options go through to whoever finishes: torch files made in parts are those of one process."""
    apply_delta(*tiny, tmp_path / "one", max_shard_size=SIZE, weights="bin")
    for number in (1, 2):
        part(tiny, tmp_path / "two", f"{number}/2", weights="bin")
    finish_parts(tmp_path / "two", read_back=True)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_a_missing_part_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """While a shard is missing nothing is published: 6, with the name of one that lacks and what to do; the part mends it."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    with pytest.raises(
        CheckFailed, match=r"not all shards are finished: found no model-0.* run the missing parts again"
    ):
        finish_parts(target)
    assert not target.exists()
    part(tiny, target, "2/2")
    assert finish_parts(target) is not None


def test_without_parts_there_is_nothing_to_finish(tmp_path: Path) -> None:
    """Where no part has run and nothing is published, finish ends with 5 and says what to run; it leaves nothing."""
    with pytest.raises(InputOutputError, match="no part of a merge here; run the parts first"):
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
    """A part with other options or inputs is refused while another plan's work is there (7), and clean gives that up."""
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


def test_finish_waits_for_nobody(tiny: Pair, tmp_path: Path) -> None:
    """While a part holds staging, finish and a merge by one process end with 7; other parts go on."""
    target = tmp_path / "out"
    part(tiny, target, "1/2")
    with StagingLock(locate_target(target), shared=True):
        with pytest.raises(TargetBusy, match="another run is writing"):
            finish_parts(target)
        with pytest.raises(TargetBusy, match="another run is writing"):
            apply_delta(*tiny, target, max_shard_size=SIZE)
        part(tiny, target, "2/2")
    with StagingLock(locate_target(target)), pytest.raises(TargetBusy, match="another run is writing"):
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
    """A part that was killed with a shard half written leaves that in a room of its own; finish removes all traces."""
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
    """The same part in four processes at once, as after a requeue whose first run still lives, gives the same bytes."""
    target = tmp_path / "out"
    command = [sys.executable, "-m", "deltaweights", "apply", "--base", str(tiny[0]), "--delta", str(tiny[1])]
    command += ["--target", str(target), "--max-shard-size", str(SIZE), "-q", "--part"]
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
    arguments += ["--max-shard-size", str(SIZE), "-q", "--part", "1/1"]
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
    """A checkpoint that stands in the target is replaced by finish alone, and only when all were asked to."""
    target = tmp_path / "out"
    apply_delta(*tiny, target)
    old = files_of(target)
    with pytest.raises(TargetBusy, match="already there"):
        part(tiny, target, "1/1")
    part(tiny, target, "1/1", overwrite=True)
    assert files_of(target) == old
    with pytest.raises(TargetBusy, match="already there"):
        finish_parts(target)
    finish_parts(target, overwrite=True)
    assert files_of(target) == files_of(whole[0])


def test_what_parts_cannot_do(tiny: Pair, tmp_path: Path) -> None:
    """A part that is none ends with 2, and so does one of what is streamed, which nobody can compare."""
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/1000000"):
        with pytest.raises(UsageError, match="not a part"):
            part(tiny, tmp_path / "out", text)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ending_is_no_job(tiny: Pair, tmp_path: Path) -> None:
    """What a part left for whoever finishes is held against the plan's identity: another shard size in it is found (3)."""
    target = tmp_path / "out"
    part(tiny, target, "1/1")
    ending = locate_target(target).root / "ending.json"
    document = json.loads(ending.read_text())
    document["rest"]["plan"]["options"]["max_shard_size"] += 1
    ending.write_text(json.dumps(document))
    with pytest.raises(MalformedInput, match=r"its plan does not have the identity that it states.*deltaweights clean"):
        finish_parts(target)
    ending.write_text('{"identity": 3}')
    with pytest.raises(MalformedInput, match="not what a part left"):
        finish_parts(target)


# Shares.


def shards_of(sizes: list[int]) -> list[Shard]:
    """Return shards of so many bytes."""

    class Frame(TorchFrame):
        def __init__(self, size: int) -> None:
            self.size = size

    return [Shard(f"model-{number:05d}.safetensors", Frame(size), ()) for number, size in enumerate(sizes)]


@given(sizes=st.lists(st.integers(1, 1000), max_size=30), of=st.integers(1, 12))
def test_shares_are_balanced(sizes: list[int], of: int) -> None:
    """Every shard belongs to one part; no two parts differ by more than the largest shard; the order of shards decides nothing."""
    shards = shards_of(sizes)
    shares = [share_of(shards, Part(number, of)) for number in range(1, of + 1)]
    assert sorted(s.file for share in shares for s in share) == [s.file for s in shards]
    loads = [sum(s.size for s in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert [[s.file for s in share_of(shards[::-1], Part(k + 1, of))][::-1] for k in range(of)] == [
        [s.file for s in share] for share in shares
    ]


@given(number=st.integers(1, 500), more=st.integers(0, 500))
def test_a_part_is_read_as_it_is_written(number: int, more: int) -> None:
    """K/N is read back as it is printed."""
    part = Part(number, number + more)
    assert parse_part(str(part)) == part


# The ending.


def test_an_ending_comes_back_as_it_was(tiny: Pair, tmp_path: Path) -> None:
    """What a part leaves in staging, plan, recipe, companions and all, is read back equal, for every recipe of the package."""
    place = locate_target(tmp_path / "out")
    with prepare_merge(*tiny, tmp_path / "out", max_shard_size=SIZE) as job:
        ending = planned_result(job)
    for name in (None, "llava-med-7b", "alpaca-7b", "vicuna-7b-v0", "llava-13b-v0"):
        known: Recipe | None = find_recipe(name, None)
        one = PlannedResult(**{**vars(ending), "recipe": known})
        with StagingLock(place) as lock:
            store(one, lock.staging)
            other = load(lock.staging)
        assert other.plan.identity == one.plan.identity
        assert {key: value for key, value in vars(other).items() if key != "plan"} == {
            key: value for key, value in vars(one).items() if key != "plan"
        }


# Launchers.


def launched(tiny: Pair, target: Path, *launcher: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a merge by processes that a launcher starts together."""
    arguments = [
        "--base",
        str(tiny[0]),
        "--delta",
        str(tiny[1]),
        "--target",
        str(target),
        "--max-shard-size",
        str(SIZE),
    ]
    command = [sys.executable, "-m", *launcher, "-m", "deltaweights", "apply", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_launched_processes_share_the_shards(
    tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    """Two processes of a launcher merge together what one does, and one of them says so, once."""
    done = launched(tiny, tmp_path / "out", *launcher)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(whole[0])
    assert done.stdout.count("content digest") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rank_that_fails_ends_the_others(tiny: Pair, tmp_path: Path) -> None:
    """When one process fails, its one line of error is shown, and all end at once, not when a timeout strikes."""
    with StagingLock(locate_target(tmp_path / "out")):
        began = time.monotonic()
        done = launched(tiny, tmp_path / "out", *TORCHRUN)
    assert done.returncode != 0
    assert "another run is writing to this folder" in done.stderr
    assert time.monotonic() - began < PATIENCE
    assert not (tmp_path / "out").exists()


def test_a_launch_that_accelerate_does_not_see_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """Where the launcher says two processes and accelerate sees another number, nothing is done: 2, in one line."""
    program = (
        "import accelerate\n"
        "class Alone:\n"
        "    num_processes, process_index, is_main_process = 1, 0, True\n"
        "    def __init__(self, **_): pass\n"
        "accelerate.PartialState = Alone\n"
        "from deltaweights.cli import main\n"
        "main()\n"
    )
    arguments = ["apply", "--base", str(tiny[0]), "--delta", str(tiny[1]), "--target", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    )
    assert done.returncode == 2, done.stderr
    assert "the launcher and accelerate disagree about the number of processes: found 1, expected 2" in done.stderr
    assert not (tmp_path / "out").exists()


def test_streams_and_parts(tiny: Pair, tmp_path: Path) -> None:
    """An archive whose weights are compressed cannot be unpacked for one part alone; that is said, in one line."""
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
