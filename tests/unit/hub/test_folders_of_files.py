"""Files in the folders of a repository, as ``hf download`` takes and leaves them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub as hf
import pytest

from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy, UsageError
from deltaweights.hub.repo_listing import HubFile, RepoListing, is_usable, parse_files, parse_unusable
from deltaweights.hub.snapshot import stated_sha256
from deltaweights.hub.verified import VerificationRecords
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.download import download
from deltaweights.manifest.verify import verify
from tests.support.errors import refused
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, local, make, results
from tests.support.hub_server import HubServer
from tests.support.pairs import base_tensors, delta_tensors

MODEL = "acme/folders"

TEMPLATE, LICENCE, DEEP = "additional_chat_templates/tool.jinja", "terms/LICENSE.txt", "a/b/c/weights.bin"

SHA1 = "a" * 40


@pytest.fixture(scope="module")
def pair_in_folders(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair of two shards each."""
    base = base_tensors()
    return make(tmp_path_factory.mktemp("pair"), base, delta_tensors(base), "safetensors", 2)


@pytest.fixture
def repository(tmp_path: Path, pair_in_folders: Pair, hub: HubServer) -> dict[str, Path]:
    """Push a checkpoint with folders beside the weights, and one whose weights are in a folder only."""
    others = tmp_path / "others"
    for name in (TEMPLATE, LICENCE, DEEP, "images/a b.png"):
        (others / name).parent.mkdir(parents=True, exist_ok=True)
        (others / name).write_bytes(name.encode() * 5000)
    base, delta = pair_in_folders
    files = {path.name: path for path in base.iterdir()}
    files |= {name: others / name for name in (TEMPLATE, LICENCE, DEEP, "images/a b.png")}
    hub.push(MODEL, files)
    hub.push("acme/base-in-folder", {f"hf/fp16/{path.name}": path for path in base.iterdir()})
    hub.push("acme/delta-in-folder", {f"hf/{path.name}": path for path in delta.iterdir()})
    return files


def test_what_is_fetched(machine: Machine, repository: dict[str, Path], pair_in_folders: Pair) -> None:
    """By itself what belongs to the checkpoint, also in folders; by name and by patterns anything."""
    found = machine.fetch(MODEL)
    assert set(found.files) == {path.name for path in pair_in_folders[0].iterdir()} | {TEMPLATE, LICENCE}
    assert set(download(MODEL, files=[DEEP])[0].files) == {DEEP}
    assert set(machine.fetch(MODEL, "a/*", "*.png").files) == {DEEP, "images/a b.png"}
    (left,) = download(MODEL, exclude=["terms/*"])
    assert set(left.files) == set(found.files) - {LICENCE}
    everything = machine.fetch(MODEL, "*")
    assert set(everything.files) == set(repository)
    for name, path in repository.items():
        assert (Path(everything.path) / name).read_bytes() == path.read_bytes()


def tree_of(folder: Path) -> dict[str, str]:
    """Return what the files of a snapshot are: texts of links, or hashes."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        path.relative_to(folder).as_posix(): (
            str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in paths
        if ".cache" not in path.relative_to(folder).parts
    }


def test_the_cache_is_that_of_hf(machine: Machine, hub: HubServer, repository: dict[str, Path]) -> None:
    """Ours and ``hf``'s snapshots are the same, link by link, and each uses what the other has fetched."""
    ours = tree_of(Path(machine.fetch(MODEL, "*").path))
    before = len([each for each in hub.requests if each.method == "GET" and each.host == "files"])
    done = machine.hf("download", MODEL)
    assert done.returncode == 0, done.stderr
    assert len([each for each in hub.requests if each.method == "GET" and each.host == "files"]) == before
    other = hf.snapshot_download(MODEL, cache_dir=machine.folder / "other", endpoint=hub.endpoint)
    assert tree_of(Path(other)) == ours
    assert ours[DEEP].startswith("../../../../../blobs/")
    (again,) = download(MODEL, include=["*"], options=None, report=machine.said)
    assert again.fetched == 0


@pytest.mark.parametrize("links", ["links", "no links", "shared blobs"])
def test_what_hf_has_fetched(machine: Machine, hub: HubServer, repository: dict[str, Path], links: str) -> None:
    """It is used offline, with its hashes, in every layout."""
    done = machine.hf("download", MODEL, HF_HUB_DISABLE_SYMLINKS="1" if links == "no links" else "0")
    assert done.returncode == 0, done.stderr
    if links == "shared blobs":
        store = pytest.importorskip("huggingface_hub.utils._shared_blobs", reason="there are no shared blobs")
        for name, blob in machine.blobs(MODEL).items():
            if len(name) == 64:
                xet_hash, size = hashlib.sha256(name.encode()).hexdigest(), blob.stat().st_size
                assert store.publish_blob_to_shared_store(
                    blob_path=str(blob), xet_hash=xet_hash, cache_dir=machine.cache, expected_size=size
                )
    found = machine.fetch(MODEL, "*", offline=True)
    assert (set(found.files), found.fetched) == (set(repository), 0)
    deep = Path(found.path) / DEEP
    assert stated_sha256(deep) == hashlib.sha256(deep.read_bytes()).hexdigest()
    deep.resolve().chmod(0o644)
    deep.resolve().write_bytes(bytes(deep.stat().st_size))
    again = machine.fetch(MODEL, DEEP)
    assert (Path(again.path) / DEEP).read_bytes() == repository[DEEP].read_bytes()


def test_local_dir_keeps_the_folders(machine: Machine, repository: dict[str, Path], tmp_path: Path) -> None:
    """With notes where ``hf`` has them: the client fetches nothing again. Cached files are copied."""
    there = tmp_path / "there"
    download(MODEL, include=["*"], local_dir=there)
    for name, path in repository.items():
        assert (there / name).read_bytes() == path.read_bytes()
        assert (there / ".cache/huggingface/download" / f"{name}.metadata").is_file()
    done = machine.hf("download", MODEL, "--local-dir", there, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert " 0 files" in done.stdout + done.stderr, done.stdout + done.stderr
    machine.fetch(MODEL, "*")
    (copied,) = download(MODEL, include=["*"], local_dir=tmp_path / "copy")
    assert copied.fetched == 0
    assert tree_of(tmp_path / "copy") == tree_of(there)
    (again,) = download(MODEL, include=["*"], local_dir=there)
    assert again.fetched == 0


def write(path: Path, content: str) -> None:
    """Write a file, in folders that are made."""
    path.parent.mkdir(parents=True)
    path.write_text(content)


BLOCKED: dict[str, Callable[[Path], object]] = {
    "a file where a folder is wanted": lambda at: (at / "a").write_text("mine"),
    "a link in place of a folder": lambda at: (at / "a").symlink_to(at.parent / "elsewhere"),
    "a folder where a file is wanted": lambda at: (at / DEEP).mkdir(parents=True),
    "another file of this name": lambda at: write(at / DEEP, "mine"),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_stands_in_the_way_stays(machine: Machine, repository: dict[str, Path], tmp_path: Path, case: str) -> None:
    """It ends the download, and nothing is written elsewhere."""
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "elsewhere").mkdir()
    BLOCKED[case](there)
    before = tree_of(there)
    with refused(TargetBusy, problem="is not replaced"):
        download(MODEL, files=[DEEP], local_dir=there)
    assert tree_of(there) == before
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_in_place_of_a_folder_of_the_cache(
    machine: Machine, repository: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing is written through it."""
    found = machine.fetch(MODEL, "*.json")
    (tmp_path / "elsewhere").mkdir()
    (Path(found.path) / "a").symlink_to(tmp_path / "elsewhere")
    done = machine.run("download", MODEL, DEEP)
    assert (done.returncode, len(done.stderr.strip().splitlines()[-1:])) == (5, 1), done.stderr
    assert "not a folder of a cache" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())


HOSTILE = [
    "../x.bin", "a/../x.bin", "/x.bin", "a//x.bin", "a/", "a/./x.bin", "a\\x.bin", "a/..\\x.bin", "..", ".", "",
    ".cache/huggingface/download/x.metadata", ".CACHE/x", "a/.git/hooks/x", "a/x\n.bin", "a/\u202ex.bin", "a/x\0.bin",
    "/".join("a" * 17), "a/" + "x" * 201, "C:\\x.bin", "a/b:c",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names(name: str) -> None:
    """No file is given a name that leads elsewhere."""
    listing: list[Any] = [{"rfilename": name, "size": 1, "blobId": SHA1}]
    assert not is_usable(name)
    assert parse_files(listing) == {}
    assert parse_unusable(listing) == (name,)


@pytest.mark.parametrize("name", ["a/b.bin", "a b/c (1).bin", "a/.hidden", "a/ü.json", "a/b@c,d.png", "a/..b"])
def test_usable_names(name: str) -> None:
    """These are names as people give them."""
    assert is_usable(name)


def add_to_listing(hub: HubServer, *names: str) -> None:
    """Have the Hub list further files."""
    for tree in hub._repositories[MODEL].commits.values():
        tree.update(dict.fromkeys(names, next(iter(tree.values()))))


@pytest.mark.parametrize("name", ["../x.bin", "a/..\\x.bin", "a/.git/hooks/post-checkout"])
def test_a_hostile_name_that_is_asked_for(
    machine: Machine, hub: HubServer, repository: dict[str, Path], name: str
) -> None:
    """It is refused in one line, by name and by pattern; what does not need it is fetched."""
    add_to_listing(hub, name)
    for arguments in ([name], ["--include", "*"]):
        done = machine.run("download", MODEL, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    with refused(MalformedInput, problem="unusable file name", found=name, remedy="leave it out, with --exclude"):
        download(MODEL, include=["*"])
    assert set(download(MODEL, include=["*"], exclude=[name])[0].files) == set(repository)
    assert LICENCE in machine.fetch(MODEL).files


@pytest.mark.parametrize(
    ("names", "found"),
    [(("A/b/c/weights.bin",), "a/b/c/weights.bin and A/b/c/weights.bin"), (("a/b",), "a/b/c/weights.bin and a/b")],
)
def test_two_files_in_one_place(
    machine: Machine,
    hub: HubServer,
    repository: dict[str, Path],
    names: tuple[str, ...],
    found: str,
) -> None:
    """Names that some file systems do not tell apart are refused, and so is a file where a folder is."""
    add_to_listing(hub, *names)
    remedy = "leave one of them out, with --exclude"
    with refused(MalformedInput, problem="two files in the same place", found=found, remedy=remedy):
        download(MODEL, include=["*"])
    download(MODEL, include=["*"], exclude=[names[0]])


def test_a_folder_by_name(machine: Machine, repository: dict[str, Path]) -> None:
    """What to type instead is said, and works."""
    remedy = "use --include 'a/*' for all that is in it"
    with refused(UsageError, found="a, a folder", remedy=remedy):
        download(MODEL, files=["a"])
    assert set(machine.fetch(MODEL, "a/*").files) == {DEEP}


def test_weights_in_a_folder_only(
    machine: Machine, repository: dict[str, Path], pair_in_folders: Pair, tmp_path: Path
) -> None:
    """The folder is said, and the command that fetches it; what it leaves is verified, inspected and merged."""
    places = []
    for role, folder in (("base", "hf/fp16"), ("delta", "hf")):
        with pytest.raises(MalformedInput) as raised:
            apply_delta(f"acme/{role}-in-folder", f"acme/{role}-in-folder", tmp_path / "out")
        found, remedy = str(raised.value.found), str(raised.value.remedy)
        assert f"weights in {folder}/" in found
        command, _, give = remedy.removeprefix("fetch it with ").partition(", and then: give ")
        done = machine.run(*command.replace("'", "").split()[1:])
        assert done.returncode == 0, done.stderr
        places.append(Path(give))
    apply_delta(places[0], places[1], tmp_path / "out")
    local(pair_in_folders, tmp_path / "other")
    assert results(tmp_path / "out") == results(tmp_path / "other")
    done = machine.run("inspect", places[0], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert verify(places[0]).ok, "each file has the hash in its blob's name"


def test_a_mirror_that_states_names_only(machine: Machine, hub: HubServer, repository: dict[str, Path]) -> None:
    """Sizes and hashes of files in folders come from headers, of those alone that are fetched."""
    hub.lacks = {"details", "tree"}
    found = machine.fetch(MODEL, LICENCE)
    assert found.files == {LICENCE: repository[LICENCE].stat().st_size}
    assert not machine.said.warnings
    assert not any(request.file.endswith(DEEP) for request in hub.requests)
    assert tree_of(Path(found.path))[LICENCE].startswith("../../../blobs/")


def test_folders_cost_no_request(machine: Machine, hub: HubServer, repository: dict[str, Path]) -> None:
    """A file that is not wanted is not asked for."""
    hub.requests.clear()
    machine.fetch(MODEL, "config.json")
    assert {request.file for request in hub.requests if request.file} == {f"{MODEL}/config.json"}


def test_a_record_of_very_many_files_is_still_read(machine: Machine) -> None:
    """Of a commit with more files in folders than a record takes, those at the top are recorded, and found again."""
    records = VerificationRecords(machine.said)
    top = HubFile("model.safetensors", 5, "b" * 64, "")
    for count, known in ((10, True), (20_000, False)):
        below = {name: HubFile(name, 5, None, SHA1) for name in (f"a/{'x' * 40}{number}" for number in range(count))}
        listing = RepoListing(MODEL, f"{count:040}", {top.name: top}, below)
        records.add_listing(listing)
        empty = {name: HubFile(name, 0, None, "") for name in below}
        found = records.with_stated_hashes(RepoListing(MODEL, listing.commit, {top.name: replace(top, size=0)}, empty))
        assert found.files == listing.files
        assert (found.below == below) is known


def test_no_room_in_a_folder(
    machine: Machine, repository: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy names the option that was given, not that of the cache."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with refused(InputOutputError, remedy="make room, or choose a folder on another disk with --local-dir"):
        download(MODEL, local_dir=tmp_path / "there")


def test_a_folder_that_cannot_be_made(machine: Machine, tmp_path: Path) -> None:
    """What to choose is said."""
    write(tmp_path / "x" / "file", "")
    with refused(InputOutputError, remedy="choose another folder with --local-dir"):
        download(MODEL, local_dir=tmp_path / "x" / "file" / "there")
