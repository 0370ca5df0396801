"""Responses of a Hub, the token, and refusals."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash

from deltaweights.errors import DeltaweightsError, InputOutputError, UsageError
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

NOT_A_HUB: dict[str, Any] = {
    "a list": [],
    "a number": 5,
    "an object of something else": {"error": None},
    "files without names": {"id": BASE, "sha": "0" * 40, "siblings": [{"size": 1}]},
    "a name that is none": {"id": BASE, "sha": "0" * 40, "siblings": [{"rfilename": 5, "size": 1, "blobId": "0" * 40}]},
    "a hash that is none": {"id": BASE, "sha": "0" * 40, "siblings": [{"rfilename": "a", "size": 1, "blobId": 7}]},
    "a size that is none": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": "x", "blobId": "0" * 40}],
    },
    "a size that is a fraction": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": 1.5, "blobId": "0" * 40}],
    },
    "a size beyond all": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": 10**30, "blobId": "0" * 40}],
    },
    "a size below none": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": -1, "blobId": "0" * 40}],
    },
    "siblings that are none": {"id": BASE, "sha": "0" * 40, "siblings": [5]},
}


@pytest.mark.parametrize("value", NOT_A_HUB.values(), ids=NOT_A_HUB.keys())
def test_answers_of_no_hub(machine: Machine, hub: HubServer, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON that is no listing is one line with 5: it is no Hub that answers, or there are no weights in what it lists."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json(value))
    with pytest.raises(DeltaweightsError) as caught:
        machine.fetch(BASE)
    no_hub = f"{hub.endpoint}: not a valid Hub response; check HF_ENDPOINT"
    assert str(caught.value) == no_hub or "no weights here" in str(caught.value)


def test_a_page_instead_of_an_answer(machine: Machine, hub: HubServer) -> None:
    """An endpoint that answers 200 with a page is no Hub: 5."""
    hub.faults.append(Fault("status", on="api", status=200))
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    assert str(caught.value) == f"{hub.endpoint}: not a valid Hub response; check HF_ENDPOINT"


@pytest.mark.parametrize("commit", ["main", "", "../../..", "0" * 39])
def test_a_commit_that_is_none(machine: Machine, hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hub names as the commit becomes a folder's name only when it is 40 hex digits."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json({"id": BASE, "sha": commit, "siblings": []}))
    with pytest.raises(InputOutputError, match=f"^hf://{BASE}: the Hub named no valid commit: found {commit}"):
        machine.fetch(BASE)
    assert machine.sizes() == {}


def test_the_token_stays_at_the_hub(machine: Machine, folder: Path) -> None:
    """The token goes to the Hub alone: neither to the file host nor to where a redirect leads."""
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
            with pytest.raises(InputOutputError, match="no such model, or a private one"):
                machine.fetch(BASE)


ASK = "gated model: access must be requested"


REFUSED: dict[str, tuple[str, str | None, str]] = {
    "gated, no token": (
        "acme/gated",
        None,
        f"hf://acme/gated@COMMIT: {ASK}; request access at HUB/acme/gated, then {LOG_IN}",
    ),
    "gated, a token without access": (
        "acme/gated",
        GOOD,
        f"hf://acme/gated@COMMIT: {ASK}; request access at HUB/acme/gated",
    ),
    "wrong token": (BASE, "hf_wrong", f"hf://{BASE}: the Hub rejected the token; {LOG_IN} again"),
    "private, no token": (
        "acme/private",
        None,
        f"hf://acme/private: no such model, or a private one; check the name; if it is private, {LOG_IN}",
    ),
    "private, a token without access": (
        "acme/private",
        GOOD,
        "hf://acme/private: no such model, or a private one; check the name, and the token",
    ),
    "no such model": (
        "acme/nothing@main",
        GOOD,
        "hf://acme/nothing@main: no such model, or a private one; check the name, and the token",
    ),
    "no such revision": (f"{BASE}@v9", None, f"hf://{BASE}@v9: no such revision; check the part after the @"),
}


@pytest.mark.parametrize(("model", "token", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(machine: Machine, folder: Path, model: str, token: str | None, message: str) -> None:
    """What the Hub refuses is one line that says what to do, and 5; nothing that counts is in the cache."""
    names = {BASE: folder, "acme/gated": folder, "acme/private": folder}
    with HubServer(names, gated=["acme/gated"], private=["acme/private"], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        commit = hub.push("acme/gated", folder)
        with pytest.raises(InputOutputError) as caught:
            machine.fetch(model, token=token)
    assert str(caught.value) == message.replace("COMMIT", commit).replace("HUB", hub.endpoint)
    assert caught.value.exit_code == 5
    assert set(machine.blobs("acme/gated")) <= {git_hash(b"")} | {n for n in machine.blobs("acme/gated") if "." in n}


@pytest.mark.parametrize("token", ["hf_one\nline", "hf one", "hf_\u00fc"])
def test_a_token_that_is_none(machine: Machine, hub: HubServer, token: str) -> None:
    """A token with characters that none has is refused without being shown."""
    with pytest.raises(UsageError) as caught:
        machine.fetch(BASE, token=token)
    assert str(caught.value) == "the Hub token contains invalid characters; check --token and HF_TOKEN"
    assert hub.requests == []


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_no_network(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Where nobody answers it says so; what is in the cache can be used with --offline."""
    address = f"http://127.0.0.1:{closed_port()}"
    files = machine.fetch(BASE).files
    machine.turn_to(address)
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    remedy = "check the network, or use the cache with --offline"
    assert str(caught.value) == f"{address}: cannot be reached: [Errno 111] Connection refused; {remedy}"
    assert machine.fetch(BASE, offline=True).files == files
