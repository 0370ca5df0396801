"""Which shards of a plan each part of a shared job makes: only sizes, names and the number of parts decide, so all agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltaweights.errors import UsageError
from deltaweights.merge.plan import Shard

MOST_PARTS = 100_000


@dataclass(frozen=True)
class Part:
    """Part ``number``, from 1, of ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """Return the part that ``K/N`` names. Raises ``UsageError``."""
    found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of <= MOST_PARTS:
        raise UsageError("not a part", found=text, expected="K/N, such as 2/4, K from 1 to N")
    return Part(number, of)


def share_of(shards: Sequence[Shard], part: Part) -> list[Shard]:
    """Return the shards of ``part``, in the order of the plan.

    The largest shard is assigned first, each to the part with the fewest bytes so far, the first such part on a tie; so the loads
    of two parts differ by at most one shard.
    """
    loads = [0] * part.of
    mine: set[str] = set()
    for shard in sorted(shards, key=lambda shard: (-shard.size, shard.file)):
        lightest = loads.index(min(loads))
        loads[lightest] += shard.size
        if lightest == part.number - 1:
            mine.add(shard.file)
    return [shard for shard in shards if shard.file in mine]
