"""Rows 85, 88 and 89 of the table: documents too large to be read back, very many tensors, and few descriptors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.jobs.apply import apply_delta
from deltaweights.util.limits import MOST_TENSORS
from tests.support.limits import PATIENCE
from tests.support.many import make_many, names_of
from tests.support.pairs import make_pair
from tests.trust.harness import assert_one_line, case, hold, run_command

LONG = 4000
"""Characters of a name, close to the limit."""


def merged(folder: Path, names: list[str]) -> Path:
    """Merge a pair with tensors of these names in a process of its own; return the verified result."""
    base, delta = make_many(folder, names)
    target = folder / "merged"
    merge: list[str | Path] = ["apply", "--base", base, "--delta", delta, "--target", target]
    check: list[str | Path] = ["verify", target]
    for arguments in (merge, check, merge):
        outcome = run_command(arguments)
        assert outcome.code == 0, outcome.err
    return target


@pytest.mark.slow
@pytest.mark.trust
def test_row85_names_that_are_too_long_for_a_manifest(tmp_path: Path, normal: float) -> None:
    """A merge whose manifest could not be read back is refused before anything is written, also in a dry run."""
    base, delta = make_many(tmp_path / "pair", names_of(8000, LONG))
    says = "manifest.json of the result could not be read back: found 8,000 tensors with names of 4,00"
    for number, more in enumerate(([], ["--dry-run"])):
        target = tmp_path / str(number) / "merged"
        outcome = run_command(["apply", "--base", base, "--delta", delta, "--target", target, *more])
        assert outcome.code == 3, outcome.err
        assert_one_line(outcome, [says])
        assert not target.parent.exists()
        assert outcome.peak < normal + 500


@pytest.mark.slow
@pytest.mark.trust
def test_row85_names_that_are_long_in_a_manifest_that_is_read(tmp_path: Path) -> None:
    """A manifest of some 80 MB verifies, and the same command finds its result complete."""
    target = merged(tmp_path, names_of(6500, LONG))
    assert (target / "manifest.json").stat().st_size > 64 * 2**20


@pytest.mark.trust
def test_row85_names_of_signs(tmp_path: Path) -> None:
    """Names of commas, braces and brackets, which the limits count, do not make a manifest unreadable."""
    merged(tmp_path, [f"{number}.{',' * 1000}{'{' * 50}{'[' * 400}" for number in range(600)])


@pytest.mark.slow
@pytest.mark.trust
def test_row85_names_in_another_script(tmp_path: Path) -> None:
    """Neither do names that are not ASCII, which take more memory than bytes."""
    target = merged(tmp_path, [f"слой.{number}.{'ж' * 1000}" for number in range(4000)])
    assert (target / "manifest.json").stat().st_size > 20 * 2**20


TOO_MANY: dict[str, Callable[[str], str]] = {
    "tensors": lambda rows: f'"result":{{"tensors":{{{rows}}}}},"inputs":{{}}',
    "of-an-input": lambda rows: f'"result":{{}},"inputs":{{"base":{{"tensors":{{{rows}}}}}}}',
    "of-nobody": lambda rows: f'"tensors":{{{rows}}}',
}


@pytest.mark.sampled(1)
@pytest.mark.trust
@pytest.mark.parametrize("make", TOO_MANY.values(), ids=TOO_MANY)
def test_row74_a_manifest_of_too_many_tensors(tmp_path: Path, normal: float, make: Callable[[str], str]) -> None:
    """A manifest of 390,000 tensors in 22 MiB is refused as soon as it exceeds the limit on tensors."""

    def spoiled(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        apply_delta(base, delta, folder / "out")
        row = '"{:06d}":{{"dtype":"F16","shape":[],"digest":"","file":"a"}}'
        rows = make(",".join(map(row.format, range(390_000))))
        (folder / "out" / "manifest.json").write_text(f'{{"format":"deltaweights-manifest","version":1,{rows}}}')
        return ["verify", folder / "out"]

    hold(case(spoiled, 6, "manifest.json: is not a manifest: found more than 100,000 members"), tmp_path, normal)


@pytest.mark.slow
@pytest.mark.trust
def test_row88_as_many_tensors_as_there_may_be(tmp_path: Path) -> None:
    """100,000 tensors are merged in about 290 MB and 20 s, and verified in a third of that.

    Four times as many take four times as long: a machine may be half as fast at times.
    """
    seconds: dict[int, tuple[float, float]] = {}
    for count in (MOST_TENSORS // 4, MOST_TENSORS):
        folder = tmp_path / str(count)
        base, delta = make_many(folder, names_of(count))
        merge = run_command(["apply", "--base", base, "--delta", delta, "--target", folder / "merged"])
        check = run_command(["verify", folder / "merged"])
        for outcome, most in ((merge, 350), (check, 200)):
            assert outcome.code == 0, outcome.err
            assert outcome.peak < most
        seconds[count] = merge.seconds, check.seconds
    for few, many in zip(*seconds.values(), strict=True):
        assert many < 6 * few


FEW = 40
"""Descriptors: enough for the interpreter, the stream, staging, and a few files."""


def limited(most: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``deltaweights`` in a process with a limit of ``most`` open files."""
    return subprocess.run(
        [sys.executable, "-m", "deltaweights", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
    )


@pytest.mark.slow
@pytest.mark.trust
def test_row89_more_files_than_may_be_open(tmp_path: Path) -> None:
    """Checkpoints with more files than a process may open are merged, inspected and compared, with the same bytes."""
    base, delta = make_many(tmp_path, names_of(600), files=300)
    for most in (FEW, 20_000):
        target = tmp_path / f"merged-{most}"
        done = limited(most, "apply", "--base", base, "--delta", delta, "--target", target, "--max-shard-size", "32B")
        assert done.returncode == 0, done.stderr
        assert len(list(target.glob("*.safetensors"))) == 600
        digest = json.loads((target / "manifest.json").read_bytes())["result"]["content_digest"]
        done = limited(most, "verify", target, "--expect", digest)
        assert done.returncode == 0, done.stdout
    assert limited(FEW, "diff", tmp_path / "merged-40", tmp_path / "merged-20000").returncode == 0
    for name in ("manifest.json", "SHA256SUMS"):
        assert (tmp_path / "merged-40" / name).read_bytes() == (tmp_path / "merged-20000" / name).read_bytes()


@pytest.mark.trust
def test_row89_hardly_any_descriptors(tmp_path: Path) -> None:
    """Where the minimum cannot be opened, the line states the limit and the remedy."""
    base, _ = make_many(tmp_path, names_of(600), files=300)
    done = limited(9, "inspect", base)
    assert done.returncode == 5, done.stderr
    assert "Too many open files; only 9 may be open at once: allow more, with ulimit -n 1024" in done.stderr
    assert limited(1024, "inspect", base).returncode == 0


@pytest.mark.trust
def test_row89_a_file_that_was_replaced_while_it_was_not_held(tmp_path: Path) -> None:
    """A file that is opened again must be the same file, or the run ends."""
    base, _ = make_many(tmp_path, names_of(200), files=100)
    program = """
import os, sys
from pathlib import Path
from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.errors import InputOutputError
base = Path(sys.argv[1])
with open_checkpoint(base, "base") as checkpoint:
    tensor = list(checkpoint.tensors.values())[-1]
    tensor.source.read_into(memoryview(bytearray(32)), 0)
    os.replace(base / "model-00001-of-00100.safetensors", tensor.path)
    try:
        tensor.source.read_into(memoryview(bytearray(32)), 0)
    except InputOutputError as error:
        sys.exit(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, base],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW)),
    )
    assert "model-00100-of-00100.safetensors: cannot read at byte" in done.stderr
    assert "a different file now has its name" in done.stderr
