"""The part of a process that Slurm started, from its environment alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.cluster.slurm import part_of_slurm
from deltaweights.errors import UsageError
from deltaweights.merge.parts import Part
from tests.support.errors import refused

ARRAY = "SLURM_ARRAY_TASK_"

BATCH = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
"""The environment of every batch script (Slurm 22.05)."""

Environment = dict[str, str]


def task(own: int, ids: range | list[int]) -> Environment:
    """Return the environment of a task of an array as slurmd sets it: of uneven ids, the step is 1."""
    step = ids.step if isinstance(ids, range) else 1
    told = {"ID": own, "MIN": ids[0], "MAX": ids[-1], "STEP": step, "COUNT": len(ids)}
    return BATCH | {"SLURM_ARRAY_JOB_ID": "17"} | {f"{ARRAY}{name}": str(value) for name, value in told.items()}


def step(rank: int, ranks: int) -> Environment:
    """Return the variables that srun adds."""
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_NTASKS": str(ranks),
        "SLURM_PROCID": str(rank),
    }


def all_parts(of: int) -> list[Part]:
    """Return every part once, in order."""
    return [Part(number, of) for number in range(1, of + 1)]


evenly = st.builds(
    lambda first, distance, count: range(first, first + distance * count, distance),
    st.integers(0, 4_000_000),
    st.integers(1, 1000),
    st.integers(1, 60),
)


@given(evenly)
def test_an_even_array_needs_no_list(ids: range) -> None:
    """The tasks of an array with any first id and step get every part once, in the order of their ids."""
    assert [part_of_slurm("slurm", task(own, ids)) for own in ids] == all_parts(len(ids))


@given(st.data())
def test_a_list_may_be_any(data: st.DataObject) -> None:
    """Ids of a list, of single ones and ranges in any order and overlapping, get every part once, in the order of the ids."""
    ranges = data.draw(st.lists(evenly.filter(lambda ids: len(ids) < 20), min_size=1, max_size=5))
    ids = sorted({each for one in ranges for each in one})
    items = [f"{one[0]}-{one[-1]}:{one.step}" if len(one) > 1 else str(one[0]) for one in ranges]
    limit = data.draw(st.sampled_from(["", "%1", "%20"]))
    text = f"slurm:{','.join(items)}{limit}"
    assert [part_of_slurm(text, task(own, ids)) for own in ids] == all_parts(len(ids))


@given(evenly, st.integers(1, 9))
def test_tasks_of_srun_share_the_part_of_their_array(ids: range, ranks: int) -> None:
    """With srun in each task of an array, every pair of id and rank has a part of its own, and none is left out."""
    found = [part_of_slurm("slurm", task(own, ids) | step(rank, ranks)) for own in ids for rank in range(ranks)]
    assert found == all_parts(len(ids) * ranks)


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_srun_alone(ranks: int) -> None:
    """Without an array the rank in srun is the part, also where Slurm tells the number of tasks of the job only."""
    assert [part_of_slurm("slurm", step(rank, ranks)) for rank in range(ranks)] == all_parts(ranks)
    old = [{k: v for k, v in step(rank, ranks).items() if k != "SLURM_STEP_NUM_TASKS"} for rank in range(ranks)]
    assert [part_of_slurm("slurm", each) for each in old] == all_parts(ranks)


@pytest.mark.parametrize("number", [0xFFFFFFFA, 0xFFFFFFFB, 0xFFFFFFFC])
def test_reserved_steps_have_no_rank(number: int) -> None:
    """The shell of salloc, a batch script and an external step have reserved step ids, and no rank."""
    reserved = step(0, 2) | {"SLURM_STEP_ID": str(number)}
    assert part_of_slurm("slurm", task(5, range(4, 6)) | reserved) == Part(2, 2)
    with refused(UsageError, problem="not a task of a Slurm array or of srun"):
        part_of_slurm("slurm", reserved)


@pytest.mark.parametrize(
    ("text", "environ", "fields"),
    [
        pytest.param("slurm", {}, {"problem": "not a task of a Slurm array or of srun"}, id="no-slurm"),
        pytest.param(
            "slurm", BATCH, {"problem": "not a task of a Slurm array or of srun"}, id="batch-script-has-rank-0"
        ),
        pytest.param("slurm:1-4", BATCH | step(0, 4), {"found": f"no {ARRAY}ID"}, id="a-list-without-an-array"),
        pytest.param("slurm", task(4, [1, 4, 9]), {"found": "3 from 1 to 9"}, id="uneven-ids"),
        pytest.param(
            "slurm:1,4,9",
            task(5, [1, 4, 5, 9]),
            {"found": f"{ARRAY}ID=5", "expected": "1,4,9"},
            id="another-list",
        ),
        pytest.param("slurm", task(5, range(4, 9, 2)), {"found": f"{ARRAY}ID=5"}, id="an-id-in-between"),
        pytest.param("slurm:", task(1, range(1, 3)), {"found": ""}, id="an-empty-list"),
        pytest.param("slurm:1;2", task(1, range(1, 3)), {"found": "1;2"}, id="no-list"),
        pytest.param("slurm:1-", task(1, range(1, 3)), {"found": "1-"}, id="an-open-range"),
        pytest.param("slurm:%2", task(1, range(1, 3)), {"found": "%2"}, id="only-a-limit"),
        pytest.param("slurm:3-1", task(1, range(1, 4)), {"found": "3-1"}, id="a-range-backwards"),
        pytest.param("slurm:0-999999999", task(1, range(1, 3)), {"expected": "at most 100000"}, id="a-billion-tasks"),
        pytest.param(
            "slurm",
            task(1, range(1, 50_001)) | step(2, 3),
            {"found": "150000", "expected": "at most 100000"},
            id="too-many-tasks-of-srun",
        ),
        pytest.param("slurm", step(2, 2), {"found": "SLURM_PROCID=2"}, id="a-rank-too-high"),
        pytest.param(
            "slurm",
            step(0, 2) | {"SLURM_PROCID": "first"},
            {"problem": "SLURM_PROCID is not a number", "found": "first"},
            id="a-rank-that-is-no-number",
        ),
        pytest.param("slurm", {f"{ARRAY}ID": "3"}, {"problem": f"{ARRAY}MIN is not a number"}, id="no-first-id"),
        pytest.param("slurm", {"SLURM_STEP_ID": "0\n"}, {"found": "0\n"}, id="a-line-break"),
    ],
)
def test_an_ambiguous_part_is_refused(text: str, environ: Environment, fields: dict[str, str]) -> None:
    """Where two processes could take themselves for the same part, the error says why, with a remedy where there is one."""
    with refused(UsageError, **fields):
        part_of_slurm(text, environ)


@pytest.mark.parametrize(
    ("environ", "remedy"), [({}, "--part K/N"), (task(4, [1, 4, 9]), "--part slurm:LIST")], ids=["by-hand", "by-list"]
)
def test_the_remedy_is_an_option_that_works(environ: Environment, remedy: str) -> None:
    """LeadsOutside of Slurm the part can be given by hand; where ids are uneven, their list can."""
    with refused(UsageError) as info:
        part_of_slurm("slurm", environ)
    assert str(info.value.remedy).endswith(remedy)
