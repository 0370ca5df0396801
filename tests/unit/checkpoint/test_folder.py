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


def refusal(path: Path, kind: type[DeltaweightsError] = MalformedInput) -> str:
    """Return the message with which the checkpoint is refused."""
    with pytest.raises(DeltaweightsError) as caught:
        open_checkpoint(path, "base")
    assert caught.type is kind, caught.value
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    return message


# Path forms.

ONE_OF_THESE = "expected a folder, an index.json, a .zip of a folder, or one of .safetensors, .bin, .pth, .pt"


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("form", ["folder", "file", "text", "slash"])
def test_path_forms(tmp_path: Path, container: str, shards: int, form: str) -> None:
    """A folder, its index file and its single weights file are one checkpoint, whichever way they are written."""
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
    """A single weights file may have any name with a known ending, even where other weights stand beside it."""
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
    """A path may begin with ``~``, as in a configuration file that no shell has read; ``~nobody`` is a name like any other."""
    save(TENSORS, tmp_path / "model", "safetensors", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_checkpoint("~/model", "base") as checkpoint:
        assert values_of(checkpoint) == VALUES
    assert refusal(Path("~no-such-user/model"), InputOutputError).startswith("~no-such-user/model: no base here")


def test_nothing_there(tmp_path: Path) -> None:
    """A path with nothing at it is an input error (5) that says what to give."""
    assert f"{tmp_path / 'x'}: no base here: found nothing; give the folder" in refusal(
        tmp_path / "x", InputOutputError
    )


def test_endless_name(tmp_path: Path) -> None:
    """A path that the file system cannot even look up is refused in the same way."""
    assert "File name too long" in refusal(tmp_path / ("x" * 300), InputOutputError)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ([], "found an empty folder, expected model.safetensors.index.json or model.safetensors or"),
        (["README.md", "config.json"], "found README.md, config.json, expected"),
        ([f"{letter}.txt" for letter in "abcdefgh"], "found a.txt, b.txt, c.txt, d.txt, e.txt and 3 more, expected"),
    ],
    ids=["empty", "readme-only", "many-files"],
)
def test_folder_without_weights(tmp_path: Path, names: list[str], part: str) -> None:
    """A folder without weights is refused with what is in it and what was looked for."""
    for name in names:
        (tmp_path / name).write_text("words")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: no weights here: ")
    assert part in message


def test_other_kind_of_file(tmp_path: Path) -> None:
    """A file of no known ending, or a configuration, is refused with what may be given."""
    for name, content in (("model.gguf", b"GGUF"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name) == f"{tmp_path / name}: not a base: {ONE_OF_THESE}"


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
    """What is known not to be weights is named as what it is, with what to do, under whatever name it is given."""
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name) == f"{tmp_path / name}: not a base: found {found}, {ONE_OF_THESE}; {remedy}"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_renamed_torch_files(tmp_path: Path, legacy: bool) -> None:
    """A torch file without a suffix is known by how it begins, in either of its formats."""
    torch.save(TENSORS, tmp_path / "final", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "final", "base") as checkpoint:
        assert values_of(checkpoint) == VALUES


@pytest.mark.parametrize("name", ["renamed.bin", "renamed.safetensors", TORCH_SINGLE])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_row49_renamed_archive(folder: Path, name: str, method: int) -> None:
    """The archive of a folder under the name of a weights file is refused as what it is: with the right name it is opened."""
    path = folder.parent / name
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"model/{file.name}")
    assert refusal(path) == f"{path}: not a weights file: found an archive of a folder; name it .zip"
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
    """An index that names anything but a weights file beside it is refused with tensor and value, and nothing is opened."""
    (folder / "sub").mkdir()
    for place in (folder / "sub", folder.parent):
        shutil.copy(folder / TWO, place)  # so that only the name is wrong
    write_index(folder, {"a": ONE, "b": name, "c": name})
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: tensor b: index names something other than a weights file beside it")


INDEXES: dict[str, tuple[str | bytes, str]] = {
    "row56-empty": ("", "not what its name says: found an empty file; download it again"),
    "row56-cut": ('{"weight_map": {"a"', "not strict JSON"),
    "row56-not-utf-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "row56-byte-order-mark": (b"\xef\xbb\xbf{}", "byte-order mark"),
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
        "not what its name says: found a git-LFS pointer; run git lfs pull",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "part"), INDEXES.values(), ids=INDEXES)
def test_malformed_index(folder: Path, content: str | bytes, part: str) -> None:
    """An index that is not one JSON object with a plain weight_map is refused by its name, with the reason."""
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: ")
    assert part in message


def test_row52_tensor_in_two_shards(folder: Path) -> None:
    """A tensor that two shards hold is refused with both, whichever of them the index names."""
    save_file({**TENSORS}, folder / TWO)
    message = refusal(folder)
    assert message.startswith(f"{folder / TWO}: tensor a: tensor is in two shards: found also in {ONE}")


def test_row53_index_names_a_tensor_that_is_not_there(folder: Path) -> None:
    """A tensor of the index that its shard lacks is refused with tensor and shard."""
    write_index(folder, {"a": ONE, "b": TWO, "c": TWO, "d": TWO})
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: tensor d: tensor of the index is not in its shard")
    assert f"expected it in {TWO}" in message


def test_row53_shard_holds_a_tensor_that_the_index_lacks(folder: Path) -> None:
    """A tensor of a shard that the index does not name is refused with tensor and shard."""
    write_index(folder, {"a": ONE, "b": TWO})
    message = refusal(folder)
    assert message.startswith(f"{folder / TWO}: tensor c: tensor of a shard is not in the index")


def test_row53_tensor_in_another_shard(folder: Path) -> None:
    """A tensor that stands in another shard than the index says is refused with both."""
    write_index(folder, {"a": TWO, "b": ONE, "c": TWO})
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: tensor a: tensor is in another shard than the index says")
    assert f"found it in {ONE}, expected {TWO}" in message


def test_row54_missing_shard(folder: Path) -> None:
    """A shard of the index that is not there is refused by its path."""
    (folder / TWO).unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder / TWO}: shard is missing: expected every file that {INDEX} names")


def test_row54_missing_shard_of_a_download(folder: Path) -> None:
    """A shard that is a link to a blob that is not there yet is refused as missing."""
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("../../blobs/0000")
    assert refusal(folder).startswith(f"{folder / TWO}: shard is missing")


AMBIGUOUS = {
    "row55-single-beside-index": (INDEX, SINGLE),
    "row55-torch-single-beside-torch-index": (TORCH_INDEX, TORCH_SINGLE),
    "row55-meta-beside-single": (SINGLE, "consolidated.00.pth"),
    "row55-meta-beside-torch-index": (TORCH_INDEX, "consolidated.00.pth"),
}


@pytest.mark.parametrize(("one", "other"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("dangling", [False, True], ids=["file", "dangling-link"])
def test_two_sets_of_weights(tmp_path: Path, one: str, other: str, dangling: bool) -> None:
    """A folder with two sets of weights is refused with both, even when one is a link to nothing; naming one file decides."""
    folder = tmp_path / "model"
    if dangling or other.startswith("consolidated"):
        set_of(one, folder)
        (folder / other).symlink_to("nowhere" if dangling else next(folder.iterdir()).name)
    else:
        set_of(other, folder)
        set_of(one, folder)
    message = refusal(folder)
    assert message.startswith(f"{folder}: more than one set of weights: found {one} and {other}, expected one")
    assert f"give the one you mean: {folder / one}" in message
    with open_checkpoint(folder / one, "base") as checkpoint:
        assert values_of(checkpoint) == VALUES


def set_of(start: str, folder: Path) -> Path:
    """Write the set of weights that begins with ``start``."""
    return save(TENSORS, folder, "torch" if "pytorch" in start else "safetensors", 2 if "index" in start else 1)


TWO_FORMATS = [(s, t) for s in (INDEX, SINGLE) for t in (TORCH_INDEX, TORCH_SINGLE)]


@pytest.mark.parametrize(("safetensors", "torch_files"), TWO_FORMATS)
def test_safetensors_win_when_complete(tmp_path: Path, safetensors: str, torch_files: str) -> None:
    """Of two formats in one folder, as the Hub's repositories have them, safetensors are read, and that is said."""
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
    """Where a safetensors file is missing, or a link to nothing, complete torch files are read, and that is said."""
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
    """Where both formats lack files, the safetensors' missing one is named."""
    folder = set_of(TORCH_INDEX, set_of(INDEX, tmp_path / "model"))
    (folder / TWO).unlink()
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert refusal(folder).startswith(f"{folder / TWO}: shard is missing")


@pytest.mark.parametrize("start", [TORCH_INDEX, TORCH_SINGLE])
@pytest.mark.parametrize("pointer", [SINGLE, INDEX, ONE, TWO])
def test_row18_torch_files_win_over_pointers(tmp_path: Path, start: str, pointer: str) -> None:
    """Where a safetensors file is a git-LFS pointer, complete torch files are read, and that is said."""
    folder = set_of(start, tmp_path / "model")
    if pointer in {ONE, TWO}:
        set_of(INDEX, folder)
    (folder / pointer).write_text(POINTER)
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.container == "torch"
        assert checkpoint.notes == (f"{folder}: {start} is used, since {pointer} is a git-LFS pointer",)
        assert values_of(checkpoint) == VALUES


def test_row18_safetensors_win_over_pointers(tmp_path: Path) -> None:
    """Torch files that are pointers do not get in the way of complete safetensors."""
    folder = set_of(TORCH_INDEX, set_of(SINGLE, tmp_path / "model"))
    for path in folder.glob("*.bin"):
        path.write_text(POINTER)
    with open_checkpoint(folder, "base") as checkpoint:
        assert (checkpoint.container, values_of(checkpoint)) == ("safetensors", VALUES)


def test_row18_nothing_but_pointers(tmp_path: Path) -> None:
    """A clone without any large file is refused with what its safetensors are, and what to do."""
    folder = set_of(TORCH_SINGLE, set_of(INDEX, tmp_path / "model"))
    for path in (*folder.glob("*.bin"), *folder.glob("*.safetensors")):
        path.write_text(POINTER)
    assert refusal(folder) == (
        f"{folder / ONE}: not a safetensors file: found a git-LFS pointer; "
        "run git lfs pull in its folder, or download the file itself"
    )


def test_row55_stray_beside_two_formats(tmp_path: Path) -> None:
    """A weights file that neither of two formats names is refused by its name."""
    folder = set_of(TORCH_INDEX, set_of(INDEX, tmp_path / "model"))
    save_file({"d": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")
    assert "found model-00003-of-00003.safetensors beside model.safetensors.index.json, which" in refusal(folder)


@pytest.mark.parametrize("total", [23, 0, -1, "24", None, 24.5, [24], 2**64])
def test_row57_wrong_total_size(folder: Path, total: object) -> None:
    """A total_size that is not the sum of the tensors' bytes is worth a note, never a refusal."""
    write_index(folder, {"a": ONE, "b": TWO, "c": TWO}, total_size=total)
    with open_checkpoint(folder, "base") as checkpoint:
        expected = f"{folder / INDEX}: total_size is {total}, the tensors have 24 bytes"
        assert checkpoint.notes == (() if total is None else (expected,))
        assert values_of(checkpoint) == VALUES


@pytest.mark.parametrize("metadata", [{}, [], "x", None, {"total_size": 24, "x": 1}])
def test_index_metadata_is_free(folder: Path, metadata: object) -> None:
    """Whatever else the index's metadata is, the checkpoint opens without a word."""
    weight_map = {"a": ONE, "b": TWO, "c": TWO}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map, "more": 1}))
    with open_checkpoint(folder, "base") as checkpoint:
        assert checkpoint.notes == ()


def test_row57_warns_in_a_merge(tmp_path: Path) -> None:
    """A merge tells the wrong total_size as a warning, and the result is the one without it."""
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
    """Keeps the warnings, and does something to the files when the stream begins or has ended."""

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
    """Make a checkpoint as the Hub's cache holds it: links in a snapshot folder to blobs elsewhere."""
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
    """Links that end in regular files are followed, also through a link to the folder, and known by their own names."""
    (tmp_path / "latest").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "latest", snapshot / INDEX):
        with open_checkpoint(path, "base") as checkpoint:
            assert values_of(checkpoint) == VALUES
            assert [weights.file.path.name for weights in checkpoint.files] == [ONE, TWO]
            assert {ONE, TWO} == {tensor.file for tensor in checkpoint.tensors.values()}


def test_row51_merge_records_no_path(tmp_path: Path) -> None:
    """A merge from a snapshot records the files' names, sizes and sha256 of the blobs, and no path, link or blob name."""
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
    """A folder whose weights are a link to nothing is refused by that link, for it is there while its end is not."""
    (tmp_path / name).symlink_to("nowhere")
    message = refusal(tmp_path, InputOutputError)
    assert message.startswith(f"{tmp_path / name}: no base here: found a dangling link")


def test_row51_link_to_itself(tmp_path: Path) -> None:
    """A link that leads to itself is refused, not followed for ever."""
    (tmp_path / SINGLE).symlink_to(SINGLE)
    assert refusal(tmp_path, InputOutputError).startswith(f"{tmp_path / SINGLE}: ")


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
    """A FIFO, a device or a folder where a file should be is refused at once with what it is; none is waited for or read."""
    if name == ONE:
        save(TENSORS, tmp_path, "safetensors", 2)
        (tmp_path / ONE).unlink()
    make(tmp_path / name)
    message = alarmed(lambda: refusal(tmp_path))
    assert message.startswith(f"{tmp_path / name}: not a regular file: found {found}; give the file itself")


def alarmed(work: Callable[[], str]) -> str:
    """Return what ``work`` returns, or end it after 5 seconds, also where it hangs in a system call."""

    def too_late(*_: object) -> None:
        raise TimeoutError("still busy after 5 seconds")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(5)
    try:
        return work()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x.index.json", "x"])
def test_row60_fifo_as_path(tmp_path: Path, name: str) -> None:
    """A FIFO that is given as the checkpoint itself is refused at once, whatever its ending."""
    os.mkfifo(tmp_path / name)
    assert "not a regular file: found a FIFO" in alarmed(lambda: refusal(tmp_path / name))


def test_row60_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket in place of a file is refused; the system itself does not let it be opened."""
    monkeypatch.chdir(tmp_path)  # a socket's address has room for some hundred characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(SINGLE)
        assert f"{tmp_path / SINGLE}: cannot open" in refusal(tmp_path, InputOutputError)


# Files that change while they are read.


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("change", [cut, cut_to_nothing], ids=["row61-one-byte", "row61-everything"])
def test_cut_short(tmp_path: Path, container: str, change: Callable[[Path], None]) -> None:
    """Reading a tensor of a file that was cut since it was opened is an input error (5) that names the file."""
    folder = save(TENSORS, tmp_path / "model", container, 1, config=False)
    (path,) = folder.iterdir()
    with open_checkpoint(folder, "base") as checkpoint:
        if container == "torch" and change is cut:
            os.truncate(path, path.read_bytes().index(torch.full((1,), 3.0).numpy().tobytes()) + 3)
        else:
            change(path)
        with pytest.raises(InputOutputError) as caught:
            values_of(checkpoint)
        assert str(caught.value).startswith(f"{path}: cut short while being read: found end of file at byte ")
        assert caught.value.exit_code == 5
        with pytest.raises(InputOutputError, match="changed while being read"):
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
    """A shard that was written to, or only touched, since it was opened is found by the check after the stream."""
    size = (folder / name).stat().st_size
    with open_checkpoint(folder, "base") as checkpoint:
        checkpoint.check_unchanged()
        change(folder / name)
        with pytest.raises(InputOutputError) as caught:
            checkpoint.check_unchanged()
    assert str(caught.value).startswith(f"{folder / name}: changed while being read")
    assert f"expected the {size} bytes that were opened" in str(caught.value)


def test_row61_replaced(folder: Path) -> None:
    """A shard that is replaced by another file of its name is no change: the one that was opened is read to its end."""
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
    """A merge whose input is cut or changed on the way ends with 5 and the file's name, and publishes nothing."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    save(base, tmp_path / "base", "safetensors", 1)
    save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    path = tmp_path / role / SINGLE
    listener = Listener(**{moment: lambda: change(path)})
    with pytest.raises(InputOutputError, match=problem) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out", report=listener)
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "out").exists()


def test_row61_merge_after_a_change(tmp_path: Path) -> None:
    """After a merge that a change ended, the same call merges what stands there now, not what was half made."""
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
    apply_delta(*paths)
    assert same_bits(reference(other, delta), load(tmp_path / "out"))
    assert verify(tmp_path / "out").ok


# What is left open.


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


def test_closes_what_it_opened(folder: Path) -> None:
    """A checkpoint closes its files at its end, and a refused one leaves none open."""
    before = open_files()
    with open_checkpoint(folder, "base"):
        assert len(open_files()) == len(before) + 3  # and the folder
    assert open_files() == before
    write_index(folder, {"a": TWO, "b": ONE, "c": TWO})
    refusal(folder)
    cut(folder / TWO)
    refusal(folder)
    assert open_files() == before
