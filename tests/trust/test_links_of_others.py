"""Rows 80 and 81 of the table: links that flip, and links out of the input."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaweights.checkpoint import safe_open
from deltaweights.checkpoint.directory import LocalDirectory, OutsideLink
from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.export.vision_tower import _read_config
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.input_manifest import manifest_of
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.verify import verify
from tests.faults.test_concurrency import pair
from tests.support.errors import refused
from tests.support.other_user import OTHER, common_folder, give_to_other, needs_other_user, start_as_other
from tests.support.pairs import make_pair
from tests.support.reports import RecordingReport
from tests.trust.harness import Case, case, hold, merging, run_command

__all__ = ["pair"]

Pair = tuple[Path, Path]

SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"
TERMS = b"Do as you like.\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Make a file that nobody else may read, in a folder that nobody else may enter."""
    (tmp_path / "home").mkdir(0o700)
    path = tmp_path / "home" / "LICENSE"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Make an input folder."""
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


def linked(name: str) -> Callable[[Path, Path], None]:
    """Return a function that makes a file of the delta a link to one beside its folder."""

    def change(_: Path, delta: Path) -> None:
        (delta.parent / "secret").write_bytes(SECRET)
        (delta / name).unlink(missing_ok=True)
        (delta / name).symlink_to(delta.parent / "secret")

    return change


CASES: dict[str, Case] = {
    f"row80-{name}": case(merging(linked(name)), 3, f"{name}: a link that leaves the folder")
    for name in ("LICENSE", "README.md", "config.json", "tokenizer.model")
}


@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_links_of_what_is_copied(subject: Case, tmp_path: Path, normal: float) -> None:
    """A file to be copied that is a link out of its folder ends the run."""
    hold(subject, tmp_path, normal)


# Files that flip between a file and a link.


class Flips:
    """Flips ``path`` between a file and a link to ``secret`` right before the system calls with the numbers in ``when``."""

    def __init__(self, path: Path, secret: Path, content: bytes) -> None:
        self.path, self.secret, self.content = path, secret, content
        self.count, self.when = 0, frozenset[int]()

    def turn(self) -> None:
        """Flip."""
        was_link = self.path.is_symlink()
        self.path.unlink()
        if was_link:
            self.path.write_bytes(self.content)
        else:
            self.path.symlink_to(self.secret)

    def around(self, real: Callable[..., object]) -> Callable[..., object]:
        """Return a call that flips first."""

        def call(*arguments: object, **named: object) -> object:
            self.count += 1
            if self.count in self.when:
                self.when -= {self.count}
                before = self.when
                self.when = frozenset()
                self.turn()
                self.when = before
            return real(*arguments, **named)

        return call


@pytest.mark.trust
@pytest.mark.parametrize("link", [None, "LICENSE.txt", "legal/LICENSE"])
def test_row80_a_flip_between_any_two_steps(
    given: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, link: str | None
) -> None:
    """A licence, or what it links to, that flips at any call to a link to a secret does not make us read the secret."""
    at = given / (link or "LICENSE")
    at.parent.mkdir(exist_ok=True)
    if link is not None:
        (given / "LICENSE").symlink_to(link)
    flips = Flips(at, secret, TERMS)
    read = set()
    for first in range(1, 16):
        for second in range(first, 16):
            at.unlink(missing_ok=True)
            at.write_bytes(TERMS)
            directory = LocalDirectory(given)
            flips.count, flips.when = 0, frozenset({first, second})
            with monkeypatch.context() as patch:
                for name in ("open", "readlink", "stat", "lstat", "fstat"):
                    patch.setattr(os, name, flips.around(getattr(os, name)))
                try:
                    read.add(directory.read_companion("LICENSE", 1000))
                except MalformedInput as error:
                    assert SECRET.decode() not in str(error)  # noqa: PT017  (either is right)
                    read.add(b"")
            directory.close()
    assert read == {TERMS, b""}


FLIP = """
import os, sys
folder, secret = sys.argv[1:]
os.chdir(folder)
print("begun", flush=True)
for number in range(1_000_000):
    with open("new", "w") as file:
        file.write("Do as you like.\\n")
    os.replace("new", "LICENSE")
    os.symlink(secret, "new")
    os.replace("new", "LICENSE")
"""


@needs_other_user
@pytest.mark.trust
def test_row80_another_user_flips(secret: Path) -> None:
    """While its owner flips a licence as fast as possible, 2,000 reads give the licence or a refusal."""
    with common_folder() as folder:
        (folder / "LICENSE").write_bytes(TERMS)
        give_to_other(folder)
        with start_as_other(FLIP, folder, secret) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                read, directory = [], LocalDirectory(folder)
                for _ in range(2000):
                    try:
                        read.append(directory.read_companion("LICENSE", 1000))
                    except DeltaweightsError:
                        read.append(b"refused")
                assert process.poll() is None, "it flips no more"
            finally:
                process.kill()
    assert set(read) <= {TERMS, b"refused", b""}
    assert TERMS in read
    assert b"refused" in read


@pytest.mark.trust
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_row80_documents_whose_values_are_copied(tmp_path: Path, secret: Path, name: str) -> None:
    """The configurations of a vision tower, whose values get into the result, are not read through links."""
    base, _ = make_pair(tmp_path, "safetensors", 1)
    (base / "config.json").write_text("{}")
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(secret)
    with (
        open_checkpoint(base, "vision tower") as checkpoint,
        refused(MalformedInput, problem="a link that leaves the folder"),
    ):
        _read_config(checkpoint)


@pytest.mark.trust
def test_row80_a_manifest_elsewhere(tmp_path: Path, secret: Path) -> None:
    """Neither is the manifest beside an input, whose origins get into the result."""
    base, _ = make_pair(tmp_path, "safetensors", 1)
    (base / MANIFEST).symlink_to(secret)
    with (
        open_checkpoint(base, "merged") as checkpoint,
        refused(MalformedInput, problem="a link that leaves the folder"),
    ):
        manifest_of(checkpoint)


@pytest.mark.trust
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("expect", [False, True])
def test_row80_a_flip_while_a_result_is_verified(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, expect: bool
) -> None:
    """A file that becomes a link after it was checked is not verified."""
    target = tmp_path / "out"
    digest = apply_delta(*pair, target).content_digest
    (tmp_path / "elsewhere").mkdir()
    really = FolderCheck.compare_size

    def has_size(check: FolderCheck, file: str) -> bool:
        result = really(check, file)
        if not (target / name).is_symlink():
            shutil.move(target / name, tmp_path / "elsewhere")
            (target / name).symlink_to(tmp_path / "elsewhere" / name)
        return result

    monkeypatch.setattr(FolderCheck, "compare_size", has_size)
    found = verify(target, expect=digest if expect else None)
    assert f"{name}: cannot be verified: {target / name}: not a regular file: found a link" in str(found.problems[0])


# Weights that are links.


@pytest.fixture
def links(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Make a base whose files are links to another folder, and a delta; return them, and the other folder."""
    with common_folder() as folder:
        base, delta = make_pair(folder, "safetensors", 2)
        (folder / "links").mkdir()
        for path in base.iterdir():
            (folder / "links" / path.name).symlink_to(path)
        yield folder / "links", delta, base


@pytest.mark.trust
def test_row81_links_out_of_the_input_are_said(links: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """They are followed, because clusters use them, with one remark; no path gets into the result."""
    base, delta, real = links
    outcome = run_command(["apply", "--base", base, "--delta", delta, "--target", tmp_path / "out"])
    assert outcome.code == 0, outcome.err
    first = min(path.name for path in real.iterdir() if "model" in path.name)
    assert outcome.err.count("out of the folder") == 1
    assert f"{base}: 3 files are links out of the folder: {first} -> {real / first}\n" in outcome.err
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors")
    assert str(real).encode() not in written


OF_OTHERS = "another user's link to a file that is not theirs: found "


@needs_other_user
@pytest.mark.trust
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_row81_links_that_somebody_else_made(links: tuple[Path, Path, Path], tmp_path: Path, mode: int) -> None:
    """They are refused (3) whatever the file's mode, because its folder may be closed. The remedies help."""
    base, delta, real = links
    give_to_other(base)
    real.chmod(0o700)
    name = "model.safetensors.index.json"
    before = (real / name).read_bytes()
    (real / name).write_text(json.dumps({"weight_map": {"token": SECRET.decode()}}))
    (real / name).chmod(mode)
    outcome = run_command(["apply", "--base", base, "--delta", delta, "--target", tmp_path / "out"])
    assert outcome.code == 3
    remedy = "give the folder that it leads to, or make the link yourself"
    assert f"{base / name}: {OF_OTHERS}{real / name}; {remedy}" in outcome.err
    assert SECRET.decode() not in outcome.err
    (real / name).write_bytes(before)
    assert apply_delta(real, delta, tmp_path / "given").status == "merged"
    (tmp_path / "own").mkdir()
    for path in real.iterdir():
        (tmp_path / "own" / path.name).symlink_to(path)
    assert apply_delta(tmp_path / "own", delta, tmp_path / "linked").status == "merged"


@needs_other_user
@pytest.mark.trust
def test_row81_links_to_files_of_whoever_made_them(links: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Links to files of their own owner are read, with a warning."""
    base, delta, real = links
    give_to_other(base)
    give_to_other(real)
    said = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", report=said)
    assert len([text for text in said.warnings if text.endswith("; another user made it")]) == 1


@pytest.fixture(params=["held", "by-name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Check names by descriptor, where the system supports that, and without."""
    if request.param == "by-name":
        monkeypatch.setattr(safe_open, "PATH_ONLY", None)
    elif safe_open.PATH_ONLY is None:
        pytest.skip("the system cannot hold what it does not open")
    return str(request.param)


@needs_other_user
@pytest.mark.trust
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("whose", ["mine", "theirs", "link-mine-theirs", "link-theirs-mine", "folder-theirs"])
@pytest.mark.parametrize("owner", [0, OTHER, OTHER - 1])
def test_row81_every_link_on_the_way_counts(given: Path, tmp_path: Path, whose: str, owner: int) -> None:
    """Each link on the way must have been made by the user, root or the file's owner."""
    (tmp_path / "home" / "deep").mkdir(parents=True)
    file = tmp_path / "home" / "deep" / "x"
    file.write_bytes(TERMS)
    os.chown(file, owner, owner)
    first, second = given / "x", tmp_path / "second"
    if "link" in whose:
        first.symlink_to("../second")
        second.symlink_to(file)
    elif whose == "folder-theirs":
        first.symlink_to("..//second/./deep/../deep/x")
        second.symlink_to(tmp_path / "home/")
    else:
        first.symlink_to(file)
    theirs = first if whose in {"theirs", "link-theirs-mine"} else second
    if whose != "mine":
        os.chown(theirs, OTHER, OTHER, follow_symlinks=False)
    directory = LocalDirectory(given)
    if whose == "mine" or owner == OTHER:
        assert directory.read("x", 1000) == TERMS
        assert directory.outside_links["x"] == OutsideLink(str(file), by_others=whose != "mine")
    else:
        with pytest.raises(MalformedInput, match=OF_OTHERS):
            directory.read("x", 1000)
        assert not directory.outside_links


class FlipsOfOther(Flips):
    """Flips between a file and the other user's link."""

    def turn(self) -> None:
        super().turn()
        if self.path.is_symlink():
            os.chown(self.path, OTHER, OTHER, follow_symlinks=False)


@needs_other_user
@pytest.mark.trust
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("below", [False, True])
def test_row81_a_flip_between_any_two_steps(
    given: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, *, below: bool
) -> None:
    """Weights, or what our link leads to, that flip to somebody else's link to our file do not make us read that."""
    at = given.parent / "x" if below else given / "x"
    if below:
        (given / "x").symlink_to("../x")
    flips, read = FlipsOfOther(at, secret, TERMS), set()
    at.write_bytes(TERMS)
    for first in range(1, 80):
        for second in (*range(first, min(first + 4, 80)), 80):
            if not at.is_symlink():
                flips.turn()
            directory = LocalDirectory(given)
            flips.count, flips.when = 0, frozenset({first, second})
            with monkeypatch.context() as patch:
                for name in ("open", "readlink", "stat", "lstat", "fstat"):
                    patch.setattr(os, name, flips.around(getattr(os, name)))
                try:
                    read.add(directory.read("x", 1000))
                except DeltaweightsError:
                    read.add(b"")
            directory.close()
    assert read == {TERMS, b""}


@pytest.mark.trust
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a folder"])
def test_row81_what_is_no_file_is_not_opened(given: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A link to a device or FIFO is refused without opening it, which could have side effects."""
    to = {"a FIFO": given.parent / "fifo", "a device": Path("/dev/null"), "a folder": given.parent}[kind]
    if kind == "a FIFO":
        os.mkfifo(to)
    (given / "x").symlink_to(to)
    really, opened = os.open, []

    def note(*arguments: Any, **named: Any) -> int:
        fd = really(*arguments, **named)
        about, path_only = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_PATH", 0)
        if not path_only and not stat.S_ISREG(about.st_mode):
            opened.append(arguments)
        return fd

    monkeypatch.setattr(os, "open", note)
    with refused(MalformedInput, problem="not a regular file", found=kind):
        LocalDirectory(given).open("x")
    if safe_open.SEARCH & getattr(os, "O_PATH", 0):
        assert not opened


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [40, 41])
def test_as_many_links_as_the_system_follows(given: Path, count: int) -> None:
    """A chain of 40 links is followed; a longer one, or a loop, is refused."""
    (given.parent / "0").write_bytes(TERMS)
    for number in range(1, count):
        (given.parent / str(number)).symlink_to(str(number - 1))
    (given / "x").symlink_to(f"../{count - 1}")
    if count == 40:
        assert LocalDirectory(given).read("x", 1000) == TERMS
    else:
        with pytest.raises(InputOutputError, match="symbolic links"):
            LocalDirectory(given).open("x")


@pytest.mark.usefixtures("way")
def test_a_file_is_no_folder(given: Path) -> None:
    """A link that uses a file as a folder is refused."""
    (given.parent / "file").write_bytes(TERMS)
    for text in ("../file/", "../file/x", "../file/.."):
        (given / "x").unlink(missing_ok=True)
        (given / "x").symlink_to(text)
        with pytest.raises(InputOutputError, match="Not a directory"):
            LocalDirectory(given).open("x")


@pytest.mark.trust
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("below", ["", "original"])
def test_row81_links_of_the_cache_are_explained(tmp_path: Path, below: str, *, shared: bool) -> None:
    """Links of a snapshot into the blobs of the cache, its own or shared ones, are read without a remark."""
    cache = tmp_path / "hub"
    blobs, snapshot = cache / "models--a--b" / "blobs", cache / "models--a--b" / "snapshots" / ("c" * 40) / below
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    base, delta = make_pair(tmp_path, "safetensors", 2)
    (delta / "LICENSE").write_bytes(TERMS)
    up = "../../.." if below else "../.."
    for path in sorted(delta.iterdir()):
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        (snapshot / path.name).symlink_to(f"{up}/blobs/{key}")
        if shared:
            store = cache / "blobs" / key[:2]
            store.mkdir(parents=True, exist_ok=True)
            path.rename(store / key)
            (blobs / key).symlink_to(f"../../blobs/{key[:2]}/{key}")
        else:
            path.rename(blobs / key)
    said = RecordingReport()
    apply_delta(base, snapshot, tmp_path / "out", report=said)
    assert not [text for text in said.notes + said.warnings if "out of the folder" in text]
    assert (tmp_path / "out" / "LICENSE").read_bytes() == TERMS


@pytest.mark.parametrize(
    "text",
    ["../../blobs/../secret", "../../../home/LICENSE", "../../blobs/x", "..", "../../blobs/"],
    ids=["past", "beside", "from-blobs", "up", "the-folder"],
)
def test_what_no_link_of_the_cache_is(tmp_path: Path, secret: Path, text: str) -> None:
    """Links of a snapshot that lead anywhere else, directly or via the blobs, are refused."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "x").symlink_to(secret)
    (tmp_path / "models--a--b" / "secret").write_bytes(SECRET)
    (snapshot / "LICENSE").symlink_to(text)
    with pytest.raises(MalformedInput):
        LocalDirectory(snapshot).read_companion("LICENSE", 1000)
