"""Runs that interfere with each other, at the worst moment.

The second run is real; it is started from inside the first one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltaweights.cluster import part as parts
from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.part import apply_part
from deltaweights.errors import InputOutputError, TargetBusy
from deltaweights.hub import directory as hub_directory
from deltaweights.hub import transfer
from deltaweights.hub.access import Access
from deltaweights.hub.directory import HubDirectory
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.repo_listing import HubFile, RepoListing
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.signing import folder as signing
from deltaweights.staging import lock as locks
from deltaweights.staging import publish as publishing
from deltaweights.staging.clean import clean
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.target_contents import Contents
from deltaweights.util.interruption import Interrupted
from deltaweights.util.open_folder import OpenFolder
from tests.support.errors import refused
from tests.support.killed_merges import finish, names_in, small_pair
from tests.support.limits import PATIENCE
from tests.support.many import make_many, names_of
from tests.support.merging import files_of
from tests.support.staged import make_staging

SIZE = 2500

Pair = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Make a pair with several shards' worth of tensors, in a folder of its own."""
    return small_pair(tmp_path / "inputs")


@pytest.fixture
def expected(pair: Pair, tmp_path: Path) -> dict[str, bytes]:
    """Return the files of an undisturbed merge."""
    return files_of(Path(apply_delta(*pair, tmp_path / "inputs" / "expected", max_shard_size=SIZE).target))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system without locks."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


class At(Report):
    """Calls a function when the stream has ended, and every shard is finished."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def end(self) -> None:
        """Call it."""
        self._do()


class Killed(BaseException):
    """Ends a run as a kill does, without any cleaning up."""


def killed(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """Call a run that raises ``Killed``, and release its lock as the system does, without cleaning up."""
    with monkeypatch.context() as patch:
        patch.setattr(StagingLock, "__exit__", lambda lock, *_: os.close(lock._fd))
        with pytest.raises(Killed):
            run()


# Without locks.


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_names_the_holder(pair: Pair, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """While one run writes, another run, a part and ``clean`` end with 7 and name it; afterwards nothing is left."""
    target = tmp_path / "out"
    errors: list[TargetBusy] = []

    def others() -> None:
        for other in (
            lambda: apply_delta(*pair, target, dtype="float32"),
            lambda: apply_part(*pair, target, part="1/2"),
            lambda: clean(target),
        ):
            with pytest.raises(TargetBusy) as caught:
                other()
            errors.append(caught.value)

    apply_delta(*pair, target, max_shard_size=SIZE, report=At(others))
    assert len(errors) == 3
    root = locate_target(target).root
    for error in errors:
        assert error.where == root
        assert str(error.found).startswith(f"process {os.getpid()} of ")
        assert error.remedy == f"wait for it to end; if that process is gone, remove {root / 'owner'}"
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "out"]


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_holder_that_was_killed(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A dead process of this machine holds nothing; the file of one on another machine has to be removed by hand."""
    target = tmp_path / "out"

    def die() -> None:
        raise Killed

    killed(monkeypatch, lambda: apply_delta(*pair, target, max_shard_size=SIZE, report=At(die)))
    owner = locate_target(target).root / "owner"
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    owner.write_text(owner.read_text().replace(f"process {os.getpid()} ", f"process {dead.pid} "))
    if where == "elsewhere":
        owner.write_text(owner.read_text().replace(" of ", " of another"))
        with refused(TargetBusy, found=owner.read_text()):
            apply_delta(*pair, target, max_shard_size=SIZE)
        owner.unlink()
    apply_delta(*pair, target, max_shard_size=SIZE)
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "out"]


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_holder_file_that_is_no_file(pair: Pair, tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A FIFO, folder or link under its name is refused, and not waited for."""
    location = make_staging(locate_target(tmp_path / "out"))
    make(location.root / "owner")
    with refused(TargetBusy, where=location.root, found="its owner"):
        apply_delta(*pair, location.target)


@pytest.mark.usefixtures("no_locks")
def test_a_holder_whose_lock_file_was_removed(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose lock file was removed meanwhile tries again, and does not lock itself out."""
    current, answers = StagingLock._is_current, [False, True, True]
    monkeypatch.setattr(StagingLock, "_is_current", lambda lock: current(lock) and answers.pop(0))
    with StagingLock(locate_target(tmp_path / "out")):
        assert answers == [True]
    assert names_in(tmp_path) == ["inputs"]


@pytest.mark.parametrize("how", ["written to", "cut", "removed"])
def test_a_shard_that_another_run_touched_is_not_published(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], how: str
) -> None:
    """A shard that another run modified, where locks do not work, ends the run with 7; the next run continues."""
    target = tmp_path / "out"
    shard = locate_target(target).shards / "model-00002-of-00005.safetensors"

    def touch() -> None:
        data = shard.read_bytes()
        if how == "cut":
            os.truncate(shard, 10)
        elif how == "removed":
            shard.unlink()
        else:
            shard.write_bytes(bytes(len(data)))

    assert shard.name in expected
    with refused(TargetBusy, where=shard, problem="another run has written to this shard"):
        apply_delta(*pair, target, max_shard_size=SIZE, report=At(touch))
    assert not target.exists()
    apply_delta(*pair, target, max_shard_size=SIZE)
    assert files_of(target) == expected


def test_a_shard_with_another_inode_and_the_same_bytes_is_published(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Some file systems renumber their files; such a shard is compared by its bytes."""
    target = tmp_path / "out"
    shard = locate_target(target).shards / "model-00002-of-00005.safetensors"

    def touch() -> None:
        data = shard.read_bytes()
        shard.rename(tmp_path / "old")  # so that its number is taken
        shard.write_bytes(data)

    apply_delta(*pair, target, max_shard_size=SIZE, report=At(touch))
    assert files_of(target) == expected


# A target that changes between the last check and the publication.


def model(folder: Path, *more: str) -> dict[str, bytes]:
    """Make another model, and return its files."""
    folder.mkdir(exist_ok=True)
    save_file({"other": torch.ones(3)}, folder / "model.safetensors")
    for name in more:
        (folder / name).write_text("mine")
    return files_of(folder)


def after_the_last_check(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Call a function right after the target was checked for the last time before publishing."""
    look, looks = OpenStaging.refuse_content, []

    def looked(staging: OpenStaging, *, overwrite: bool) -> Contents:
        contents = look(staging, overwrite=overwrite)
        looks.append(staging)
        if len(looks) == 2:  # the first check is before the shards are made
            do()
        return contents

    monkeypatch.setattr(OpenStaging, "refuse_content", looked)


def test_a_model_that_appears_is_not_replaced(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --overwrite, a model that appears after the last check stays, and the run ends with 7; moved away, it is kept."""
    target = tmp_path / "out"
    after_the_last_check(monkeypatch, lambda: model(target))
    with refused(TargetBusy, where=target, problem="something else appeared there during the run") as caught:
        apply_delta(*pair, target, max_shard_size=SIZE)
    assert files_of(target) == model(target)
    assert caught.value.remedy == "move it away, and run again"
    target.rename(tmp_path / "elsewhere")
    monkeypatch.undo()
    apply_delta(*pair, target, max_shard_size=SIZE)
    assert files_of(target) == expected
    assert files_of(tmp_path / "elsewhere") == model(tmp_path / "elsewhere")


def test_strangers_that_appear_are_not_replaced(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite, a folder that got foreign files after the last check is put back, and the run ends with 7."""
    target = tmp_path / "out"
    model(target)
    after_the_last_check(monkeypatch, lambda: model(target, "thesis.tex"))
    with refused(TargetBusy, found="thesis.tex"):
        apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert files_of(target) == model(target, "thesis.tex")
    (target / "thesis.tex").unlink()
    apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "out"]


@pytest.mark.parametrize("back", ["put back", "not put back"])
def test_a_signal_between_plan_and_exchange(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    """A run that is interrupted keeps its shards; one that cannot exchange back keeps the user's files."""
    target = tmp_path / "out"
    model(target)
    whole = OpenFolder.exchange

    def exchange(folder: OpenFolder, name: str, other: OpenFolder, other_name: str) -> bool:
        if back == "put back":
            raise Interrupted(signal.SIGTERM)
        monkeypatch.setattr(OpenFolder, "exchange", failing)
        return whole(folder, name, other, other_name)

    def failing(*_: object) -> bool:
        raise InputOutputError("the disk is gone")

    monkeypatch.setattr(OpenFolder, "exchange", exchange)
    if back == "put back":
        with pytest.raises(Interrupted):
            apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
        before = {path.name: path.stat().st_ino for path in locate_target(target).shards.glob("*.safetensors")}
        monkeypatch.setattr(OpenFolder, "exchange", whole)
        apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
        assert files_of(target) == expected
        assert {path.name: path.stat().st_ino for path in target.glob("*.safetensors")} == before
        return
    after_the_last_check(monkeypatch, lambda: model(target, "thesis.tex"))
    problem = "cannot be put back: the disk is gone"
    with refused(TargetBusy, problem=problem, where=locate_target(target).shards) as caught:
        apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    monkeypatch.setattr(OpenFolder, "exchange", whole)
    for _ in range(2):
        with refused(TargetBusy, found="thesis.tex"):
            apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
        assert (locate_target(target).shards / "thesis.tex").read_text() == "mine"
    assert caught.value.remedy == "move it back to where it belongs: it is not the old out"
    target.rename(tmp_path / "new")
    locate_target(target).shards.rename(target)
    assert files_of(target) == model(target, "thesis.tex")
    (target / "thesis.tex").unlink()
    apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert files_of(target) == expected


def test_a_file_that_cannot_be_put_back_is_moved_to_where_it_belongs(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File by file, a file that was exchanged in the last moment goes back; where that fails, the error says where it is."""
    target = tmp_path / "out"
    apply_delta(*pair, target, max_shard_size=2 * SIZE)
    monkeypatch.chdir(target)  # so that the folder cannot be renamed
    whole, wrong = OpenFolder.rename, "config.json"

    def rename(folder: OpenFolder, name: str, other: OpenFolder, other_name: str) -> None:
        if name != wrong:
            return whole(folder, name, other, other_name)
        if (target / wrong).exists():
            (target / wrong).write_text("mine")
            return whole(folder, name, other, other_name)
        raise InputOutputError("the disk is gone")

    monkeypatch.setattr(OpenFolder, "rename", rename)
    with refused(TargetBusy, problem="cannot be put back: the disk is gone") as caught:
        apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert caught.value.remedy == f"move it to {target}, where it belongs"
    monkeypatch.setattr(OpenFolder, "rename", whole)
    shutil.move(str(caught.value.where), target)
    assert (target / wrong).read_text() == "mine"
    with refused(TargetBusy, problem="something else appeared there during the run", where=target / wrong) as caught:
        apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert caught.value.remedy == "move it away, and run again"
    shutil.move(str(caught.value.where), tmp_path)
    apply_delta(*pair, target, max_shard_size=SIZE, overwrite=True)
    assert files_of(target) == expected
    assert (tmp_path / wrong).read_text() == "mine"


def test_one_target_is_built_in_one_place(pair: Pair, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """A run that would stage inside the target, while another stages beside it, ends with 7, and leaves nothing behind."""
    target = tmp_path / "out"
    target.mkdir()
    inside = TargetLocation(target, target / ".deltaweights", inside=True)

    def other() -> None:
        with refused(TargetBusy, where=target, problem="another run has begun to build this folder elsewhere"):
            StagingLock(inside)

    apply_delta(*pair, target, max_shard_size=SIZE, report=At(other))
    assert files_of(target) == expected


def test_another_place_that_is_found_under_the_lock(tmp_path: Path) -> None:
    """The location is compared again under the lock; after the refusal, what was created is removed."""
    target = tmp_path / "out"
    target.mkdir()
    inside, beside = TargetLocation(target, target / ".deltaweights", inside=True), locate_target(target)
    answers = [inside, replace(beside, root=tmp_path)]
    with refused(TargetBusy, where=target, problem="another run has begun to build this folder elsewhere"):
        StagingLock(inside, locate=lambda _: answers.pop(0))
    assert names_in(target) == []


# Parts.


def both_parts(pair: Pair, target: Path, *, overwrite: bool = False) -> None:
    for part in ("1/2", "2/2"):
        apply_part(*pair, target, part=part, max_shard_size=SIZE, overwrite=overwrite)


def test_parts_do_not_undo_each_others_recovery(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part finishes a publication that was cut off, while the others wait."""
    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.chdir(target)
    move, left = OpenFolder.move_if_absent, [3]

    def dying(folder: OpenFolder, name: str, to: OpenFolder, new: str) -> bool:
        left[0] -= to.path == target
        if left[0] < 0:
            raise Killed
        return move(folder, name, to, new)

    monkeypatch.setattr(OpenFolder, "move_if_absent", dying)
    killed(monkeypatch, lambda: apply_delta(*pair, target, max_shard_size=SIZE))
    monkeypatch.setattr(OpenFolder, "move_if_absent", move)
    assert locate_target(target).journal.exists()
    monkeypatch.setattr(parts, "PATIENCE", 0.2)
    with (
        StagingLock(locate_target(target), shared=True),
        refused(TargetBusy, problem="another run is writing to this folder"),
    ):
        apply_part(*pair, target, part="1/2", max_shard_size=SIZE)
    both = [threading.Thread(target=both_parts, args=(pair, target)) for _ in range(4)]
    monkeypatch.setattr(parts, "PATIENCE", 20)
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert files_of(target) == expected


def test_a_part_that_ends_keeps_what_others_finished(pair: Pair, tmp_path: Path) -> None:
    """A part without shards that ends while another one is running removes nothing."""
    target = tmp_path / "out"
    location = locate_target(target)
    ending, running = StagingLock(location, shared=True), StagingLock(location, shared=True)
    worth, seen = OpenStaging.worth_keeping, []

    def looked(self: OpenStaging) -> bool:
        seen.append(1)
        return worth(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenStaging, "worth_keeping", looked)
        ending.release()
    assert seen == []  # a part that is not the last does not even look
    assert location.root.exists()
    running.release()
    assert not location.root.exists()


def test_a_part_waits_for_one_that_ends(pair: Pair, tmp_path: Path) -> None:
    """A part waits for one that holds the lock exclusively for a moment."""
    target = tmp_path / "out"
    lock = StagingLock(locate_target(target))
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    assert apply_part(*pair, target, part="1/2", max_shard_size=SIZE).status == "finished"
    timer.join()
    assert locks.PATIENCE > 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_part_that_prepared_while_all_was_published(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """A part whose plan is published while it prepares reports that it is complete, and makes nothing."""
    target = tmp_path / "out"
    if overwrite:
        model(target)
    both_parts(pair, target, overwrite=overwrite)
    check = vars(parts)["check_device"]

    def meanwhile(device: str) -> None:
        monkeypatch.setattr(parts, "check_device", check)
        assert finish_parts(target, overwrite=overwrite) is not None

    monkeypatch.setattr(parts, "check_device", meanwhile)
    late = apply_part(*pair, target, part="1/2", max_shard_size=SIZE, overwrite=overwrite)
    assert (late.status, late.made) == ("already complete", ())
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "out"]
    assert finish_parts(target, overwrite=overwrite) is None


@pytest.mark.parametrize("step", ["one step", "two steps"])
def test_finish_that_is_killed_after_the_exchange(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The next finish finds the result, and no shard of the old model is ever taken for one of the new."""
    target = tmp_path / "out"
    other = small_pair(tmp_path / "inputs" / "others", seed=9)
    apply_delta(*other, target, max_shard_size=SIZE)
    both_parts(pair, target, overwrite=True)
    if step == "two steps":
        monkeypatch.setattr(OpenFolder, "exchange", lambda *_: False)

    def die(_: OpenStaging) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "clear_staging", die)
        killed(monkeypatch, lambda: finish_parts(target, overwrite=True))
    assert files_of(target) == expected
    shutil.move(target, tmp_path / "moved")
    apply_part(*pair, target, part="1/2", max_shard_size=SIZE)
    apply_part(*pair, target, part="2/2", max_shard_size=SIZE)
    assert finish_parts(target) is not None
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "moved", "out"]


def test_finish_after_a_finish_that_was_killed(
    pair: Pair, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next finish reports what was published, and removes staging."""
    target = tmp_path / "out"
    both_parts(pair, target)

    def die(_: OpenStaging) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "clear_staging", die)
        killed(monkeypatch, lambda: finish_parts(target))
    assert finish_parts(target) is None
    assert files_of(target) == expected
    assert names_in(tmp_path) == ["inputs", "out"]


def test_finish_of_what_was_discarded_meanwhile(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are discarded before the lock is taken are not reported as published."""
    target = tmp_path / "out"
    both_parts(pair, target)
    from deltaweights.cluster import finish as finishing  # noqa: PLC0415

    class Late(StagingLock):
        def __init__(self, location: TargetLocation) -> None:
            clean(target)
            super().__init__(location)

    monkeypatch.setattr(finishing, "StagingLock", Late)
    with refused(InputOutputError, problem="no part of a merge here", where=target):
        finish_parts(target)


# The cache of the Hub.


def held(cache: Path, downloads: Downloads | None = None, access: Access | None = None) -> HubDirectory:
    """Return a repository of two files in ``cache``."""
    access = access or Access("https://hub", None, cache, offline=False)
    files = {name: HubFile(name, 1000, hashlib.sha256(name.encode() * 1000).hexdigest(), "0" * 40) for name in "xy"}
    downloads = downloads or Downloads(access, lambda _: None)
    return HubDirectory(access, RepoListing("acme/base", "a" * 40, files), downloads, Report())


def test_a_blob_that_another_process_repaired_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged blob is removed only if it is still the file that was looked at."""
    directory = held(tmp_path)
    file = directory.listing.files["x"]
    directory.cache.create()
    blob = directory.cache.blob(file.key)
    blob.write_bytes(b"y" + b"x" * 999)
    hash_of = hub_directory._hash_of

    def meanwhile(*arguments: object) -> str:
        found = hash_of(*arguments)  # type: ignore[arg-type]
        (tmp_path / "new").write_bytes(b"x" * 1000)
        (tmp_path / "new").replace(blob)
        return found

    monkeypatch.setattr(hub_directory, "_hash_of", meanwhile)
    assert directory._open_verified(file) is None
    assert blob.read_bytes() == b"x" * 1000


def test_two_downloads_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that hold what the other wants, and have lost the network, both end with what they met."""

    def read(*_: object) -> object:
        raise InputOutputError("the network is gone", remedy="try again")

    monkeypatch.setattr(transfer.Transfer, "read", read)
    both, ends = threading.Barrier(2), []

    def fetch(first: str, second: str) -> None:
        directory = held(tmp_path)
        files = directory.listing.files
        job = directory.fetch(files[first])
        both.wait(PATIENCE)
        while job is not None and job.pieces.failed is None:
            pass
        try:
            directory.fetch(files[second])
        except InputOutputError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=fetch, args=order, daemon=True) for order in ("xy", "yx")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert any("the network is gone" in end for end in ends)
    assert not all(thread.is_alive() for thread in threads)


# Signatures.


def test_sign_removes_what_a_killed_one_left(pair: Pair, tmp_path: Path) -> None:
    """An unfinished signature beside the weights is no extra file for the next ``sign``, and is gone after it."""
    pytest.importorskip("cryptography")
    target = tmp_path / "out"
    apply_delta(*pair, target, max_shard_size=SIZE)
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "key.pem"], check=True
    )
    (target / "model.sig.0123456789abcdef.new").write_text("{")
    (target / "model.sig.notes.new").write_text("mine")
    done = finish(
        [sys.executable, "-m", "deltaweights", "sign", str(target), "--private-key", str(tmp_path / "key.pem")]
    )
    assert done.returncode == 6
    assert "model.sig.notes.new" in done.stderr
    (target / "model.sig.notes.new").unlink()
    signing.sign_folder(target, tmp_path / "key.pem")
    assert verify(target).ok


class Workers(Report):
    """Keeps which threads began shards."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def shard_started(self, file: str, size: int, nbytes: int) -> None:
        """See ``Report``."""
        self.threads.add(threading.get_ident())


def test_tiny_tensors_are_one_worker_s_unless_more_are_asked_for(tmp_path: Path) -> None:
    """Several workers would only pass the interpreter's lock to and fro; the bytes are the same."""
    base, delta = make_many(tmp_path, names_of(60))
    reports = {workers: Workers() for workers in (None, 4)}
    for workers, report in reports.items():
        apply_delta(base, delta, tmp_path / f"{workers}", max_shard_size=64, workers=workers, report=report)
    assert len(reports[None].threads) == 1
    sums = [(tmp_path / f"{workers}" / "SHA256SUMS").read_bytes() for workers in reports]
    assert sums[0] == sums[1]
