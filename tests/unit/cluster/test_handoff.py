"""What a part stores in staging for ``finish``: read back equal, and refused when it was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deltaweights import MalformedInput
from deltaweights.cluster.finish import finish_parts
from deltaweights.cluster.handoff import load_handoff, store_handoff
from deltaweights.cluster.part import apply_part
from deltaweights.jobs.planned_result import planned_result
from deltaweights.jobs.request import find_recipe
from deltaweights.staging.location import HANDOFF, locate_target
from deltaweights.staging.lock import StagingLock
from tests.support.errors import refused
from tests.support.prepared import prepare_merge
from tests.unit.cluster import SIZE, Pair


@pytest.mark.parametrize("name", [None, "llava-med-7b", "alpaca-7b", "vicuna-7b-v0", "llava-13b-v0"])
def test_a_handoff_is_read_back_equal(tiny: Pair, tmp_path: Path, name: str | None) -> None:
    """Plan, recipe, companions and all the rest are read back equal, for every kind of recipe of the package."""
    place = locate_target(tmp_path / "out")
    with prepare_merge(*tiny, tmp_path / "out", max_shard_size=SIZE) as prepared:
        stored = replace(planned_result(prepared), recipe=find_recipe(name, None))
    with StagingLock(place) as lock:
        store_handoff(stored, lock.staging)
        loaded = load_handoff(lock.staging)
    assert loaded.plan.identity == stored.plan.identity
    assert replace(loaded, plan=stored.plan) == stored


def test_a_changed_handoff_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """A handoff is compared with the identity of its plan: one with another shard size is refused (3)."""
    target = tmp_path / "out"
    apply_part(*tiny, target, part="1/1", max_shard_size=SIZE)
    ending = locate_target(target).root / HANDOFF
    document = json.loads(ending.read_text())
    document["rest"]["result"]["plan"]["options"]["max_shard_size"] += 1
    ending.write_text(json.dumps(document))
    with refused(MalformedInput, where=ending, found="its plan does not have the identity that it states") as info:
        finish_parts(target)
    assert str(info.value.remedy).endswith("deltaweights clean")
    ending.write_text('{"identity": 3}')
    with refused(MalformedInput, where=ending):
        finish_parts(target)
