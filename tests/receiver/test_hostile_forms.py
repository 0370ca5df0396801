"""What is received may be made to harm: links, archives and sums that lead elsewhere, and archives that never end."""

from __future__ import annotations

import gzip
import random
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.manifest import archive_source
from deltaweights.manifest.sums_file import MalformedSums, parse_sums
from deltaweights.manifest.verify import verify
from tests.receiver.forms import COMMIT, FORMS, INDEX, SHARD, as_repository, as_snapshot, as_tgz, tar_of
from tests.support.errors import refused
from tests.support.results import MANIFEST, SUMS, merged, original, sha256, shards_of

__all__ = ["merged", "original"]  # fixtures

pytestmark = [pytest.mark.receiver, pytest.mark.trust]


def of(report_file: str, given: Path) -> list[tuple[str, str | None]]:
    return [(each.problem, each.found) for each in verify(given).problems if each.file == report_file]


def test_row91_links_out_of_the_cache_are_refused(merged: Path, original: Path) -> None:
    """A link to the same bytes elsewhere, absolute or relative, is not followed, whatever it is named."""
    snapshot = as_snapshot(merged, original)
    for name, target in (("config.json", original / "config.json"), (SHARD, Path("../../../../merged") / SHARD)):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(target)
        ((problem, found),) = of(name, snapshot)
        assert problem == "is not a regular file"
        assert str(found).startswith("a link out of the cache")
    (snapshot / INDEX).unlink()
    (snapshot / INDEX).symlink_to("../../blobs/none")
    assert of(INDEX, snapshot) == [("is not a regular file", "a link to nothing")]


def test_row91_a_blob_that_leads_out_of_the_cache_is_refused(merged: Path, original: Path) -> None:
    """A blob may be a link to the blobs that all models share, and to nothing else."""
    snapshot = as_snapshot(merged, original)
    blob = (snapshot / SHARD).resolve()
    shared = snapshot.parents[2] / "blobs" / "ab"
    shared.mkdir(parents=True)
    blob.rename(shared / blob.name)
    blob.symlink_to(shared / blob.name)
    assert verify(snapshot).ok
    blob.unlink()
    shutil.copy(original / SHARD, merged.parent / "elsewhere")
    blob.symlink_to(merged.parent / "elsewhere")
    assert not verify(snapshot).ok


def test_row91_exchanged_blobs_are_found(merged: Path, original: Path) -> None:
    """Two blobs that changed places under their names are two problems, with and without a manifest."""
    snapshot = as_snapshot(merged, original)
    one, two = ((snapshot / path.name).resolve() for path in shards_of(merged))
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert {problem.file for problem in verify(snapshot).problems} == {path.name for path in shards_of(merged)}
    for name in (MANIFEST, SUMS):
        (snapshot / name).unlink()
    assert {problem.file for problem in verify(snapshot).problems} == {path.name for path in shards_of(merged)}


def test_the_snapshot_of_a_repository(merged: Path, original: Path) -> None:
    """The only one, or that of ``refs/main``; a ref that leads elsewhere, or none, is an error that says what there is."""
    repository = as_repository(merged, original)
    assert verify(repository).target == str(repository / "snapshots" / COMMIT)
    for text in ("../../../../merged", 40 * "c", ""):
        (repository / "refs" / "main").write_text(text)
        with refused(InputOutputError, problem="no single snapshot", found=f"{COMMIT}, {40 * 'b'}"):
            verify(repository)
    (repository / "snapshots" / (40 * "b")).rmdir()
    assert verify(repository).ok


NAMES = {
    "parent": "../x",
    "absolute": "/etc/x",
    "deep parent": "merged/../../x",
    "control": "a\x1b[2J",
    "backslash": "..\\x",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_row92_archives_with_hostile_names_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    """No name may lead out of the archive's folder, or write to a terminal."""
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_of(path, {"config.json": b"{}", name: b"x"})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(MalformedInput) as info:
        verify(path)
    assert "\x1b" not in str(info.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S", b"Z"])
def test_row92_what_is_no_file_in_an_archive_is_a_problem(kind: bytes, merged: Path, tmp_path: Path) -> None:
    """A link, a device, a sparse file or something unknown in the place of a file is named, and never followed."""
    members = {path.name: path.read_bytes() for path in sorted(merged.iterdir())}
    path = tar_of(tmp_path / "a.tar", members | {"config.json": b"/etc/passwd"}, {"config.json": kind})
    if kind in {b"S", b"Z"}:
        _set_type(path, "config.json", kind)
    try:
        problems = verify(path).problems
    except MalformedInput:  # the bytes of an unknown kind of member are not known to be there
        assert kind in {b"S", b"Z"}
    else:
        assert [(each.file, each.problem) for each in problems] == [("config.json", "is not a regular file")]


def _set_type(path: Path, name: str, kind: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(name.encode() + b"\0") // 512 * 512
    data[at + 156 : at + 157] = kind
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)


def _pax(size: int, record: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + record + b"\0" * (-len(record) % 512)


def _base_256(size: int) -> bytes:
    info = tarfile.TarInfo("model.safetensors")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


TARS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no tar": lambda: b"x" * 1024,
    "long attributes": lambda: _pax(1 << 40, b""),
    "attributes without end": lambda: _pax(512, b"99 path=x"),
    "attributes of length 0": lambda: _pax(10, b"0 path=xx\n"),
    "negative size": lambda: _pax(14, b"14 size=-1000\n") + _base_256(0),
    "sparse": lambda: _pax(22, b"22 GNU.sparse.major=1\n"),
    "endless file": lambda: _base_256(1 << 62) + b"x" * 512,
    "cut in a header": lambda: _base_256(0)[:100],
}


@pytest.mark.parametrize("content", TARS.values(), ids=TARS)
@pytest.mark.parametrize("packed", [False, True])
def test_row93_malformed_tar_archives_are_refused(
    content: Callable[[], bytes], tmp_path: Path, *, packed: bool
) -> None:
    """What a header claims is neither believed nor allocated."""
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(content()) if packed else content())
    with pytest.raises(MalformedInput) as info:
        verify(path)
    assert info.value.exit_code == 3


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
def test_row93_archives_cut_short_are_refused(kind: str, share: float, merged: Path, original: Path) -> None:
    """An archive that ends too early is refused, wherever it ends."""
    path = FORMS[kind](merged, original)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DeltaweightsError):
        verify(path).raise_if_failed()


def test_row93_doubled_members_are_refused(tmp_path: Path) -> None:
    """Two members of one name: an unpacker would keep the last."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("./config.json"))
    with refused(MalformedInput, problem="two members of one name", found="config.json"):
        verify(tmp_path / "a.tar")


def test_row94_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to a hundred times its size, and to very much, is refused, not hashed to its end."""
    monkeypatch.setattr(archive_source, "SURELY_NONE", 1 << 20)
    zeros = tar_of(tmp_path / "zeros.tar", {"model.safetensors": bytes(8 << 20)}).read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(zeros))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(8 << 20))
    for name in ("a.tgz", "a.zip"):
        with refused(MalformedInput, problem="the archive is a bomb"):
            verify(tmp_path / name)


def test_row93_several_folders_in_an_archive_are_refused(tmp_path: Path) -> None:
    """It is not guessed which of two folders is meant; litter beside one is none."""
    tar_of(tmp_path / "a.tar", {"one/config.json": b"{}", "two/config.json": b"{}"})
    with refused(MalformedInput, problem="several folders at the top", found="one, two"):
        verify(tmp_path / "a.tar")
    tar_of(tmp_path / "b.tar", {"one/notes.txt": b"{}", "._one": b"?", "__MACOSX/one/._x": b"?"})
    assert verify(tmp_path / "b.tar").problems[0].problem == "is missing"


def test_an_archive_keeps_the_weights_of_torch_unread(merged: Path, tmp_path: Path) -> None:
    """A content digest that cannot be recomputed in one pass is not taken for right."""
    members = {"pytorch_model.bin": b"PK\3\4", MANIFEST: (merged / MANIFEST).read_bytes()}
    report = verify(tar_of(tmp_path / "a.tar", members), expect="dw1:" + 64 * "0")
    assert not report.weights.ok


SUMS_LINES: dict[str, tuple[bytes, dict[str, str]]] = {
    "text": (b"%s  a\n", {"a": "a"}),
    "binary": (b"%s *a\n", {"a": "a"}),
    "no end of line": (b"%s  a", {"a": "a"}),
    "Windows": (b"\xef\xbb\xbf%s  a\r\n", {"a": "a"}),
    "upper case": (b"%S  a\n", {"a": "a"}),
    "blanks in the name": (b"%s   a b \n", {" a b ": "a"}),
    "escaped": (b"\\%s  a\\nb\\\\c\n", {"a\nb\\c": "a"}),
    "BSD": (b"SHA256 (a (1)) = %s\n", {"a (1)": "a"}),
    "dot": (b"%s  ./a\n", {"a": "a"}),
    "folder": (b"%s  sub/a\n", {"sub/a": "a"}),
    "comment": (b"# made by me\n\n%s  a\n-----END\n", {"a": "a"}),
    "md5": (b"d41d8cd98f00b204e9800998ecf8427e  a\n", {}),
    "twice the same": (b"%s  a\n%s  ./a\n", {"a": "a"}),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), SUMS_LINES.values(), ids=SUMS_LINES)
def test_sums_are_read_as_the_stock_tools_write_them(line: bytes, expected: dict[str, str]) -> None:
    """Text and binary marks, escapes, BSD's lines, Windows' ends of lines."""
    data = line.replace(b"%s", b"a" * 64).replace(b"%S", b"A" * 64)
    assert parse_sums(data) == {name: 64 * digit for name, digit in expected.items()}


@pytest.mark.parametrize(
    "name", [b"../a", b"/etc/passwd", b"sub/../../a", b"a//b", b"..", b"a/", b"a\0b"], ids=lambda name: name.decode()
)
def test_row95_sums_cannot_lead_elsewhere(name: bytes, merged: Path) -> None:
    """A name out of the folder makes the sums unusable: one problem, and nothing outside is opened."""
    line = b"a" * 64 + b"  " + name + b"\n"
    with pytest.raises(MalformedSums):
        parse_sums(line)
    (merged / MANIFEST).unlink()
    with (merged / SUMS).open("ab") as out:
        out.write(line)
    report = verify(merged)
    assert not report.weights.ok
    assert (report.problems[0].file, report.problems[0].found) == (SUMS, None)
    assert "cannot be used" in report.problems[0].problem


def test_row95_sums_that_contradict_themselves_are_refused() -> None:
    """One name with two hashes."""
    with pytest.raises(MalformedSums):
        parse_sums(b"a" * 64 + b"  x\n" + b"b" * 64 + b" *./x\n")


def test_row95_sums_reach_into_folders_without_following_links(merged: Path, original: Path) -> None:
    """A file in a folder inside is compared; a link on the way makes it a missing file."""
    (merged / MANIFEST).unlink()
    (merged / "sub").mkdir()
    shutil.copy(merged / "config.json", merged / "sub" / "config.json")
    kept = [line for line in (merged / SUMS).read_text().splitlines(keepends=True) if MANIFEST not in line]
    (merged / SUMS).write_text("".join(kept) + f"{sha256(merged / 'config.json')}  sub/config.json\n")
    assert verify(merged).problems == ()
    (merged / "sub" / "config.json").write_text("{}")
    assert [problem.file for problem in verify(merged).problems] == ["sub/config.json"]
    shutil.rmtree(merged / "sub")
    (merged / "sub").symlink_to(original)
    assert ("sub/config.json", "is missing") in {(each.file, each.problem) for each in verify(merged).problems}


def test_folders_that_nothing_states(merged: Path) -> None:
    """Sums say nothing about other folders: that is said, and fails where a loader reads the folder."""
    (merged / MANIFEST).unlink()
    sums = (merged / SUMS).read_text().splitlines(keepends=True)
    (merged / SUMS).write_text("".join(line for line in sums if MANIFEST not in line))
    (merged / "images").mkdir()
    report = verify(merged)
    assert (report.problems, report.notes) == ((), (f"{merged / 'images'} is a folder, and was not looked at",))
    (merged / "additional_chat_templates").mkdir()
    assert not verify(merged).loader_files.ok


@pytest.mark.parametrize("name", [MANIFEST, SUMS, "model.sha256"])
def test_a_document_is_not_what_it_is_about(name: str, merged: Path) -> None:
    """Who gives the manifest or the sums means their folder, and is told so."""
    (merged / name).touch()
    with refused(UsageError, found=merged / name, remedy=f"give the folder: deltaweights verify {merged}"):
        verify(merged / name)


def test_an_archive_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A member that claims a terabyte, and has a few bytes, costs no memory."""
    header = struct.pack("<Q", 1 << 40) + b"{"
    path = tar_of(tmp_path / "a.tar", {"model.safetensors": header})
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (1 << 40).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(MalformedInput):
        verify(path, expect="dw1:" + 64 * "0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_the_archive_form_reads_a_manifest_that_comes_last(merged: Path, original: Path, tmp_path: Path) -> None:
    """The order of members does not matter."""
    assert verify(as_tgz(merged, original)).ok
    names = sorted((path.name for path in merged.iterdir()), key=lambda name: name == MANIFEST)
    assert verify(tar_of(tmp_path / "last.tar", {name: (merged / name).read_bytes() for name in names})).ok
    assert verify(tar_of(tmp_path / "first.tar", {name: (merged / name).read_bytes() for name in names[::-1]})).ok


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_row93_damaged_archives_never_pass_and_never_crash(kind: str, tmp_path: Path) -> None:
    """A flipped byte anywhere is refused, is a problem, or changes nothing that is in the files."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    (files / SHARD).write_bytes(struct.pack("<Q", 2) + b"{}")
    (files / SUMS).write_text("".join(f"{sha256(files / name)}  {name}\n" for name in ("config.json", SHARD)))
    path = FORMS[kind](files, files)
    data = path.read_bytes()
    rng = random.Random(19)  # noqa: S311
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 8))):
            damaged[rng.randrange(min(len(data), 6 * 512))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            report = verify(path)
        except DeltaweightsError:
            continue
        assert not report.ok or report.compared_with == SUMS
        assert not report.ok or report.files == 2
