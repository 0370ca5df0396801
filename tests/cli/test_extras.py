"""The light install: what works without an extra, and what a command says that lacks one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deltaweights.util.extras import EXTRAS, NAMES
from tests.support.limits import PATIENCE
from tests.support.merging import merge_and_load
from tests.support.pairs import base_tensors, delta_tensors, save

ROOT = Path(__file__).parents[2]

WITHOUT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None  # importing it fails
from deltaweights.cli import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a pair and its merge."""
    folder = tmp_path_factory.mktemp("extras")
    base = base_tensors()
    save(base, folder / "base")
    save(delta_tensors(base), folder / "delta")
    merge_and_load(folder)
    return folder


def run(folder: Path, hidden: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.format(hidden=hidden)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)


PAIR = ("--base", "base", "--delta", "delta", "--target", "out")

CASES = {
    "check": (("check", "merged"), "transformers", "transformers"),
    "check-images": (("check", "merged"), "PIL", "transformers"),
    "try": (("try", "merged"), "torch", "transformers"),
    "try-memory": (("try", "merged"), "psutil", "transformers"),
    "apply-check": (("apply", *PAIR, "--check"), "transformers", "transformers"),
    "finish-check": (("finish", "--target", "out", "--check"), "accelerate", "transformers"),
    "apply-gpu": (("apply", *PAIR, "--device", "cuda"), "torch", "gpu"),
    "check-base-gpu": (("check-base", "--base", "base", "--delta", "delta", "--device", "auto"), "torch", "gpu"),
    "dry-run-gpu": (("apply", *PAIR, "--device", "auto", "--dry-run"), "torch", "gpu"),
    "sign": (("sign", "merged", "--private-key", "key.pem"), "cryptography", "sign"),
    "sign-sigstore": (("sign", "merged", "--sigstore"), "sigstore", "sign"),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("arguments", "module", "extra"), CASES.values(), ids=CASES)
def test_a_command_that_lacks_an_extra_says_which(
    folder: Path, arguments: tuple[str, ...], module: str, extra: str
) -> None:
    """One line, exit 2, before any work."""
    before = sorted(folder.iterdir())
    done = run(folder, (module,), *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"needs {NAMES.get(module, module)}, which is not installed" in done.stderr
    assert f"pip install 'deltaweights[{extra}]'" in done.stderr
    assert done.stdout == ""
    assert sorted(folder.iterdir()) == before


def test_launched_processes_need_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that torchrun started says what it lacks."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run(folder, ("accelerate",), "apply", *PAIR)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'deltaweights[launch]'" in done.stderr


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "arguments",
    [
        ("demo",),
        ("apply", *PAIR[:-1], "applied", "--quiet"),
        ("make", "--base", "base", "--target", "merged", "--delta", "made", "--quiet"),
        ("verify", "merged"),
        ("inspect", "merged"),
        ("diff", "merged", "merged"),
        ("convert", "--base", "merged", "--target", "converted", "--quiet"),
        ("check-base", "--base", "base", "--delta", "delta"),
        ("recipes",),
        ("manifest", "merged", "--output", "manifest.json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_core_needs_no_extra(folder: Path, arguments: tuple[str, ...]) -> None:
    """With every package of every extra out of reach, the commands of the core end as they do with them."""
    hidden = tuple(sorted({module for modules in EXTRAS.values() for module in modules} | {"tokenizers"}))
    done = run(folder, hidden, *arguments)
    expected = 6 if arguments[0] == "check-base" else 0  # the pair is too small to prove its base
    assert done.returncode == expected, done.stderr


def test_the_extras_are_those_of_the_project() -> None:
    """Each extra of pyproject.toml installs the modules that the program asks for."""
    text = (
        (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2].partition("[project.scripts]")[0]
    )
    stated = {
        extra: {re.split(r"[><;=\[]", each)[0] for each in re.findall(r'"([^"]+)"', packages)}
        for extra, packages in re.findall(r"(?m)^([a-z]+) = \[(.*)\]$", text)
    }
    assert {extra: {NAMES.get(module, module) for module in modules} for extra, modules in EXTRAS.items()} == {
        extra: packages for extra, packages in stated.items() if extra not in {"all", "dev"}
    }
