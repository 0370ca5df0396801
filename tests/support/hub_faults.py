"""Faults to inject into the responses of the loopback Hub (tests/support/hub_server.py)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

Kind = Literal[
    "flip", "stall", "trickle", "drop", "reset", "short", "no-range", "content-range",
    "status", "headers", "redirect", "expire", "hang-up", "late", "act", "size", "hash", "no-sha256",
]  # fmt: skip
"""What may go wrong. ``at`` is always an offset in the file, also where the answer is only a range of it.

With the bytes of an answer, where ``at`` is among them:

- flip: the lowest bit of byte ``at`` is the other one
- stall: nothing comes for ``seconds`` before byte ``at``; then the rest does
- trickle: from byte ``at`` on, 100 bytes come every ``seconds``
- drop: the connection ends in order (FIN) after exactly the bytes before ``at``, although Content-Length promised more
- reset: it ends by a reset (RST), which may swallow some of the bytes before ``at``
- short: body and Content-Length end before ``at``; the answer itself is well-formed

With the range of an answer:

- no-range: Range is ignored: 200 and the whole file
- content-range: a 206 states a range one byte further on than that which it sends

With a whole answer:

- status: ``status`` and ``headers`` come instead of the answer, such as 429 with Retry-After
- headers: the answer has these ``headers``, too; None takes one out
- redirect: 307 to ``location``; without one, to the same path on the third origin
- expire: 403 for a signed address of the file host, now and whenever it is asked for again
- hang-up: the connection ends without a word
- late: the answer begins only after ``seconds``
- act: ``action`` is called once the answer is made and before it is sent, such as to move a branch between two requests

With the metadata, in listings and in headers (``on`` limits it to one of them), until the fault is removed:

- size: ``value``, or one byte more than there is
- hash: ``value``, or the true one with another last digit: the sha256 of an LFS file, the git hash of a small one
- no-sha256: an LFS file has none
"""

Place = Literal["api", "resolve", "files"]
"""The target of a request: a path below /api, the address of a file on the Hub, or the file host."""

BODY: tuple[Kind, ...] = ("flip", "stall", "trickle", "drop", "reset", "short")
METADATA: tuple[Kind, ...] = ("size", "hash", "no-sha256")
INSTEAD: tuple[Kind, ...] = ("status", "redirect", "expire", "hang-up")


@dataclass(frozen=True)
class Asked:
    """A request as faults see it: ``subject`` is a file's path in its repository or, at ``api``, the path less its first slash."""

    method: str
    on: Place
    repo: str
    subject: str


@dataclass
class Fault:
    """One thing to go wrong, in the first ``times`` answers that fit; ``served`` counts them.

    ``path`` and ``repo`` are shell patterns (``*`` matches slashes, too): ``path`` for what ``Asked.subject`` says. ``times`` is
    one unless told otherwise (``math.inf``: always); faults of the metadata last.
    """

    kind: Kind
    path: str = "*"
    _: KW_ONLY
    repo: str = "*"
    on: Place | None = None
    method: str | None = None
    times: float | None = None
    at: int = 0
    seconds: float = 0.0
    status: int = 503
    headers: Mapping[str, str | None] = field(default_factory=dict)
    location: str | None = None
    value: str | int | None = None
    action: Callable[[], object] | None = None
    served: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.kind}: no such fault, but {', '.join(get_args(Kind))}")

    def fits(self, asked: Asked) -> bool:
        """Return whether this applies to such a request, and is not used up."""
        times = self.times if self.times is not None else math.inf if self.kind in METADATA else 1
        return (
            self.served < times
            and (self.kind != "expire" or asked.on == "files")
            and self.on in {None, asked.on}
            and self.method in {None, asked.method}
            and fnmatchcase(asked.repo, self.repo)
            and fnmatchcase(asked.subject, self.path)
        )


def fault_from(text: str) -> Fault:
    """Return the fault that ``drop,path=*.bin,at=1000,times=2`` describes, for command lines. Raises ValueError, TypeError."""
    kind, *settings = text.split(",")
    types: dict[str, Callable[[str], object]] = {"at": int, "status": int, "times": float, "seconds": float}
    given: dict[str, object] = {"headers": {}}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name[:1].isupper():
            given["headers"] |= {name: value}  # type: ignore[operator]
        else:
            given[name] = types.get(name, str)(value)
    return Fault(kind, **given)  # type: ignore[arg-type]


class Faults(list[Fault]):
    """The faults of a server; tests can append to it at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def take(self, asked: Asked, *kinds: Kind, among: range | None = None, most: int | None = None) -> list[Fault]:
        """Count and return the faults of a response: of these kinds, ``at`` among these offsets, ``most`` at most."""
        with self._lock:
            found = [
                fault
                for fault in self
                if fault.kind in kinds and (among is None or fault.at in among) and fault.fits(asked)
            ][:most]
            for fault in found:
                fault.served += 1
            return found
