"""What the command says to whoever received a result: sentences of their own, and the same in JSON and JUnit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltaweights.manifest.verify import verify
from deltaweights.signing.folder import read_signature, sign_folder
from tests.conftest import Run
from tests.receiver.forms import DAMAGES, FORMS, SHARD, as_snapshot
from tests.support.results import MANIFEST, SUMS, cases_of, digest_of, merged, original
from tests.support.signing import make_key

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver


def error_of(done_stdout: str) -> dict[str, str | None]:
    error: dict[str, str | None] = json.loads(done_stdout)["error"]
    return error


@pytest.mark.parametrize(
    ("damage", "arguments", "problem", "remedy"),
    [
        ("pointer", (), "problem", "run git lfs pull in the clone, and verify again"),
        ("edited README", (), "problem, but the weights are intact", "--weights-only"),
        ("flipped bit", (), "problem", "do not use these weights"),
        ("no manifest", (), "no manifest here", "deltaweights manifest FOLDER --output FILE"),
        ("nothing", ("--expect-manifest", 64 * "0"), "intact, but not what you pinned", "fetch what you pinned"),
        ("nothing", ("--expect", "dw1:" + 64 * "0"), "intact, but not what you pinned", "fetch what you pinned"),
    ],
)
def test_each_outcome_has_its_sentence(
    damage: str, arguments: tuple[str, ...], problem: str, remedy: str, merged: Path, run: Run
) -> None:
    """The last line says which case it is, and what helps; the exit code is 6."""
    DAMAGES[damage][0](merged)
    done = run("verify", merged, *arguments, "--json")
    error = error_of(done.stdout)
    assert (done.returncode, error["code"]) == (6, "E-NOT-AS-RECORDED")
    assert problem in str(error["problem"])
    assert remedy.replace("FOLDER", str(merged)) in str(error["remedy"])


def test_the_remedy_for_a_missing_manifest_works(merged: Path, tmp_path: Path, run: Run) -> None:
    """The manifest that is made as the message says verifies the folder."""
    DAMAGES["no manifest"][0](merged)
    kept = tmp_path / "kept.json"
    assert run("manifest", merged, "--output", kept).returncode == 0
    assert run("verify", merged, "--manifest", kept).returncode == 0


@pytest.mark.sampled(5)
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_only(damage: str, merged: Path, run: Run) -> None:
    """``--weights-only`` ends with 0 where the weights hold, in JSON and JUnit, too."""
    change, expected = DAMAGES[damage]
    change(merged)
    report = merged.parent / "report.xml"
    done = run("verify", merged, "--weights-only", "--json", "--junit", report)
    document = json.loads(done.stdout)
    holds = expected.startswith("+")
    assert (done.returncode, document["ok"], document["weights"]["ok"]) == (0 if holds else 6, holds, holds)
    assert [document[part]["ok"] for part in ("weights", "loader_files", "extras")] == [
        sign == "+" for sign in expected
    ]
    assert any(cases_of(report.read_bytes()).values()) is not holds
    assert run("verify", merged, "--weights-only", "-q").stdout.startswith("FAILED") is not holds


def test_each_verdict_has_a_line(merged: Path, original: Path, run: Run) -> None:
    """Three lines, whether it passes or fails, in every form; litter and unknown files are named."""
    (merged / ".DS_Store").touch()
    (merged / "no\x1btes.md").touch()
    for form in FORMS.values():
        if form is FORMS["zip"] or form is FORMS["tgz"] or form is FORMS["tar"]:
            continue
        shutil.rmtree(merged.parent / "hub", ignore_errors=True)
        done = run("verify", form(merged, original))
        lines = {line[:16].strip(): line[16:] for line in done.stdout.splitlines()}
        assert done.returncode == 0
        assert {lines[part][:6] for part in ("weights", "loader files", "other files")} == {"intact"}
        assert lines["other files"].endswith("read by no loader: .DS_Store, no\\x1btes.md")


def test_sums_are_said(merged: Path, run: Run) -> None:
    """It is said that there is no manifest, what was compared instead, and how many files."""
    sums = (merged / SUMS).read_text().splitlines(keepends=True)
    (merged / MANIFEST).unlink()
    (merged / SUMS).write_text("".join(line for line in sums if MANIFEST not in line))
    assert "none: compared with SHA256SUMS, 7 files" in run("verify", merged).stdout


def test_a_signature_with_a_kept_manifest(merged: Path, tmp_path: Path, run: Run) -> None:
    """``--manifest`` and ``--public-key`` go together; the given manifest stands for the one that was signed."""
    private, public = make_key(tmp_path)
    sign_folder(merged, private)
    kept = shutil.copy(merged / MANIFEST, tmp_path / "kept.json")
    command = ("verify", merged, "--manifest", kept, "--public-key", public)
    assert run(*command).returncode == 0
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    assert run(*command).returncode == 0
    other = json.loads(Path(kept).read_text())
    other["result"]["extra"] = 1
    Path(kept).write_text(json.dumps(other))
    done = run(*command)
    assert done.returncode == 6
    assert "manifest.json: is not what was signed" in done.stdout


@pytest.mark.parametrize("form", FORMS)
def test_the_signature_of_every_form(form: str, merged: Path, original: Path, tmp_path: Path) -> None:
    """A signature made of the folder vouches for each of its forms, and for none that was changed."""
    private, public = make_key(tmp_path)
    sign_folder(merged, private)
    signed = read_signature(merged, public)
    assert verify(FORMS[form](merged, original), signed=signed).problems == ()
    (merged / "notes.md").write_text("?")
    shutil.rmtree(merged.parent / "hub", ignore_errors=True)
    problems = verify(FORMS[form](merged, original), signed=signed).problems
    assert [(each.file, each.problem) for each in problems] == [("notes.md", "is not signed")]


def test_a_snapshot_is_verified_with_the_signature_in_it(
    merged: Path, original: Path, tmp_path: Path, run: Run
) -> None:
    """The signature in a snapshot is found, links and all; a single file is covered, too."""
    private, public = make_key(tmp_path)
    sign_folder(merged, private)
    (merged / ".gitattributes").write_text("*.safetensors filter=lfs")
    snapshot = as_snapshot(merged, original)
    assert run("verify", snapshot, "--public-key", public).returncode == 0
    assert run("verify", snapshot / SHARD, "--public-key", public).returncode == 2
    signature = ("--signature", snapshot / "model.sig")
    assert run("verify", snapshot / SHARD, "--public-key", public, *signature).returncode == 0


def test_unknown_files_are_not_signed(merged: Path, tmp_path: Path, run: Run) -> None:
    """What ``verify`` passes over, a signature would not cover: such a folder is not signed."""
    private, _ = make_key(tmp_path)
    (merged / "notes.md").write_text("?")
    assert run("verify", merged).returncode == 0
    done = run("sign", merged, "--private-key", private, "--rehash")
    assert done.returncode == 6
    assert "notes.md" in done.stderr


def test_archives_recompute_the_content_digest(merged: Path, original: Path, run: Run) -> None:
    """``--expect`` works on an archive as on a folder."""
    archive = FORMS["tgz"](merged, original)
    done = run("verify", archive, "--expect", digest_of(original))
    assert done.returncode == 0
    assert "(recomputed from the bytes)" in done.stdout
