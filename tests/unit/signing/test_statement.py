"""Statements: what is written is read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltaweights.signing.statement import Statement, parse_statement, statement_bytes

NAMES = st.dictionaries(
    st.text(min_size=1, max_size=20), st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=8
)


@given(NAMES, st.text(max_size=10))
def test_a_statement_is_read_back(digests: dict[str, str], subject: str) -> None:
    """The digests in a statement are read back as they were written, whatever the names are."""
    try:
        data = statement_bytes(subject, digests, ["model.sig"])
    except UnicodeEncodeError:  # a manifest cannot hold a lone surrogate
        return
    assert parse_statement(data) == Statement(digests, frozenset({"model.sig"}))
