"""The format of ``deltaweights.lock``: pins of models, in TOML (docs/lock-format.md). Values in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from deltaweights.errors import MalformedInput, UsageError
from deltaweights.hub.ids import is_repo
from deltaweights.recipes.table import LINE, SHA256, Table, TextFormat, parse_toml

FORMAT, VERSION = "deltaweights-lock", 1
MAX_LOCK = 512 * 1024
MOST_PINS = 1000

HEAD = "# Pins of models. Check them with: deltaweights verify --lock FILE"


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return (
        path.isprintable() and "\\" not in path and all(part not in {"", ".."} for part in parts) and len(path) < 4096
    )


def _is_pem(text: str) -> bool:
    lines = text.strip().split("\n")
    begin, end = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
    return lines[0] == begin and lines[-1] == end and len(text) < 4096 and text.isascii()


ID = TextFormat("an id of the Hub, ORG/NAME", is_repo)
COMMIT = TextFormat("the 40 lower-case hex digits of a commit", re.compile("[0-9a-f]{40}").fullmatch)
PATH = TextFormat("a path within the folder of the lock, with /, without ..", _is_inside)
DIGEST = TextFormat("dw1: and 64 lower-case hex digits", re.compile("dw1:[0-9a-f]{64}").fullmatch)
PEM = TextFormat("a public key in PEM", _is_pem)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What is pinned of one model: ``id`` at ``revision``, or the folder at ``path``, relative to the lock's.

    ``public_key`` is in PEM. Of the others, what is None is not pinned.
    """

    id: str | None = None
    revision: str | None = None
    path: str | None = None
    content_digest: str | None = None
    manifest_sha256: str | None = None
    public_key: str | None = None
    identity: str | None = None
    issuer: str | None = None

    @property
    def title(self) -> str:
        """What messages call the model."""
        return f"{self.id}@{self.revision}" if self.path is None else self.path


_FORMATS = {
    "id": ID,
    "revision": COMMIT,
    "path": PATH,
    "content_digest": DIGEST,
    "manifest_sha256": SHA256,
    "public_key": PEM,
    "identity": LINE,
    "issuer": LINE,
}


def lock_bytes(pins: Sequence[Pin]) -> bytes:
    """Return the document, the same bytes for the same pins. Raises ``UsageError`` for a path that TOML cannot hold."""
    blocks = [f'{HEAD}\nformat = "{FORMAT}"\nversion = {VERSION}\n']
    for pin in pins:
        values = ((item.name, getattr(pin, item.name)) for item in fields(pin))
        lines = [f"{name} = {_toml(value)}" for name, value in values if value is not None]
        blocks.append("\n".join(["[[model]]", *lines, ""]))
    try:
        return "\n".join(blocks).encode()
    except UnicodeEncodeError:
        raise UsageError("a path that is not text cannot be pinned", remedy="rename the folder") from None


def parse_lock(data: bytes, where: str) -> list[Pin]:
    """Parse a lock. Raises ``MalformedInput``."""
    document = Table(parse_toml(data, where, "lock"), where)
    document.require("format", "version", "model")
    if document.value("format") != FORMAT:
        raise document.unusable("format", f'"{FORMAT}"')
    if type(document.value("version")) is not int or document.value("version") != VERSION:
        raise document.unusable("version", f"{VERSION}, the one that this release of deltaweights reads")
    Table(dict.fromkeys(document), where, keys=("format", "version", "model"))
    models = document.value("model")
    if not isinstance(models, list) or not 1 <= len(models) <= MOST_PINS:
        raise document.unusable("model", f"from 1 to {MOST_PINS:,} tables, [[model]]")
    pins = [_parse_pin(values, where, number) for number, values in enumerate(models, 1)]
    titles = set[str]()
    for pin in pins:
        if pin.title in titles:
            raise MalformedInput("a model is pinned twice", where=where, found=pin.title, remedy="leave one out")
        titles.add(pin.title)
    return pins


def _parse_pin(values: object, where: str, number: int) -> Pin:
    table = Table(values, where, f"model {number}", tuple(_FORMATS))
    if "id" in table:
        table.require("revision")
    pin = Pin(**{name: table.text(name, text_format) for name, text_format in _FORMATS.items()})
    for wrong, fault in _faults(pin):
        if wrong:
            remedy = "make it again with deltaweights pin"
            raise MalformedInput(f"model {number}: {fault}", where=where, remedy=remedy)
    return pin


def _faults(pin: Pin) -> Iterable[tuple[bool, str]]:
    digests = (pin.content_digest, pin.manifest_sha256)
    yield (pin.id is None) == (pin.path is None), "either id or path says which model it is"
    yield (pin.id is None) != (pin.revision is None), "an id, and nothing else, has a revision"
    yield pin.path is not None and digests == (None, None), "a folder is pinned by content_digest or manifest_sha256"
    yield (pin.identity is None) != (pin.issuer is None), "identity and issuer say nothing without each other"
    yield pin.public_key is not None and pin.identity is not None, "a signature is by public_key or by identity"


def _toml(text: str) -> str:
    """Return a TOML string; a key in PEM has lines of its own."""
    if "\n" in text:
        return f'"""\n{text}"""'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
