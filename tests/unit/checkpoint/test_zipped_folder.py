"""Checkpoints in zipped folders, read in place or unpacked.

Archives are made by Python's zipfile and by Info-ZIP.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.checksums import verify_checksum
from deltaweights.checkpoint.companions import COPIED, is_companion, read_companions
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import find_main_file
from deltaweights.checkpoint.zipped_folder.directory import (
    READ_BESIDE,
    ArchivedDirectory,
    contains_checkpoint,
    is_checkpoint_archive,
    open_archive,
)
from deltaweights.checkpoint.zipped_folder.find_checkpoint import folded
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.report import Report
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save
from tests.support.zips import (
    CONFIG,
    DEFLATED,
    MODEL,
    ROOT,
    SOUND,
    STORED,
    WEIGHTS,
    Part,
    Pipe,
    bytes_of,
    changed,
    everything,
    files_of,
    join,
    open_weights,
    opened,
    part,
    refusal,
    written,
    zipped,
)
from tests.unit.checkpoint.test_torch_file import GOOD, GOOD_FILES


def tensors_of(directory: Directory) -> dict[str, bytes]:
    """Return the bytes of all tensors, read through the directory, by name, dtype and shape."""
    start = find_main_file(directory, "delta").name
    found = {}
    for name in read_index(directory, start).shards if start.endswith(".index.json") else [start]:
        weights = open_weights(directory, name)
        found.update({str(tensor.spec) + tensor.spec.name: bytes_of(tensor) for tensor in weights.tensors.values()})
        weights.file.check_unchanged()
        weights.file.close()
    return found


CHECKPOINTS = [(container, shards) for container in ("torch", "safetensors") for shards in (1, 2)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Save a tiny LLaVA-Med-like delta in both containers, in one file and in two."""
    tensors, top = delta_tensors(base_tensors(layers=1)), tmp_path_factory.mktemp("checkpoints")
    return {(c, shards): save(tensors, top / f"{c}-{shards}", c, shards) for c, shards in CHECKPOINTS}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("which", CHECKPOINTS)
def test_stored_checkpoint_is_read_in_place(
    tmp_path: Path, checkpoints: dict[tuple[str, int], Path], which: tuple[str, int], how: str
) -> None:
    """Every tensor and companion of a stored checkpoint equals that of the folder, and nothing is written."""
    folder = checkpoints[which]
    path = written(tmp_path, STORED[how](folder))
    with opened(path) as directory:
        assert isinstance(directory, ArchivedDirectory)
        assert tensors_of(directory) == tensors_of(LocalDirectory(folder))
        assert set(files_of(folder, "")) == set(directory.names())
        ours, theirs = (
            read_companions(d, frozenset(), "float16", "delta", "") for d in (directory, LocalDirectory(folder))
        )
        assert ours == theirs
        assert directory.path == path / {"stored-at-the-top": "", "stored-deep": "data/checkpoints/7b"}.get(how, ROOT)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", DEFLATED)
@pytest.mark.parametrize("which", [("torch", 2), ("safetensors", 2)])
def test_deflated_checkpoint_is_unpacked(
    tmp_path: Path, unpacked: Path, checkpoints: dict[tuple[str, int], Path], which: tuple[str, int], how: str
) -> None:
    """A checkpoint with deflated weights is unpacked into the given folder byte for byte, and nothing else is."""
    folder = checkpoints[which]
    with opened(written(tmp_path, DEFLATED[how](folder)), unpacked) as directory:
        assert isinstance(directory, LocalDirectory)
        assert directory.path == unpacked
        assert tensors_of(directory) == tensors_of(LocalDirectory(folder))
    assert files_of(unpacked, "") == files_of(folder, "")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["unpacked", "x.zip"]


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP is not installed")
@pytest.mark.parametrize("options", ["-r", "-0r", "-1rD", "-9rX", "-rfz", "-0rfz", "-r pipe"])
def test_checkpoint_zipped_by_info_zip(
    tmp_path: Path, unpacked: Path, checkpoints: dict[tuple[str, int], Path], options: str
) -> None:
    """Archives of Info-ZIP are read: deflated or stored, with or without folders, in zip64, or written to a pipe."""
    folder = tmp_path / ROOT
    shutil.copytree(checkpoints["torch", 2], folder)
    (folder / "sub").mkdir()
    (folder / "说明.txt").write_text("text")
    path, (flags, *pipe) = tmp_path / "x.zip", options.split()
    made = subprocess.run(
        ["zip", "-q", flags, "-" if pipe else path, ROOT],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    if pipe:
        path.write_bytes(made.stdout)
    with opened(path, unpacked) as directory:
        assert isinstance(directory, ArchivedDirectory if "0" in flags else LocalDirectory)
        (folder / "sub").rmdir()
        if "0" not in flags:
            (folder / "说明.txt").unlink()  # which is no part of a checkpoint
        assert everything(directory) == files_of(folder, "")


def test_deflated_without_a_place(tmp_path: Path) -> None:
    """Without a folder to unpack into, an archive with deflated weights is refused."""
    shards = {f"{ROOT}/model-{n}-of-2.safetensors": WEIGHTS for n in "12"}
    path = written(tmp_path, zipped({**shards, CONFIG: b"{}", MODEL: WEIGHTS}, level=6))
    found = "model-1-of-2.safetensors and 2 more, deflated"
    with refused(MalformedInput, where=path, found=found, expected="stored"):
        open_archive(path, None, Report())


def test_index_decides_what_weights_are(tmp_path: Path, unpacked: Path) -> None:
    """A shard that an index names counts as weights, whatever its name; another file with the same suffix does not."""
    index = b'{"weight_map": {"a": "part-1.bin"}}'
    files = {f"{ROOT}/pytorch_model.bin.index.json": index, f"{ROOT}/training_args.bin": WEIGHTS}
    out = io.BytesIO(zipped(files, level=6))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(f"{ROOT}/part-1.bin", WEIGHTS)
    with opened(written(tmp_path, out.getvalue())) as directory:
        assert directory.open("training_args.bin").read(256, 3) == WEIGHTS[256:259]
    with opened(written(tmp_path, zipped({f"{ROOT}/part-1.bin": WEIGHTS, **files}, level=6)), unpacked) as directory:
        assert directory.names() == ["part-1.bin", "pytorch_model.bin.index.json"]


def test_what_is_no_part_of_a_checkpoint_stays(tmp_path: Path, unpacked: Path) -> None:
    """Only weights and the files read or copied with them are unpacked; the others are reported."""
    said: list[str] = []

    class Notes(Report):
        def note(self, text: str) -> None:
            said.append(text)

    kept = [
        "LICENSE",
        "README.md",
        "config.json",
        "manifest.json",
        "mm_projector.bin",
        "params.json",
        "pytorch_model.bin",
    ]
    left = [f"rng_state_{number}.pth" for number in range(9)]
    path = written(tmp_path, zipped({f"{ROOT}/{name}": WEIGHTS for name in (*kept, *left, "optimizer.pt")}, level=6))
    with opened(path, unpacked, Notes()) as directory:
        assert directory.names() == kept
    listed = ", ".join(["optimizer.pt", *left[:7]])
    assert said == [f"not unpacked from {path}, since no part of the checkpoint: {listed} and 2 more"]


@pytest.mark.parametrize("archive", GOOD_FILES.values(), ids=GOOD_FILES)
def test_torch_file_is_no_archive(tmp_path: Path, archive: bytes) -> None:
    """A file that torch wrote is not mistaken for a zipped checkpoint."""
    assert not is_archive(tmp_path, archive)


def test_what_is_an_archive(tmp_path: Path) -> None:
    """Any other zip is an archive, even with ``data.pkl`` among the weights; only the records are read."""
    assert is_archive(tmp_path, join(SOUND))
    assert is_archive(tmp_path, zipped({"x.txt": b"x"}))
    assert is_archive(tmp_path, join([*SOUND, part(f"{ROOT}/data.pkl")]))
    assert is_archive(tmp_path, changed(packed=b"no deflate stream"))
    assert not is_archive(tmp_path, join([*GOOD, Part("other/x", b"")]))
    assert not is_archive(tmp_path, b"PK")
    assert not is_archive(tmp_path, b"\x80\x02}." + join(SOUND))
    with refused(MalformedInput, where=tmp_path / "x.zip", found=f"{len(join(SOUND)) - 1} bytes"):
        is_archive(tmp_path, join(SOUND)[:-1])


def test_which_archives_hold_a_checkpoint(tmp_path: Path) -> None:
    """Only an archive with an index, a weights file or a part in Meta's format contains a checkpoint."""
    assert is_archive(tmp_path, join(SOUND), contains_checkpoint)
    assert not is_archive(tmp_path, zipped({"x.txt": b"x"}), contains_checkpoint)
    assert not is_archive(tmp_path, join(GOOD), contains_checkpoint)
    assert not is_archive(tmp_path, b"PK", contains_checkpoint)


def is_archive(tmp_path: Path, content: bytes, is_one: Callable[[InputFile], bool] = is_checkpoint_archive) -> bool:
    file = LocalFile(written(tmp_path, content))
    try:
        return is_one(file)
    finally:
        file.close()


def test_row49_stored_files_are_checked_when_read_whole(tmp_path: Path) -> None:
    """A stored file that is read whole is compared with its CRC-32."""
    content = join([part(CONFIG, method=0, crc=5), part(MODEL, WEIGHTS, method=0, crc=6)])
    with opened(written(tmp_path, content)) as directory:
        with refused(MalformedInput, where=directory.path / "config.json", found="CRC-32 a3a6bf43"):
            directory.read_companion("config.json", 100)
        with refused(MalformedInput, where=directory.path / "pytorch_model.bin"):
            directory.read("pytorch_model.bin", 2**20)


def legacy(tensors: Tensors) -> bytes:
    out = io.BytesIO()
    torch.save(tensors, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def without_checksums(tensors: Tensors) -> bytes:
    out, before = io.BytesIO(), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, out)
    finally:
        torch.serialization.set_crc32_options(before)
    return out.getvalue()


BARE: dict[str, tuple[str, Callable[[Tensors], bytes]]] = {
    "row49-safetensors": ("model.safetensors", safetensors.torch.save),
    "row49-legacy": ("pytorch_model.bin", legacy),
    "row49-torch-without-checksums": ("pytorch_model.bin", without_checksums),
}


@pytest.mark.parametrize(("name", "saved"), BARE.values(), ids=BARE)
def test_stored_weights_without_checksums_of_their_own(
    tmp_path: Path, name: str, saved: Callable[[Tensors], bytes]
) -> None:
    """Weights without checksums of their own are verified by the archive's CRC-32: one flipped bit is refused."""
    content = saved({"w": torch.arange(50.0), "v": torch.ones(3)})
    archive = zipped({f"{ROOT}/{name}": content})
    with opened(written(tmp_path, archive)) as directory:
        weights = open_weights(directory, name)
        assert (weights.checks, weights.notes) == (("header", "crc32"), ())
        (whole,) = weights.extra_checksums
        assert bytes_of(whole) == content
        verify_checksum(whole)
    at = archive.index(torch.arange(50.0).numpy().tobytes()) + 77
    path = written(tmp_path, archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :])
    damaged = bytearray(content)
    damaged[at - archive.index(content)] ^= 1
    found, expected = f"CRC-32 {zlib.crc32(damaged):08x}", f"{zlib.crc32(content):08x}, as the file records"
    with opened(path) as directory, refused(MalformedInput, where=path / ROOT / name, found=found, expected=expected):
        verify_checksum(*open_weights(directory, name).extra_checksums)


def test_stored_torch_files_are_not_read_twice(tmp_path: Path, checkpoints: dict[tuple[str, int], Path]) -> None:
    """A torch file with its own checksums needs no extra pass for the archive's."""
    folder = checkpoints["torch", 1]
    with opened(written(tmp_path, zipped(files_of(folder)))) as directory:
        weights = open_weights(directory, "pytorch_model.bin")
        assert (weights.checks, weights.extra_checksums) == (("header", "crc32"), ())
        weights.file.close()


def test_row47_small_files_stay_small(tmp_path: Path) -> None:
    """A configuration that is too long is refused before it is inflated."""
    content = zipped({f"{ROOT}/model.safetensors": WEIGHTS, CONFIG: b" " * 1000})
    with opened(written(tmp_path, content)) as directory:
        where = directory.path / "config.json"
        with refused(MalformedInput, where=where, found="1000 bytes", expected="at most 999"):
            directory.read("config.json", 999)


def test_index_that_is_broken_is_named(tmp_path: Path, unpacked: Path) -> None:
    """A malformed index in an archive is refused with its path in the archive, before anything is unpacked."""
    content = zipped({MODEL: WEIGHTS, f"{MODEL}.index.json": b"{"}, level=6)
    assert refusal(written(tmp_path, content), MalformedInput, unpacked).startswith(
        f"/{MODEL}.index.json: not strict JSON"
    )
    assert list(unpacked.iterdir()) == []


def test_small_deflated_file_is_opened_in_memory(tmp_path: Path) -> None:
    """A small deflated file beside stored weights can be opened and read by position."""
    out = io.BytesIO(zipped({CONFIG: b'{"a": 1}'}, level=6))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(MODEL, WEIGHTS)
    with opened(written(tmp_path, out.getvalue())) as directory:
        file = directory.open("config.json")
        assert (file.path, file.size) == (tmp_path / "x.zip" / CONFIG, 8)
        assert file.read(1, 3) == b'"a"'
        file.check_unchanged()
        with refused(InputOutputError, where=file.path, expected="8 bytes"):
            file.read(5, 4)
        file.close()
        with refused(InputOutputError, where=directory.path / "none.txt"):
            directory.open("none.txt")


NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=40
).filter(
    lambda name: name not in {".", "..", ".DS_Store"} | READ_BESIDE and not is_companion(name)
)  # macOS adds .DS_Store
USED = sorted({"manifest.json", *COPIED})


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(NAMES, st.tuples(st.binary(max_size=300), st.booleans()), max_size=5),
    companions=st.dictionaries(st.sampled_from(USED), st.tuples(st.binary(max_size=300), st.booleans())),
    weights=st.tuples(st.binary(max_size=3000), st.booleans()),
    pipe=st.booleans(),
)
def test_any_files_are_read_unchanged(
    tmp_path: Path,
    files: dict[str, tuple[bytes, bool]],
    companions: dict[str, tuple[bytes, bool]],
    weights: tuple[bytes, bool],
    pipe: bool,
) -> None:
    """Any files beside stored weights are read unchanged; with deflated weights, the files that are used."""
    used = companions | {"pytorch_model.bin": weights}
    files = dict({folded(name): (name, value) for name, value in (files | used).items()}.values())
    out = Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, (content, deflate) in files.items():
            archive.writestr(f"{ROOT}/{name}", content, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
    data = bytes(out.written) if isinstance(out, Pipe) else out.getvalue()
    unpacked = tmp_path / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    with opened(written(tmp_path, data), unpacked) as directory:
        expected = {name: content for name, (content, _) in (used if weights[1] else files).items()}
        assert everything(directory) == expected
        assert isinstance(directory, LocalDirectory) == weights[1] == any(unpacked.iterdir())
