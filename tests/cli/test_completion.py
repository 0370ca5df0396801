"""Completion, as shells ask for it, and in a real shell."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltaweights.cli.group import COMMANDS
from deltaweights.recipes.catalogue import names
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.shell import OUR_PATH

Done = subprocess.CompletedProcess[str]

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Make folders as the Hub's cache has them, and others; none can be read, only listed."""
    cache = tmp_path / "cache"
    for name in (
        "models--acme--base",
        "models--acme--delta-7b",
        "models--gpt2",
        "datasets--acme--text",
        "models--a,b",
        ".locks",
    ):
        (cache / name).mkdir(parents=True, mode=0o000)
    return cache


def ask(folder: Path, words: str, position: int, shell: str = "bash", **variables: str) -> Done:
    """Ask a new process, as the scripts do, for what completes the word at this position."""
    how = {"_DELTAWEIGHTS_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    command = [sys.executable, "-m", "deltaweights"]
    env = os.environ | how | variables
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


CASES: dict[str, tuple[str, list[str]]] = {
    "commands": ("ver", ["plain,verify"]),
    "options": ("apply --max", ["plain,--max-shard-size", "plain,--max-workers"]),
    "choices": ("apply --layout t", ["plain,transformers"]),
    "choice-after-equals": ("apply --layout=t", ["plain,transformers"]),
    "recipes": ("apply vicuna-7b", ["plain,vicuna-7b-v0", "plain,vicuna-7b-v1.1"]),
    "recipe-option": ("apply --recipe alp", ["plain,alpaca-7b"]),
    "recipe-or-file": ("apply --recipe own", ["file,own"]),
    "recipes-show": ("recipes show alp", ["plain,alpaca-7b"]),
    "ids": ("apply --delta acme/", ["plain,acme/base", "plain,acme/delta-7b"]),
    "ids-or-files": ("apply --delta own", ["file,own"]),
    "ids-of-download": ("download acme/d", ["plain,acme/delta-7b"]),
    "recipes-of-download": ("download alp", ["plain,alpaca-7b"]),
    "ids-of-verify": ("verify acme/b", ["plain,acme/base"]),
    "legacy-ids": ("inspect gp", ["plain,gpt2"]),
    "folders": ("apply --target ou", ["dir,ou"]),
    "files": ("sign --private-key ke", ["file,ke"]),
    "shells": ("completion z", ["plain,zsh"]),
    "nothing": ("apply --layout nonsense", []),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), CASES.values(), ids=CASES)
def test_what_completes_a_word(tmp_path: Path, cache: Path, line: str, expected: list[str]) -> None:
    """Commands, options, choices, recipes and ids in the Hub's cache are completed; of the cache, only names are read."""
    (tmp_path / "own.toml").touch()
    words = f"deltaweights {line}"
    done = ask(tmp_path, words, len(words.split(" ")) - 1, HF_HUB_CACHE=str(cache))
    assert (sorted(done.stdout.splitlines()), done.stderr) == (expected, "")


def test_another_cache(tmp_path: Path, cache: Path) -> None:
    """``--cache-dir`` says whose ids are completed."""
    words = f"deltaweights apply --cache-dir {cache} --delta acme/d"
    assert ask(tmp_path, words, 5, HF_HUB_CACHE=str(tmp_path / "none")).stdout == "plain,acme/delta-7b\n"


BROKEN = {
    "no-words": {"COMP_WORDS": None},
    "no-number": {"COMP_CWORD": "x"},
    "cache-is-a-file": {"HF_HUB_CACHE": "/dev/null"},
    "no-cache": {"HF_HUB_CACHE": "/nowhere/at/all"},
    "bad-endpoint": {"HF_ENDPOINT": "::::"},
    "broken-library": {"PYTHONPATH": "broken"},
    "broken-click": {"PYTHONPATH": "broken-click"},
    "unknown-shell": {"_DELTAWEIGHTS_COMPLETE": "tcsh_complete"},
    "unclosed-quote": {"COMP_WORDS": "deltaweights apply --delta 'acme"},
}


@pytest.mark.parametrize("variables", BROKEN.values(), ids=BROKEN)
def test_a_broken_environment_says_nothing(tmp_path: Path, variables: dict[str, str | None]) -> None:
    """Whatever is wrong, no message and no traceback is put into the user's command line."""
    for folder, module in (("broken", "huggingface_hub"), ("broken-click", "click")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text("raise RuntimeError('broken')\n")
    env = {**os.environ, "_DELTAWEIGHTS_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    env["COMP_WORDS"] = "deltaweights apply --delta acme/"
    for name, value in variables.items():
        if value is None:
            del env[name]
        else:
            env[name] = str(tmp_path / value) if name == "PYTHONPATH" else value
    command = [sys.executable, "-m", "deltaweights"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    assert re.fullmatch(r"(file,acme/?\n)?", done.stdout)  # the names of files need no library


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script(run: Run, tmp_path: Path, shell: str) -> None:
    """The script is printed, calls the program without its messages, and the shell, where it is installed, reads it."""
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = (line for line in done.stdout.splitlines() if f"_DELTAWEIGHTS_COMPLETE={shell}_complete" in line)
    assert "2>/dev/null)" in call
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    (tmp_path / "script").write_text(done.stdout)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_another_shell_gets_its_own_form(tmp_path: Path, shell: str) -> None:
    """Zsh and fish are answered, too."""
    typed = {"COMP_CWORD": "ver"} if shell == "fish" else {}  # fish tells the word, not its position
    done = ask(tmp_path, "deltaweights ver", 1, shell, **typed)
    assert "verify" in done.stdout
    assert COMMANDS["verify"] in done.stdout


class Bash:
    """A bash that a person types into."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._terminal, theirs = pty.openpty()
        env = os.environ | {"PATH": OUR_PATH, "PS1": "> ", "TERM": "dumb", "HISTFILE": ""} | variables
        command = ["bash", "--norc", "--noprofile", "-i"]
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def type(self, keys: str, until: str) -> str:
        """Type keys, and return what is shown up to the text ``until``, or all of it when that does not come."""
        os.write(self._terminal, keys.encode())
        shown, deadline = "", time.monotonic() + 30
        while until not in shown and time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.2)[0]:
                shown += os.read(self._terminal, 4096).decode(errors="replace")
        return shown

    def close(self) -> None:
        """End the shell."""
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._terminal)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed here")
def test_in_a_real_bash(tmp_path: Path, cache: Path) -> None:
    """Tab completes a command, a recipe and an id; once the program is gone, it says nothing."""
    version = subprocess.run(["bash", "-c", 'echo "${BASH_VERSINFO[0]}"'], capture_output=True, text=True, check=True)
    if int(version.stdout) < 5:
        pytest.skip("click's script is for bash 4.4 and later")
    bash = Bash(tmp_path, HF_HUB_CACHE=str(cache))
    try:
        bash.type('eval "$(deltaweights completion bash)"; echo re""ady\n', "ready\r\n> ")
        for typed, completed in (
            ("veri", "verify "),
            ("apply alp", "alpaca-7b "),
            ("apply --delta acme/d", "delta-7b "),
        ):
            shown = bash.type(f"deltaweights {typed}\t", completed)
            assert completed in shown
            bash.type("\x15", "")
        bash.type('PATH=/usr/bin:/bin; echo go""ne\n', "gone\r\n> ")
        shown = bash.type("deltaweights veri\t#", "#")
        assert shown.replace("\x07", "").endswith("deltaweights veri#")
    finally:
        bash.close()


def test_every_recipe_is_a_candidate(tmp_path: Path) -> None:
    """With nothing typed, all recipes are offered."""
    done = ask(tmp_path, "deltaweights apply ", 2)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == list(names())
