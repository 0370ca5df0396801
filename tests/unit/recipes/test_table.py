"""TOML documents from strangers are parsed or refused, quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.errors import MalformedInput
from deltaweights.recipes.catalogue import load_file
from deltaweights.recipes.table import parse_toml
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.recipes import OWN, written


def test_a_long_key_does_not_make_a_long_message(tmp_path: Path) -> None:
    """Of a key of 500,000 letters, the message shows the beginning."""
    with refused(MalformedInput) as info:
        load_file(written(tmp_path, OWN + "a" * 500_000 + " = 1"))
    assert len(str(info.value)) < 400


HOSTILE = {
    "dots": "\n".join(f"[a{i}{'.a' * 64}]" for i in range(7500)),
    "tables": "a = [" + "{a = 1}," * 120_000 + "]",
    "arrays": "[[a]]\n" * 150_000,
    "digits": "a = 0x" + "f" * 1_000_000,
    "keys": "\n".join(f"a{i} = 1" for i in range(80_000)),
}


@pytest.mark.sampled(2)
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="ru_maxrss would count the process that started it, too"
)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_little_memory(tmp_path: Path, text: str) -> None:
    """A megabyte that is made to be slow or large to parse is refused in 200 MB, before the subprocess times out."""
    program = f"""
from deltaweights.errors import MalformedInput
from deltaweights.recipes.catalogue import load_file
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
before = peak()
try:
    load_file({str(written(tmp_path, OWN + text))!r})
except MalformedInput:
    print((peak() - before) / 1000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert float(done.stdout) < 200, "megabytes"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None)
def test_any_bytes_are_a_document_or_malformed(data: bytes) -> None:
    """Bytes are read as TOML or refused as malformed, whatever they are."""
    try:
        assert isinstance(parse_toml(data, "own.toml"), dict)
    except MalformedInput as error:
        assert str(error).isprintable()  # noqa: PT017
