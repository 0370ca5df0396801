"""``download --local-dir``: the files themselves, as ``hf`` leaves them, and nothing of the user's own is replaced."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from huggingface_hub._local_folder import read_download_metadata

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy, UsageError
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.download import Downloaded, download
from tests.support.errors import refused
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_server import Fault, HubServer

pytestmark = pytest.mark.receiver

MODEL = "acme/merged"

WEIGHTS = "model.safetensors"

BELONGING = (
    "LICENSE",
    "LICENSE-llama.txt",
    "NOTICE",
    "README.md",
    "BASE_README.md",
    "SHA256SUMS",
    "manifest.json",
    "model.sig",
)

SIZE = 3 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files of a repository: one of weights, what belongs to it, and others."""
    made = tmp_path_factory.mktemp("repository")
    (made / WEIGHTS).write_bytes(os.urandom(SIZE))
    (made / "config.json").write_text('{"model_type": "llama"}')
    for name in BELONGING:
        (made / name).write_text(f"{name}\n")
    (made / "pytorch_model.bin").write_bytes(b"PK\3\4" + bytes(1000))
    (made / "training.log").write_text("loss 0\n")
    return made


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    """Serve the repository."""
    with HubServer({MODEL: folder}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub."""
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


def fetch(machine: Machine, to: Path, *, exclude: Sequence[str] = (), offline: bool = False) -> Downloaded:
    (found,) = download(MODEL, local_dir=to, exclude=exclude, options=HubOptions(offline=offline), report=machine.said)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".cache")


def test_all_that_belongs_is_taken_along(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Proof, licences, notices and cards come with the weights; other formats and logs do not. hf knows the files as downloaded."""
    found = fetch(machine, tmp_path / "to")
    assert names(tmp_path / "to") == sorted([*BELONGING, WEIGHTS, "config.json"]) == sorted(found.files)
    assert found.path == str(tmp_path / "to")
    for name in found.files:
        path = tmp_path / "to" / name
        assert path.read_bytes() == (folder / name).read_bytes()
        assert not path.is_symlink()
        noted = read_download_metadata(tmp_path / "to", name)
        assert noted is not None
        assert noted.commit_hash == found.commit
    assert not any(path.suffix == ".incomplete" for path in (tmp_path / "to").rglob("*"))
    sent = hub.sent[f"{MODEL}/{WEIGHTS}"]
    done = machine.hf("download", MODEL, WEIGHTS, "--local-dir", tmp_path / "to")
    assert done.returncode == 0, done.stderr
    assert hub.sent[f"{MODEL}/{WEIGHTS}"] == sent
    assert fetch(machine, tmp_path / "to").fetched == 0


def test_the_cache_takes_it_along_too(machine: Machine) -> None:
    """Without --local-dir the snapshot has the same files."""
    found = machine.fetch(MODEL)
    assert names(Path(found.path)) == sorted([*BELONGING, WEIGHTS, "config.json"])


def test_what_hf_has_fetched_is_not_fetched_again(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    """A folder of hf's is taken over: its files are hashed, and not fetched."""
    assert machine.hf("download", MODEL, "--local-dir", tmp_path / "to").returncode == 0
    sent = hub.sent[f"{MODEL}/{WEIGHTS}"]
    assert fetch(machine, tmp_path / "to").fetched == 0
    assert hub.sent[f"{MODEL}/{WEIGHTS}"] - sent < SIZE // 2  # the header may be looked at


def test_the_cache_is_used(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """What the cache has is copied, also offline; a damaged blob is fetched again."""
    blob = (Path(machine.fetch(MODEL).path) / WEIGHTS).resolve()
    sent = hub.sent[f"{MODEL}/{WEIGHTS}"]
    assert fetch(machine, tmp_path / "to", offline=True).fetched == 0
    assert hub.sent[f"{MODEL}/{WEIGHTS}"] == sent
    assert (tmp_path / "to" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert not (tmp_path / "to" / WEIGHTS).samefile(blob)
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    fetch(machine, tmp_path / "other")
    assert (tmp_path / "other" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_broken_download_goes_on(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """What has arrived is kept in the folder, under .cache, and the next run fetches the rest."""
    machine.ask_for_little(1 << 18, 1 << 18)
    hub.faults.append(Fault("drop", path=WEIGHTS, on="files", at=2 << 20, times=math.inf))
    with refused(InputOutputError, code=ErrorCode.NETWORK):
        fetch(machine, tmp_path / "to")
    assert not (tmp_path / "to" / WEIGHTS).exists()
    hub.faults.clear()
    assert fetch(machine, tmp_path / "to").fetched < SIZE
    assert (tmp_path / "to" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def _other_content(path: Path) -> None:
    path.write_text("mine\n")


def _same_size(path: Path) -> None:
    path.write_bytes(bytes(SIZE))


def _link(path: Path) -> None:
    path.with_name("mine.txt").write_text("mine\n")
    path.symlink_to("mine.txt")


def _folder(path: Path) -> None:
    path.mkdir()


OTHERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a card": ("README.md", _other_content),
    "weights of the same size": (WEIGHTS, _same_size),
    "a link": ("config.json", _link),
    "a folder": ("config.json", _folder),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_file_is_never_replaced(machine: Machine, tmp_path: Path, case: str) -> None:
    """A file that was not downloaded stays, whatever it is, and the run ends with 7; with --exclude it is left alone."""
    name, make = OTHERS[case]
    to = tmp_path / "to"
    to.mkdir()
    make(to / name)
    before = (to / name).lstat()
    with refused(TargetBusy, where=to / name, problem="is not replaced", code=ErrorCode.TARGET_NOT_EMPTY):
        fetch(machine, to)
    after = (to / name).lstat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    if name != WEIGHTS:
        assert name not in fetch(machine, to, exclude=[name]).files


def test_a_file_that_the_user_changed_is_never_replaced(machine: Machine, tmp_path: Path) -> None:
    """A file that was downloaded, and edited since, is the user's."""
    fetch(machine, tmp_path / "to")
    config = tmp_path / "to" / "config.json"
    config.write_text('{"model_type": "mine!"}')
    os.utime(config, (time.time() + 10,) * 2)
    with refused(TargetBusy, where=config, found="a file that was changed after it was downloaded"):
        fetch(machine, tmp_path / "to")
    assert "mine!" in config.read_text()


def test_what_was_downloaded_is_renewed(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Files of an older commit, and those that rotted on the disk, are replaced."""
    to = tmp_path / "to"
    fetch(machine, to)
    weights = to / WEIGHTS
    content, status = bytearray(weights.read_bytes()), weights.stat()
    content[5] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "newer": true}')
    files = {path.name: path for path in folder.iterdir()} | {"config.json": tmp_path / "config.json"}
    hub.push(MODEL, files)
    fetch(machine, to)
    assert weights.read_bytes() == (folder / WEIGHTS).read_bytes()
    assert "newer" in (to / "config.json").read_text()


@pytest.mark.parametrize("planted", [".cache", ".cache/huggingface", ".cache/huggingface/download"])
def test_links_in_the_notes_are_not_followed(machine: Machine, tmp_path: Path, planted: str) -> None:
    """A folder that came from elsewhere may hold links where hf keeps notes: nothing is written through them."""
    to, elsewhere = tmp_path / "to", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (to / planted).parent.mkdir(parents=True)
    (to / planted).symlink_to(elsewhere)
    with refused(MalformedInput, where=to / planted, problem="not a folder", found="a link"):
        fetch(machine, to)
    assert list(elsewhere.iterdir()) == []


def test_a_note_that_is_a_link_is_replaced(machine: Machine, tmp_path: Path) -> None:
    """What a note leads to is not written."""
    notes = tmp_path / "to" / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    (notes / "config.json.metadata").symlink_to(tmp_path / "precious")
    fetch(machine, tmp_path / "to")
    assert (tmp_path / "precious").read_text() == "precious"


PATTERNS: dict[str, tuple[list[str], list[str]]] = {
    "json": (["*.json"], []),
    "two": (["*.json", "LIC*"], []),
    "less": (["*"], ["*.bin", "*.safetensors"]),
    "case": (["license*", "README*"], []),
    "set": (["[Lm]*"], ["*.sig"]),
    "question mark": (["NOTIC?"], []),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PATTERNS)
def test_patterns_are_those_of_hf(machine: Machine, tmp_path: Path, case: str) -> None:
    """--include and --exclude choose what hf chooses."""
    include, exclude = PATTERNS[case]
    flags = [word for pattern in include for word in ("--include", pattern)]
    flags += [word for pattern in exclude for word in ("--exclude", pattern)]
    assert machine.hf("download", MODEL, *flags, "--local-dir", tmp_path / "theirs").returncode == 0
    done = machine.run("download", MODEL, *flags, "--local-dir", tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("exclude", "weights"),
    [(["*.safetensors"], ["pytorch_model.bin"]), (["*.bin"], [WEIGHTS]), (["*.safetensors", "*.bin"], [])],
)
def test_excluded_weights_leave_the_other_format(
    machine: Machine, tmp_path: Path, exclude: list[str], weights: list[str]
) -> None:
    """With --exclude alone, what belongs to the checkpoint that is left is fetched."""
    found = fetch(machine, tmp_path / "to", exclude=exclude)
    assert sorted(found.files) == sorted([*BELONGING, "config.json", *weights])


def test_a_recipe_has_two_models(machine: Machine, tmp_path: Path) -> None:
    """The two models of a recipe do not go into one folder."""
    with refused(UsageError, found="llava-med-7b"):
        download("llava-med-7b", local_dir=tmp_path / "to")
