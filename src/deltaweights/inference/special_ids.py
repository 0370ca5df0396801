"""Checks that tokenizer, configuration and embeddings agree on special token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import TOKENIZER_CONFIG
from deltaweights.util.text import Json

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class DocumentIds:
    """Special ids of a document, by key; ``defaults`` are the keys that it omits, for which transformers has a value."""

    file: str
    ids: Mapping[str, Json]
    defaults: frozenset[str] = field(default=frozenset())


def check_special_ids(
    documents: list[DocumentIds], tokenizer: Mapping[str, tuple[int | None, str]], rows: int, findings: CheckFindings
) -> None:
    """Compare the ids of all documents with the tokenizer's, and with the ``rows`` of the embeddings.

    ``tokenizer`` has its id (or None) and token by key. Where it has no such token, documents are compared with the first one that
    has. A value may be a list of ids, one of which must be the expected one.
    """
    for key in SPECIAL_IDS:
        expected, token = tokenizer.get(key, (None, ""))
        for document in documents:
            value = document.ids.get(key)
            if value is None:
                continue
            ids = value if isinstance(value, list) else [value]
            found = f"{value}, transformers' default" if key in document.defaults else value
            if not ids or any(type(number) is not int for number in ids):
                findings.doubt(document.file, f"{key} is not an id", found=value)
            elif expected is not None and expected not in ids:
                due = f"{expected} ({token})" if token else str(expected)
                findings.doubt(document.file, f"{key} is not the tokenizer's", found=found, expected=due)
            elif any(not 0 <= number < rows for number in ids):
                due = f"0 to {rows - 1}"
                findings.doubt(document.file, f"{key} is outside the embeddings", found=found, expected=due)
            elif expected is None:
                expected, token = ids[0], ""


def check_vocabulary_size(tokens: int, rows: int, findings: CheckFindings) -> None:
    """Compare the number of the tokenizer's tokens with the rows of the embeddings."""
    if tokens > rows:
        problem, found = "has more tokens than the embeddings have rows", f"{tokens:,} tokens"
        findings.problem(TOKENIZER_CONFIG, problem, found=found, expected=f"at most {rows:,}")
    elif tokens < rows:
        findings.notes.append(
            f"{TOKENIZER_CONFIG}: {tokens:,} tokens for {rows:,} rows of embeddings; the other rows are unused"
        )
