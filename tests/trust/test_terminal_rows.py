"""Row 87: what names hold reaches a terminal escaped, and files and pipes as it is."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltaweights.errors import is_shown, printable
from deltaweights.manifest.listing import list_checkpoint
from tests.conftest import Run
from tests.support.fork_server import light_server
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, save

pytestmark = pytest.mark.trust

MEAN = "a\u202egnp.exe\u2066b\u2028c\u2029d\u200be\u00adf\u3164g\ufe0fh\u2800i\U000e0001j\u061ck"
"""Turns the direction, breaks the line, and hides what stands between the letters."""


def on_a_terminal(*arguments: str | Path, encoding: str = "utf-8") -> tuple[int, str]:
    """Run ``deltaweights ARGUMENTS`` on a terminal of its own; return the exit code and all that reached it."""
    controller, terminal = pty.openpty()
    command = ["-m", "deltaweights", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}  # our colours are the only controls
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(_all_of, controller)
        if encoding == "utf-8":
            code, _, _ = light_server().run_on([terminal] * 3, command, Path.cwd(), environment)
        else:
            environment["PYTHONIOENCODING"] = encoding
            code = subprocess.call(
                [sys.executable, *command], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
            )
        os.close(terminal)
        text = said.result().decode(encoding)
    os.close(controller)
    return code, text.replace("\r\n", "\n")


def _all_of(controller: int) -> bytes:
    """Return what reaches a terminal until nobody has it open any more."""
    said = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # what Linux says then
            return said
        if not piece:
            return said
        said += piece


def model(folder: Path, name: str = MEAN) -> Path:
    """Save a checkpoint with the name in a tensor, in a file, and in a folder's name."""
    tensors: Tensors = {
        f"{name}.{key}" if number == 0 else key: t for number, (key, t) in enumerate(base_tensors().items())
    }
    saved = save(tensors, folder / f"model {name}", "safetensors", 1)
    (saved / "blank\u3164.txt").write_text("x")  # more than that is no plain name of a file
    return saved


def is_harmless(text: str) -> bool:
    return all(line.isprintable() and printable(line) == line for line in text.split("\n"))


def test_row87_a_manifest_on_a_terminal_is_the_same_document_escaped(tmp_path: Path, run: Run) -> None:
    """A pipe has the document's own bytes; what a terminal has is printable, and parses to the same."""
    folder = model(tmp_path)
    document = list_checkpoint(folder).document
    assert MEAN.encode() in document
    command = [sys.executable, "-m", "deltaweights", "manifest", str(folder), "--quiet"]
    piped = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    assert piped.stdout == document
    code, shown = on_a_terminal("manifest", folder, "--quiet")
    assert code == 0
    assert is_harmless(shown)
    assert json.loads(shown) == json.loads(document)
    assert "\\u202e" in shown
    assert "\\udb40\\udc01" in shown, "beyond the first plane, as JSON writes it"


def test_row87_a_manifest_on_a_terminal_of_another_encoding(tmp_path: Path) -> None:
    """The bytes of UTF-8 would be others' controls: all but ASCII is escaped."""
    folder = model(tmp_path, "\u00e9\u4e2d" + MEAN)
    code, shown = on_a_terminal("manifest", folder, "--quiet", encoding="latin-1")
    assert code == 0
    assert shown.isascii()
    assert json.loads(shown) == json.loads(list_checkpoint(folder).document)


def test_row87_nothing_else_prints_them(tmp_path: Path, run: Run) -> None:
    """Tables, lists of what failed, remarks, errors and JSON, of every command that names what it met."""
    folder = model(tmp_path)
    kept = tmp_path / f"kept {MEAN}.json"
    plain = save(base_tensors(), tmp_path / "plain", "safetensors", 1)
    broken = tmp_path / f"broken {MEAN}.safetensors"
    broken.write_bytes(b"")
    commands: list[tuple[int, list[str | Path]]] = [
        (0, ["manifest", folder, "--output", kept]),
        (0, ["manifest", folder, "--output", kept, "--json"]),
        (0, ["inspect", folder]),
        (0, ["inspect", folder, "--json"]),
        (6, ["diff", folder, plain]),
        (6, ["diff", folder, plain, "--json"]),
        (0, ["verify", folder, "--manifest", kept]),
        (6, ["verify", plain, "--manifest", kept]),
        (6, ["verify", plain, "--manifest", kept, "--json"]),
        (4, ["apply", "--base", plain, "--delta", folder, "--target", tmp_path / MEAN]),
        (0, ["convert", "--base", folder, "--target", tmp_path / f"to {MEAN}"]),
        (3, ["inspect", broken]),
        (2, ["inspect", folder, f"--{MEAN}"]),
        (2, [MEAN]),
    ]
    for expected, arguments in commands:
        code, shown = on_a_terminal(*arguments)
        assert code == expected, shown
        # What the progress bar does to the line it stands on is its own business.
        assert is_harmless(shown.replace("\r", "").replace("\x1b[A", "")), arguments
    report = tmp_path / "report.xml"
    run("verify", plain, "--manifest", kept, "--junit", report)
    assert is_harmless(report.read_text())


def test_row87_all_of_unicode(tmp_path: Path) -> None:
    """No control, format, separator or unassigned character is printed, and no letter that nothing is seen of."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            assert not is_shown(character), hex(code)
    assert all(map(is_shown, "aé中\u05d0\u0915\u093f\U0001f642 "))
    assert printable(MEAN).isascii()
    assert printable("plain") == "plain"
