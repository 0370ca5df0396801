"""HTTP/1.1 for the loopback Hub (tests/support/hub_server.py): sockets, threads, and sending with faults and a rate limit."""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

from tests.support.hub_faults import Fault

Host = Literal["hub", "files", "elsewhere"]

PIECE = 1 << 20
"""Bytes that are sent and counted at once; less where a rate makes that a hundredth of a second."""

BURST = 0.02
"""Seconds of unused rate that can be caught up."""


@dataclass(frozen=True)
class Call:
    """A request as received: ``target`` is the raw path and query."""

    method: str
    host: Host
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        """The path, still quoted."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query, name by name."""
        return parse_qs(urlsplit(self.target).query)

    @property
    def token(self) -> str | None:
        """The token of the Authorization header."""
        value = self.headers["Authorization"]
        return None if value is None else str(value).removeprefix("Bearer ")

    def says(self, name: str) -> bool:
        """Return whether a query parameter is set."""
        return self.query.get(name, [""])[-1].lower() in {"1", "true"}


@dataclass
class Answer:
    """An answer before it is sent: the bytes from ``start`` to ``stop`` of ``body``; ``file`` is whom they are counted for.

    Status 0 stands for none: the connection is to end without an answer. ``late`` is in seconds.
    """

    status: int
    headers: dict[str, str]
    body: bytes | Path = b""
    start: int = 0
    stop: int = 0
    file: str = ""
    may_compress: bool = False
    late: float = 0.0
    suffers: list[Fault] = field(default_factory=list)


def text(status: int, body: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer of text."""
    content = body.encode()
    return Answer(status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}, content, 0, len(content))


def as_json(value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Answer:
    """Return an answer that is a JSON document."""
    return text(status, json.dumps(value), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


class Limiter:
    """A rate limit in bytes per second, shared by all connections; None for none."""

    def __init__(self, rate: float | None, stopping: threading.Event) -> None:
        self._rate, self._stopping = rate, stopping
        self.lock = threading.Lock()
        self._free = 0.0
        self.piece = PIECE if rate is None else min(PIECE, max(1 << 14, int(rate / 100)))

    def draw(self, count: int) -> None:
        """Wait until ``count`` bytes may be sent, in the order of the calls."""
        if self._rate is None:
            return
        with self.lock:
            now = time.monotonic()
            self._free = max(self._free, now - BURST) + count / self._rate
            wait = self._free - now
        if wait > 0:
            self._stopping.wait(wait)


class Wire:
    """Listens on a port for each host, and responds with ``answer``, in a thread for each connection."""

    def __init__(
        self,
        ports: Mapping[Host, int],
        answer: Callable[[Call], Answer],
        count: Callable[[str, int], None],
        rate: float | None,
        connection_rate: float | None = None,
    ) -> None:
        self.answer, self.count = answer, count
        self.most: dict[Host, int] = {}
        self.refusal = text(429, "Too many connections", {"Retry-After": "0", "Content-Length": "20"})
        self.at_once = Counter[Host]()
        self.stopping = threading.Event()
        self.limiter, self.connection_rate = Limiter(rate, self.stopping), connection_rate
        self._listeners = {host: socket.create_server(("127.0.0.1", port), backlog=128) for host, port in ports.items()}
        self.origins = {host: f"http://127.0.0.1:{made.getsockname()[1]}" for host, made in self._listeners.items()}
        self._wake, self._woken = socket.socketpair()
        self.lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="hub-accept")
        self._accepting.start()

    def close(self) -> None:
        """Close all sockets, and end all threads."""
        self.stopping.set()
        self._wake.close()
        self._accepting.join()
        with self.lock:
            for connection in self._open:
                with suppress(OSError):  # the other side may have gone first
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(stack.enter_context(self._woken), selectors.EVENT_READ)
            for host, listener in self._listeners.items():
                stack.enter_context(listener).setblocking(False)
                selector.register(listener, selectors.EVENT_READ, host)
            while not self.stopping.is_set():
                for key, _ in selector.select():
                    if key.data is not None:
                        self._greet(cast(socket.socket, key.fileobj), key.data)

    def _greet(self, listener: socket.socket, host: Host) -> None:
        with suppress(BlockingIOError, ConnectionError):  # who knocked has gone
            connection, _ = listener.accept()
            connection.setblocking(True)
            thread = threading.Thread(target=self._serve, args=(connection, host), name="hub-connection")
            with self.lock:
                self._open.add(connection)
            self._threads = [*(known for known in self._threads if known.is_alive()), thread]
            thread.start()

    def _serve(self, connection: socket.socket, host: Host) -> None:
        try:
            with suppress(ConnectionError):  # the client is free to hang up
                Handler(connection, self, host)
        finally:
            with self.lock:
                self._open.discard(connection)
            connection.close()


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection, one after another."""

    protocol_version = "HTTP/1.1"
    server_version = "loopback-hub"
    disable_nagle_algorithm = True

    def __init__(self, connection: socket.socket, wire: Wire, host: Host) -> None:
        self.wire, self.host = wire, host
        self.limiter = Limiter(wire.connection_rate, wire.stopping)
        super().__init__(connection, ("127.0.0.1", 0), cast(Any, wire))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Do nothing: the Hub has a log of its own."""

    def _respond(self) -> None:
        wire = self.wire
        with wire.lock:
            wire.at_once[self.host] += 1
            crowded = wire.at_once[self.host] > wire.most.get(self.host, sys.maxsize)
        try:
            self._answer(wire.refusal if crowded else None)
        finally:
            with wire.lock:
                wire.at_once[self.host] -= 1

    def _answer(self, refusal: Answer | None) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = refusal or self.wire.answer(Call(self.command, self.host, self.path, self.headers, body))
        if not answer.status or (answer.late and self.wire.stopping.wait(answer.late)):
            raise ConnectionAbortedError
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, re.sub(r"[^\x20-\x7e]", "?", value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(answer.body, bytes):
            content = answer.body
            self._send(answer, lambda start, stop: self.connection.send(content[start:stop]), content.__getitem__)
            return
        with answer.body.open("rb", buffering=0) as file:
            to, source = self.connection.fileno(), file.fileno()
            self._send(
                answer,
                lambda start, stop: os.sendfile(to, source, start, stop - start),
                lambda at: os.pread(source, 1, at)[0],
            )

    do_GET = do_HEAD = do_POST = _respond  # noqa: N815

    def _send(self, answer: Answer, send: Callable[[int, int], int], byte_at: Callable[[int], int]) -> None:
        """Send a body, and apply each fault at its place."""
        position = answer.start
        for fault in sorted(answer.suffers, key=lambda fault: fault.at):
            self._send_range(answer, send, position, min(fault.at, answer.stop))
            position = max(position, fault.at)
            if fault.kind == "stall" and self.wire.stopping.wait(fault.seconds):
                raise ConnectionAbortedError
            if fault.kind == "trickle":
                while position < answer.stop:
                    self._send_range(answer, send, position, min(position + 100, answer.stop))
                    position += 100
                    if self.wire.stopping.wait(fault.seconds):
                        raise ConnectionAbortedError
            if fault.kind == "flip" and position < answer.stop:
                self.wire.count(answer.file, 1)
                self.connection.sendall(bytes([byte_at(position) ^ 1]))
                position += 1
            if fault.kind in {"drop", "reset"}:
                if fault.kind == "reset":  # a close that waits for nothing
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
        self._send_range(answer, send, position, answer.stop)

    def _send_range(self, answer: Answer, send: Callable[[int, int], int], start: int, stop: int) -> None:
        while start < stop:
            count = min(self.wire.limiter.piece, self.limiter.piece, stop - start)
            self.limiter.draw(count)
            self.wire.limiter.draw(count)
            self.wire.count(answer.file, count)  # before it leaves: who has received all may rely on the count
            sent = send(start, start + count)
            if not sent:
                raise ConnectionAbortedError  # the file became shorter
            self.wire.count(answer.file, sent - count)
            start += sent
