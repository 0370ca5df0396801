"""Names that differ only in numbers, written as one: ``layers.{0-31}.w{1,3}``."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from deltaweights.util.text import natural_key

MOST_NUMBERS = 16  # numbers in a name that may vary; known names have at most three


@dataclass(frozen=True)
class NameGroup:
    """All names with the pieces of ``text``, and between them all combinations of ``values``."""

    text: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """The number of names."""
        return math.prod(map(len, self.values))

    @property
    def first(self) -> str:
        """The first name in natural order."""
        return self._join(values[0] for values in self.values)

    def spelled(self, most: int | None = None) -> str:
        """Return the names as one: ``layers.{0-31}.w{1,3}``; dots replace the middle of more than ``most`` numbers and ranges."""
        return self._join(values[0] if len(values) == 1 else f"{{{_ranges(values, most)}}}" for values in self.values)

    def _join(self, between: Iterable[str]) -> str:
        return "".join(part for pair in zip(self.text, (*between, ""), strict=True) for part in pair)


def group_names(names: Iterable[str]) -> list[NameGroup]:
    """Group names that differ only in numbers, in natural order; each name is in exactly one group, which holds no others."""
    alike: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for name in names:
        parts = re.split("([0-9]+)", name, maxsplit=MOST_NUMBERS)
        alike[tuple(parts[::2])].add(tuple(parts[1::2]))
    groups = (NameGroup(text, values) for text, rows in alike.items() for values in _products(rows))
    return sorted(groups, key=lambda group: natural_key(group.first))


def _products(rows: Set[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Split rows of equal length into Cartesian products of values."""
    if rows == {()}:
        yield ()
        return
    rests: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for first, *rest in rows:
        rests[first].add(tuple(rest))
    same: defaultdict[frozenset[tuple[str, ...]], list[str]] = defaultdict(list)
    for first, others in rests.items():
        same[frozenset(others)].append(first)
    for tails, firsts in same.items():
        values = tuple(sorted(firsts, key=natural_key))
        yield from ((values, *more) for more in _products(tails))


def _ranges(values: tuple[str, ...], most: int | None) -> str:
    runs: list[list[str]] = []
    for value in values:
        # Numbers with leading zeros, such as "01", are in no range: it could not tell how many zeros there are.
        if runs and str(int(runs[-1][-1]) + 1) == value and str(int(runs[-1][-1])) == runs[-1][-1]:
            runs[-1].append(value)
        else:
            runs.append([value])
    spelled = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if most is not None and len(spelled) > most:
        spelled[most // 2 : -(most // 2)] = ["..."]
    return ",".join(spelled)
