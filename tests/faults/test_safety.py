"""Files that must not be lost, leaked or trusted: folders and links that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltaweights.checkpoint.companions import read_companions, state_dtype
from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.errors import MalformedInput, Mismatch, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.records import MANIFEST, SUMS
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.staging.location import locate_target
from tests.support.errors import refused
from tests.support.pairs import base_tensors, make_pair, save

Pair = tuple[Path, Path]


def test_content_that_appears_during_the_run_is_not_replaced(pair: Pair, tmp_path: Path) -> None:
    """Without overwrite, files that appear in the empty target during a run stay, and the run ends with 7."""
    target = tmp_path / "merged"
    target.mkdir()

    class Meddler(Report):
        def begin(self, doing: str, total: int) -> None:
            (target / "thesis.tex").write_text("years")

    with refused(TargetBusy, found="thesis.tex"):
        apply_delta(*pair, target, report=Meddler())
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("stranger", [".git", "src", "thesis.tex"])
def test_overwrite_keeps_off_folders_with_other_things(pair: Pair, tmp_path: Path, stranger: str) -> None:
    """With overwrite, a checkpoint with other files beside it is refused, naming one, and nothing is lost."""
    target = tmp_path / "merged"
    apply_delta(*pair, target)
    (target / stranger).mkdir()
    with refused(TargetBusy, found=stranger):
        apply_delta(*pair, target, overwrite=True, dtype="float32")
    assert (target / stranger).exists()


def test_overwrite_never_takes_the_base_behind_links(tmp_path: Path) -> None:
    """A folder that the base links into is an input, and cannot be the target."""
    base, delta = make_pair(tmp_path, "safetensors", 1)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.safetensors").symlink_to(base / "model.safetensors")
    with refused(TargetBusy, problem="output and input overlap"):
        apply_delta(tmp_path / "links", delta, base, overwrite=True)
    assert (base / "model.safetensors").exists()


def test_a_damaged_finished_shard_is_made_again(pair: Pair, tmp_path: Path) -> None:
    """A finished shard that changed in staging is not published: it is hashed before it is reused."""
    target = tmp_path / "merged"
    expected = apply_delta(*pair, tmp_path / "expected", max_shard_size="20KB").content_digest

    class StopAtEnd(Report):
        def end(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_delta(*pair, target, max_shard_size="20KB", report=StopAtEnd())
    shard = sorted(locate_target(target).shards.iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert apply_delta(*pair, target, max_shard_size="20KB").content_digest == expected
    assert verify(target, expect=expected).ok


def test_companions_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    """A licence that links out of its folder is refused with 3; one into the Hub cache's blobs is read."""
    (tmp_path / "secret").write_text("secret")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "1234").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    assert (
        read_companions(LocalDirectory(snapshot), frozenset(), "float16", "delta", "notice").files["config.json"]
        == b"{}"
    )
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    with refused(MalformedInput, problem="a link that leaves the folder"):
        read_companions(LocalDirectory(snapshot), frozenset(), "float16", "delta", "notice")


def test_both_spellings_of_the_dtype_are_set() -> None:
    """In a config with both names of the dtype both are changed, and nothing else is."""
    config = b'{"torch_dtype":  "float16", "text_config": {"torch_dtype": "float16"}, "dtype":"float16"}\r\n'
    changed, said = state_dtype(config, "bfloat16", Path("config.json"))
    assert changed == b'{"torch_dtype":  "bfloat16", "text_config": {"torch_dtype": "float16"}, "dtype":"bfloat16"}\r\n'
    assert said is not None
    assert state_dtype(config, "float16", Path("config.json")) == (config, None)


def test_checks_are_claimed_only_where_they_were_made(tmp_path: Path) -> None:
    """No checksums are claimed for files without them; with them, damage in a dropped buffer is found, too."""
    base, delta = make_pair(tmp_path, "torch", 1)
    weights = delta / "pytorch_model.bin"
    tensors = torch.load(weights)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, weights)
    finally:
        torch.serialization.set_crc32_options(before)
    apply_delta(base, delta, tmp_path / "merged")
    manifest = json.loads((tmp_path / "merged" / MANIFEST).read_bytes())
    checks = [manifest["inputs"][role]["files"]["pytorch_model.bin"]["checks"] for role in ("base", "delta")]
    assert checks == [["header", "crc32"], ["header"]]
    buffer = next(tensor for name, tensor in base_tensors().items() if name.endswith("inv_freq"))
    data = (base / "pytorch_model.bin").read_bytes()
    stored = buffer.numpy().tobytes()
    assert data.count(stored) >= 1
    (base / "pytorch_model.bin").write_bytes(data.replace(stored, bytes([stored[0] ^ 1]) + stored[1:], 1))
    with pytest.raises(MalformedInput, match=r"inv_freq: stored bytes are damaged"):
        apply_delta(base, delta, tmp_path / "again")


def test_one_target_has_one_lock(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging beside the target is found by a run from inside it, so two runs cannot miss each other."""
    target = tmp_path / "merged"
    target.mkdir()
    outside = locate_target(target)
    outside.root.mkdir()
    monkeypatch.chdir(target)
    assert locate_target(".") == outside
    outside.root.rmdir()
    assert locate_target(".").inside


def test_weights_that_no_tensor_is_in_do_not_verify(pair: Pair, tmp_path: Path) -> None:
    """An extra pickle that a loader would prefer fails the check, even when manifest and sums list it."""
    target = tmp_path / "merged"
    expect = apply_delta(*pair, target).content_digest
    (target / "pytorch_model.bin").write_bytes(b"evil")
    manifest = json.loads((target / MANIFEST).read_bytes())
    manifest["result"]["files"]["pytorch_model.bin"] = {"size": 4, "sha256": "0" * 64}
    (target / MANIFEST).write_text(json.dumps(manifest))
    (target / SUMS).unlink()
    problems = [str(problem) for problem in verify(target, expect=expect).problems]
    assert "pytorch_model.bin: could be loaded, but holds no tensor of the manifest" in problems


def test_the_same_weights_twice_are_refused(tmp_path: Path) -> None:
    """Giving the base as the delta by mistake ends with 4, and writes nothing."""
    base = save(base_tensors(), tmp_path / "base", "safetensors", 1)
    with pytest.raises(Mismatch, match="hold the same weights"):
        apply_delta(base, base, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_hashes_that_were_asked_for_and_not_made_are_said(pair: Pair, tmp_path: Path) -> None:
    """--hash-inputs for a result that is complete already gives a warning."""
    said: list[str] = []

    class Listener(Report):
        def warn(self, text: str) -> None:
            said.append(text)

    apply_delta(*pair, tmp_path / "merged", report=Listener())
    assert said == []
    apply_delta(*pair, tmp_path / "merged", hash_inputs=True, report=Listener())
    assert any("--hash-inputs adds nothing to it" in text for text in said)


def test_a_lone_weights_file_brings_no_strangers(tmp_path: Path) -> None:
    """A delta given as a single file takes no other files from the folder that it is in."""
    base, delta = make_pair(tmp_path, "safetensors", 1)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (delta / "model.safetensors").rename(downloads / "d.safetensors")
    (downloads / "LICENSE").write_text("of something else")
    apply_delta(base, downloads / "d.safetensors", tmp_path / "merged")
    assert not (tmp_path / "merged" / "LICENSE").exists()
