"""Row 82 of the table: a Hub cache that others write to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaweights.checkpoint.files import LocalFile
from deltaweights.errors import CheckFailed, InputOutputError
from deltaweights.hub import directory as hub_directory
from deltaweights.hub.files import VerifiedFile
from deltaweights.hub.ids import HubId
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.piece_storage import DISK_PIECE, DiskPieces
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.repo_listing import HubFile
from deltaweights.hub.transfer import DamagedFile
from deltaweights.hub.verified import VerificationRecords
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.manifest.records import MANIFEST
from tests.support.hub_client import Machine, Said, forget_connections
from tests.support.hub_server import HubServer
from tests.support.other_user import OTHER, common_folder, do_as_other, needs_other_user
from tests.support.pairs import base_tensors, delta_tensors, load, reference, same_bits, save

BASE, DELTA, NAME = "acme/base", "acme/delta", "model.safetensors"
WEIGHTS = base_tensors(layers=2, vocabulary=400, hidden=64)
CHANGES = delta_tensors(WEIGHTS)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """Serve a pair in one safetensors file each, which has no checksums."""
    base, delta = (save(t, tmp_path / name, "safetensors", 1) for name, t in (("b", WEIGHTS), ("d", CHANGES)))
    with HubServer({BASE: base, DELTA: delta}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine whose cache others can enter."""
    with common_folder() as folder:
        yield Machine(monkeypatch, folder, hub)
    forget_connections()


@pytest.fixture
def blob(machine: Machine, tmp_path: Path) -> Path:
    """Fetch the pair, and return the blob of the base's weights."""
    for model in (BASE, DELTA):
        machine.fetch(model)
    sha256 = hashlib.sha256((tmp_path / "b" / NAME).read_bytes()).hexdigest()
    return machine.blobs(BASE)[sha256]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which files of the cache are hashed."""
    names: list[str] = []
    real = hub_directory._hash_of

    def count(file: HubFile, chunks: object) -> str:
        names.append(file.name)
        return real(file, chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(hub_directory, "_hash_of", count)
    return names


def flip(blob: Path) -> bytes:
    """Change a weight in place, keeping size and time; return the new bytes."""
    before, content = blob.stat(), bytearray(blob.read_bytes())
    content[-1] ^= 1
    with blob.open("r+b") as file:
        file.write(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    return bytes(content)


def plant(blob: Path) -> None:
    """Write the note that earlier versions kept in the cache about a blob."""
    found = blob.stat()
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    note = {"blob": {"size": found.st_size, "inode": found.st_ino, **times}, "arrival": None}
    folder = blob.parent.parent / ".deltaweights"
    folder.mkdir(exist_ok=True)
    (folder / blob.name).write_text(json.dumps(note))


def states_of(machine: Machine) -> Path:
    """Return the folder of the notes."""
    return machine.folder / "state" / "deltaweights" / "verified"


# Verification records.


@pytest.mark.trust
def test_row82_a_tampered_blob_and_a_planted_note(machine: Machine, hub: HubServer, blob: Path) -> None:
    """A note in the cache is ignored: offline the run ends with 5, otherwise the file is fetched again."""
    flip(blob)
    plant(blob)
    target = machine.folder / "out"
    common: list[str | Path] = ["--base", BASE, "--delta", DELTA, "--target", target, "--require-verified"]
    done = machine.run("apply", *common, "--offline")
    assert done.returncode == 5
    assert f"{blob}: damaged in the cache: sha256 is " in done.stderr
    assert not target.exists()
    assert machine.run("apply", *common).returncode == 0
    assert same_bits(load(target), reference(WEIGHTS, CHANGES))
    stated = json.loads((target / MANIFEST).read_text())["inputs"]["base"]["files"][NAME]["sha256"]
    assert stated == blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()


@pytest.mark.trust
def test_row82_paths_into_a_cache(machine: Machine, blob: Path) -> None:
    """A blob's name is not trusted as its hash, in --require-verified, the manifest or ``inspect``; a computed hash is."""
    tampered = hashlib.sha256(flip(blob)).hexdigest()
    plant(blob)
    snapshots = {name: next((machine.repository(name) / "snapshots").iterdir()) for name in (BASE, DELTA)}
    pair = snapshots[BASE], snapshots[DELTA]
    with pytest.raises(CheckFailed, match="not cryptographically verified"):
        apply_delta(*pair, machine.folder / "refused", require_verified=True)
    apply_delta(*pair, machine.folder / "out", allow_unproved_base=True)
    assert blob.name not in (machine.folder / "out" / MANIFEST).read_text()
    assert inspect_checkpoint(snapshots[BASE]).files[0].sha256 is None
    said = Said()
    hashed: dict[str, Any] = {"require_verified": True, "hash_inputs": True, "allow_unproved_base": True}
    apply_delta(*pair, machine.folder / "hashed", **hashed, report=said)
    assert any(f"sha256 is {tampered}, the Hub's cache states {blob.name}" in text for text in said.warnings)
    manifest = (machine.folder / "hashed" / MANIFEST).read_text()
    assert tampered in manifest
    assert blob.name not in manifest


@pytest.mark.trust
def test_row82_a_snapshot_that_links_to_another_blob(machine: Machine, blob: Path) -> None:
    """Offline, this user's notes about a commit's files are used, not the links of the cache; each blob is hashed itself."""
    tampered = bytearray(blob.read_bytes())
    tampered[-1] ^= 1
    other = blob.with_name(hashlib.sha256(tampered).hexdigest())
    other.write_bytes(tampered)
    (link,) = (machine.repository(BASE) / "snapshots").glob(f"*/{NAME}")
    link.unlink()
    link.symlink_to(f"../../blobs/{other.name}")
    offline = HubOptions(offline=True)
    apply_delta(BASE, DELTA, machine.folder / "out", require_verified=True, hub=offline)
    assert same_bits(load(machine.folder / "out"), reference(WEIGHTS, CHANGES))
    shutil.rmtree(states_of(machine))
    link.unlink()
    link.symlink_to(f"../../blobs/{other.name}")
    apply_delta(BASE, DELTA, machine.folder / "again", require_verified=True, allow_unproved_base=True, hub=offline)
    stated = json.loads((machine.folder / "again" / MANIFEST).read_text())["inputs"]["base"]["files"][NAME]["sha256"]
    assert stated == other.name, "nobody can know which file it should be; the hash is that of its bytes"


@pytest.mark.trust
@pytest.mark.parametrize("how", ["mode", "owner", "link", "file"])
def test_row82_notes_that_others_could_write(machine: Machine, blob: Path, hashed: list[str], how: str) -> None:
    """A folder of notes that others can write to is ignored, with one remark."""
    folder = states_of(machine)
    assert folder.stat().st_mode & 0o777 == 0o700
    machine.fetch(BASE)
    assert not hashed
    if how == "mode":
        folder.chmod(0o770)
    elif how == "owner":
        if os.geteuid() != 0:
            pytest.skip("a folder of somebody else's needs root")
        os.chown(folder, OTHER, OTHER)
    else:
        folder.rename(folder.with_name("elsewhere"))
        if how == "link":
            folder.symlink_to("elsewhere")
        else:
            folder.write_text("")
    machine.said.warnings.clear()
    machine.fetch(BASE)
    assert NAME in hashed
    assert len(machine.said.warnings) == 1
    assert machine.said.warnings[0].startswith(f"{folder}: records of verified files that others can write are ignored")


@pytest.mark.trust
@pytest.mark.parametrize("how", ["link", "other", "long", "no-note"])
def test_row82_notes_that_are_none(machine: Machine, blob: Path, hashed: list[str], how: str) -> None:
    """A note that is a link, somebody else's, or malformed is ignored."""
    for path in states_of(machine).iterdir():
        if how == "link":
            path.rename(machine.folder / path.name)
            path.symlink_to(machine.folder / path.name)
        elif how == "other":
            if os.geteuid() != 0:
                pytest.skip("a file of somebody else's needs root")
            os.chown(path, OTHER, OTHER)
        else:
            path.write_text({"long": " " * 2_000_000 + path.read_text(), "no-note": "[1]"}[how])
    machine.fetch(BASE)
    assert NAME in hashed


@pytest.mark.parametrize("how", ["nowhere", "read-only", "of-others"])
def test_without_a_place_for_notes(
    machine: Machine, blob: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where no notes can be kept, files are hashed in each run, with one remark."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    if how == "read-only":
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/state")
    if how == "of-others":
        if os.geteuid() != 0:
            pytest.skip("a home of somebody else's needs root")
        (machine.folder / "theirs").mkdir()
        os.chown(machine.folder / "theirs", OTHER, OTHER)
        monkeypatch.setenv("HOME", str(machine.folder / "theirs"))
    machine.said = Said()
    for _ in range(2):
        machine.fetch(BASE)
    assert hashed.count(NAME) == 2
    assert sum("cannot record verified files" in text for text in machine.said.notes) == 1
    assert not machine.said.warnings
    assert how != "of-others" or not list((machine.folder / "theirs").iterdir())


def test_notes_are_where_xdg_has_them(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XDG_STATE_HOME, or with a relative one, notes are below ~/.local/state."""
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(machine.folder / "me"))
    (machine.folder / "me").mkdir()
    machine.fetch(BASE)
    assert list((machine.folder / "me/.local/state/deltaweights/verified").iterdir())
    assert not any(path.name == ".deltaweights" for path in machine.repository(BASE).iterdir())


def test_a_note_is_of_one_file_as_it_was(tmp_path: Path) -> None:
    """A note with another hash, user, device, inode, size or time does not apply to the file."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    records, found = VerificationRecords(Said()), blob.stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path))
        records.add(blob, "key", found, "mark")
        record = records.find(blob, "key", found)
        assert record is not None
        assert (record.current, record.download_id) == (True, "mark")
        assert records.find(blob, "other", found) is None
        assert records.find(tmp_path / "other", "key", found) is None
        for place in (1, 2, 6):
            fields = list(found)
            fields[place] += 1
            other = os.stat_result(fields, {name: getattr(found, name) for name in ("st_mtime_ns", "st_ctime_ns")})
            record = records.find(blob, "key", other)
            assert record is not None
            assert not record.current
        for name in ("st_mtime_ns", "st_ctime_ns"):
            times = {each: getattr(found, each) + (each == name) for each in ("st_mtime_ns", "st_ctime_ns")}
            record = records.find(blob, "key", os.stat_result(list(found), times))
            assert record is not None
            assert not record.current
        patch.setattr(os, "geteuid", lambda: found.st_uid + 1)
        assert records.find(blob, "key", found) is None


def test_a_file_that_others_may_write_is_noted_once_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick changes may have the same time, so that a note about the first would apply to the second."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    blob, records = tmp_path / "blob", VerificationRecords(Said())
    blob.write_bytes(b"weights")
    blob.chmod(0o664)
    found = blob.stat()
    records.add(blob, "key", found, None)
    assert records.find(blob, "key", found) is None
    monkeypatch.setattr("time.time_ns", lambda: found.st_ctime_ns + 61 * 10**9)
    records.add(blob, "key", found, None)
    assert records.find(blob, "key", found) is not None


# Files that others own or can write to.

TAMPER = """
import os, sys
path = sys.argv[1]
found = os.stat(path)
with open(path, "r+b") as file:
    file.seek(-1, 2)
    last = file.read(1)[0]
    file.seek(-1, 2)
    file.write(bytes([last ^ 1]))
os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
"""
"""Changes a weight, and sets the time back, as the owner of a file can."""


@needs_other_user
@pytest.mark.trust
def test_row82_the_owner_of_a_blob_tampers_after_the_note(machine: Machine, blob: Path, hashed: list[str]) -> None:
    """A verified blob is hashed again after its owner changed it and set its time back."""
    os.chown(blob, OTHER, OTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: blob.stat().st_ctime_ns + 61 * 10**9)
        machine.fetch(BASE, offline=True)
        assert hashed.count(NAME) == 1
        machine.fetch(BASE, offline=True)
        assert hashed.count(NAME) == 1, "the note holds"
    before = blob.stat()
    do_as_other(TAMPER, blob)
    assert (blob.stat().st_size, blob.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(DamagedFile, match="damaged in the cache"):
        apply_delta(BASE, DELTA, machine.folder / "out", require_verified=True, hub=HubOptions(offline=True))


@needs_other_user
@pytest.mark.trust
@pytest.mark.parametrize("kind", ["of-the-cache", "hashed"])
def test_row82_the_owner_tampers_while_it_is_read(machine: Machine, blob: Path, kind: str) -> None:
    """A file that changes after it was hashed ends the run, even with the same size and modification time."""
    os.chown(blob, OTHER, OTHER)
    if kind == "of-the-cache":
        file: LocalFile = VerifiedFile(blob, blob, blob.name)
    else:
        file = LocalFile(blob)
        file.rely_on_hash()
    file.check_unchanged()
    do_as_other(TAMPER, blob)
    with pytest.raises(InputOutputError, match="changed while being read"):
        file.check_unchanged()
    file.close()


def test_a_link_more_is_no_change(tmp_path: Path) -> None:
    """A change of only the link count or mode of one's own file does not count as a change of its content."""
    path = tmp_path / "blob"
    path.write_bytes(b"weights")
    file = VerifiedFile(path, path, None)
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        os.link(path, tmp_path / "other")
        path.chmod(0o600)
        (tmp_path / "other").unlink()
    file.check_unchanged()
    file.close()


# Files where a download keeps its pieces.


def begun_by_others(blob: Path, size: int) -> dict[Path, bytes]:
    """Leave a download whose pieces are all marked as complete; return what must not change."""
    incomplete = blob.with_name(f"{blob.name}.deltaweights.partial")
    incomplete.write_bytes(bytes(size))
    incomplete.with_suffix(".pieces").write_bytes(b"0" * 32 + b"\1" * (size // DISK_PIECE + 1))
    for path in (incomplete, incomplete.with_suffix(".pieces")):
        path.chmod(0o666)
    return {path: path.read_bytes() for path in (incomplete, incomplete.with_suffix(".pieces"))}


@pytest.mark.trust
@pytest.mark.parametrize("owner", [OTHER, None])
def test_row82_pieces_of_others(machine: Machine, blob: Path, owner: int | None) -> None:
    """A download that somebody else started, or can write to, is not resumed: its bytes may change again."""
    size = blob.stat().st_size
    blob.unlink()
    planted = begun_by_others(blob, size)
    if owner is not None:
        if os.geteuid() != 0:
            pytest.skip("a file of somebody else's needs root")
        for path in planted:
            os.chown(path, owner, owner)
    apply_delta(BASE, DELTA, machine.folder / "out", require_verified=True, report=machine.said)
    assert same_bits(load(machine.folder / "out"), reference(WEIGHTS, CHANGES))
    assert not any(" again" in text for text in machine.said.warnings), "none of the planted pieces was used"
    assert {path: path.read_bytes() for path in planted} == planted
    assert not blob.stat().st_mode & 0o022


@pytest.mark.parametrize("how", ["hard-link", "link", "link-of-marks"])
def test_downloads_write_into_no_file_of_the_users(tmp_path: Path, how: str) -> None:
    """Where the pieces' name is a hard or symbolic link to a file of the user's, that file does not change."""
    (tmp_path / "blobs").mkdir()
    thesis, path = tmp_path / "thesis", tmp_path / "blobs" / "abc.deltaweights.partial"
    thesis.write_text("years")
    if how == "hard-link":
        os.link(thesis, path)
    elif how == "link":
        path.symlink_to(thesis)
    else:
        path.with_suffix(".pieces").symlink_to(thesis)
    storage = DiskPieces(path, 10)
    storage.resume()
    storage.put(memoryview(b"0123456789"), 0)
    storage.mark_present(0)
    storage.close()
    storage.mark_missing([0])
    assert thesis.read_text() == "years"


def test_marks_that_become_a_link_are_not_written(tmp_path: Path) -> None:
    """After a download its own marks are cleared, even if their name leads to something else by then."""
    (tmp_path / "blobs").mkdir()
    thesis, path = tmp_path / "thesis", tmp_path / "blobs" / "abc.deltaweights.partial"
    thesis.write_bytes(b"\1" * 100)
    storage = DiskPieces(path, 10)
    storage.resume()
    storage.close()
    path.with_suffix(".pieces").unlink()
    path.with_suffix(".pieces").symlink_to(thesis)
    storage.mark_missing([0])
    assert thesis.read_bytes() == b"\1" * 100


# Folders of the cache that lead elsewhere.


@pytest.mark.trust
@pytest.mark.parametrize("name", ["blobs", "snapshots", "refs", "snapshot", "refs/pr"])
def test_row82_folders_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    """Where a folder of the cache is a link, nothing is created, replaced or removed in the folder that it leads to."""
    cache, precious, commit = RepoCache.of(tmp_path, BASE), tmp_path / "precious", "a" * 40
    precious.mkdir()
    for each in ("main", "1", "config.json", commit):
        (precious / each).write_text("mine")
    link = cache.snapshot(commit) if name == "snapshot" else cache.root / name
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    attempts: list[Callable[[], object]] = [
        cache.create,
        lambda: cache.link(commit, HubFile("config.json", 1, None, "b" * 40)),
        lambda: cache.set_ref(HubId(BASE, None), commit),
        lambda: cache.set_ref(HubId(BASE, "pr/1"), commit),
        lambda: DiskPieces(cache.incomplete("abc"), 10),
    ]
    refused = 0
    for attempt in attempts:
        try:
            attempt()
        except InputOutputError:
            refused += 1
    assert refused or name.startswith("refs")
    found = {path.name: path.read_text() for path in precious.iterdir()}
    assert found == dict.fromkeys(("main", "1", "config.json", commit), "mine")


@pytest.mark.parametrize("kind", ["fifo", "long"])
def test_a_branch_that_is_no_commit(tmp_path: Path, kind: str) -> None:
    """A branch file that is a FIFO, or endless, is ignored: the cache has no such commit."""
    cache = RepoCache.of(tmp_path, BASE)
    cache.create()
    if kind == "fifo":
        os.mkfifo(cache.root / "refs" / "main")
    else:
        (cache.root / "refs" / "main").write_text("a" * 10_000)
    assert cache.listing(HubId(BASE, None)) is None


@pytest.mark.trust
@pytest.mark.sampled(1)
@pytest.mark.parametrize("shared", [False, True])
def test_row82_blobs_that_lead_out_of_the_cache(
    machine: Machine, blob: Path, tmp_path: Path, hashed: list[str], *, shared: bool
) -> None:
    """A blob that is a link to a file of the user's is fetched again, or refused offline (5); the file's hash is not printed."""
    content, secret = blob.read_bytes(), tmp_path / "secret"
    secret.write_bytes(b"correct horse battery staple")
    link = blob
    blob.unlink()
    if shared:
        link = machine.cache / "blobs" / "ab" / blob.name
        link.parent.mkdir(parents=True)
        blob.symlink_to(f"../../blobs/ab/{blob.name}")
    link.symlink_to(secret)
    common: list[str | Path] = ["apply", "--base", BASE, "--delta", DELTA, "--target", machine.folder / "out"]
    done = machine.run(*common, "--offline")
    assert done.returncode == 5
    assert f"{blob}: damaged in the cache: a link out of it; fetch it again, without --offline" in done.stderr
    again = machine.run(*common)
    assert again.returncode == 0, again.stderr
    assert f"{blob}: damaged in the cache: a link out of it: fetching it again" in again.stderr
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in done.stderr + again.stderr
    assert (blob.read_bytes(), blob.is_symlink()) == (content, False)
    assert secret.read_bytes() == b"correct horse battery staple"
    blob.unlink()
    blob.symlink_to(secret)
    hashed.clear()
    with pytest.raises(DamagedFile, match="a link out of it"):
        machine.fetch(BASE, offline=True)
    assert NAME not in hashed


def test_a_damaged_blob_that_cannot_be_removed(machine: Machine, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged blob that cannot be removed ends the run, which does not loop."""
    flip(blob)

    real = os.unlink

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        if Path(path).name == blob.name:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        real(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:  # the folder is removed after the test
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(InputOutputError, match=r"cannot remove.*--cache-dir"):
            machine.fetch(BASE)


def test_blobs_that_models_share(machine: Machine, blob: Path, tmp_path: Path) -> None:
    """A blob that is a link, as in caches with one store for all models, is found by its own name offline, too."""
    shared = machine.cache / "blobs" / "ab"
    shared.mkdir(parents=True)
    shutil.move(blob, shared / ("ab" * 32))
    blob.symlink_to(f"../../blobs/ab/{'ab' * 32}")
    assert machine.fetch(BASE, offline=True).files[NAME] == (tmp_path / "b" / NAME).stat().st_size
