"""Tensor names in the two layouts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.checkpoint.llava_names import FIELDS, TABLE, transformers_name


@given(row=st.integers(0, len(TABLE) - 1), data=st.data())
def test_names_of_the_table_are_translated(row: int, data: st.DataObject) -> None:
    """Every name that matches the table has exactly one name in the other layout."""
    fields = {name: data.draw(st.from_regex(pattern, fullmatch=True)) for name, pattern in FIELDS.items()}
    original, other = (template.format(**fields) for template in TABLE[row])
    assert transformers_name(original) == other


@pytest.mark.parametrize(
    "name",
    ["", "model.layers.x.mlp", "xmodel.norm.weight", "model.norm.weight ", "model.norm", "model.mm_projector.0.weight"],
)
def test_other_names_have_no_place(name: str) -> None:
    """A name that only resembles one of the table has no name in the other layout."""
    assert transformers_name(name) is None
