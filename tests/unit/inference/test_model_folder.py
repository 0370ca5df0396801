"""Folders and documents that cannot be read are errors, not findings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.inference.model_folder import read_model_folder
from tests.support.errors import refused
from tests.support.model_changes import Change, remove

FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


INDEX = "model.safetensors.index.json"


def write(name: str, text: str) -> Change:
    """Return a change that replaces a document."""
    return lambda folder: (folder / name).write_text(text)


BROKEN: dict[str, tuple[Change, type[DeltaweightsError], str]] = {
    "row54-shard-missing": (remove(LAST), MalformedInput, LAST),
    "config-gone": (remove("config.json"), InputOutputError, "config.json"),
    "config-no-json": (write("config.json", "{"), MalformedInput, "config.json"),
    "config-no-object": (write("config.json", "[]"), MalformedInput, "config.json"),
    "row18-config-an-lfs-pointer": (
        write("config.json", "version https://git-lfs.github.com/spec/v1\n"),
        MalformedInput,
        "config.json",
    ),
    "generation-no-json": (write("generation_config.json", "{"), MalformedInput, "generation_config.json"),
    "folder-gone": (shutil.rmtree, InputOutputError, ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused(name: str, llava: Path) -> None:
    """A folder or document that does not exist or breaks its format is an error that names it, not a finding."""
    change, kind, file = BROKEN[name]
    change(llava)
    with refused(kind, where=llava / file):
        read_model_folder(llava)


def test_a_weights_file_is_no_folder(llava: Path) -> None:
    """Libraries load a folder; an index within it does not do."""
    with refused(InputOutputError, where=llava / INDEX):
        read_model_folder(llava / INDEX)
