"""Checkpoints as people hold them: which files are read, which are refused, and what happens when they change meanwhile.

Ids begin with the row of the project's table of bad inputs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.limits import MOST_TENSORS
from tests.support.errors import facts, refused
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST = limits.INDEX.size
TORCH_INDEX, TORCH_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

TENSORS: Tensors = {"a": torch.ones(2), "b": torch.full((3,), 2.0), "c": torch.full((1,), 3.0)}
"""``a`` is in the first shard, ``b`` and ``c`` in the second."""

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n"
"""What a clone without git-LFS has in place of a large file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a sound checkpoint of two safetensors shards."""
    return save(TENSORS, tmp_path / "model", "safetensors", 2)


def write_index(folder: Path, weight_map: object, **metadata: object) -> Path:
    path = folder / INDEX
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


def values_of(checkpoint: Checkpoint) -> dict[str, list[float]]:
    """Return the tensors, read through the checkpoint; all here are float32."""
    found = {}
    for name, tensor in checkpoint.tensors.items():
        data = bytearray(tensor.spec.nbytes)
        tensor.source.read_into(memoryview(data), 0)
        found[name] = torch.frombuffer(data, dtype=torch.float32).tolist()
    return found


VALUES = {name: tensor.tolist() for name, tensor in TENSORS.items()}


def check_refused(path: Path, kind: type[DeltaweightsError] = MalformedInput, **fields: object) -> DeltaweightsError:
    """Check that the checkpoint is refused with these fields and a printable message; return the error."""
    with refused(kind, **fields) as caught:
        open_checkpoint(path, "base")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    return caught.value


# Path forms.

ONE_OF_THESE = "a folder, an index.json, a .zip of a folder, or one of .safetensors, .bin, .pth, .pt"


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("form", ["folder", "file", "text", "slash"])
def test_path_forms(tmp_path: Path, container: str, shards: int, form: str) -> None:
    """A folder, its index and its only weights file are the same checkpoint, however the path is written."""
    folder = save(TENSORS, tmp_path / "model", container, shards)
    (start,) = folder.glob("*.index.json" if shards > 1 else "*model.*")
    forms: dict[str, Path | str] = {"folder": folder, "file": start, "text": str(folder), "slash": f"{folder}/"}
    with open_checkpoint(forms[form], "base") as checkpoint:
        assert values_of(checkpoint) == VALUES
        assert folder == checkpoint.directory.path
        assert container == checkpoint.container
        assert shards == len(checkpoint.files)
        assert checkpoint.notes == ()
        checkpoint.check_unchanged()


def test_weights_file_of_any_name(tmp_path: Path) -> None:
    """A weights file may have any name with a known suffix, even with other weights beside it."""
    for name in ("x.safetensors", "y.safetensors"):
        save_file(TENSORS, tmp_path / name)
    for name in ("weights.pth", "old.bin", "older.pt"):
        torch.save(TENSORS, tmp_path / name)
    for path in sorted(tmp_path.iterdir()):
        with open_checkpoint(path, "base") as checkpoint:
            assert values_of(checkpoint) == VALUES


def test_shards_in_natural_order(tmp_path: Path) -> None:
    """Shards are opened in the order of the numbers in their names, whatever order the index has."""
    names = [f"model-{number}.safetensors" for number in range(1, 12)]
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.ones(1)}, tmp_path / name)
    write_index(tmp_path, {f"w{number}": name for number, name in reversed(list(enumerate(names)))})
    with open_checkpoint(tmp_path, "base") as checkpoint:
        assert names == [weights.file.path.name for weights in checkpoint.files]


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in a path is expanded, as in a configuration file; ``~user`` of an unknown user is a name like any other."""
    save(TENSORS, tmp_path / "model", "safetensors", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_checkpoint("~/model", "base") as checkpoint:
        assert values_of(checkpoint) == VALUES
    check_refused(Path("~no-such-user/model"), InputOutputError, where="~no-such-user/model", found="nothing")


def test_nothing_there(tmp_path: Path) -> None:
    """A path to nothing is an input error (5)."""
    check_refused(tmp_path / "x", InputOutputError, where=tmp_path / "x", found="nothing")


def test_endless_name(tmp_path: Path) -> None:
    """A path that is too long to look up is an input error, too."""
    assert "File name too long" in check_refused(tmp_path / ("x" * 300), InputOutputError).problem


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "an empty folder"),
        (["README.md"], "README.md"),
        (["README.md", "config.json"], "configuration and tokenizer, without weights (config.json)"),
        ([f"{letter}.txt" for letter in "abcdefgh"], "a.txt, b.txt, c.txt, d.txt, e.txt and 3 more"),
    ],
    ids=["empty", "readme-only", "configuration", "many-files"],
)
def test_folder_without_weights(tmp_path: Path, names: list[str], found: str) -> None:
    """A folder without weights is refused with what is in it and what was looked for."""
    for name in names:
        (tmp_path / name).write_text("words")
    expected = "model.safetensors.index.json or model.safetensors or"
    assert str(check_refused(tmp_path, where=tmp_path, found=found).expected).startswith(expected)


def test_other_kind_of_file(tmp_path: Path) -> None:
    """A file with no known suffix, or a configuration, is refused with what may be given."""
    for name, content in (("model.weights", b"????"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        check_refused(tmp_path / name, where=tmp_path / name, found=None, expected=ONE_OF_THESE)


def tarred() -> bytes:
    """Return a tar archive with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return out.getvalue()


OTHERS = {
    "row18-pointer": (
        POINTER.encode(),
        "a git-LFS pointer",
        "run git lfs pull in its folder, or download the file itself",
    ),
    "row18-page": (
        b"<!DOCTYPE html><html>",
        "an HTML page",
        "download the file itself, not a page; a private file needs a login",
    ),
    "row18-empty": (b"", "an empty file", "download it again"),
    "row18-tar": (tarred(), "a tar archive", "unpack it first"),
    "row18-tgz": (gzip.compress(tarred()), "a gzip file", "unpack it first"),
}


@pytest.mark.parametrize("name", ["x.zip", "y.tar", "y.tgz", "weights"])
@pytest.mark.parametrize(("content", "found", "remedy"), OTHERS.values(), ids=OTHERS)
def test_other_things_by_any_name(tmp_path: Path, content: bytes, found: str, remedy: str, name: str) -> None:
    """A file that is known not to be weights is identified under any name, with a remedy."""
    (tmp_path / name).write_bytes(content)
    check_refused(tmp_path / name, where=tmp_path / name, found=found, expected=ONE_OF_THESE, remedy=remedy)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_renamed_torch_files(tmp_path: Path, legacy: bool) -> None:
    """A torch file without a suffix is recognised by its first bytes, in either format."""
    torch.save(TENSORS, tmp_path / "final", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "final", "base") as checkpoint:
        assert values_of(checkpoint) == VALUES


@pytest.mark.parametrize("name", ["renamed.bin", "renamed.safetensors", TORCH_SINGLE])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_row49_renamed_archive(folder: Path, name: str, method: int) -> None:
    """An archive of a folder under the name of a weights file is refused; renamed to .zip it is opened."""
    path = folder.parent / name
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"model/{file.name}")
    check_refused(path, where=path, found="an archive of a folder", remedy="name it .zip")
    if method == zipfile.ZIP_STORED:
        with open_checkpoint(path.rename(path.with_suffix(".zip")), "base") as checkpoint:
            assert values_of(checkpoint) == VALUES


# What an index may say.

NAMES: dict[str, object] = {
    "row50-slash": f"sub/{TWO}",
    "row50-way-up": f"../{TWO}",
    "row50-only-way-up": "..",
    "row50-absolute": f"/tmp/{TWO}",  # noqa: S108  (nothing is written there)
    "row50-backslash": f"sub\\{TWO}",
    "row50-backslash-way-up": f"..\\{TWO}",
    "row50-number": 2,
    "row50-null": None,
    "row50-list": [TWO],
    "row50-empty": "",
    "row50-nul": f"{TWO}\0.safetensors",
    "row50-control": "\x1b[2J.safetensors",
    "row50-half-pair": "\ud800.safetensors",
    "row50-no-weights": "config.json",
    "row50-the-index": INDEX,
    "row50-only-an-ending": ".safetensors",
    "row50-endless": "x" * 300 + ".safetensors",
    "row50-endless-in-bytes": "ü" * 130 + ".safetensors",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_index_names_a_plain_file(folder: Path, name: object) -> None:
    """An index that names anything but a weights file beside it is refused with tensor and value."""
    (folder / "sub").mkdir()
    for place in (folder / "sub", folder.parent):
        shutil.copy(folder / TWO, place)  # so that only the name is wrong
    write_index(folder, {"a": ONE, "b": name, "c": name})
    check_refused(folder, where=folder / INDEX, tensor="b", found=repr(name))


INDEXES: dict[str, tuple[str | bytes, str]] = {
    "row56-empty": ("", "not what its name says: found an empty file"),
    "row56-cut": ('{"weight_map": {"a"', "not strict JSON"),
    "row56-not-utf-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "row56-byte-order-mark": (b"\xef\xbb\xbf{}", "index has no weight_map"),
    "row56-nested": ("[" * 100_000, "nested too deeply"),
    "row56-list": ("[]", "not a JSON object"),
    "row56-no-weight-map": ('{"metadata": {}}', "index has no weight_map"),
    "row56-weight-map-is-a-list": ('{"weight_map": ["a"]}', "index has no weight_map"),
    "row56-weight-map-is-empty": ('{"weight_map": {}}', "index has no weight_map"),
    "row56-duplicate-tensor": (
        f'{{"weight_map": {{"a": "{ONE}", "b": "{TWO}", "a": "{TWO}"}}}}', 'found duplicate key "a"'
    ),
    "row56-duplicate-tensor-escaped": (
        f'{{"weight_map": {{"a": "{ONE}", "\\u0061": "{TWO}"}}}}', 'found duplicate key "a"'
    ),
    "row56-duplicate-map": ('{"weight_map": {"a": "x"}, "weight_map": {"a": "x"}}', 'duplicate key "weight_map"'),
    "row56-empty-tensor-name": (f'{{"weight_map": {{"": "{ONE}"}}}}', "unusable tensor name in the index"),
    "row56-control-in-name": (f'{{"weight_map": {{"\\u001b[2J": "{ONE}"}}}}', r"control character or half a"),
    "row56-two-kinds": (
        f'{{"weight_map": {{"a": "{ONE}", "b": "x.bin"}}}}', "index mixes formats: found .bin and .safetensors"
    ),
    "row56-too-many-tensors": (
        json.dumps({"weight_map": dict.fromkeys(map(str, range(MOST_TENSORS + 1)), ONE)}),
        "too many tensors: found 100001, expected at most 100000",
    ),
    "row56-too-long": (b" " * (MOST + 1), f"found {MOST + 1} bytes, expected at most {MOST}"),
    "row18-git-lfs-pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "not what its name says: found a git-LFS pointer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "part"), INDEXES.values(), ids=INDEXES)
def test_malformed_index(folder: Path, content: str | bytes, part: str) -> None:
    """An index that is not a JSON object with a sound weight_map is refused with the reason."""
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert part in facts(check_refused(folder, where=folder / INDEX))


def test_row52_tensor_in_two_shards(folder: Path) -> None:
    """A tensor that is in two shards is refused with both, whichever the index names."""
    save_file({**TENSORS}, folder / TWO)
    check_refused(folder, where=folder / TWO, tensor="a", found=f"also in {ONE}")


def test_row53_index_names_a_tensor_that_is_not_there(folder: Path) -> None:
    """A tensor of the index that its shard lacks is refused with tensor and shard."""
    write_index(folder, {"a": ONE, "b": TWO, "c": TWO, "d": TWO})
    check_refused(folder, where=folder / INDEX, tensor="d", expected=f"it in {TWO}")


def test_row53_shard_holds_a_tensor_that_the_index_lacks(folder: Path) -> None:
    """A tensor of a shard that the index does not name is refused with tensor and shard."""
    write_index(folder, {"a": ONE, "b": TWO})
    check_refused(folder, where=folder / TWO, tensor="c")


def test_row53_tensor_in_another_shard(folder: Path) -> None:
    """A tensor in another shard than the index says is refused with both."""
    write_index(folder, {"a": TWO, "b": ONE, "c": TWO})
    check_refused(folder, where=folder / INDEX, tensor="a", found=f"it in {ONE}", expected=TWO)


def test_row54_missing_shard(folder: Path) -> None:
    """A shard of the index that is not there is refused by its path."""
    (folder / TWO).unlink()
    check_refused(folder, where=folder / TWO, expected=f"every file that {INDEX} names")


def test_row54_missing_shard_of_a_download(folder: Path) -> None:
    """A shard that is a link to a blob not yet downloaded is refused as missing."""
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("../../blobs/0000")
    check_refused(folder, where=folder / TWO, expected=f"every file that {INDEX} names")


AMBIGUOUS = {
    "row55-single-beside-index": (INDEX, SINGLE),
    "row55-torch-single-beside-torch-index": (TORCH_INDEX, TORCH_SINGLE),
    "row55-meta-beside-single": (SINGLE, "consolidated.00.pth"),
    "row55-meta-beside-torch-index": (TORCH_INDEX, "consolidated.00.pth"),
}


@pytest.mark.parametrize(("one", "other"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("dangling", [False, True], ids=["file", "dangling-link"])
def test_two_sets_of_weights(tmp_path: Path, one: str, other: str, dangling: bool) -> None:
    """A folder with two sets of weights is refused with both, even when one is a dangling link; naming one file decides."""
    folder = tmp_path / "model"
    if dangling or other.startswith("consolidated"):
        set_of(one, folder)
        (folder / other).symlink_to("nowhere" if dangling else next(folder.iterdir()).name)
    else:
        set_of(other, folder)
        set_of(one, folder)
    remedy = f"give the one you mean: {folder / one} or {folder / other}"
    if dangling or other.startswith("consolidated"):  # which is not complete without its configuration
        missing = "params.json" if other.startswith("consolidated") else other
        remedy = f"give the complete one, {folder / one}; {other} cannot be used, since {missing} is missing"
    else:
        same_time(folder)
    check_refused(folder, where=folder, found=f"{one} and {other}", expected="one", remedy=remedy)
    with open_checkpoint(folder / one, "base") as checkpoint:
        assert values_of(checkpoint) == VALUES


def same_time(folder: Path) -> None:
    """Give all files of a folder the same time, so that none is newer."""
    for path in folder.iterdir():
        os.utime(path, (0, 0))


def set_of(start: str, folder: Path) -> Path:
    """Write the set of weights whose main file is ``start``."""
    return save(TENSORS, folder, "torch" if "pytorch" in start else "safetensors", 2 if "index" in start else 1)


TWO_FORMATS = [(s, t) for s in (INDEX, SINGLE) for t in (TORCH_INDEX, TORCH_SINGLE)]


@pytest.mark.parametrize(("safetensors", "torch_files"), TWO_FORMATS)
def test_safetensors_win_when_complete(tmp_path: Path, safetensors: str, torch_files: str) -> None:
    """Of two formats in one folder, as in the Hub's repositories, safetensors are read, with a note."""
    folder = tmp_path / "model"
    for start in (safetensors, torch_files):
        set_of(start, folder)
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.container == "safetensors"
        assert checkpoint.notes == (f"{folder}: {safetensors} is used, not {torch_files} beside it",)
        assert checkpoint.names >= {safetensors, torch_files}
        assert values_of(checkpoint) == VALUES


@pytest.mark.parametrize("start", [TORCH_INDEX, TORCH_SINGLE])
@pytest.mark.parametrize("missing", [SINGLE, ONE, TWO])
def test_torch_files_win_when_safetensors_are_incomplete(tmp_path: Path, start: str, missing: str) -> None:
    """If a safetensors file is missing or a dangling link, complete torch files are read, with a note."""
    folder = set_of(start, tmp_path / "model")
    if missing == SINGLE:
        (folder / SINGLE).symlink_to("nowhere")
    else:
        set_of(INDEX, folder)
        (folder / missing).unlink()
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.container == "torch"
        assert checkpoint.notes == (f"{folder}: {start} is used, since {missing} is missing",)
        assert values_of(checkpoint) == VALUES


def test_neither_format_is_complete(tmp_path: Path) -> None:
    """If both formats lack files, the missing safetensors file is named."""
    folder = set_of(TORCH_INDEX, set_of(INDEX, tmp_path / "model"))
    (folder / TWO).unlink()
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    check_refused(folder, where=folder / TWO, expected=f"every file that {INDEX} names")


@pytest.mark.parametrize("start", [TORCH_INDEX, TORCH_SINGLE])
@pytest.mark.parametrize("pointer", [SINGLE, INDEX, ONE, TWO])
def test_row18_torch_files_win_over_pointers(tmp_path: Path, start: str, pointer: str) -> None:
    """If a safetensors file is a git-LFS pointer, complete torch files are read, with a note."""
    folder = set_of(start, tmp_path / "model")
    if pointer in {ONE, TWO}:
        set_of(INDEX, folder)
    (folder / pointer).write_text(POINTER)
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.container == "torch"
        assert checkpoint.notes == (f"{folder}: {start} is used, since {pointer} is a git-LFS pointer",)
        assert values_of(checkpoint) == VALUES


def test_row18_safetensors_win_over_pointers(tmp_path: Path) -> None:
    """Torch files that are pointers do not prevent complete safetensors from being used."""
    folder = set_of(TORCH_INDEX, set_of(SINGLE, tmp_path / "model"))
    for path in folder.glob("*.bin"):
        path.write_text(POINTER)
    with open_checkpoint(folder, "base") as checkpoint:
        assert (checkpoint.container, values_of(checkpoint)) == ("safetensors", VALUES)


def test_row18_nothing_but_pointers(tmp_path: Path) -> None:
    """A clone without any large file is refused with its first safetensors pointer, and a remedy."""
    folder = set_of(TORCH_SINGLE, set_of(INDEX, tmp_path / "model"))
    for path in (*folder.glob("*.bin"), *folder.glob("*.safetensors")):
        path.write_text(POINTER)
    remedy = "run git lfs pull in its folder, or download the file itself"
    check_refused(folder, where=folder / ONE, found="a git-LFS pointer", remedy=remedy)


def test_row55_stray_beside_two_formats(tmp_path: Path) -> None:
    """A weights file that neither of two formats names is refused by its name."""
    folder = set_of(TORCH_INDEX, set_of(INDEX, tmp_path / "model"))
    save_file({"d": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")
    found = check_refused(folder, where=folder).found
    assert str(found).startswith("model-00003-of-00003.safetensors beside model.safetensors.index.json")


@pytest.mark.parametrize("total", [23, 0, -1, "24", None, 24.5, [24], 2**64])
def test_row57_wrong_total_size(folder: Path, total: object) -> None:
    """A total_size that is not the sum of the tensors' bytes gives a note, not a refusal."""
    write_index(folder, {"a": ONE, "b": TWO, "c": TWO}, total_size=total)
    with open_checkpoint(folder, "base") as checkpoint:
        expected = f"{folder / INDEX}: total_size is {total}, the tensors have 24 bytes"
        assert checkpoint.notes == (() if total is None else (expected,))
        assert values_of(checkpoint) == VALUES


@pytest.mark.parametrize("metadata", [{}, [], "x", None, {"total_size": 24, "x": 1}])
def test_index_metadata_is_free(folder: Path, metadata: object) -> None:
    """Any other metadata of the index is ignored."""
    weight_map = {"a": ONE, "b": TWO, "c": TWO}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map, "more": 1}))
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.notes == ()


def test_row57_warns_in_a_merge(tmp_path: Path) -> None:
    """A merge warns about a wrong total_size, and the result does not depend on it."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    delta = delta_tensors(base)
    paths = save(base, tmp_path / "base", "safetensors"), save(delta, tmp_path / "delta", "safetensors")
    index = json.loads((paths[1] / INDEX).read_text())
    write_index(paths[1], index["weight_map"], total_size=7)
    listener = Listener()
    result = apply_delta(*paths, tmp_path / "out", report=listener)
    assert [warning.split(": ")[1] for warning in listener.warnings] == [
        f"total_size is 7, the tensors have {sum(tensor.nbytes for tensor in delta.values())} bytes"
    ]
    assert result.status == "merged"
    assert same_bits(reference(base, delta), load(tmp_path / "out"))


class Listener(Report):
    """Keeps the warnings, and runs a function when the stream begins or ends."""

    def __init__(self, begin: Callable[[], object] = bool, end: Callable[[], object] = bool) -> None:
        self.warnings: list[str] = []
        self._begin, self._end = begin, end

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)

    def begin(self, doing: str, total: int) -> None:
        """Do what was asked for at the start."""
        self._begin()

    def end(self) -> None:
        """Do what was asked for at the end."""
        self._end()


# Links, and what is no file.


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Make a checkpoint as in the Hub's cache: links in a snapshot folder to blobs."""
    source = save(TENSORS, tmp_path / "source", "safetensors", 2)
    made = tmp_path / "models--x--y" / "snapshots" / "0123abc"
    made.mkdir(parents=True)
    blobs = tmp_path / "models--x--y" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (made / path.name).symlink_to(f"../../blobs/{number:064x}")
    return made


def test_row51_snapshot_of_the_hub(snapshot: Path, tmp_path: Path) -> None:
    """Links to regular files are followed, also through a link to the folder, and keep their own names."""
    (tmp_path / "latest").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "latest", snapshot / INDEX):
        with open_checkpoint(path, "base") as checkpoint:
            assert values_of(checkpoint) == VALUES
            assert [weights.file.path.name for weights in checkpoint.files] == [ONE, TWO]
            assert {ONE, TWO} == {tensor.file for tensor in checkpoint.tensors.values()}


def test_row51_merge_records_no_path(tmp_path: Path) -> None:
    """A merge from a snapshot records names, sizes and sha256 of the files, but no path, link or blob name."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    save(base, tmp_path / "blobs", "safetensors", 1)
    (tmp_path / "base").mkdir()
    (tmp_path / "blobs" / SINGLE).rename(tmp_path / "blobs" / "feedbeef")
    (tmp_path / "base" / SINGLE).symlink_to("../blobs/feedbeef")
    delta = save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    apply_delta(tmp_path / "base", delta, tmp_path / "out", hash_inputs=True)
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    recorded = json.loads(manifest)["inputs"]["base"]["files"]
    assert list(recorded) == [SINGLE]
    expected = hashlib.sha256((tmp_path / "blobs" / "feedbeef").read_bytes()).hexdigest()
    assert expected == recorded[SINGLE]["sha256"]
    assert (tmp_path / "blobs" / "feedbeef").stat().st_size == recorded[SINGLE]["size"]
    assert "feedbeef" not in manifest
    assert str(tmp_path) not in manifest


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_row51_dangling_start(tmp_path: Path, name: str) -> None:
    """A folder whose weights are a dangling link is refused with that link."""
    (tmp_path / name).symlink_to("nowhere")
    check_refused(tmp_path, InputOutputError, where=tmp_path / name, found="a dangling link")


def test_row51_link_to_itself(tmp_path: Path) -> None:
    """A link to itself is refused."""
    (tmp_path / SINGLE).symlink_to(SINGLE)
    check_refused(tmp_path, InputOutputError, where=tmp_path / SINGLE)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_null(path: Path) -> None:
    path.symlink_to("/dev/null")


SPECIAL: list[tuple[Callable[[Path], None], str]] = [
    (make_fifo, "a FIFO"),
    (make_folder, "a folder"),
    (make_endless, "a device"),
    (make_null, "a device"),
]


@pytest.mark.parametrize("name", [SINGLE, INDEX, TORCH_SINGLE, ONE])
@pytest.mark.parametrize(("make", "found"), SPECIAL, ids=[f"row60-{make.__name__[5:]}" for make, _ in SPECIAL])
def test_special_files(tmp_path: Path, make: Callable[[Path], None], found: str, name: str) -> None:
    """A FIFO, a device or a folder in place of a file is refused at once, without opening or reading it."""
    if name == ONE:
        save(TENSORS, tmp_path, "safetensors", 2)
        (tmp_path / ONE).unlink()
    make(tmp_path / name)
    remedy = "give the file itself"
    alarmed(lambda: check_refused(tmp_path, where=tmp_path / name, found=found, remedy=remedy))


def alarmed(work: Callable[[], object]) -> None:
    """Run ``work``, and stop it after 5 seconds, even if it hangs in a system call."""

    def too_late(*_: object) -> None:
        raise TimeoutError("still busy after 5 seconds")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(5)
    try:
        work()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x.index.json", "x"])
def test_row60_fifo_as_path(tmp_path: Path, name: str) -> None:
    """A FIFO given as the checkpoint itself is refused at once, whatever its suffix."""
    os.mkfifo(tmp_path / name)
    alarmed(lambda: check_refused(tmp_path / name, where=tmp_path / name, found="a FIFO"))


def test_row60_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket in place of a file is refused; the system does not open it."""
    monkeypatch.chdir(tmp_path)  # a socket's address has room for some hundred characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(SINGLE)
        check_refused(tmp_path, InputOutputError, where=tmp_path / SINGLE)


# Files that change while they are read.


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("change", [cut, cut_to_nothing], ids=["row61-one-byte", "row61-everything"])
def test_cut_short(tmp_path: Path, container: str, change: Callable[[Path], None]) -> None:
    """Reading a tensor of a file that was truncated after it was opened is an input error that names the file."""
    folder = save(TENSORS, tmp_path / "model", container, 1, config=False)
    (path,) = folder.iterdir()
    with open_checkpoint(folder, "base") as checkpoint:
        if container == "torch" and change is cut:
            os.truncate(path, path.read_bytes().index(torch.full((1,), 3.0).numpy().tobytes()) + 3)
        else:
            change(path)
        with refused(InputOutputError, where=path) as caught:
            values_of(checkpoint)
        assert str(caught.value.found).startswith("end of file at byte ")
        with refused(InputOutputError, where=path):
            checkpoint.check_unchanged()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def overwrite(path: Path) -> None:
    os.utime(path, (1, 1))  # the clock of a file system may be too coarse for the write below
    with path.open("r+b") as file:
        file.write(path.read_bytes()[:9])


@pytest.mark.parametrize("change", [append, touch, overwrite], ids=lambda change: f"row61-{change.__name__}")
@pytest.mark.parametrize("name", [ONE, TWO])
def test_changed(folder: Path, change: Callable[[Path], None], name: str) -> None:
    """A shard that was written to, or only touched, after it was opened is detected by ``check_unchanged``."""
    size = (folder / name).stat().st_size
    with open_checkpoint(folder, "base") as checkpoint:
        checkpoint.check_unchanged()
        change(folder / name)
        with refused(InputOutputError, where=folder / name, expected=f"the {size} bytes that were opened"):
            checkpoint.check_unchanged()


def test_row61_replaced(folder: Path) -> None:
    """Replacing a shard by another file of its name does not matter: the opened file is still read."""
    save_file({"a": torch.zeros(2)}, folder / "new.safetensors")
    with open_checkpoint(folder, "base") as checkpoint:
        (folder / "new.safetensors").replace(folder / ONE)
        assert values_of(checkpoint) == VALUES
        checkpoint.check_unchanged()


@pytest.mark.parametrize(
    ("change", "moment", "problem"),
    [
        (cut_to_nothing, "begin", "cut short while being read"),
        (append, "begin", "changed while being read"),
        (touch, "end", "changed while being read"),
    ],
    ids=["row61-cut-during-the-merge", "row61-appended-during-the-merge", "row61-touched-after-the-stream"],
)
@pytest.mark.parametrize("role", ["base", "delta"])
def test_merge_of_changing_files(
    tmp_path: Path, change: Callable[[Path], None], moment: str, problem: str, role: str
) -> None:
    """A merge whose input is truncated or changed during the run fails with the file's name, and publishes nothing."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    save(base, tmp_path / "base", "safetensors", 1)
    save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    path = tmp_path / role / SINGLE
    listener = Listener(**{moment: lambda: change(path)})
    with refused(InputOutputError, where=path, problem=problem):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=listener)
    assert not (tmp_path / "out").exists()


def test_row61_merge_after_a_change(tmp_path: Path) -> None:
    """After a merge that failed because of a change, the same call merges the changed files from the start."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    delta = delta_tensors(base)
    save(base, tmp_path / "base", "safetensors", 1)
    save(delta, tmp_path / "delta", "safetensors", 1)
    other = base_tensors(layers=1, vocabulary=8, hidden=8, seed=5)
    paths = tmp_path / "base", tmp_path / "delta", tmp_path / "out"
    written, content = tmp_path / "base" / SINGLE, save(other, tmp_path / "other", "safetensors", 1) / SINGLE
    os.utime(written, (1, 1))
    with pytest.raises(InputOutputError, match="changed while being read"):
        apply_delta(*paths, report=Listener(end=lambda: written.write_bytes(content.read_bytes())))
    apply_delta(*paths, allow_unproved_base=True)
    assert same_bits(reference(other, delta), load(tmp_path / "out"))
    assert verify(tmp_path / "out").ok


# What is left open.


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


def test_closes_what_it_opened(folder: Path) -> None:
    """A checkpoint closes its files, and a refused one leaves none open."""
    before = open_files()
    with open_checkpoint(folder, "base"):
        assert len(open_files()) == len(before) + 3  # and the folder
    assert open_files() == before
    write_index(folder, {"a": TWO, "b": ONE, "c": TWO})
    check_refused(folder)
    cut(folder / TWO)
    check_refused(folder)
    assert open_files() == before
