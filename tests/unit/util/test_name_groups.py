"""Names that differ only in numbers are written as one."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.util.name_groups import MOST_NUMBERS, group_names


def expand(spelled: str) -> list[str]:
    """Return the names that one with braces stands for, as a shell would."""
    pieces = re.split(r"\{([^}]*)\}", spelled)
    choices: list[list[str]] = [[piece] for piece in pieces]
    for k in range(1, len(pieces), 2):
        choices[k] = []
        for item in pieces[k].split(","):
            first, _, last = item.partition("-")
            choices[k] += map(str, range(int(first), int(last) + 1)) if last else [item]
    return ["".join(parts) for parts in itertools.product(*choices)]


NUMBERS = st.sampled_from(["0", "1", "2", "3", "8", "9", "10", "11", "00", "01", "1" * 30])
NAMES = st.one_of(
    st.text("ab.01 9-_é²", min_size=1, max_size=9),
    st.builds("{}.{}.w{}".format, st.sampled_from(["a", "b1", "layers"]), NUMBERS, NUMBERS),
    st.builds("l.{}.{}.{}".format, *[st.integers(0, 3)] * 3),
)


@settings(max_examples=300, deadline=None)
@given(st.sets(NAMES, max_size=40))
def test_groups_are_the_names(names: set[str]) -> None:
    """Expanding the groups gives each name once and nothing else, and their counts are right."""
    groups = group_names(names)
    expanded = [expand(group.spelled()) for group in groups]
    assert sorted(names) == sorted(itertools.chain.from_iterable(expanded))
    assert [len(part) for part in expanded] == [group.count for group in groups]
    assert [group.first for group in groups] == [part[0] for part in expanded]


SPELLED = {
    "one": (["a.1.b"], ["a.1.b"]),
    "range": ([f"a.{i}" for i in range(12)], ["a.{0-11}"]),
    "list": (["a.0", "a.2", "a.5"], ["a.{0,2,5}"]),
    "both": (["a.0", "a.1", "a.2", "a.7"], ["a.{0-2,7}"]),
    "only-what-varies": ([f"h1.{i}.w2" for i in range(3)], ["h1.{0-2}.w2"]),
    "two-positions": ([f"{i}.{j}" for i in range(3) for j in range(2)], ["{0-2}.{0-1}"]),
    "in-step": ([f"{i}.{i}" for i in range(3)], ["0.0", "1.1", "2.2"]),
    "one-missing": (["0.0", "0.1", "1.0", "1.1", "2.0"], ["{0-1}.{0-1}", "2.0"]),
    "leading-zeros": (["s.00001", "s.00002", "s.3"], ["s.{00001,00002,3}"]),
    "no-digits": (["b", "a"], ["a", "b"]),
}


@pytest.mark.parametrize(("names", "expected"), SPELLED.values(), ids=SPELLED)
def test_spelling(names: list[str], expected: list[str]) -> None:
    """Consecutive numbers become ranges, others lists; what does not vary, or not independently, has no braces."""
    assert expected == [group.spelled() for group in group_names(names)]


def test_names_of_thousands_of_numbers_are_grouped_by_the_first() -> None:
    """Only ``MOST_NUMBERS`` numbers of a name are looked at, so that hostile names cost no time."""
    tail = ".7" * 1500
    names = {f"{i}.{j}{tail}" for i in range(30) for j in range(30)} | {"9" * 4096}
    first, second = group_names(names)
    assert {len(group.values) for group in (first, second)} <= set(range(MOST_NUMBERS + 1))
    assert [first.spelled(), second.spelled()] == ["{0-29}.{0-29}" + tail, "9" * 4096]
    assert first.count + second.count == len(names)


def test_long_lists_are_cut_in_the_middle() -> None:
    """Of more than ``most`` numbers and ranges, the first and the last are shown."""
    (group,) = group_names(f"a.{number}" for number in range(0, 20, 2))
    assert group.spelled(4) == "a.{0,2,...,16,18}"
