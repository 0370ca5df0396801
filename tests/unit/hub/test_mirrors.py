"""Mirrors of the Hub, which pass on less than the Hub states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.apply import apply_delta
from tests.support.errors import refused
from tests.support.hub_answers import Lack
from tests.support.hub_checkpoint import BASE, NEEDED, ONE, TWO, assert_whole, key
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, arrived, local, results, serve, weights_of
from tests.support.hub_server import Fault, HubServer

STATED: dict[str, set[Lack]] = {
    "olah, aimirror": {"details"},
    "no tree either": {"details", "tree"},
    "nothing said of LFS": {"lfs"},
    "names alone, and nothing said of LFS": {"details", "lfs"},
    "LFS without git's hashes": {"blob ids"},
    "no tree, no git's hashes": {"details", "tree", "blob ids"},
}
"""What a mirror may leave out while every hash is still stated somewhere."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lacks", STATED.values(), ids=STATED.keys())
def test_hashes_are_found_wherever_they_are_stated(
    machine: Machine, hub: HubServer, folder: Path, lacks: set[Lack]
) -> None:
    """A download has every hash, under the names that ``hf`` gives it, and fetches nothing twice."""
    hub.lacks = lacks
    done = machine.fetch(BASE)
    if "blob ids" not in lacks:
        assert_whole(machine, folder, done.commit)
    assert sorted(path.name for path in machine.repository(BASE).glob("snapshots/*/*")) == sorted(NEEDED)
    assert {ONE, TWO} <= {
        path.name for path in Path(done.path).iterdir() if path.readlink().name == key(folder / path.name)
    }
    assert done.fetched == done.bytes
    assert hub.sent[f"{BASE}/{ONE}"] < 1.1 * (folder / ONE).stat().st_size  # with what redirects say
    assert machine.said.warnings == []


@pytest.mark.parametrize("lacks", [{"details"}, {"details", "tree"}, {"lfs"}], ids=["details", "tree", "lfs"])
def test_damage_is_noticed_with_the_hashes_of_a_mirror(machine: Machine, hub: HubServer, lacks: set[Lack]) -> None:
    """A flipped bit is found, and the file fetched again."""
    hub.lacks = lacks
    hub.faults.append(Fault("flip", ONE, at=1234))
    machine.fetch(BASE)
    assert any("downloading it again" in warning for warning in machine.said.warnings)


def test_a_tree_of_many_pages(machine: Machine, folder: Path) -> None:
    """The pages of a long listing are all read, from the mirror, whatever host the link to the next one names."""
    with HubServer({BASE: folder}, page_size=2) as hub:
        hub.lacks = {"details"}
        hub.faults.append(
            Fault(
                "headers",
                "*tree*",
                headers={"Link": f'<{hub.origins["elsewhere"]}/api/models/{BASE}/tree/x?cursor=MA==>; rel="next"'},
            )
        )
        machine.turn_to(hub)
        done = machine.fetch(BASE)
        assert_whole(machine, folder, done.commit)
        assert {request.host for request in hub.requests if "/tree/" in request.path} == {"hub"}


def test_a_link_that_never_ends(machine: Machine, hub: HubServer) -> None:
    """A listing whose last page names itself as the next one ends."""
    hub.lacks = {"details"}
    link = {"Link": f'<{hub.endpoint}/api/models/{BASE}/tree/main?recursive=true>; rel="next"'}
    hub.faults.append(Fault("headers", "*tree*", headers=link, times=1000))
    machine.fetch(BASE)
    assert sum("/tree/" in request.path for request in hub.requests) <= 200


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_hashes_stated_nowhere(machine: Machine, hub: HubServer, large_torch: Pair, offline: bool) -> None:
    """Files are fetched once and used; the warning and the manifest say that nothing was compared."""
    serve(hub, large_torch)
    hub.lacks = {"details", "tree", "blob ids", "lfs", "tags"}
    hub.faults.append(Fault("no-sha256", times=10_000))
    out = machine.folder / "out"
    options = HubOptions()
    if offline:
        for role in ("base", "delta"):
            machine.fetch(f"acme/{role}")
        options = HubOptions(offline=True)
    done = apply_delta("acme/base", "acme/delta", out, hub=options, report=machine.said)
    assert weights_of(large_torch) <= arrived(hub) < 1.1 * weights_of(large_torch)
    assert [w for w in machine.said.warnings if "hashes not stated" in w and "pytorch_model" in w]
    inputs = json.loads((out / "manifest.json").read_text())["inputs"]
    assert {inputs[role]["verification"] for role in ("base", "delta")} == {"hashes not stated"}
    local(large_torch, machine.folder / "other")
    assert results(out) == results(machine.folder / "other")
    assert not done.streamed


def test_require_verified_refuses_what_nobody_states(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """--require-verified wants hashes that were compared."""
    serve(hub, large_torch)
    hub.lacks = {"details", "tree", "blob ids", "lfs", "tags"}
    hub.faults.append(Fault("no-sha256", times=10_000))
    with refused(CheckFailed, code=ErrorCode.INPUTS_UNVERIFIED):
        apply_delta("acme/base", "acme/delta", machine.folder / "out", require_verified=True, report=machine.said)


def test_the_requests_of_the_hub_itself_are_no_more(machine: Machine, hub: HubServer) -> None:
    """Where everything is stated, one request lists a repository, and no header is asked for."""
    machine.fetch(BASE)
    asked = [request for request in hub.requests if request.path.startswith("/api/models/")]
    assert len(asked) == 1
    assert not [request for request in hub.requests if request.method == "HEAD"]


def test_sizes_that_nobody_states(machine: Machine, hub: HubServer) -> None:
    """A mirror without sizes, and without headers, has no usable file."""
    hub.lacks = {"details", "tree"}
    hub.faults.append(Fault("status", status=405, method="HEAD", times=10_000))
    with refused(InputOutputError, problem="states the size of no file"):
        machine.fetch(BASE)


@pytest.mark.parametrize("lacks", [set(), {"details"}], ids=["hub", "mirror"])
def test_what_was_merged_online_merges_offline(
    machine: Machine, hub: HubServer, large_torch: Pair, lacks: set[Lack]
) -> None:
    """A run leaves a whole commit in the cache, also what it did not read: the tokenizer of a base beside the delta's."""
    serve(hub, large_torch)
    hub.lacks = lacks
    apply_delta("acme/base", "acme/delta", machine.folder / "out", report=machine.said)
    offline = HubOptions(offline=True)
    apply_delta("acme/base", "acme/delta", machine.folder / "again", hub=offline, report=machine.said)
    assert results(machine.folder / "out") == results(machine.folder / "again")
