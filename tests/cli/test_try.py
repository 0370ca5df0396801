"""``deltaweights try``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltaweights.inference.answer import Answer
from tests.conftest import Run
from tests.support.tiny_llava import SAYS, make_images, make_llama, make_llava


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA that says ``SAYS``."""
    return make_llava(tmp_path_factory.mktemp("says") / "llava", answer=SAYS)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a plain LLaMA that says ``SAYS``."""
    return make_llama(tmp_path_factory.mktemp("plain") / "llama", SAYS)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make two images."""
    return make_images(tmp_path_factory.mktemp("images"))


NOTICE = "deltaweights: warning: for research use only; not for clinical care or for any clinical decision"


def test_the_command_prints_the_answer(run: Run, llava: Path, pictures: tuple[Path, Path]) -> None:
    """The answer alone is on stdout; the notice, what was loaded and how fast it went are on stderr, and nothing else."""
    done = run("try", llava, "--image", pictures[0], "--image", pictures[1], "--prompt", "What?", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "AB\n")
    loading, notice, speed = done.stderr.splitlines()
    assert (loading, notice) == ("loading 300 kB of weights as float32", NOTICE)
    assert speed.startswith("LlavaForConditionalGeneration on cpu: 5 tokens in ")
    assert speed.endswith(" tokens per second")


def test_the_command_gives_json(run: Run, llama: Path) -> None:
    """The JSON object is the answer with its figures, and the notice; quiet leaves only the notice on stderr."""
    done = run("try", llama, "--json", "-q", "--max-new-tokens", "4")
    assert (done.returncode, done.stderr) == (0, f"{NOTICE}\n")
    told = json.loads(done.stdout)
    assert told.pop("notice") == NOTICE.removeprefix("deltaweights: warning: ")
    given = Answer(**told)
    assert (given.text, given.tokens, given.placement) == ("AB##", 4, "cpu")


def test_the_command_refuses_in_one_line(run: Run, llama: Path, tmp_path: Path) -> None:
    """An error is one line and an exit code."""
    done = run("try", llama, "--image", tmp_path / "none.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"deltaweights: error: {llama}: ")
    assert done.stderr.count("\n") == 1
