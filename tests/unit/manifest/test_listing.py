"""A listing states what the bytes of any checkpoint are, and verification against it finds every change."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.manifest.listing import list_checkpoint
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.verify import verify
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.listings import DTYPES, FORMS, MANIFEST, SUMS, content_of, digest_of, files_of, kept, small
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors, delta_tensors, save


@pytest.mark.parametrize("form", FORMS)
def test_a_listing_says_what_the_bytes_are(tmp_path: Path, form: str) -> None:
    """Files, tensors and content digest in a listing are those that hashlib, blake3 and torch compute, in every container."""
    tensors = small()
    folder = FORMS[form](tensors, tmp_path / "model")
    before = files_of(folder)
    listing = list_checkpoint(folder)
    document = json.loads(listing.document)
    assert document["inputs"] == {}
    result = document["result"]
    assert list(result) == ["content_digest", "parameters", "bytes", "files", "tensors"]
    assert result["content_digest"] == listing.content_digest == content_of(tensors)
    assert result["files"] == before == files_of(folder)
    assert list(result["tensors"]) == ["a.9", "a.10", "bits", "empty", "long", "scalar"]
    for name, tensor in tensors.items():
        row = result["tensors"][name]
        assert (row["dtype"], row["shape"]) == (DTYPES[tensor.dtype], list(tensor.shape))
        assert row["digest"] == digest_of(tensor)
        assert row["file"] in before
    assert result["parameters"] == listing.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert result["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert listing.manifest_sha256 == hashlib.sha256(listing.document).hexdigest()
    assert parse_manifest(listing.document).kind == "listing"


@pytest.mark.parametrize("form", FORMS)
def test_what_was_listed_verifies(tmp_path: Path, form: str) -> None:
    """A folder verifies against its listing, with and without the content digest, until a byte changes."""
    folder = FORMS[form](small(), tmp_path / "model")
    listing = kept(folder, tmp_path / "kept.json")
    pins: dict[str, Any] = {"manifest": tmp_path / "kept.json", "expect_manifest": listing.manifest_sha256}
    plain, pinned = verify(folder, **pins), verify(folder, expect=listing.content_digest, **pins)
    assert (plain.problems, plain.notes, plain.recomputed) == ((), (), False)
    assert (pinned.problems, pinned.recomputed, pinned.content_digest) == ((), True, listing.content_digest)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in {0, len(data) // 3, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
            assert "has another sha256" in {problem.problem for problem in verify(folder, **pins).problems}
            assert not verify(folder, expect=listing.content_digest, **pins).ok
        path.write_bytes(data)
    assert verify(folder, **pins).ok


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_metas_format_is_listed_as_what_it_gives(tmp_path: Path, parts: int) -> None:
    """The listing of Meta's format has the tensors of the converted model, and their digests."""
    base = {name: tensor for name, tensor in base_tensors().items() if not name.endswith("inv_freq")}
    folder = save_meta(base, tmp_path / "meta", parts)
    listing = kept(folder, tmp_path / "kept.json")
    rows = json.loads(listing.document)["result"]["tensors"]
    frequencies = rows.pop("rope.freqs")
    assert frequencies["file"] == "consolidated.00.pth"
    assert {name: row["digest"] for name, row in rows.items()} == {n: digest_of(t) for n, t in base.items()}
    assert ("consolidated.*.pth" in {row["file"] for row in rows.values()}) is (parts > 1)
    report = verify(folder, manifest=tmp_path / "kept.json", expect=listing.content_digest)
    assert report.problems == ()
    converted = convert_checkpoint(folder, tmp_path / "converted")
    alike = json.loads(list_checkpoint(converted.target).document)["result"]["tensors"]
    assert {n: row["digest"] for n, row in alike.items()} == {n: row["digest"] for n, row in rows.items()}
    (folder / "consolidated.00.pth").unlink()
    found = verify(folder, manifest=tmp_path / "kept.json", expect=listing.content_digest).problems
    assert "is missing" in {problem.problem for problem in found}


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda t: t,
    "transpose": lambda t: t.T,
    "rows": lambda t: t[1:],
    "columns": lambda t: t[:, 1:],
    "every other": lambda t: t[::2],
    "none": lambda t: t[:0],
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    views=st.lists(st.sampled_from(sorted(VIEWS)), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.uint8]),
    legacy=st.booleans(),
)
def test_views_have_the_digest_of_what_a_loader_finds(
    tmp_path: Path, shape: tuple[int, int], views: list[str], dtype: torch.dtype, legacy: bool
) -> None:
    """Tensors that share a storage, are transposed, or skip parts of it are digested as torch loads them."""
    stored = torch.randint(0, 200, shape).to(dtype)
    tensors = {f"{k}.{name}": VIEWS[name](stored) for k, name in enumerate(views)}
    folder = tmp_path / "views"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    listing = kept(folder, tmp_path / "kept.json")
    assert listing.content_digest == content_of(tensors)
    assert verify(folder, manifest=tmp_path / "kept.json", expect=listing.content_digest).ok


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Besides headers, every byte is read once, for sha256 and tensor digests together."""
    from deltaweights.checkpoint.files import LocalFile  # noqa: PLC0415  (patched below)

    folder = FORMS[form](small(), tmp_path / "model")
    places: list[tuple[Path, int, int]] = []
    read_into = LocalFile.read_into

    def counted(self: LocalFile, out: memoryview, offset: int) -> None:
        places.append((self.path, offset, len(out)))
        read_into(self, out, offset)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    list_checkpoint(folder)
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert total <= sum(length for _, _, length in places) < total + 40_000


def test_a_listing_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    """One worker and many give the same bytes."""
    folder = save(small(), tmp_path / "model", "safetensors", 3)
    assert len({list_checkpoint(folder, workers=workers).document for workers in (1, 2, 8)}) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to ask for the most memory")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Listing and verifying files of 600 MB takes less than 100 MB of memory."""
    header = json.dumps({"w": {"dtype": "F16", "shape": [150_000_000], "data_offsets": [0, 300_000_000]}}).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    for name, tensor in (("model-00001-of-00002.safetensors", b"w"), ("model-00002-of-00002.safetensors", b"v")):
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.replace(b'"w"', b'"' + tensor + b'"'))
            file.truncate(8 + len(header) + 300_000_000)
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    program = """
import re, sys
from pathlib import Path
from deltaweights.manifest.listing import list_checkpoint
from deltaweights.manifest.verify import verify
listing = list_checkpoint(sys.argv[1])
Path(sys.argv[2]).write_bytes(listing.document)
assert verify(sys.argv[1], manifest=sys.argv[2], expect=listing.content_digest).ok
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "kept.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert int(done.stdout) < 100_000, "kilobytes"


def test_a_snapshot_of_the_hub_is_listed_through_its_links(tmp_path: Path) -> None:
    """A folder of links, as in the Hub's cache, has the same listing as one of files, and both verify against it."""
    blobs, plain = tmp_path / "blobs", save(small(), tmp_path / "plain", "safetensors", 2)
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    listing = kept(snapshot, tmp_path / "kept.json")
    assert listing.document == list_checkpoint(plain).document
    for folder in (plain, snapshot):
        assert verify(folder, manifest=tmp_path / "kept.json", expect=listing.content_digest).ok
    (blobs / "0").write_bytes(b"{}")
    assert not verify(snapshot, manifest=tmp_path / "kept.json").ok


def test_folders_are_named_and_others_are_found(tmp_path: Path) -> None:
    """Subfolders are listed by name only; new ones are problems, like new files and links to nothing."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    (model / "onnx").mkdir()
    (model / ".git").mkdir()
    (model / "original").symlink_to(tmp_path)
    listing = kept(model, tmp_path / "kept.json")
    assert listing.folders == ("onnx", "original")
    assert json.loads(listing.document)["result"]["folders"] == ["onnx", "original"]
    (model / "onnx" / "model.onnx").write_text("?")
    assert verify(model, manifest=tmp_path / "kept.json").ok
    (model / "code").mkdir()
    (model / "extra.py").write_text("?")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("nowhere")
    assert {str(problem) for problem in verify(model, manifest=tmp_path / "kept.json").problems} == {
        "code: is not a regular file: found a folder",
        "config.json: is not a regular file: found a link to nothing",
        "extra.py: is not in the manifest: found an extra file",
    }


def test_files_that_no_tensor_is_in_are_listed(tmp_path: Path) -> None:
    """Code, an optimizer's state and torch files beside safetensors are listed as plain files."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    torch.save(small(), model / "pytorch_model.bin")
    torch.save({"lr": object()}, model / "training_args.bin")
    (model / "modeling.py").write_text("?")
    listing = kept(model, tmp_path / "kept.json")
    assert listing.content_digest == content_of(small())
    report = verify(model, manifest=tmp_path / "kept.json", expect=listing.content_digest)
    assert (report.problems, report.files) == ((), 6)


def test_a_listing_may_stand_in_the_folder(tmp_path: Path) -> None:
    """As manifest.json a listing verifies without SHA256SUMS; under another name it can be given, and is not listed itself."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    listing = kept(model, model / "listing.json", apart=model / "listing.json")
    assert kept(model, model / "listing.json", apart=model / "listing.json").document == listing.document
    assert verify(model, manifest=model / "listing.json", expect=listing.content_digest).ok
    (model / "listing.json").rename(model / MANIFEST)
    (model / SUMS).write_text("of somebody else\n")
    report = verify(model, expect=listing.content_digest)
    assert (report.problems, report.notes) == ((), (f"{model / SUMS} was not looked at: another manifest counts",))
    assert diff_checkpoints(model, model, trust_manifests=True).weights_read is False
    (model / "config.json").write_text("{}")
    assert [problem.file for problem in verify(model).problems] == ["config.json"]


def test_our_own_results_are_listed_without_their_manifest(tmp_path: Path) -> None:
    """The listing of a merge has its content digest, and does not list manifest.json and SHA256SUMS."""
    base = base_tensors()
    save(base, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merged")
    listing = list_checkpoint(result.target)
    own = json.loads((Path(result.target) / MANIFEST).read_bytes())["result"]
    listed = json.loads(listing.document)["result"]
    for key in ("content_digest", "parameters", "bytes", "files"):
        assert listed[key] == own[key]
    for name, row in listed["tensors"].items():
        assert row.items() <= own["tensors"][name].items()


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    """A folder without weights, a missing one, and a file are refused."""
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("?")
    with refused(MalformedInput, where=tmp_path / "model", found="an empty folder"):
        list_checkpoint(tmp_path / "model")
    for name in ("missing", "file"):
        with refused(InputOutputError, where=tmp_path / name, remedy="give the folder of a checkpoint"):
            list_checkpoint(tmp_path / name)


def test_entries_that_a_manifest_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A name with a control character, a link to nothing, and a FIFO are refused; a FIFO does not hang."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    (model / "a\x1b").write_text("?")
    with refused(MalformedInput, where=model, remedy="rename it") as info:
        list_checkpoint(model)
    assert r"'a\x1b'" in info.value.problem
    (model / "a\x1b").unlink()
    (model / "b").symlink_to("nowhere")
    with refused(MalformedInput, where=model / "b", found="a link to nothing", remedy="remove it"):
        list_checkpoint(model)
    (model / "b").unlink()
    os.mkfifo(model / "c")
    with refused(MalformedInput, where=model / "c", found="a special file", remedy="remove it"):
        list_checkpoint(model)


def test_damage_that_a_file_records_is_not_pinned(tmp_path: Path) -> None:
    """A torch file that does not match its own checksums is refused: a manifest would pin the damage."""
    model = save({"w": torch.arange(4000).half()}, tmp_path / "model", "torch", 1)
    path = model / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(100, 200).half().numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with refused(MalformedInput, where=path, tensor="w") as info:
        list_checkpoint(model)
    assert re.fullmatch("CRC-32 [0-9a-f]{8}", str(info.value.found))


def test_tensors_that_show_the_same_bytes_too_often_are_refused(tmp_path: Path) -> None:
    """A file of a megabyte whose tensors would take gigabytes is refused, and does not verify."""
    stored = torch.zeros(500_000).half()
    model = save({"w": stored}, tmp_path / "model", "torch", 1)
    listing = kept(model, tmp_path / "kept.json")
    torch.save({f"w.{k}": stored[k:] for k in range(2000)}, model / "pytorch_model.bin")
    with refused(MalformedInput, where=model, found="1996002000 bytes of tensors"):
        list_checkpoint(model)
    found = verify(model, manifest=tmp_path / "kept.json", expect=listing.content_digest).problems
    assert any("weights cannot be verified" in problem.problem for problem in found)


def test_tensors_elsewhere_are_found(tmp_path: Path) -> None:
    """A listing that places tensors in other files fails when the bytes are read."""
    model = save(small(), tmp_path / "model", "safetensors", 2)
    listing = kept(model, tmp_path / "kept.json")
    document = json.loads(listing.document)
    rows = document["result"]["tensors"]
    rows["a.9"]["file"] = next(row["file"] for row in rows.values() if row["file"] != rows["a.9"]["file"])
    (tmp_path / "kept.json").write_text(json.dumps(document))
    report = verify(model, manifest=tmp_path / "kept.json", expect=listing.content_digest)
    assert [(problem.file, problem.problem) for problem in report.problems] == [
        ("a.9", "is in another file than the manifest says")
    ]
    rows["a.9"]["file"] = "nowhere.safetensors"
    (tmp_path / "kept.json").write_text(json.dumps(document))
    assert "holds tensors of the manifest, but is not among its files" in {
        problem.problem for problem in verify(model, manifest=tmp_path / "kept.json").problems
    }


def test_the_safetensors_library_reads_what_is_listed(tmp_path: Path) -> None:
    """A file with metadata and tensors in another order, written by the safetensors library, has the right content digest."""
    (tmp_path / "model").mkdir()
    tensors = {"z": torch.ones(3), "a": torch.zeros(2, 2).half()}
    save_file(tensors, tmp_path / "model" / "any-name.safetensors", metadata={"format": "pt", "by": "hand"})
    assert list_checkpoint(tmp_path / "model").content_digest == content_of(tensors)
