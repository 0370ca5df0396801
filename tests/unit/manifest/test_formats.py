"""The formats that leave the program, held against literal values and against the documents that state them."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from deltaweights import apply_delta, make_delta, verify
from deltaweights.checkpoint.companions import NOTICE
from deltaweights.manifest.digest import content_digest, tensor_digest, tensor_hasher
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.shards import shard_cuts, shard_name
from deltaweights.util.text import Json, natural_key, readable_json, strict_json

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "manifest-format.md").read_text()
FIXTURE = ROOT / "tests" / "fixtures" / "manifest-v1"
CONTENT_DIGEST = "dw1:319d38af75afc6491943880a2a5c554b448dbbfedf94a66fbcbe78bb4155c7c6"

TENSOR_DIGESTS = {
    "": "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    "00000080": "blake3:cf2495c57caf3fe3203bf6f744b5ddfc88adf65ce6c10588ed7b25cc8daa7aeb",
    "003c00c0": "blake3:99b4604fe9339946f5fb8f9e1082631a41577648b3a170f6f01530a5e646aee2",
    "0000803f": "blake3:1628d491647767ca75acfd2183da4631eef590e9c8129503574e36927c16521c",
}


@pytest.mark.parametrize(("data", "digest"), TENSOR_DIGESTS.items())
def test_tensor_digest_golden(data: str, digest: str) -> None:
    """The tensor digest is BLAKE3 of the bytes, as the document's table says."""
    hasher = tensor_hasher()
    hasher.update(memoryview(bytes.fromhex(data)))
    assert tensor_digest(hasher) == digest
    assert f"`{digest}`" in DOCUMENT


def test_content_digest_golden() -> None:
    """The content digest has the documented values, and does not depend on the order in which tensors are given."""
    rows = [
        ("b", "F16", (2,), TENSOR_DIGESTS["003c00c0"]),
        ("a", "F32", (), TENSOR_DIGESTS["0000803f"]),
    ]
    expected = "dw1:70c5b22e3d56cb78df41c8f95d8df4d712f2db6a245603ce40b53e203a226e2f"
    assert content_digest(rows) == expected
    assert content_digest(reversed(rows)) == expected
    assert content_digest([]) == "dw1:" + TENSOR_DIGESTS[""].removeprefix("blake3:")
    assert expected in DOCUMENT


def test_content_digest_of_names_beyond_ascii() -> None:
    """Names are digested as UTF-8, sorted by its bytes, with only quote and backslash escaped."""
    rows = [(name, "F16", (1,), "blake3:00") for name in ('"', "\\", "é", "z", "\U0001f600")]
    assert content_digest(rows) == "dw1:9934eb2db119cd792fdd66523f5929980d589a7b062f9318073d4748756eb45e"


@pytest.mark.parametrize(
    "row", [line for line in DOCUMENT.splitlines() if re.fullmatch(r"\| [0-9 ]+ \| [0-9]+ \| [0-9 /]+ \|", line)]
)
def test_documented_shards(row: str) -> None:
    """Every example of the document's table of shards is what the program does."""
    sizes, limit, pieces = (cell.strip() for cell in row.strip("|").split("|"))
    numbers = [int(size) for size in sizes.split()]
    cuts = shard_cuts(numbers, int(limit))
    cut = [" ".join(map(str, numbers[a:b])) for a, b in pairwise(cuts)]
    assert " / ".join(cut) == pieces


def test_documented_order() -> None:
    """The document's example of natural order is the order that the program gives."""
    line = next(line for line in DOCUMENT.splitlines() if line.startswith("Natural order:"))
    names = re.findall("`([^`]+)`", line)
    assert sorted(sorted(names), key=natural_key) == names
    assert len(names) == 10


def test_shard_names() -> None:
    """One shard has the plain name, several are numbered with five digits."""
    assert [shard_name(1, 1), shard_name(2, 3)] == ["model.safetensors", "model-00002-of-00003.safetensors"]


RESULTS = ("out", "out-with-proof", "out-with-card")
"""The result of the worked example as releases wrote it: the first one, one that proved the base, and one that wrote a card."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_worked_example_is_made_again(tmp_path: Path) -> None:
    """Merging the fixture's pair gives every byte of the fixture's result."""
    result = apply_delta(FIXTURE / "base", FIXTURE / "delta", tmp_path / "out", max_shard_size=16)
    assert result.content_digest == CONTENT_DIGEST
    assert contents(tmp_path / "out") == contents(FIXTURE / "out-with-card")
    assert CONTENT_DIGEST in DOCUMENT


def as_the_first_release(files: dict[str, bytes]) -> tuple[dict[str, bytes], Json]:
    """Return the files but manifest and sums, and what the manifest says, but for what the first release did not look for.

    Left out, too, is the plan identity: it is opaque, and that of another version of plans.
    """
    manifest = strict_json(files["manifest.json"])
    manifest["result"] = {k: v for k, v in manifest["result"].items() if k not in {"proof", "uniform"}}
    manifest["result"]["files"].pop("README.md", None)
    del manifest["inputs"]["plan"]
    later = {"manifest.json", "SHA256SUMS", "README.md"}
    return {name: data for name, data in files.items() if name not in later}, manifest


def test_the_delta_of_the_worked_example_is_made_again(tmp_path: Path) -> None:
    """The delta between the fixture's base and result is the fixture's; its tensors are those of the first delta."""
    result = make_delta(FIXTURE / "base", FIXTURE / "out", tmp_path / "made", max_shard_size=16)
    assert as_the_first_release(contents(tmp_path / "made")) == as_the_first_release(contents(FIXTURE / "made"))
    assert verify(FIXTURE / "made", expect=result.content_digest).ok
    first = strict_json((FIXTURE / "out" / "manifest.json").read_bytes())
    assert result.content_digest == first["inputs"]["delta"]["tensors_digest"]
    assert (
        strict_json((FIXTURE / "made" / "manifest.json").read_bytes())["inputs"]["target"]["tensors_digest"]
        == CONTENT_DIGEST
    )


def test_the_first_release_s_result_is_still_what_is_made() -> None:
    """Earlier releases wrote the same files but for the card, and the same manifest but for what they did not look for."""
    first, proved, new = (contents(FIXTURE / folder) for folder in RESULTS)
    assert len({files["manifest.json"] for files in (first, proved, new)}) == 3
    assert as_the_first_release(first) == as_the_first_release(proved) == as_the_first_release(new)


@pytest.mark.parametrize("folder", RESULTS)
def test_worked_example_verifies(folder: str) -> None:
    """A result of the first releases verifies, down to its content digest; so it must in every later one."""
    report = verify(FIXTURE / folder, expect=CONTENT_DIGEST)
    assert report.problems == ()
    assert report.recomputed


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    """A manifest of version 1 with keys that we do not know is still read."""
    document = strict_json((FIXTURE / "out" / "manifest.json").read_bytes())
    document["result"]["proof of tomorrow"] = {"from": "a later release"}
    assert parse_manifest(readable_json(document)).content_digest == CONTENT_DIGEST


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(version: object) -> None:
    """A manifest of another version is not taken for one of ours."""
    document = strict_json((FIXTURE / "out" / "manifest.json").read_bytes()) | {"version": version}
    with pytest.raises(ValueError, match=f"version {version}"):
        parse_manifest(readable_json(document))


def test_fragment_golden() -> None:
    """A fragment has the documented keys in the documented order, and is read back as it was."""
    record = TensorRecord("w", "blake3:0", None, "blake3:1", Tally(nonfinite=2))
    tally = Tally(1, 2, 3, 4, 5, Proof(9, 8, 7, 6), 0.5)
    rich = TensorRecord("x", "blake3:0", "blake3:2", "blake3:1", tally, ("result", "base"))
    fragment = Fragment("plan1:2", "model.safetensors", FileRecord(3, "4"), (record, rich))
    expected = b"""{
  "format": "deltaweights-fragment",
  "version": 1,
  "plan": "plan1:2",
  "file": "model.safetensors",
  "size": 3,
  "sha256": "4",
  "tensors": [
    {"name": "w", "digest": "blake3:0", "base": null, "delta": "blake3:1", "nonfinite": 2},
    {
      "name": "x",
      "digest": "blake3:0",
      "base": "blake3:2",
      "delta": "blake3:1",
      "nonfinite": 1,
      "nonfinite_base": 2,
      "nonfinite_lead": 3,
      "overflow": 4,
      "inexact": 5,
      "proof": [9, 8, 7, 6],
      "sum": 0.5,
      "uniform": ["result", "base"]
    }
  ]
}
"""
    assert "".join(fragment.pieces()).encode() == expected
    assert Fragment.from_bytes(expected) == fragment


def test_every_documented_key_of_the_manifest_is_there() -> None:
    """Every key of the worked example stands in a table of the document."""
    document = strict_json((FIXTURE / "out-with-card" / "manifest.json").read_bytes())
    for keys in (document, document["result"], document["inputs"], document["inputs"]["base"]):
        for key in keys:
            assert re.search(rf"^\|[^|]*`{key}`", DOCUMENT, re.MULTILINE), key


def test_the_notice_is_the_first_release_s() -> None:
    """The notice in every output is a part of the format: no letter of it may change."""
    assert (FIXTURE / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text() == NOTICE
    assert "not for clinical care or for any clinical decision" in " ".join(NOTICE.split())


def test_worked_example_with_a_flipped_bit_does_not_verify(tmp_path: Path) -> None:
    """The fixture is checked for real: one flipped bit of a weight is found."""
    copy = shutil.copytree(FIXTURE / "out", tmp_path / "out")
    path = copy / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    problems = verify(copy).problems
    assert [(problem.file, problem.problem) for problem in problems] == [(path.name, "has another sha256")]
