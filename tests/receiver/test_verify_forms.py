"""A result in every form in which it is received, whole and damaged: three verdicts, and what the stock tool says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deltaweights.errors import CheckFailed
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from tests.receiver.forms import DAMAGES, FORMS, SHARD, as_snapshot
from tests.support.results import MANIFEST, SUMS, digest_of, merged, original, sha256

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver


def signs(report: VerifyReport) -> str:
    """Return a plus or a minus for each verdict."""
    return "".join("+" if verdict.ok else "-" for _, verdict in report.verdicts())


@pytest.mark.sampled(46)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_damaged_in_each_way(form: str, damage: str, merged: Path, original: Path) -> None:
    """The part that is damaged fails, the others pass, and every problem belongs to one of them."""
    change, expected = DAMAGES[damage]
    change(merged)
    given = FORMS[form](merged, original)
    if damage == "no manifest" and form in {"snapshot", "repository"}:
        expected = "+++"  # the cache knows the hashes that the Hub stated
    report = verify(given)
    assert (signs(report), report.ok) == (expected, expected == "+++"), report.problems
    verdicts = [verdict for _, verdict in report.verdicts()]
    assert sum(verdict.problems for verdict in verdicts) == len(report.problems)
    assert sum(verdict.files for verdict in verdicts) == report.files
    assert sum(verdict.bytes for verdict in verdicts) == report.bytes
    assert all(verdict.sentence for verdict in verdicts)


@pytest.mark.parametrize("form", FORMS)
def test_the_content_digest_is_recomputed_in_every_form(form: str, merged: Path, original: Path) -> None:
    """``expect`` asks the bytes, in archives, too; another digest is said to be another pin, not damage."""
    given = FORMS[form](merged, original)
    report = verify(given, expect=digest_of(original), expect_manifest=sha256(original / MANIFEST))
    assert (report.problems, report.recomputed, report.content_digest) == ((), True, digest_of(original))
    other = verify(given, expect="dw1:" + 64 * "0")
    assert other.only_pins
    assert other.weights.sentence.startswith("intact, but not what you pinned")
    assert signs(other) == "-++"
    assert verify(given, expect_manifest=64 * "0").only_pins


@pytest.mark.parametrize("damage", [name for name, (_, expected) in DAMAGES.items() if name != "no manifest"])
def test_sums_alone(damage: str, merged: Path, original: Path) -> None:
    """Without a manifest SHA256SUMS counts; ``sha256sum -c`` agrees on every file that it names."""
    lines = [line for line in (merged / SUMS).read_text().splitlines() if not line.endswith(MANIFEST)]
    change, expected = DAMAGES[damage]
    change(merged)
    if damage in {"edited manifest", "respaced manifest", "edited sums"}:
        expected = "+++"
    (merged / MANIFEST).unlink()
    (merged / SUMS).write_text("".join(f"{line}\n" for line in lines))
    report = verify(merged)
    assert (signs(report), report.compared_with) == (expected, SUMS), report.problems
    stock = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=merged, capture_output=True, check=False)
    extras = {problem.file for problem in report.problems if problem.found == "an extra file"}
    assert (stock.returncode == 0) == (len(extras) == len(report.problems))


BLOB_DAMAGES = ("flipped bit", "truncated", "missing shard", "exchanged shards", "edited index", "pointer", "edited config",
                "edited README")  # fmt: skip


@pytest.mark.parametrize("damage", BLOB_DAMAGES)
def test_a_snapshot_without_a_manifest(damage: str, merged: Path, original: Path) -> None:
    """Its files are compared with the names of the blobs: sha256 of large files, git's SHA-1 of small ones."""
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    change, expected = DAMAGES[damage]
    change(merged)
    report = verify(as_snapshot(merged, original))
    assert signs(report) == expected, report.problems
    assert "the cache names" in report.compared_with


@pytest.mark.parametrize("form", ["folder", "snapshot"])
@pytest.mark.parametrize("damage", ["nothing", "flipped bit", "truncated", "pointer"])
def test_a_single_file(form: str, damage: str, merged: Path, original: Path) -> None:
    """One file is compared with the manifest beside it, whatever the others are."""
    change, expected = DAMAGES[damage]
    change(merged)
    (merged / "config.json").write_text("{}")
    given = FORMS[form](merged, original)
    report = verify(given / SHARD)
    assert (report.ok, report.weights.files) == (expected == "+++", 1)
    assert not verify(given / "config.json").ok
    assert verify(given / "README.md").ok


def test_a_single_file_by_other_statements(merged: Path, original: Path, tmp_path: Path) -> None:
    """Beside a kept manifest, a sum of its own, the name of its blob, a content digest; and by nothing."""
    kept = shutil.copy(merged / MANIFEST, tmp_path / "kept.json")
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    shard = merged / SHARD
    nothing = verify(shard)
    assert (nothing.ok, nothing.compared_with) == (False, "")
    assert verify(shard, manifest=kept).ok
    assert not verify(merged / "config.json", manifest=kept, expect_manifest=64 * "0").ok
    digest = verify(shard, expect="dw1:" + 64 * "0").content_digest
    assert digest is not None
    assert verify(shard, expect=digest).weights.ok
    (merged / f"{SHARD}.sha256").write_text(sha256(shard))
    assert verify(shard).ok
    (merged / f"{SHARD}.sha256").write_text(64 * "0")
    assert not verify(shard).ok
    (merged / f"{SHARD}.sha256").unlink()
    assert verify(as_snapshot(merged, original) / SHARD).ok


def test_a_single_file_never_passes_unread(merged: Path, original: Path) -> None:
    """A file that nothing states, a link out of the cache, and a file beside a manifest that cannot be read are problems."""
    for name in (".gitattributes", "model.sig", ".DS_Store", "notes.md"):
        (merged / name).write_text("?")
    snapshot = as_snapshot(merged, original)
    for name in (".gitattributes", "model.sig", ".DS_Store", "notes.md"):
        assert not verify(merged / name).ok
        assert not verify(snapshot / name).ok
    (snapshot / SHARD).unlink()
    (snapshot / SHARD).symlink_to(original / SHARD)
    ((problem, found),) = [(each.problem, each.found) for each in verify(snapshot / SHARD).problems]
    assert (problem, str(found)[:23]) == ("is not a regular file", "a link out of the cache")
    (snapshot / MANIFEST).unlink()
    (snapshot / MANIFEST).symlink_to(original / MANIFEST)
    assert not verify(snapshot / "config.json").ok
    with pytest.raises(CheckFailed):
        verify(snapshot / "config.json").raise_if_failed()


@pytest.mark.sampled(15)
@pytest.mark.parametrize("form", ["folder", "snapshot"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_naming_the_own_manifest_changes_nothing(form: str, damage: str, merged: Path, original: Path) -> None:
    """``verify SNAP --manifest SNAP/manifest.json`` and ``verify SNAP`` give the same answer."""
    DAMAGES[damage][0](merged)
    given = FORMS[form](merged, original)
    if damage != "no manifest":
        assert verify(given, manifest=given / MANIFEST) == verify(given)


def test_a_digest_alone_states_the_weights(merged: Path) -> None:
    """Without a manifest and sums an expected content digest vouches for the weights, and for nothing else."""
    expect = digest_of(merged)
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    assert signs(verify(merged, expect=expect)) == "+--"
    verify(merged, expect=expect).raise_if_failed(weights_only=True)
    assert signs(verify(merged, expect="dw1:" + 64 * "0")) == "---"
