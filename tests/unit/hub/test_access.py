"""Responses of a Hub, the token, and refusals."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash

from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from tests.support.errors import refused
from tests.support.hub_answers import Hub
from tests.support.hub_checkpoint import (
    BASE,
    GOOD,
    LOG_IN,
    TWO,
    assert_whole,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import Fault, HubServer
from tests.support.hub_wire import as_json

COMMIT = "0" * 40

GIT_HASH = "0" * 40

NOT_LISTINGS: dict[str, Any] = {
    "a list": [],
    "a number": 5,
    "an error": {"error": None},
    "files without names": {"id": BASE, "sha": COMMIT, "siblings": [{"size": 1}]},
    "files that are numbers": {"id": BASE, "sha": COMMIT, "siblings": [5]},
    "a number with 31 digits": {"id": BASE, "sha": COMMIT, "siblings": [{"rfilename": "a", "size": 10**30}]},
}

UNUSABLE_FILES: dict[str, Any] = {
    "a name that is a number": {"rfilename": 5, "size": 1, "blobId": GIT_HASH},
    "a hash that is a number": {"rfilename": "a", "size": 1, "blobId": 7},
    "a size that is a word": {"rfilename": "a", "size": "x", "blobId": GIT_HASH},
    "a fraction as size": {"rfilename": "a", "size": 1.5, "blobId": GIT_HASH},
    "a size that is too large": {"rfilename": "a", "size": 1 << 41, "blobId": GIT_HASH},
    "a negative size": {"rfilename": "a", "size": -1, "blobId": GIT_HASH},
}


@pytest.mark.parametrize("value", NOT_LISTINGS.values(), ids=NOT_LISTINGS.keys())
def test_what_is_not_a_listing(
    machine: Machine, hub: HubServer, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON that is not a listing is refused."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json(value))
    with refused(InputOutputError, where=hub.endpoint, problem=NOT_A_HUB):
        machine.fetch(BASE)


@pytest.mark.parametrize("file", UNUSABLE_FILES.values(), ids=UNUSABLE_FILES.keys())
def test_unusable_files_are_dropped(
    machine: Machine, hub: HubServer, file: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with an unusable name, size or hash does not count: there are no weights."""
    answer = {"id": BASE, "sha": COMMIT, "siblings": [file]}
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json(answer))
    where = machine.repository(BASE) / "snapshots" / COMMIT
    with refused(MalformedInput, where=where, problem="no weights here"):
        machine.fetch(BASE)


NOT_A_HUB = "not a valid Hub response"


def test_a_page_instead_of_an_answer(machine: Machine, hub: HubServer) -> None:
    """An endpoint that answers 200 with a page is refused."""
    hub.faults.append(Fault("status", on="api", status=200))
    with refused(InputOutputError, where=hub.endpoint, problem=NOT_A_HUB, remedy="check HF_ENDPOINT"):
        machine.fetch(BASE)


@pytest.mark.parametrize("commit", ["main", "", "../../..", "0" * 39])
def test_a_commit_that_is_none(machine: Machine, hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that the Hub names becomes a folder's name only if it is 40 hex digits."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json({"id": BASE, "sha": commit, "siblings": []}))
    with refused(InputOutputError, where=f"hf://{BASE}", found=commit):
        machine.fetch(BASE)
    assert machine.sizes() == {}


def test_the_token_stays_at_the_hub(machine: Machine, folder: Path) -> None:
    """The token is sent to the Hub only, not to the file host or the target of a redirect."""
    with HubServer({BASE: folder}, gated=[BASE], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        hub.faults.append(Fault("redirect", TWO, on="resolve"))
        commit = machine.fetch(BASE, token=GOOD).commit
        assert_whole(machine, folder, commit)
        assert {request.host for request in hub.requests} == {"hub", "files", "elsewhere"}
        assert all(request.had_authorization == (request.host == "hub") for request in hub.requests)


@pytest.mark.parametrize("how", ["HF_TOKEN", "hf auth login", "--token"])
def test_where_the_token_is_from(machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A gated repository is read with the token of --token, HF_TOKEN, or `hf auth login`."""
    if how == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", GOOD)
    elif how == "hf auth login":
        machine.log_in(GOOD)
    with HubServer({BASE: folder}, gated=[BASE], private=[BASE], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        assert_whole(machine, folder, machine.fetch(BASE, token=GOOD if how == "--token" else None).commit)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        if how != "--token":
            with refused(InputOutputError, where=f"hf://{BASE}", problem=UNKNOWN):
                machine.fetch(BASE)


UNKNOWN, GATED = "no such model, or a private one", "gated model: access must be requested"

REFUSED: dict[str, tuple[str, str | None, str, str]] = {
    "gated, no token": ("acme/gated", None, GATED, f"request access at HUB/acme/gated, then {LOG_IN}"),
    "gated, a token without access": ("acme/gated", GOOD, GATED, "request access at HUB/acme/gated"),
    "wrong token": (
        BASE,
        "hf_wrong",
        "the Hub rejected the token",
        "correct or unset HF_TOKEN, or --token, if given; else log in again with: hf auth login",
    ),
    "private, no token": ("acme/private", None, UNKNOWN, f"check the name; if it is private, {LOG_IN}"),
    "private, a token without access": ("acme/private", GOOD, UNKNOWN, "check the name, and the token"),
    "no such model": ("acme/nothing@main", GOOD, UNKNOWN, "check the name, and the token"),
    "no such revision": (f"{BASE}@v9", None, "no such revision", "check the part after the @"),
}


@pytest.mark.parametrize(("model", "token", "problem", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(machine: Machine, folder: Path, model: str, token: str | None, problem: str, remedy: str) -> None:
    """What the Hub refuses is reported with the right remedy, and no weights are in the cache."""
    names = {BASE: folder, "acme/gated": folder, "acme/private": folder}
    with HubServer(names, gated=["acme/gated"], private=["acme/private"], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        commit = hub.push("acme/gated", folder)  # the listing of a gated model is public
        where = f"hf://{model}@{commit}" if model == "acme/gated" else f"hf://{model}"
        with refused(InputOutputError, where=where, problem=problem, remedy=remedy.replace("HUB", hub.endpoint)):
            machine.fetch(model, token=token)
    assert set(machine.blobs("acme/gated")) <= {git_hash(b"")} | {n for n in machine.blobs("acme/gated") if "." in n}


@pytest.mark.parametrize("token", ["hf_one\nline", "hf one", "hf_\u00fc"])
def test_a_token_that_is_none(machine: Machine, hub: HubServer, token: str) -> None:
    """A token with invalid characters is refused without being shown."""
    with refused(UsageError, found=None, remedy="check --token and HF_TOKEN") as caught:
        machine.fetch(BASE, token=token)
    assert token not in str(caught.value)
    assert hub.requests == []


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_no_network(machine: Machine, hub: HubServer, folder: Path) -> None:
    """An unreachable Hub is reported; the cache can be used with --offline."""
    address = f"http://127.0.0.1:{closed_port()}"
    files = machine.fetch(BASE).files
    machine.turn_to(address)
    with refused(InputOutputError, where=address, problem="cannot be reached: [Errno 111] Connection refused"):
        machine.fetch(BASE)
    assert machine.fetch(BASE, offline=True).files == files
