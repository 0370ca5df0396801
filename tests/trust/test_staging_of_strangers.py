"""Staging that a stranger made: nothing elsewhere is read, written or removed, and nothing is waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.apply import apply_delta, apply_part
from deltaweights.convert import convert_checkpoint
from deltaweights.errors import MalformedInput
from deltaweights.finish import finish_parts
from deltaweights.manifest.manifest import Fragment
from deltaweights.staging.clean import clean
from deltaweights.staging.place import Place, locate
from deltaweights.text import readable_json, strict_json
from tests.meta import save_meta
from tests.pairs import base_tensors
from tests.test_concurrency import pair
from tests.test_inputs import DEFLATED
from tests.test_naming import archive_of
from tests.test_staging import files_of

__all__ = ["pair"]

Pair = tuple[Path, Path]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Make a folder that nothing may happen to."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "id_rsa").write_text("secret")
    (folder / "config.json").write_text("mine")
    return folder


def plant(place: Place, name: str, precious: Path) -> None:
    """Put a link into staging, and what makes a run look at it."""
    place.root.mkdir()
    (place.root / name).symlink_to(precious)
    if name == "shards":
        place.plan.write_text('{"identity": "x"}')
        place.journal.write_text(json.dumps({"plan": "x", "remove": [], "move": ["id_rsa"]}))


RUNS: dict[str, Callable[[Pair, Path], object]] = {
    "apply": lambda pair, target: apply_delta(*pair, target),
    "part": lambda pair, target: apply_part(*pair, target, part="1/2"),
    "clean": lambda _, target: clean(target),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("name", ["shards", "fragments", "replaced", "companions", "unpacked", "parts", "plan.json"])
def test_links_in_staging(
    pair: Pair, tmp_path: Path, precious: Path, name: str, run: Callable[[Pair, Path], object]
) -> None:
    """A link in staging ends every run with 3, and nothing happens to what it leads to."""
    before, target = files_of(precious), tmp_path / "out"
    plant(locate(target), name, precious)
    with pytest.raises(MalformedInput, match="staging is not ours: found links in it; delete it"):
        run(pair, target)
    assert files_of(precious) == before
    assert not os.path.lexists(target)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_staging_that_is_a_link(
    pair: Pair, tmp_path: Path, precious: Path, run: Callable[[Pair, Path], object]
) -> None:
    """So does staging itself."""
    before, target = files_of(precious), tmp_path / "out"
    locate(target).root.symlink_to(precious)
    with pytest.raises(MalformedInput, match="staging is not ours: found links in it; delete it"):
        run(pair, target)
    assert files_of(precious) == before


def test_a_link_where_archives_are_unpacked(pair: Pair, tmp_path: Path, precious: Path) -> None:
    """What comes in an archive is not unpacked elsewhere."""
    archive = archive_of(pair[1], DEFLATED)
    place = locate(tmp_path / "out")
    place.unpacked.mkdir(parents=True)
    (place.unpacked / "delta").symlink_to(precious)
    before = files_of(precious)
    with pytest.raises(MalformedInput, match="staging is not ours: found a link"):
        apply_delta(pair[0], archive, place.target)
    assert files_of(precious) == before


def test_links_among_what_a_part_left(pair: Pair, tmp_path: Path, precious: Path) -> None:
    """What stands beside the weights is not read from elsewhere."""
    place = locate(tmp_path / "out")
    for part in ("1/2", "2/2"):
        apply_part(*pair, place.target, part=part)
    config = place.companions / "config.json"
    config.unlink()
    config.symlink_to(precious / "id_rsa")
    with pytest.raises(MalformedInput, match="staging is not ours"):
        finish_parts(place.target)
    assert not place.target.exists()


@pytest.mark.parametrize("where", ["plan.json", "fragments/model.safetensors.json"])
def test_a_fifo_in_staging(pair: Pair, tmp_path: Path, where: str) -> None:
    """A FIFO in place of a document of ours is no document of ours, and is not waited for."""
    place = locate(tmp_path / "out")
    place.fragments.mkdir(parents=True)
    if where != "plan.json":
        place.plan.write_text("{}")
    os.mkfifo(place.root / where)
    assert apply_delta(*pair, place.target).status == "merged"


FIELDS: dict[str, Callable[[dict[str, object]], object]] = {
    "sha256": lambda document: document.update(sha256=[1]),
    "size": lambda document: document.update(size=1.0),
    "a digest": lambda document: document["tensors"][0].update(digest="\ud800"),  # type: ignore[index]
    "no digest": lambda document: document["tensors"][0].update(delta=None),  # type: ignore[index]
    "counts": lambda document: document["tensors"][0].update(nonfinite="1"),  # type: ignore[index]
    "a proof": lambda document: document["tensors"][0].update(proof=["x", 1, 1, 1]),  # type: ignore[index]
    "a sum": lambda document: document["tensors"][0].update(sum="1"),  # type: ignore[index]
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_fragments_with_other_kinds_of_values(
    pair: Pair, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    """A fragment whose fields are not what they should be is no fragment: its shard is made anew."""
    place = locate(tmp_path / "out")
    for part in ("1/2", "2/2"):
        apply_part(*pair, place.target, part=part)
    (path,) = place.fragments.iterdir()
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="fragment"):
        Fragment.from_bytes(path.read_bytes())
    assert apply_part(*pair, place.target, part="1/2").made == ("model.safetensors",)


def test_a_tokenizer_that_is_a_link(tmp_path: Path, precious: Path) -> None:
    """A tokenizer.model of Meta's that leads out of its folder is refused, as every file is that would be copied."""
    folder = save_meta(base_tensors(), tmp_path / "meta")
    (folder / "tokenizer.model").symlink_to(precious / "id_rsa")
    with pytest.raises(MalformedInput, match="a link that leaves the folder"):
        convert_checkpoint(folder, tmp_path / "out")


# Documents that are written again.


def nested(levels: int) -> object:
    """Return lists in lists, long ones, with an object at the bottom."""
    value: object = {}
    for _ in range(levels):
        value = [0] * 1000 + [value]
    return value


def test_documents_of_many_levels_are_written_at_once() -> None:
    """The work is that of the document's size, and what is nested deeper than anybody reads is refused."""
    assert strict_json(readable_json(nested(100))) == nested(100)
    with pytest.raises(ValueError, match="nested too deeply"):
        readable_json(nested(300))


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_numbers_that_are_none(number: str) -> None:
    """What no float can hold is Infinity to others, and refused."""
    with pytest.raises(ValueError, match="larger than any number"):
        strict_json(f'{{"a": {number}}}'.encode())
