"""What a refusal costs: the processor time and the peak memory of the real process, for every row that follows a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.diagnosis import test_remedies, test_remedies_of_tools
from tests.diagnosis.test_remedies import Scene
from tests.support.limits import PATIENCE

pytestmark = [pytest.mark.diagnosis, pytest.mark.slow]

ROWS = {**test_remedies.CASES, **test_remedies_of_tools.CASES}

CALLS_A_LIBRARY = {
    "no such GPU": "torch says which devices there are",
    "a delta of ours to check": "transformers builds the model that is checked",
}
"""Rows whose command is there to load a library, and why."""

SECONDS, MEBIBYTES = 3.0, 100
"""Generous: on an idle machine all other rows take less than 0.4 s, and 50 MiB."""

LAUNCHER = """
import json, os, sys
null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.executable, [sys.executable, "-m", "deltaweights", *sys.argv[1:]], os.environ, file_actions=null)
_, status, used = os.wait4(process, 0)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
"""Starts the command from a small process: the peak of a large parent would be its own."""


@pytest.mark.parametrize("name", ROWS)
def test_a_refusal_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It takes little time and memory: nothing is loaded that only a merge or a check needs."""
    for variable in test_remedies_of_tools.variables():
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    line = ROWS[name].situation(Scene(tmp_path))
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *line], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    seconds, peak, status = json.loads(done.stdout)
    mebibytes = peak / (1024 if sys.platform == "linux" else 1024**2)
    with capsys.disabled():
        print(f"\n{name}: {seconds:.2f} s of processor time, {mebibytes:.0f} MiB", end="")  # noqa: T201
    assert status in range(2, 8), done.stderr
    if name not in CALLS_A_LIBRARY:
        assert mebibytes < MEBIBYTES
        assert seconds < SECONDS
