"""The forms in which a result reaches whoever receives it, and what may be wrong with it by then."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.support.results import MANIFEST, SUMS, sha256, shards_of

COMMIT = 40 * "a"

Form = Callable[[Path, Path], Path]  # takes the files, and those that they were before; returns what is given to verify


def as_folder(files: Path, _: Path) -> Path:
    return files


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def as_snapshot(files: Path, before: Path) -> Path:
    """Make the Hub's cache: the blobs of what was fetched have the names that the Hub stated then."""
    repository = files.parent / "hub" / "models--org--merged"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in files.iterdir():
        fetched = before / path.name if (before / path.name).exists() else path
        name = sha256(fetched) if path.suffix == ".safetensors" else git_sha1(fetched.read_bytes())
        shutil.copy(path, repository / "blobs" / name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / name)
    return snapshot


def as_repository(files: Path, before: Path) -> Path:
    """Give the folder of the repository in the cache."""
    repository = as_snapshot(files, before).parent.parent
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / (40 * "b")).mkdir()
    return repository


def as_tgz(files: Path, _: Path) -> Path:
    path = files.parent / "received.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(files, "merged")
    return path


def as_tar(files: Path, _: Path) -> Path:
    path = files.parent / "received.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for each in files.iterdir():
            archive.add(each, f"./{each.name}")
    return path


def as_zip(files: Path, _: Path) -> Path:
    path = files.parent / "received.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in files.iterdir():
            archive.write(each, f"merged/{each.name}")
    return path


FORMS: dict[str, Form] = {
    "folder": as_folder, "snapshot": as_snapshot, "repository": as_repository, "tgz": as_tgz, "tar": as_tar, "zip": as_zip,
}  # fmt: skip


def _nothing(_: Path) -> None:
    """Leave all as it was."""


def _flip(folder: Path) -> None:
    data = bytearray(shards_of(folder)[0].read_bytes())
    data[-1] ^= 1
    shards_of(folder)[0].write_bytes(data)


def _truncate(folder: Path) -> None:
    shard = shards_of(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-1])


def _exchange(folder: Path) -> None:
    one, two = shards_of(folder)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _append(name: str, text: str = " ") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as out:
            out.write(text)

    return change


def _write(name: str, text: str = "?") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def _add_weights(folder: Path) -> None:
    shutil.copy(shards_of(folder)[0], folder / "model.safetensors")


def _swap_hash(folder: Path) -> None:
    """State the hash of README.md for config.json, in the manifest alone."""
    _replace(MANIFEST, sha256(folder / "config.json"), sha256(folder / "README.md"))(folder)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 31600\n"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (_nothing, "+++"),
    "flipped bit": (_flip, "-++"),
    "truncated": (_truncate, "-++"),
    "missing shard": (_remove("model-00002-of-00002.safetensors"), "-++"),
    "exchanged shards": (_exchange, "-++"),
    "edited index": (_append(INDEX), "-++"),
    "pointer": (_write(SHARD, POINTER), "-++"),
    "extra pickle": (_write("pytorch_model.bin"), "-++"),
    "extra weights": (_add_weights, "-++"),
    "extra index": (_write("pytorch_model.bin.index.json", "{}"), "-++"),
    "extra code": (_write("modeling_llava.py"), "+-+"),
    "extra adapter": (_write("adapter_config.json", "{}"), "+-+"),
    "extra tokenizer": (_write("tokenizer.json", "{}"), "+-+"),
    "edited config": (_append("config.json"), "+-+"),
    "missing config": (_remove("config.json"), "+-+"),
    "edited README": (_append("README.md"), "++-"),
    "missing README": (_remove("README.md"), "++-"),
    "edited manifest": (_swap_hash, "+-+"),
    "respaced manifest": (_append(MANIFEST, "\n"), "++-"),
    "edited sums": (_append(SUMS, "# mine\n"), "++-"),
    "no manifest": (_remove(MANIFEST, SUMS), "---"),
    "litter": (_write(".DS_Store"), "+++"),
    "notes": (_write("notes.md"), "+++"),
}  # fmt: skip
"""By name: the damage, and whether weights, loader files and other files pass then."""


def tar_of(path: Path, members: dict[str, bytes], kinds: dict[str, bytes] | None = None) -> Path:
    """Write a tar archive of these members; ``kinds`` are tar's types of those that are no files."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), (kinds or {}).get(name, tarfile.REGTYPE)
            if info.type != tarfile.REGTYPE:
                info.linkname, info.size = data.decode(), 0
            archive.addfile(info, io.BytesIO(data))
    return path
