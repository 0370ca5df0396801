"""A check that takes too much CPU time is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.fork_server import heavy_server
from tests.support.fork_server import run as forked
from tests.support.tiny_llava import (
    edit,
    edit_tensors,
)

LIMITED = """
import sys
from deltaweights.inference import time_limit
time_limit.CPU_SECONDS, time_limit.GRACE_SECONDS = 1, {grace}
{more}
from deltaweights.cli import main
main()
"""


def limited(folder: Path, more: str = "", grace: int = 30) -> subprocess.CompletedProcess[str]:
    """Run ``deltaweights check``, limited to one second."""
    script = LIMITED.format(grace=grace, more=more)
    return forked([sys.executable, "-c", script, "check", folder], server=heavy_server())


@pytest.mark.slow
def test_a_check_that_the_library_takes_too_long_for_is_ended(llava: Path) -> None:
    """A model of as many layers as there may be is made one by one; the check ends with 6, in one line."""
    layers = 2048
    edit_tensors(llava, lambda given: given.update({f"t{number}": torch.zeros(0) for number in range(layers)}))
    edit(llava / "config.json", lambda config: config["text_config"].update(num_hidden_layers=layers))
    done = limited(llava)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"deltaweights: error: {llava}: ")
    assert "1 seconds" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_code_that_hears_of_no_signal_is_ended_by_the_system(llava: Path) -> None:
    """The library's compiled parts may: then it is the system's limit that counts."""
    deaf = (
        "from deltaweights.inference import structure; structure.read_model_folder = lambda folder: sum(range(10**12))"
    )
    assert limited(llava, deaf, grace=1).returncode == -signal.SIGXCPU
