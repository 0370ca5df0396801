"""Staging that somebody else made: nothing outside it is read, written or removed, and no command hangs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.part import apply_part
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.manifest.records import Fragment
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.staging.clean import clean
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import readable_json, strict_json
from tests.faults.test_concurrency import pair
from tests.support.errors import refused
from tests.support.identity import archive_of
from tests.support.limits import PATIENCE
from tests.support.merging import files_of
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors
from tests.support.staged import beside, make_staging, stage_result, within, write_journal
from tests.support.whole_runs import DEFLATED

__all__ = ["pair"]

Pair = tuple[Path, Path]

NOT_OURS = "staging is not ours"

APPEARED = "something else appeared there during the run"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Make a folder that must not change."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "id_rsa").write_text("secret")
    (folder / "config.json").write_text("mine")
    return folder


def plant(location: TargetLocation, files: dict[str, str], *, mode: int = 0o700, owned: bool = False) -> None:
    """Create a staging folder that this program did not make; if ``owned``, one with a valid ownership record."""
    location.root.mkdir(mode=mode, parents=True)
    location.root.chmod(mode)
    for name, text in files.items():
        path = location.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if owned:
        make_staging(location)


JOURNALS: dict[str, object] = {
    "of the first version": {"plan": "plan1:a", "remove": ["thesis", "tax.pdf"], "move": ["run.py"]},
    "of today": {"version": 2, "plan": "plan1:a", "new": {"run.py": [1, 2, 3]}, "old": {"tax.pdf": [1, 2, 3]}},
}

RUNS: dict[str, Callable[[Pair, Path], object]] = {
    "apply": lambda pair, target: apply_delta(*pair, target),
    "apply-overwrite": lambda pair, target: apply_delta(*pair, target, overwrite=True),
    "part": lambda pair, target: apply_part(*pair, target, part="1/2"),
    "finish": lambda _, target: finish_parts(target),
    "clean": lambda _, target: clean(target),
}


@pytest.fixture(params=["beside", "inside"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> TargetLocation:
    """Make a folder of the user's as the target, and return its location with staging beside it and inside it."""
    target = tmp_path / "out"
    (target / "thesis").mkdir(parents=True)
    (target / "thesis" / "chapter.tex").write_text("years")
    (target / "tax.pdf").write_text("due")
    return beside(target) if request.param == "beside" else within(target)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but those in staging."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".deltaweights" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.sampled(8)
@pytest.mark.trust
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("journal", JOURNALS.values(), ids=JOURNALS)
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_row78_planted_staging_removes_and_publishes_nothing(
    pair: Pair, location: TargetLocation, mode: int, journal: object, run: Callable[[Pair, Path], object]
) -> None:
    """A staging folder that came with a download, its journal and its script: every command ends with 3, or 7 as without it."""
    files = {
        "plan.json": '{"identity":"plan1:a","arrivals":{}}',
        "publishing.json": json.dumps(journal),
        "shards/run.py": "evil",
    }
    plant(location, files, mode=mode)
    before = tree_of(location.target)
    with pytest.raises((MalformedInput, TargetBusy)) as caught:
        run(pair, location.target)
    assert tree_of(location.target) == before
    if isinstance(caught.value, MalformedInput):
        assert caught.value.problem == NOT_OURS


@pytest.mark.trust
@pytest.mark.parametrize("run", [RUNS["apply"], RUNS["part"], RUNS["clean"]], ids=["apply", "part", "clean"])
@pytest.mark.parametrize("remove", ["tax.pdf", "thesis", "../tax.pdf", "run.py"])
def test_row78_journals_name_files_of_results_alone(
    pair: Pair, location: TargetLocation, remove: str, run: Callable[[Pair, Path], object]
) -> None:
    """A journal in staging that looks like ours moves and removes only files that a result may have."""
    found = location.target / remove
    mark = [found.stat().st_ino, found.stat().st_size, found.stat().st_mtime_ns] if found.exists() else [1, 2, 3]
    journal = {"version": 2, "plan": "plan1:a", "new": {}, "old": {remove: mark}}
    files = {
        "plan.json": '{"identity":"plan1:a","arrivals":{}}',
        "publishing.json": json.dumps(journal),
        "shards/run.py": "evil",
    }
    plant(location, files, owned=True)
    before = tree_of(location.target)
    with pytest.raises((MalformedInput, TargetBusy)):
        run(pair, location.target)
    assert tree_of(location.target) == before


@pytest.mark.trust
@pytest.mark.parametrize("fault", ["marks", "unfinished", "a folder", "another plan"])
def test_row78_what_a_journal_names_must_be_as_it_says(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Files that were put in a target after its publication began stay, and shards that are not finished are not published."""
    result = Path(apply_delta(*pair, tmp_path / "result").target)
    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.chdir(target)
    location = within(target)
    mine = target / "config.json"
    mine.write_text("old")
    plan = stage_result(location, result)
    write_journal(location, plan)
    if fault == "marks":
        mine.unlink()
        mine.write_text("mine, and new")
    elif fault == "a folder":
        mine.unlink()
        (mine / "thesis").mkdir(parents=True)
    elif fault == "unfinished":
        (location.shards / "tokenizer_config.json").write_text("{}")
    else:
        write_journal(location, "plan1:a")
    before = tree_of(target)
    for run in (RUNS["apply"], RUNS["clean"]):
        with pytest.raises((MalformedInput, TargetBusy)):
            run(pair, target)
        assert tree_of(target) == before
        assert mine.exists()


@pytest.mark.sampled(11)
@pytest.mark.trust
@pytest.mark.parametrize("run", [RUNS["apply"], RUNS["part"], RUNS["clean"]], ids=["apply", "part", "clean"])
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(
    "name", ["shards", "fragments", "replaced", "companions", "unpacked", "parts", "plan.json", "lock", "staging.json"]
)
def test_row79_links_in_staging(
    pair: Pair, tmp_path: Path, precious: Path, name: str, run: Callable[[Pair, Path], object], *, owned: bool
) -> None:
    """A link in staging ends every run with 3 or 5, and nothing happens to what it leads to."""
    before, target = files_of(precious), tmp_path / "out"
    location = locate_target(target)
    plant(location, {"plan.json": '{"identity": "x"}'}, owned=owned)
    (location.root / name).unlink(missing_ok=True)
    (location.root / name).symlink_to(precious)
    with pytest.raises((MalformedInput, InputOutputError)):
        run(pair, target)
    assert files_of(precious) == before
    assert not os.path.lexists(target)


@pytest.mark.trust
@pytest.mark.parametrize("run", [RUNS["apply"], RUNS["part"], RUNS["clean"]], ids=["apply", "part", "clean"])
def test_row79_staging_that_is_a_link(
    pair: Pair, tmp_path: Path, precious: Path, run: Callable[[Pair, Path], object]
) -> None:
    """Staging that is a link itself is refused, too."""
    before, target = files_of(precious), tmp_path / "out"
    precious.chmod(0o700)
    locate_target(target).root.symlink_to(precious)
    with refused(MalformedInput, problem=NOT_OURS, where=locate_target(target).root):
        run(pair, target)
    assert files_of(precious) == before


# Other users.

AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="a second user needs root and setpriv"
)


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """Make a folder that everybody may write, as /tmp is, and that another user can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder) != "/":
            folder.chmod(folder.stat().st_mode | 0o011)
    folder = tmp_path / "common"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def as_nobody(*command: str | Path) -> None:
    """Run a command as another user."""
    change = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    subprocess.run([*change, *map(str, command)], check=True, timeout=PATIENCE)


@AS_ROOT
@pytest.mark.trust
@pytest.mark.parametrize("run", [RUNS["apply"], RUNS["part"], RUNS["clean"]], ids=["apply", "part", "clean"])
@pytest.mark.parametrize("mode", ["700", "777"])
def test_row79_staging_of_another_user(
    pair: Pair, common: Path, mode: str, run: Callable[[Pair, Path], object]
) -> None:
    """A staging folder of another user is not used, whatever its permissions, and stays as it is."""
    location = locate_target(common / "out")
    as_nobody("mkdir", "-m", mode, location.root)
    with refused(MalformedInput, problem=NOT_OURS, found=f"a folder of user 65534 with permissions {mode}"):
        run(pair, location.target)
    assert list(location.root.iterdir()) == []
    assert not location.target.exists()


class When(Report):
    """Calls a function once, at the first progress or at the end of the stream."""

    def __init__(self, do: Callable[[], object], *, at_end: bool) -> None:
        self._do, self._at_end, self._done = do, at_end, False

    def progress(self, done: int) -> None:
        """Do it on the way."""
        if not self._at_end:
            self._once()

    def end(self) -> None:
        """Do it at the end."""
        self._once()

    def _once(self) -> None:
        if not self._done:
            self._done = True
            self._do()


@pytest.mark.trust
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_row79_staging_that_is_swapped_for_a_link(
    pair: Pair, common: Path, precious: Path, *, at_end: bool, overwrite: bool
) -> None:
    """When somebody swaps staging for a link during a run, the run continues in the folder that it opened."""
    location = locate_target(common / "out")
    if overwrite:
        apply_delta(*pair, location.target, dtype="float32")
    (precious / "shards").mkdir()
    (precious / "shards" / "model.safetensors").write_text("of another model")
    before = tree_of(precious)

    def swap() -> None:
        location.root.rename(common / "aside")
        location.root.symlink_to(precious)

    result = apply_delta(*pair, location.target, overwrite=overwrite, report=When(swap, at_end=at_end))
    assert tree_of(precious) == before
    assert not location.target.is_symlink()
    assert verify(location.target, expect=result.content_digest).ok


@pytest.mark.trust
def test_row79_staging_that_is_swapped_for_a_folder(pair: Pair, common: Path, precious: Path) -> None:
    """When somebody swaps staging for a folder, the files in that are not published."""
    location = locate_target(common / "out")

    def swap() -> None:
        location.root.rename(common / "aside")
        shutil.copytree(precious, location.root / "shards")

    apply_delta(*pair, location.target, report=When(swap, at_end=True))
    assert not (location.target / "id_rsa").exists()
    assert verify(location.target).ok


@pytest.mark.trust
@pytest.mark.parametrize("exchange", [True, False])
def test_row79_another_model_that_is_moved_into_the_targets_place(
    pair: Pair, common: Path, monkeypatch: pytest.MonkeyPatch, *, exchange: bool
) -> None:
    """When somebody moves another of the user's models to the target at the last moment, it is not replaced."""
    target, other = common / "out", common / "other"
    apply_delta(*pair, target, dtype="float32")
    apply_delta(*pair, other, dtype="bfloat16")
    before = files_of(other)
    swap = OpenFolder.exchange

    def moved(folder: OpenFolder, name: str, holder: OpenFolder, target_name: str) -> bool:
        monkeypatch.setattr(OpenFolder, "exchange", swap if exchange else lambda *_: False)
        target.rename(common / "aside")
        other.rename(target)
        return exchange and swap(folder, name, holder, target_name)

    monkeypatch.setattr(OpenFolder, "exchange", moved)
    with refused(TargetBusy, problem=APPEARED, where=target):
        apply_delta(*pair, target, overwrite=True)
    assert files_of(target) == before
    assert verify(common / "aside").ok
    assert apply_delta(*pair, target, overwrite=True).status == "merged"


@pytest.mark.trust
def test_row79_a_second_name_of_a_file_elsewhere(pair: Pair, tmp_path: Path, precious: Path) -> None:
    """Files in staging are replaced, never overwritten in place: they may be hard links to files elsewhere."""
    location = locate_target(tmp_path / "out")
    plant(location, {}, owned=True)
    for name in ("shards/config.json", "shards/model.safetensors", "plan.json", "fragments/model.safetensors.json"):
        (location.root / name).parent.mkdir(exist_ok=True)
        (location.root / name).hardlink_to(precious / "id_rsa")
    before = files_of(precious)
    apply_delta(*pair, location.target)
    assert files_of(precious) == before
    assert verify(location.target).ok


@AS_ROOT
@pytest.mark.trust
def test_row79_a_probe_that_is_swapped(pair: Pair, common: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a parent that others may write to, no new folder is compared with: they could swap it for one of their own."""
    location = locate_target(common / "out")
    as_nobody("mkdir", "-m", "755", location.root)
    mkdir = os.mkdir

    def made(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name.startswith(f"{location.root.name}."):
            os.chown(name, 65534, 65534, dir_fd=dir_fd)
            os.chmod(common / name, 0o755)  # noqa: PTH101, S103

    monkeypatch.setattr(os, "mkdir", made)
    with refused(MalformedInput, problem=NOT_OURS, found="a folder of user 65534 with permissions 755"):
        apply_delta(*pair, location.target)


@pytest.mark.trust
def test_row79_a_file_system_without_permissions(pair: Pair, common: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where permissions cannot be set (WSL's drives, memory cards), this user's staging is used all the same."""
    location = make_staging(locate_target(common / "out"))
    location.root.chmod(0o777)
    with refused(MalformedInput, found=f"a folder of user {os.geteuid()} with permissions 777"):
        clean(location.target)
    assert stat.S_IMODE(location.root.stat().st_mode) == 0o777
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    assert apply_delta(*pair, location.target).status == "merged"


@pytest.mark.trust
@pytest.mark.parametrize("how", ["of another target", "of another user", "by its inode"])
def test_row78_ownership_records_of_others(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Staging whose ownership record is for another target, made with another key, or has a guessed inode, is refused."""
    location = locate_target(tmp_path / "out")
    if how == "of another target":
        make_staging(beside(tmp_path / "other")).root.rename(location.root)
    elif how == "of another user":
        with monkeypatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
            make_staging(location)
    else:
        location.root.mkdir(0o700)
        record = {"version": 1, "inode": location.root.stat().st_ino}
        (location.root / "staging.json").write_text(json.dumps(record))
    location.shards.mkdir()
    with refused(MalformedInput, problem=NOT_OURS, where=location.root):
        clean(location.target)
    assert location.shards.exists()


@pytest.mark.trust
def test_row79_without_a_state_folder_the_inode_proves_ownership(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no key can be kept, staging of an interrupted run is still used, and a copy of it is not."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    location = make_staging(locate_target(tmp_path / "out"))
    shutil.copytree(location.root, tmp_path / ".copy.deltaweights")
    assert apply_delta(*pair, location.target).status == "merged"
    with refused(MalformedInput, problem=NOT_OURS):
        clean(tmp_path / "copy")


@pytest.mark.trust
def test_row79_a_folder_that_is_renamed_to_a_file_of_the_old_model(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When somebody puts a folder of the user's under a name that is being removed, it is put back."""
    target = Path(apply_delta(*pair, tmp_path / "out", dtype="float32").target)
    monkeypatch.chdir(target)
    rename, swapped = OpenFolder.rename, list[str]()

    def swap(folder: OpenFolder, name: str, to: OpenFolder, new: str) -> None:
        if folder.path == target and name == "SHA256SUMS" and not swapped:
            swapped.append(name)
            (target / name).rename(target / "aside")
            (target / name).mkdir()
            (target / name / "thesis.tex").write_text("years")
        rename(folder, name, to, new)

    monkeypatch.setattr(OpenFolder, "rename", swap)
    with refused(TargetBusy, problem=APPEARED, where=target / "SHA256SUMS"):
        apply_delta(*pair, target, overwrite=True)
    assert (target / "SHA256SUMS" / "thesis.tex").read_text() == "years"


@pytest.mark.trust
def test_row78_a_folder_of_the_users_is_never_overwritten(pair: Pair, tmp_path: Path) -> None:
    """Folders named like a disk's or a cache's own may hold files of the user's: 7, even with --overwrite."""
    target = Path(apply_delta(*pair, tmp_path / "out", dtype="float32").target)
    for folder in ("lost+found", ".cache/huggingface/hub", ".cache/torch"):
        (target / folder).mkdir(parents=True)
        (target / folder / "mine").write_text("mine")
        with refused(TargetBusy, where=target, found=folder.split("/")[0]):
            apply_delta(*pair, target, overwrite=True)
        assert (target / folder / "mine").exists()
        shutil.rmtree(target / folder.split("/")[0])
    (target / ".cache" / "huggingface" / "download").mkdir(parents=True)
    assert apply_delta(*pair, target, overwrite=True).status == "merged"


@pytest.mark.trust
def test_row78_a_folder_with_the_name_of_a_file_is_not_overwritten(pair: Pair, tmp_path: Path) -> None:
    """A folder under the name of a model's file is no part of the model: 7, even with --overwrite."""
    target = Path(apply_delta(*pair, tmp_path / "out", dtype="float32").target)
    for name in ("LICENSE", "config.json", ".cache"):
        (target / name).unlink() if (target / name).exists() else None
        (target / name).mkdir()
        (target / name / "thesis.tex").write_text("years")
        with refused(TargetBusy, where=target, found=name):
            apply_delta(*pair, target, overwrite=True)
        assert (target / name / "thesis.tex").read_text() == "years"
        shutil.rmtree(target / name)


def test_a_link_where_archives_are_unpacked(pair: Pair, tmp_path: Path, precious: Path) -> None:
    """An archive is not unpacked through a link."""
    archive = archive_of(pair[1], DEFLATED)
    location = make_staging(locate_target(tmp_path / "out"))
    location.unpacked.mkdir()
    (location.unpacked / "delta").symlink_to(precious)
    before = files_of(precious)
    with refused(MalformedInput, where=location.unpacked / "delta", found="a link"):
        apply_delta(pair[0], archive, location.target)
    assert files_of(precious) == before


def test_links_among_what_a_part_left(pair: Pair, tmp_path: Path, precious: Path) -> None:
    """The files to publish beside the weights are not read through a link."""
    location = locate_target(tmp_path / "out")
    for part in ("1/2", "2/2"):
        apply_part(*pair, location.target, part=part)
    config = location.root / "companions" / "config.json"
    config.unlink()
    config.symlink_to(precious / "id_rsa")
    with refused(InputOutputError, where=config):
        finish_parts(location.target)
    assert not location.target.exists()


@pytest.mark.parametrize("where", ["plan.json", "fragments/model.safetensors.json"])
def test_a_fifo_in_staging(pair: Pair, tmp_path: Path, where: str) -> None:
    """A FIFO in place of one of our documents is ignored, and not waited for."""
    location = make_staging(locate_target(tmp_path / "out"))
    location.fragments.mkdir()
    if where != "plan.json":
        (location.root / "plan.json").write_text("{}")
    os.mkfifo(location.root / where)
    assert apply_delta(*pair, location.target).status == "merged"


FIELDS: dict[str, Callable[[dict[str, object]], object]] = {
    "sha256": lambda document: document.update(sha256=[1]),
    "size": lambda document: document.update(size=1.0),
    "a digest": lambda document: document["tensors"][0].update(digest="\ud800"),  # type: ignore[index]
    "no digest": lambda document: document["tensors"][0].update(delta=None),  # type: ignore[index]
    "counts": lambda document: document["tensors"][0].update(nonfinite="1"),  # type: ignore[index]
    "a proof": lambda document: document["tensors"][0].update(proof=["x", 1, 1, 1]),  # type: ignore[index]
    "a sum": lambda document: document["tensors"][0].update(sum="1"),  # type: ignore[index]
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_fragments_with_other_kinds_of_values(
    pair: Pair, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    """A fragment with fields of other types is not accepted, and its shard is made again."""
    location = locate_target(tmp_path / "out")
    for part in ("1/2", "2/2"):
        apply_part(*pair, location.target, part=part)
    (path,) = location.fragments.iterdir()
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="fragment"):
        Fragment.from_bytes(path.read_bytes())
    assert apply_part(*pair, location.target, part="1/2").made == ("model.safetensors",)


def test_a_tokenizer_that_is_a_link(tmp_path: Path, precious: Path) -> None:
    """A tokenizer.model that is a link out of its folder is refused, like every file that would be copied."""
    folder = save_meta(base_tensors(), tmp_path / "meta")
    (folder / "tokenizer.model").symlink_to(precious / "id_rsa")
    with refused(MalformedInput, where=folder / "tokenizer.model", problem="a link that leaves the folder"):
        convert_checkpoint(folder, tmp_path / "out")


# Documents that are written again.


def nested(levels: int) -> object:
    """Return lists in lists, long ones, with an object at the bottom."""
    value: object = {}
    for _ in range(levels):
        value = [0] * 1000 + [value]
    return value


def test_documents_of_many_levels_are_written_at_once() -> None:
    """The time to write is linear in the size, and a document nested too deeply to be read is refused."""
    assert strict_json(readable_json(nested(100))) == nested(100)
    with pytest.raises(ValueError, match="nested too deeply"):
        readable_json(nested(300))


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_numbers_that_are_none(number: str) -> None:
    """A number that is too large for a float is refused: other readers take it for infinity."""
    with pytest.raises(ValueError, match="larger than any number"):
        strict_json(f'{{"a": {number}}}'.encode())
