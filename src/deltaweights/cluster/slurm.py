"""Find the part of a merge for a process that Slurm started."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deltaweights.errors import UsageError
from deltaweights.merge.parts import MOST_PARTS, Part

ARRAY = "SLURM_ARRAY_TASK_"

RESERVED_STEPS = 0xFFFFFFF0
"""Reserved step ids: the batch script, the shell of salloc and others (slurm.h, ``SLURM_*_STEP``)."""

BY_HAND = "give the part yourself: --part K/N"
GIVE_THE_LIST = "give the list of sbatch --array: --part slurm:LIST"


def part_of_slurm(text: str, environ: Mapping[str, str]) -> Part:
    """Return the part of this task of an array, of an ``srun`` of several tasks, or of both: tasks of one id get adjacent parts.

    ``text`` is "slurm", or "slurm:LIST" with the list that ``sbatch --array`` was given: the part is the position of this id in it,
    counted from the smallest. Without a list the ids must be evenly spaced, since Slurm tells a task only the first id, the last,
    the step and the count. Raises ``UsageError`` outside of an array or srun, and for an id that is not in the list.
    """
    spec = text.partition(":")[2] if ":" in text else None
    in_array, in_step = f"{ARRAY}ID" in environ, _is_step(environ)
    if not in_array and spec is not None:
        raise UsageError("not a task of a Slurm array", found=f"no {ARRAY}ID", remedy=BY_HAND)
    if not in_array and not in_step:
        raise UsageError("not a task of a Slurm array or of srun", remedy=BY_HAND)
    task, tasks = _position(spec, environ) if in_array else (0, 1)
    rank, ranks = _rank(environ) if in_step else (0, 1)
    if tasks * ranks > MOST_PARTS:
        raise UsageError("too many parts", found=tasks * ranks, expected=f"at most {MOST_PARTS}")
    return Part(task * ranks + rank + 1, tasks * ranks)


def _is_step(environ: Mapping[str, str]) -> bool:
    """Return whether srun started this process. A batch script has a rank, 0, as well, but no step."""
    return "SLURM_STEP_ID" in environ and _number(environ, "SLURM_STEP_ID") < RESERVED_STEPS


def _rank(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the rank of this task of srun, from 0, and the number of tasks."""
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    rank, ranks = _number(environ, "SLURM_PROCID"), _number(environ, name)
    if rank >= ranks:
        raise UsageError("no such task of srun", found=f"SLURM_PROCID={rank}", expected=f"less than {name}={ranks}")
    return rank, ranks


def _position(spec: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the position of this task among those of its array, from 0, and their number."""
    own = _number(environ, f"{ARRAY}ID")
    ranges = [_range_of(environ)] if spec is None else _ranges(spec)
    if sum(map(len, ranges)) > MOST_PARTS:
        raise UsageError("too many tasks in the array", expected=f"at most {MOST_PARTS}")
    ids = sorted(set[int]().union(*ranges))
    if own not in ids:
        expected = f"one of the {len(ids)} of Slurm's environment" if spec is None else spec
        raise UsageError(
            "this task is not in the array", found=f"{ARRAY}ID={own}", expected=expected, remedy=GIVE_THE_LIST
        )
    return ids.index(own), len(ids)


def _range_of(environ: Mapping[str, str]) -> range:
    """Return the ids of an evenly spaced array."""
    first, last, step, count = (_number(environ, f"{ARRAY}{what}") for what in ("MIN", "MAX", "STEP", "COUNT"))
    ids = range(first, last + 1, max(1, step))
    if len(ids) != count:
        found = f"{count} from {first} to {last}"
        raise UsageError("the ids of the array are not evenly spaced", found=found, remedy=GIVE_THE_LIST)
    return ids


def _ranges(spec: str) -> list[range]:
    """Return the ids of a list such as ``1,3,7-9:2``, as ranges. ``%LIMIT``, how many may run at once, is ignored."""
    item = "([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?"
    if not re.fullmatch(f"{item}(,{item})*(%[0-9]{{1,9}})?", spec):
        raise UsageError(
            "not a list of array tasks", found=spec, expected="the list of sbatch --array, such as 0-3,8-12:2"
        )
    ranges = []
    for first, last, step in re.findall(item, spec.partition("%")[0]):
        ids = range(int(first), int(last or first) + 1, int(step or 1) or 1)
        if not ids:
            raise UsageError("not a list of array tasks", found=f"{first}-{last}", expected="the smaller id first")
        ranges.append(ids)
    return ranges


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name)
    if value is None or not re.fullmatch("[0-9]{1,10}", value):
        raise UsageError(f"{name} is not a number", found="none" if value is None else value, remedy=BY_HAND)
    return int(value)
