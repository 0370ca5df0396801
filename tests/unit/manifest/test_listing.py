"""A listing tells of anybody's checkpoint what its bytes are, verification against it finds every change, and both need little."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.manifest.listing import Listing, list_checkpoint
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.verify import verify
from tests.conftest import Run
from tests.support.limits import MOMENT, PATIENCE
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

ROOT = Path(__file__).parents[3]
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"

DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def kept(folder: Path, to: Path, **options: Any) -> Listing:
    """Write the listing of a folder to ``to``."""
    listing = list_checkpoint(folder, **options)
    to.write_bytes(listing.document)
    return listing


def digest_of(tensor: torch.Tensor) -> str:
    """Return the tensor digest, from the bytes that torch gives."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return f"blake3:{blake3(data).hexdigest()}"


def content_of(tensors: Tensors) -> str:
    """Return the content digest, by the words of docs/manifest-format.md."""
    rows = [[name, DTYPES[t.dtype], list(t.shape), digest_of(t)] for name, t in tensors.items()]
    rows.sort(key=lambda row: str(row[0]).encode())
    lines = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    return f"dw1:{blake3(lines.encode()).hexdigest()}"


def files_of(folder: Path) -> dict[str, dict[str, object]]:
    """Return size and sha256 of the regular files in a folder, made by hashlib."""
    return {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.is_file()
    }


def save_legacy(tensors: Tensors, folder: Path) -> Path:
    """Save a checkpoint as torch did before 1.6, in one file whose name says nothing."""
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "weights.pth", _use_new_zipfile_serialization=False)
    return folder


def small() -> Tensors:
    """Return tensors of several dtypes and shapes: empty ones, scalars, and one longer than a read."""
    torch.manual_seed(3)
    return {
        "long": torch.randn(700, 900).half(), "a.10": torch.randn(3, 4), "a.9": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5).double(), "bits": torch.tensor([True, False]),
    }  # fmt: skip


FORMS: dict[str, Callable[[Tensors, Path], Path]] = {
    "safetensors": lambda tensors, folder: save(tensors, folder, "safetensors", 1),
    "shards": lambda tensors, folder: save(tensors, folder, "safetensors", 3),
    "torch": lambda tensors, folder: save(tensors, folder, "torch", 2),
    "legacy": save_legacy,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_listing_says_what_the_bytes_are(tmp_path: Path, form: str) -> None:
    """Files, tensors and content digest of a listing are those that hashlib, blake3 and torch give, in every container."""
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
    """A folder verifies against its listing, with and without the content digest, and no longer once a byte of it is another."""
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
    """The tensors of Meta's parts are those of the model in Hugging Face's layout, so its content digest is the converted one's."""
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
    """Tensors that share a storage, are transposed, or leave parts of it out are digested as torch delivers them."""
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


# What else stands in a folder.


def test_a_snapshot_of_the_hub_is_listed_through_its_links(tmp_path: Path) -> None:
    """A folder of links, as in the Hub's cache, is listed as the files are, and either verifies against it, unlike by itself."""
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
    """Folders in the folder are listed by name and no more; one that comes later is a problem, like a file or a link to nothing."""
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
        "config.json: is not a regular file: found a link",
        "extra.py: is not in the manifest: found an extra file",
    }


def test_files_that_no_tensor_is_in_are_listed(tmp_path: Path) -> None:
    """Code, an optimizer's state and torch files beside safetensors are files like any other, whatever is in them."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    torch.save(small(), model / "pytorch_model.bin")
    torch.save({"lr": object()}, model / "training_args.bin")
    (model / "modeling.py").write_text("?")
    listing = kept(model, tmp_path / "kept.json")
    assert listing.content_digest == content_of(small())
    report = verify(model, manifest=tmp_path / "kept.json", expect=listing.content_digest)
    assert (report.problems, report.files) == ((), 6)


def test_a_listing_may_stand_in_the_folder(tmp_path: Path) -> None:
    """As manifest.json it is what verify takes, without SHA256SUMS; under another name it is given, and in no way a file of it."""
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
    """The listing of a merge has its content digest, and leaves manifest.json and SHA256SUMS out."""
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


# What cannot be listed.


def refused(folder: Path) -> DeltaweightsError:
    """Return the error of listing a folder."""
    with pytest.raises(DeltaweightsError) as caught:
        list_checkpoint(folder)
    return caught.value


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A folder without weights, one that is not there, and a file are refused in one line each."""
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("?")
    error = refused(tmp_path / "model")
    assert isinstance(error, MalformedInput)
    assert str(error) == (
        f"{tmp_path / 'model'}: no weights here: found an empty folder, expected model.safetensors.index.json or "
        "model.safetensors or pytorch_model.bin.index.json or pytorch_model.bin or consolidated.00.pth; "
        "give the folder that holds the checkpoint's weights; a README alone is not a checkpoint"
    )
    for name, why in (("missing", "No such file or directory"), ("file", "Not a directory")):
        error = refused(tmp_path / name)
        line = f"{tmp_path / name}: cannot list: {why}; give the folder of a checkpoint"
        assert (type(error), str(error)) == (InputOutputError, line)


def test_entries_that_a_manifest_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A name with a control character, a link to nothing, and a FIFO are refused, with what to do; a FIFO does not hang."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    (model / "a\x1b").write_text("?")
    name = r"'a\\x1b'"
    assert str(refused(model)) == f"{model}: cannot be listed: {name} is not a plain file name; rename it".replace(
        r"\\", "\\"
    )
    (model / "a\x1b").unlink()
    (model / "b").symlink_to("nowhere")
    assert str(refused(model)) == f"{model / 'b'}: cannot be listed: found a link to nothing, expected files; remove it"
    (model / "b").unlink()
    os.mkfifo(model / "c")
    assert str(refused(model)) == f"{model / 'c'}: cannot be listed: found a special file, expected files; remove it"


def test_damage_that_a_file_records_is_not_pinned(tmp_path: Path) -> None:
    """A torch file whose bytes are not those of its own checksums is refused: a manifest of it would pin the damage."""
    model = save({"w": torch.arange(4000).half()}, tmp_path / "model", "torch", 1)
    path = model / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(100, 200).half().numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert re.fullmatch(
        rf"{path}: tensor w: stored bytes are damaged: found CRC-32 [0-9a-f]{{8}}, "
        r"expected [0-9a-f]{8}, as the file records; fetch the file again",
        str(refused(model)),
    )


def test_tensors_that_show_the_same_bytes_too_often_are_refused(tmp_path: Path) -> None:
    """A file of a megabyte whose tensors would be gigabytes is refused at once, and does not verify."""
    stored = torch.zeros(500_000).half()
    model = save({"w": stored}, tmp_path / "model", "torch", 1)
    listing = kept(model, tmp_path / "kept.json")
    torch.save({f"w.{k}": stored[k:] for k in range(2000)}, model / "pytorch_model.bin")
    began = time.process_time()
    error = refused(model)
    assert "tensors show the same bytes far too often: found 1996002000 bytes of tensors, expected at most 8" in str(
        error
    )
    found = verify(model, manifest=tmp_path / "kept.json", expect=listing.content_digest).problems
    assert any("weights cannot be verified" in problem.problem for problem in found)
    assert time.process_time() - began < MOMENT


def test_tensors_elsewhere_are_found(tmp_path: Path) -> None:
    """A listing whose tensors are said to be in another file, or are others, fails where the bytes are asked."""
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


# The command.


def test_the_command_prints_or_writes_the_manifest(tmp_path: Path, run: Run) -> None:
    """Stdout is the manifest, byte for byte, or a summary when it is written; --json says the same to programs, -q nothing."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    listing, to = list_checkpoint(model), tmp_path / "kept.json"
    done = run("manifest", model)
    assert (done.returncode, done.stdout.encode(), done.stderr) == (0, listing.document, "")
    done = run("manifest", model, "--output", to)
    assert (done.returncode, to.read_bytes()) == (0, listing.document)
    assert f"content digest  {listing.content_digest}" in done.stdout
    done = run("manifest", model, "--output", to, "--json")
    document = json.loads(done.stdout)
    assert (document["content_digest"], document["manifest_sha256"]) == (
        listing.content_digest,
        listing.manifest_sha256,
    )
    done = run("manifest", model, "--output", to, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_replaces_nothing_but_listings(tmp_path: Path, run: Run) -> None:
    """Weights and a merge's manifest are not replaced by a slip of the pen; an empty file is; a missing folder is an error."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    done = run("manifest", model, "--output", weights)
    assert (done.returncode, weights.read_bytes()) == (7, before)
    assert done.stderr == (
        f"deltaweights: error: {weights}: is not replaced: found something else, "
        "expected a manifest of the same sort, or nothing; move it away, or name another file\n"
    )
    merge = tmp_path / "merge.json"
    shutil.copy(ROOT / "tests/fixtures/manifest-v1/out/manifest.json", merge)
    assert run("manifest", model, "--output", merge).returncode == 7
    (tmp_path / "empty").write_text("")
    assert run("manifest", model, "--output", tmp_path / "empty").returncode == 0
    assert run("manifest", model, "--output", tmp_path / "no" / "folder").returncode == 5


# With little installed.

ALONE = f"""
import sys
allowed = {{"deltaweights", "click", "tqdm", "blake3"}}
for name in {sorted(name for name in packages_distributions() if name.isidentifier())!r}:
    if name not in allowed:
        sys.modules[name] = None  # importing it fails
from deltaweights.cli import main
main()
"""


@pytest.mark.parametrize("form", ["safetensors", "torch", "legacy"])
def test_manifest_and_verify_need_three_packages(tmp_path: Path, form: str) -> None:
    """Where only click, tqdm and blake3 can be imported of all that is installed, both commands work, on every container."""
    model = FORMS[form](small(), tmp_path / "model")
    to = tmp_path / "kept.json"
    digest = list_checkpoint(model).content_digest
    pins: list[str | Path] = ["--manifest", to, "--expect", digest, "--junit", tmp_path / "report.xml"]
    commands: list[list[str | Path]] = [["manifest", model, "--output", to], ["verify", model, *pins, "--json"]]
    for arguments in commands:
        command = [sys.executable, "-c", ALONE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        warned = form == "legacy" and arguments[0] == "manifest"  # such a file records no checksums
        assert (done.returncode, done.stderr.count("\n")) == (0, int(warned))
    assert "torch" in ALONE


@pytest.mark.slow
def test_the_wheel_alone_lists_and_verifies(tmp_path: Path) -> None:
    """The wheel, installed without its dependencies beside three packages, has all that both commands need."""
    pip = ["-m", "pip", "--disable-pip-version-check"]
    wheel = [
        sys.executable,
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pins = ["--constraint", str(ROOT / "constraints.txt"), "blake3", "click", "tqdm"]
    subprocess.run([python, *pip, "install", "--quiet", *pins], check=True)
    wheels = [str(path) for path in tmp_path.glob("*.whl")]
    subprocess.run([python, *pip, "install", "--quiet", "--no-deps", *wheels], check=True)
    save_meta(base_tensors(), tmp_path / "meta", 2)
    kept_at = str(tmp_path / "kept.json")
    for arguments in (["manifest", "meta", "--output", kept_at], ["verify", "meta", "--manifest", kept_at]):
        command = [python, "-m", "deltaweights", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_safetensors_library_reads_what_is_listed(tmp_path: Path) -> None:
    """A file with metadata and out-of-order tensors, as the safetensors library writes it, has the digests of its tensors."""
    (tmp_path / "model").mkdir()
    tensors = {"z": torch.ones(3), "a": torch.zeros(2, 2).half()}
    save_file(tensors, tmp_path / "model" / "any-name.safetensors", metadata={"format": "pt", "by": "hand"})
    assert list_checkpoint(tmp_path / "model").content_digest == content_of(tensors)
