"""Tests of the natural order of tensor names."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.util.text import natural_key


def test_natural_order() -> None:
    """Numbers inside names are compared as numbers, whatever their length, and equal numbers by the name itself."""
    huge = "a.1" + "0" * 5000  # more digits than int() takes
    names = ["b0", "b", huge, "a.10.b", "a.2.c", "a.2.b", "a.1", "a.01", "a"]
    assert ["a", "a.01", "a.1", "a.2.b", "a.2.c", "a.10.b", huge, "b", "b0"] == sorted(names, key=natural_key)


@settings(deadline=None)
@given(names=st.lists(st.text(alphabet="a.01٣x9é", max_size=6), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    """Any names have one order, whatever order they come in."""
    assert sorted(names, key=natural_key) == sorted(sorted(names), key=natural_key)
