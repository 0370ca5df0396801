"""The files copied along with the weights, in whole merges."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltaweights.errors import MalformedInput
from tests.support.errors import refused
from tests.support.whole_runs import merge, names_in
from tests.unit.checkpoint.test_folder import POINTER

REPLACED = {
    "row18-config-pointer": ("config.json", POINTER, "a git-LFS pointer"),
    "row18-tokenizer-pointer": ("tokenizer.model", POINTER, "a git-LFS pointer"),
    "row18-readme-pointer": ("README.md", POINTER, "a git-LFS pointer"),
    "row18-licence-pointer": ("LICENSE", POINTER, "a git-LFS pointer"),
    "row18-config-page": ("config.json", "<!DOCTYPE html>", "an HTML page"),
    "row18-tokenizer-page": ("tokenizer.model", "\n<html>", "an HTML page"),
    "row18-json-page": ("tokenizer.json", "<html>", "an HTML page"),
    "row18-json-empty": ("added_tokens.json", "", "an empty file"),
}


@pytest.mark.parametrize(("name", "content", "found"), REPLACED.values(), ids=REPLACED)
def test_a_replaced_companion_is_refused(
    merged_pair: Path, tmp_path: Path, name: str, content: str, found: str
) -> None:
    """A git-LFS pointer in place of any companion, or a web page in place of a configuration or tokenizer, is refused."""
    delta = shutil.copytree(merged_pair / "delta", tmp_path / "delta")
    (delta / name).write_text(content)
    with refused(MalformedInput, where=delta / name, found=found):
        merge(merged_pair / "base", delta, tmp_path / "out")
    assert names_in(tmp_path) == ["delta"]


def test_unusual_text_is_copied(merged_pair: Path, tmp_path: Path) -> None:
    """A README that starts like a web page, a chat template with a brace and a vocabulary in JSON are copied unchanged."""
    delta = shutil.copytree(merged_pair / "delta", tmp_path / "delta")
    texts = {"README.md": "<html><h1>", "chat_template.jinja": "{% if x %}", "vocab.json": ' {"a": 1}', "LICENSE": ""}
    for name, text in texts.items():
        (delta / name).write_text(text)
    merge(merged_pair / "base", delta, tmp_path / "out")
    texts["DELTA_README.md"] = texts.pop("README.md")
    assert {name: (tmp_path / "out" / name).read_text() for name in texts} == texts
