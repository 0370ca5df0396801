"""The names that the package offers: each says what it does, and each example runs."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deltaweights
from tests.support.limits import PATIENCE
from tests.support.tiny_llava import edit_tensors, make_llama

FUNCTIONS = [name for name in deltaweights.__all__ if inspect.isfunction(getattr(deltaweights, name))]

IN_ORDER = [
    "make_delta", "apply_delta", "iter_merged", "load_merged", "check_base", "verify", "ProgressBar", "pin_model", "sign_folder",
    "read_signature", "convert_checkpoint", "export_checkpoint", "inspect_checkpoint", "diff_checkpoints", "list_checkpoint",
    "apply_part",
    "finish_parts", "check_structure", "answer", "verify_lock", "sign_keyless", "read_keyless_signature",
]  # fmt: skip
"""Examples use what those before them have made."""


def test_every_name_says_what_it_is() -> None:
    """Functions and classes have a docstring of their own; functions name what they raise, and show an example."""
    for name in deltaweights.__all__:
        found = getattr(deltaweights, name)
        if not isinstance(found, str):
            assert found.__doc__, name
    for name in FUNCTIONS:
        assert "aises" in str(getattr(deltaweights, name).__doc__), name
    assert set(FUNCTIONS) <= set(IN_ORDER)


def test_help_leads_to_every_function() -> None:
    """``help(deltaweights)`` begins with what there is."""
    for name in FUNCTIONS:
        assert f"``{name}``" in str(deltaweights.__doc__), name


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of all docstrings, one after the other, in a folder with a base and a fine-tuned model."""
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "base")
    edit_tensors(
        make_llama(tmp_path / "tuned"), lambda tensors: tensors.update({name: t * 1.001 for name, t in tensors.items()})
    )
    for command in (
        "openssl ecparam -name prime256v1 -genkey -noout -out private.pem",
        "openssl ec -in private.pem -pubout -out public.pem",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, timeout=PATIENCE)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    for name in IN_ORDER:
        if name == "verify_lock":
            pinned = [sys.executable, "-m", "deltaweights", "pin", "merged", "--output", "deltaweights.lock"]
            subprocess.run(pinned, check=True, capture_output=True, timeout=PATIENCE)
        text = inspect.getdoc(getattr(deltaweights, name)) or ""
        test = parser.get_doctest(text, {}, name, None, 0)
        assert test.examples, name
        said: list[str] = []
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)


def test_importing_it_is_cheap() -> None:
    """Neither torch nor a job nor numpy is imported with the package."""
    program = "import deltaweights, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert not {"torch", "numpy", "click", "huggingface_hub", "tqdm"} & set(done.stdout.split())


def test_a_bar_for_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``ProgressBar`` shows bytes and warnings; without it nothing is printed."""
    base = make_llama(tmp_path / "base")
    bar = deltaweights.ProgressBar(notes=True)
    deltaweights.convert_checkpoint(base, tmp_path / "one", report=bar)
    assert "converting" in capsys.readouterr().err
    deltaweights.convert_checkpoint(base, tmp_path / "two")
    assert capsys.readouterr() == ("", "")
