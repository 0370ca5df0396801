"""The token that begins a text, where tokenizer and special_tokens_map.json disagree about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from deltaweights.inference.beginning import check_beginning
from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import read_model_folder
from tests.support.tiny_llava import tokenizer

pytestmark = pytest.mark.fidelity


def found(folder: Path, given: Any) -> list[tuple[str, str | None, str | None]]:
    """Return file, fact and expectation of what is found."""
    findings = CheckFindings(strict=True)
    check_beginning(given, read_model_folder(folder), findings)
    return [(each.file, each.found, each.expected) for each in findings.problems]


def test_a_map_that_the_library_does_not_obey(llava: Path) -> None:
    """The code of 2023 took bos and eos from that file, a library that does not gets another first id."""
    assert found(llava, tokenizer()) == []
    stated = {"bos_token": {"content": "</s>"}, "eos_token": "<s>", "pad_token": "<s>"}
    (llava / "special_tokens_map.json").write_text(json.dumps(stated))
    file = "special_tokens_map.json"
    assert found(llava, tokenizer()) == [(file, "</s>", "<s>"), (file, "<s>", "</s>")]
    (llava / "special_tokens_map.json").write_text(json.dumps({"bos_token": "", "eos_token": None}))
    assert found(llava, tokenizer()) == []


def test_a_text_that_nothing_begins(llava: Path) -> None:
    """A tokenizer that adds no token is at fault only if it says that it does."""
    given: Any = tokenizer()
    given.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert found(llava, given) == []
    given.init_kwargs["add_bos_token"] = True
    assert found(llava, given) == [("tokenizer_config.json", None, "1 (<s>)")]


def test_a_text_that_another_token_begins(llava: Path) -> None:
    """What begins a text must be bos_token."""
    given: Any = tokenizer()
    given.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    assert found(llava, given) == [("tokenizer_config.json", "2 (</s>)", "1 (<s>)")]
