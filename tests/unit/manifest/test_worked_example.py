"""The examples in docs/manifest-format.md, and results that earlier releases wrote."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from deltaweights import apply_delta, make_delta, verify
from deltaweights.checkpoint.companions import NOTICE
from deltaweights.merge.shards import shard_cuts, shard_name
from deltaweights.util.text import Json, natural_key, strict_json
from tests.support.manifest_format import CONTENT_DIGEST, DOCUMENT, FIXTURE


@pytest.mark.parametrize(
    "row", [line for line in DOCUMENT.splitlines() if re.fullmatch(r"\| [0-9 ]+ \| [0-9]+ \| [0-9 /]+ \|", line)]
)
def test_documented_shards(row: str) -> None:
    """The program cuts shards as in every row of the document's table."""
    sizes, limit, pieces = (cell.strip() for cell in row.strip("|").split("|"))
    numbers = [int(size) for size in sizes.split()]
    cuts = shard_cuts(numbers, int(limit))
    cut = [" ".join(map(str, numbers[a:b])) for a, b in pairwise(cuts)]
    assert " / ".join(cut) == pieces


def test_documented_order() -> None:
    """The program sorts the names in the document's example of natural order."""
    names = re.findall("`([^`]+)`", DOCUMENT.partition("Natural order:")[2].partition("\n\n")[0])
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
    """Return files and parsed manifest without what later releases added, and without the plan identity, which is opaque."""
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
    """Earlier releases wrote the same files except the card, and the same manifest except later keys."""
    first, proved, new = (contents(FIXTURE / folder) for folder in RESULTS)
    assert len({files["manifest.json"] for files in (first, proved, new)}) == 3
    assert as_the_first_release(first) == as_the_first_release(proved) == as_the_first_release(new)


@pytest.mark.parametrize("folder", RESULTS)
def test_worked_example_verifies(folder: str) -> None:
    """Results of earlier releases verify, content digest included."""
    report = verify(FIXTURE / folder, expect=CONTENT_DIGEST)
    assert report.problems == ()
    assert report.recomputed


def test_the_notice_is_the_first_release_s() -> None:
    """The notice in every output is part of the format and must not change."""
    assert (FIXTURE / "out" / "DELTAWEIGHTS_NOTICE.txt").read_text() == NOTICE
    assert "not for clinical care or for any clinical decision" in " ".join(NOTICE.split())


def test_worked_example_with_a_flipped_bit_does_not_verify(tmp_path: Path) -> None:
    """One flipped bit of a weight in the fixture is found."""
    copy = shutil.copytree(FIXTURE / "out", tmp_path / "out")
    path = copy / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    problems = verify(copy).problems
    assert [(problem.file, problem.problem) for problem in problems] == [(path.name, "has another sha256")]
