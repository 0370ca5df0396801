"""A Hugging Face Hub on the loopback interface, for the tests and the benchmark.

Repositories are in ``hub_content``, faults in ``hub_faults``, requests in ``hub_wire``, answers in ``hub_answers``. The
Hub and its file host have an origin each. Not served: Xet, uploads, TLS, and repositories that are not models.

    with HubServer({"acme/base": folder}) as hub:
        hub.faults.append(Fault("flip", "*.bin", at=1234))
        HfApi(endpoint=hub.endpoint).model_info("acme/base")

    python tests/support/hub_server.py acme/base=DIR acme/delta=DIR --port 8000 --rate 400MB
"""

from __future__ import annotations

import argparse
import gzip
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

if __package__ in {None, ""}:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.hub_answers import Hub
from tests.support.hub_content import HASHES, Files, Refusal
from tests.support.hub_faults import BODY, INSTEAD, Asked, Fault, fault_from
from tests.support.hub_wire import Answer, Call, Host, Wire, as_json, text

__all__ = ["Fault", "HubServer", "Request"]


@dataclass(frozen=True)
class Request:
    """A line of the log: ``file`` is "org/name/path" where a file was asked for, else ""; ``range`` is the header as it came.

    ``status`` is 0 where the connection ended without an answer.
    """

    method: str
    host: Host
    path: str
    query: str
    file: str
    range: str | None
    had_authorization: bool
    status: int


class HubServer(Hub):
    """Serves repositories until it is closed; a context manager.

    ``rate`` is in bytes per second, over all connections together, ``connection_rate`` over each; ``page_size`` is that of
    /tree. ``tokens`` says what each token may read of what is ``gated`` or ``private``. ``hashes`` are sha256 that need not be
    computed; ``log`` gets a line for each request. ``endpoint``, ``files`` and ``elsewhere`` are the origins of the Hub, of its
    file host, and of a third host, which answers like both and asks for no token. ``requests`` is the log, ``sent`` the number
    of bytes that left of each file ("org/name/path"; "" for all else).
    """

    def __init__(
        self,
        repositories: Mapping[str, Files] | None = None,
        *,
        port: int = 0,
        rate: float | None = None,
        connection_rate: float | None = None,
        page_size: int = 1000,
        gated: Collection[str] = (),
        private: Collection[str] = (),
        tokens: Mapping[str, Collection[str]] | None = None,
        hashes: Mapping[Path, str] | None = None,
        log: TextIO | None = None,
    ) -> None:
        super().__init__(page_size, gated, private, tokens or {})
        self.requests, self.sent = list[Request](), Counter[str]()
        self._log, self._lock = log, threading.Lock()
        for path, sha256 in (hashes or {}).items():
            HASHES.state(path, sha256)
        for name, files in (repositories or {}).items():
            self.push(name, files)
        self._wire = Wire({"hub": port, "files": 0, "elsewhere": 0}, self._answer, self._count, rate, connection_rate)
        self.origins |= self._wire.origins
        self.endpoint, self.files, self.elsewhere = (
            self.origins["hub"],
            self.origins["files"],
            self.origins["elsewhere"],
        )

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections, even stalled ones, and all threads."""
        self._wire.close()

    def allow(self, most: int) -> None:
        """Refuse all but ``most`` requests at a time at the file host."""
        self._wire.most["files"] = most

    @property
    def refusal(self) -> Answer:
        """What a request that is too many gets."""
        return self._wire.refusal

    @refusal.setter
    def refusal(self, answer: Answer) -> None:
        self._wire.refusal = answer

    def _count(self, file: str, count: int) -> None:
        with self._lock:
            self.sent[file] += count

    def _answer(self, call: Call) -> Answer:
        """Return the response to a request: the correct one, or what faults make of it."""
        asked, parts = self.asked(call)
        try:
            answer = self._instead(call, asked) or self.truth(call, asked, parts)
        except Refusal as refusal:
            named = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            headers = {name: value for name, value in named.items() if value} | refusal.headers
            answer = as_json({"error": refusal.message}, headers, refusal.status)
        answer.file = f"{asked.repo}/{asked.subject}" if asked.on != "api" and asked.repo else ""
        self._finish(call, asked, answer)
        path, query, span = unquote(call.path), urlsplit(call.target).query, call.headers["Range"]
        had = "Authorization" in call.headers
        self.requests.append(Request(call.method, call.host, path, query, answer.file, span, had, answer.status))
        if self._log:
            self._log.write(f"{call.host} {call.method} {path!r} {span or 'all'} {answer.status}\n")
        return answer

    def _instead(self, call: Call, asked: Asked) -> Answer | None:
        """Return a fault's response in place of the correct one."""
        kinds = [kind for kind in INSTEAD if kind != "redirect" or call.host != "elsewhere"]
        for fault in self.faults.take(asked, *kinds, most=1):
            if fault.kind == "status":
                return text(fault.status, "on purpose", {k: v for k, v in fault.headers.items() if v is not None})
            if fault.kind == "redirect":
                return text(307, "", {"Location": fault.location or f"{self.elsewhere}{call.target}"})
            if fault.kind == "hang-up":
                return text(0)
            self.revoke(call)
        return None

    def _finish(self, call: Call, asked: Asked, answer: Answer) -> None:
        """Apply an answer's faults, and state its length and the Hub's rate limits."""
        if answer.status in {200, 206} and call.method != "HEAD":
            answer.suffers = self.faults.take(asked, *BODY, among=range(answer.start, answer.stop))
            answer.stop = min([answer.stop, *(fault.at for fault in answer.suffers if fault.kind == "short")])
            if answer.may_compress and not answer.suffers:
                compress(answer)
        if "Transfer-Encoding" not in answer.headers:
            answer.headers["Content-Length"] = str(answer.stop - answer.start)
        if asked.on != "files":
            window = "api" if asked.on == "api" else "resolvers"
            answer.headers.setdefault("RateLimit", f'"{window}";r=2999;t=172')
            answer.headers.setdefault("RateLimit-Policy", f'"fixed window";"{window}";q=3000;w=300')
        for fault in self.faults.take(asked, "headers"):
            gone = {name.lower() for name in fault.headers}
            answer.headers = {name: value for name, value in answer.headers.items() if name.lower() not in gone}
            answer.headers |= {name: value for name, value in fault.headers.items() if value is not None}
        answer.late = sum(fault.seconds for fault in self.faults.take(asked, "late"))
        for fault in self.faults.take(asked, "act"):
            if fault.action:
                fault.action()


def compress(answer: Answer) -> None:
    """Compress the response with a small file, as for clients that accept gzip: in one chunk, without a length."""
    if isinstance(answer.body, Path):
        content = gzip.compress(answer.body.read_bytes())
        answer.body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        answer.stop = len(answer.body)
        answer.headers |= {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
        answer.headers["ETag"] = f"W/{answer.headers['ETag']}"


def bytes_per_second(words: str) -> float:
    """Return the rate that "400MB" or "1.5GB" says. Raises ValueError."""
    found = re.fullmatch(r"([0-9.]+)\s*([kMG]?)B?(?:/s)?", words)
    if not found:
        raise ValueError(f"{words}: not a rate such as 400MB")
    return float(found[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]]


def main() -> None:
    """Serve until SIGINT or SIGTERM; the endpoint is the first line of stdout."""
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on the loopback interface.")
    parser.add_argument("repositories", nargs="+", metavar="ID=DIR", help="such as acme/base=FOLDER")
    parser.add_argument("--port", type=int, default=0, help="port of the Hub (default: a free one)")
    parser.add_argument("--rate", type=bytes_per_second, help="bytes per second, over all connections: 400MB")
    parser.add_argument("--connection-rate", type=bytes_per_second, help="the same, over each connection")
    parser.add_argument("--gated", action="append", default=[], metavar="ID")
    parser.add_argument("--private", action="append", default=[], metavar="ID")
    parser.add_argument(
        "--token", action="append", default=[], metavar="TOKEN[=ID,ID]", help="a token and what it may read"
    )
    parser.add_argument(
        "--fault", action="append", default=[], type=fault_from, help="such as drop,path=*.bin,at=1000,times=2"
    )
    parser.add_argument("--hash-cache", type=Path, metavar="FILE", help="where sha256 are kept from run to run")
    parser.add_argument("--log", action="store_true", help="a line on stderr for each request")
    chosen = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (given.partition("=") for given in chosen.repositories)}
    tokens = {token: set(names.split(",")) for token, _, names in (given.partition("=") for given in chosen.token)}
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # in all threads; the main one waits for them
    if chosen.hash_cache:
        HASHES.load(chosen.hash_cache)
    access = {"gated": chosen.gated, "private": chosen.private, "tokens": tokens}
    log = sys.stderr if chosen.log else None
    with HubServer(
        folders, port=chosen.port, rate=chosen.rate, connection_rate=chosen.connection_rate, log=log, **access
    ) as hub:
        if chosen.hash_cache:
            HASHES.save(chosen.hash_cache)
        hub.faults.extend(chosen.fault)
        sys.stdout.write(f"{hub.endpoint}\n")
        sys.stdout.flush()
        signal.sigwait(stops)


if __name__ == "__main__":
    main()
