"""Special tokens: whether tokenizer, configuration and embeddings speak of the same ids.

Enters: ids as each of them has it, and the rows of the embeddings. Leaves: findings. Never: transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaweights.inference.findings import Findings
from deltaweights.util.text import Json

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Stated:
    """The special ids that a document states, by key; ``defaults`` are keys that it leaves out: the library's value holds."""

    file: str
    ids: Mapping[str, Json]
    defaults: frozenset[str] = field(default=frozenset())


def check_ids(
    stated: list[Stated], tokenizer: Mapping[str, int | None], tokens: Mapping[str, str], rows: int, found: Findings
) -> None:
    """Hold the ids of all documents against the tokenizer's, which come first, and against the ``rows`` of the embeddings.

    ``tokenizer`` has the tokenizer's id by key, None where it has no such token, ``tokens`` the token's text. An end may be
    several ids, of which the tokenizer's is to be one.
    """
    for key in SPECIAL:
        expected = tokenizer.get(key)
        for document in stated:
            value = document.ids.get(key)
            if value is None:
                continue
            ids = value if isinstance(value, list) else [value]
            default = ", the library's value where none is stated" if key in document.defaults else ""
            if not ids or any(type(number) is not int for number in ids):
                found.doubt(document.file, f"{key} is not an id", found=value)
            elif expected is not None and expected not in ids:
                token = f" ({tokens[key]})" if key in tokens else ""
                found.doubt(
                    document.file,
                    f"{key} is not the tokenizer's",
                    found=f"{value}{default}",
                    expected=f"{expected}{token}",
                )
            elif any(not 0 <= number < rows for number in ids):
                found.doubt(
                    document.file,
                    f"{key} is not among the embeddings",
                    found=f"{value}{default}",
                    expected=f"0 to {rows - 1}",
                )
            elif expected is None:
                expected = ids[0]  # with no such token in the tokenizer, the documents are to agree among themselves


def check_length(file: str, length: int, rows: int, found: Findings) -> None:
    """Hold the number of the tokenizer's tokens against the rows of the embeddings."""
    if length > rows:
        found.problem(
            file,
            "has more tokens than the embeddings have rows",
            found=f"{length:,} tokens",
            expected=f"at most {rows:,}",
        )
    elif length < rows:
        found.note(f"{file}: {length:,} tokens for {rows:,} rows of embeddings; the rest stands for nothing")
