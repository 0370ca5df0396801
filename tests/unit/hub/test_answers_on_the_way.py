"""Answers that are not the Hub's own: of proxies, firewalls and servers that read the standard otherwise."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.hub.transfer import CONTENT_RANGE
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.hub_checkpoint import BASE, GOOD, ONE, TWO, assert_whole
from tests.support.hub_client import Machine
from tests.support.hub_server import Fault, HubServer

BAD_ADDRESSES = {
    "http://127.0.0.1:abc": "http://127.0.0.1:abc",
    "http://127.0.0.1:99999": "http://127.0.0.1:99999",
    "http://127.0.0.1:-1": "http://127.0.0.1:-1",
    "http://a b": "http://a b",
    "http://[::1": "http://[::1",
    "http://me:secret@127.0.0.1:99999": "http://...@127.0.0.1:99999",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("address", "shown"), BAD_ADDRESSES.items())
def test_an_address_that_is_none(machine: Machine, address: str, shown: str) -> None:
    """HF_ENDPOINT is looked at before huggingface_hub is loaded, which some addresses break; no password is shown."""
    machine.turn_to(address)
    done = machine.run("download", BASE)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    with refused(UsageError, problem="not a valid Hub address", found=shown, remedy="check HF_ENDPOINT"):
        machine.fetch(BASE)


@pytest.mark.parametrize("template", ["bytes {0}-{1}/*", "BYTES {0}-{1}/{2}", "bytes  {0}-{1}/{2}"])
def test_ranges_that_are_legal(machine: Machine, hub: HubServer, folder: Path, template: str) -> None:
    """The size may be unknown to the server, and the unit is in any case."""
    size = (folder / TWO).stat().st_size
    headers = {"Content-Range": template.format(0, size - 1, size)}
    hub.faults.append(Fault("headers", TWO, on="files", headers=headers, times=1))
    assert_whole(machine, folder, machine.fetch(BASE).commit)
    assert not machine.said.warnings
    assert not any("another range" in note for note in machine.said.notes)


@pytest.mark.parametrize(
    "text", ["none", "bytes */9", "bytes 0-/9", "bytes -9/9", "items 0-8/9", "bytes 0-8", "bytes 0-8/x"]
)
def test_what_states_no_range(text: str) -> None:
    """What does not say which bytes come is no range."""
    assert CONTENT_RANGE.fullmatch(text) is None


@pytest.mark.parametrize("on", ["api", "files"])
def test_content_that_is_compressed_is_named(machine: Machine, hub: HubServer, on: str) -> None:
    """It was asked not to be: the bytes are not those of the file."""
    path = "*" if on == "api" else ONE
    hub.faults.append(Fault("headers", path, on=on, headers={"Content-Encoding": "gzip"}, times=math.inf))  # type: ignore[arg-type]
    with refused(
        InputOutputError,
        problem="what comes is compressed on the way",
        found="Content-Encoding: gzip",
        remedy="bypass the proxy or mirror that compresses it",
    ):
        machine.fetch(BASE)


STATUSES: dict[tuple[int, str | None], tuple[str, str, str]] = {
    (407, None): (
        "the proxy wants a password",
        "put user and password into HTTPS_PROXY or HTTP_PROXY",
        "E-NETWORK",
    ),
    (511, None): ("the network wants you to log in first", "open any page in a browser, and run again", "E-NETWORK"),
    (451, None): ("not available here, for legal reasons", "ask the publisher of the model", "E-NO-ACCESS"),
    (403, None): ("access is refused (403)", "check whether a proxy or firewall is in between", "E-NO-ACCESS"),
    (403, GOOD): ("the token does not give access", "check the token's permissions", "E-NO-ACCESS"),
}


@pytest.mark.parametrize(("status", "token"), STATUSES)
def test_who_refuses(machine: Machine, folder: Path, status: int, token: str | None) -> None:
    """A status is told as what it is; of the token only when one was sent."""
    problem, remedy, code = STATUSES[status, token]
    with HubServer({BASE: folder}, tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        hub.faults.append(Fault("status", on="api", status=status, times=math.inf))
        with refused(InputOutputError, problem=problem, remedy=remedy) as caught:
            machine.fetch(BASE, token=token)
    assert caught.value.code.text == code


class _Refusing(BaseHTTPRequestHandler):
    """A proxy that makes no tunnel."""

    status = 407

    def do_CONNECT(self) -> None:
        self.send_error(self.status)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "problem", "remedy"),
    [
        (407, "the proxy wants a password", "put user and password into HTTPS_PROXY or HTTP_PROXY"),
        (
            403,
            "the proxy lets nobody connect to this host (403)",
            "ask who runs the proxy, or leave the host out of it with NO_PROXY",
        ),
    ],
)
def test_a_proxy_that_makes_no_tunnel(
    run: Run, monkeypatch: pytest.MonkeyPatch, status: int, problem: str, remedy: str
) -> None:
    """What a proxy answers to CONNECT is told as the proxy's, at once, with the host that was wanted."""
    handler = type("Handler", (_Refusing,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.test")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        done = run("download", BASE, "--json")
        proxy.shutdown()
    assert done.returncode == 5, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["problem"], error["where"], error["remedy"]) == (problem, "hub.test", remedy)
    assert error["code"] == "E-NETWORK"
