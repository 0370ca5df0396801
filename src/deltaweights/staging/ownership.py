"""What tells a staging folder that this user's runs made for a target from a copy, an archive's or somebody else's.

Owner and permissions travel in archives. So staging holds a code over its target that only this user's key gives. Where there is
no state folder to keep a key in, it holds the number of its own inode, which whoever makes archives has to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from deltaweights.staging.location import TargetLocation
from deltaweights.util.state import user_key
from deltaweights.util.text import Json, compact_json, strict_json

OWNERSHIP = "staging.json"
"""The name of the file."""

MOST_OF_A_SEAL = 1000

VERSION = 1


def new_ownership_record(place: TargetLocation, inode: int) -> bytes:
    """Return the seal of staging that is made now."""
    key, nonce = user_key(), secrets.token_hex(16)
    proof = {"inode": inode} if key is None else {"nonce": nonce, "code": _code(key, nonce, place)}
    return compact_json({"version": VERSION, **proof}).encode()


def is_ownership_record(data: bytes, place: TargetLocation, inode: int) -> bool:
    """Tell whether ``data`` is the seal of staging that this user made for ``place``."""
    try:
        seal: Json = strict_json(data)
    except ValueError:
        return False
    if not isinstance(seal, dict) or seal.get("version") != VERSION:
        return False
    key, nonce, code = user_key(), seal.get("nonce"), seal.get("code")
    if key is None:
        return seal.get("inode") == inode
    if not isinstance(nonce, str) or not isinstance(code, str):
        return False
    return hmac.compare_digest(code.encode(), _code(key, nonce, place).encode())


def _code(key: bytes, nonce: str, place: TargetLocation) -> str:
    said = compact_json(["deltaweights staging", nonce, place.target.name, place.inside])
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()
