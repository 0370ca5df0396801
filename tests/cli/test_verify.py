"""``deltaweights verify``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.conftest import Run
from tests.support.results import MANIFEST, SUMS, cases_of, digest_of, merged, original

__all__ = ["merged", "original"]  # fixtures


PARTS = ["weights", "loader files", "other files"]


def test_the_command_reports_as_json(merged: Path, run: Run) -> None:
    """``verify --json`` prints one object, and exits with 0, or with 6 if it lists problems."""
    done = run("verify", merged, "--json", "--expect", digest_of(merged))
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (document["ok"], document["recomputed"], document["problems"]) == (True, True, [])
    assert document["content_digest"] == digest_of(merged)
    (merged / "config.json").write_text("{}")
    (merged / "ex\ntra.py").write_text("?")
    done = run("verify", merged, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 6
    assert document["ok"] is False
    assert {problem["file"] for problem in document["problems"]} == {"config.json", "ex\ntra.py"}
    assert done.stderr.count("\n") == 1


def test_the_command_prints_what_failed(merged: Path, tmp_path: Path, run: Run) -> None:
    """``verify`` prints a line per problem, names escaped, and exits with 6; with 5 without a folder, with 2 for a bad pin."""
    (merged / "ex\x1b[31mtra.py").write_text("?")
    (merged / "config.json").unlink()
    done = run("verify", merged)
    assert done.returncode == 6
    assert [line[:16].strip() for line in done.stdout.splitlines()] == ["FAILED"] * 2 + PARTS
    assert "ex\\x1b[31mtra.py: is not in the manifest" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert run("verify", tmp_path / "missing").returncode == 5
    assert run("verify", merged, "--expect", "dw1:12").returncode == 2


def test_the_command_writes_junit_whatever_it_finds(merged: Path, tmp_path: Path, run: Run) -> None:
    """``--junit`` is written for every outcome: success (0), problems (6), and a missing folder (5)."""
    to = tmp_path / "report.xml"
    options = ("--junit", to, "--json")
    assert run("verify", merged, *options).returncode == 0
    assert set(cases_of(to.read_bytes()).values()) == {None}
    (merged / "config.json").unlink()
    assert run("verify", merged, *options).returncode == 6
    assert cases_of(to.read_bytes())["config.json"] == "config.json: is missing"
    assert run("verify", tmp_path / "missing", *options).returncode == 5
    assert list(cases_of(to.read_bytes())) == ["verify"]
    assert b"<error" in to.read_bytes()


def test_junit_stays_out_of_the_folder(merged: Path, run: Run) -> None:
    """A report inside the folder would be an extra file next time, so it is a usage error, as is a device."""
    done = run("verify", merged, "--junit", merged / "report.xml")
    assert (done.returncode, (merged / "report.xml").exists()) == (2, False)
    (line,) = done.stderr.splitlines()
    assert "--junit" in line
    assert str(merged / "report.xml") in line
    assert run("verify", merged, "--junit", "/dev/null").returncode == 2
    assert run("verify", merged, "--junit", merged.parent / "no" / "folder.xml").returncode == 5


def test_the_command_takes_a_kept_manifest(merged: Path, tmp_path: Path, run: Run) -> None:
    """``--manifest`` works with pins and ``--json``; notes go to stderr, except with ``-q``."""
    kept = tmp_path / "kept.json"
    shutil.copy(merged / MANIFEST, kept)
    (merged / SUMS).unlink()
    done = run("verify", merged, "--manifest", kept, "--expect", digest_of(merged), "--json")
    document = json.loads(done.stdout)
    note = f"{merged / MANIFEST} was not looked at: another manifest counts"
    assert (done.returncode, document["notes"], done.stderr) == (0, [note], f"{note}\n")
    done = run("verify", merged, "--manifest", kept, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("verify", merged, "--manifest", tmp_path / "none").returncode == 5
    assert run("verify", merged, "--manifest", merged / "config.json").returncode == 3
