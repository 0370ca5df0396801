"""The record in a staging directory that proves that this user's runs made it for this target.

Owner and permissions survive archiving, so an unpacked copy has them, too. The record therefore holds a MAC of the target under a
key that only this user has. Where there is no state folder to keep a key in, it holds the inode number of staging, which an
archive's author would have to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from deltaweights.staging.location import TargetLocation
from deltaweights.util.state import user_key
from deltaweights.util.text import Json, compact_json, strict_json

OWNERSHIP = "staging.json"  # the name of the record's file
MAX_OWNERSHIP = 1000  # bytes of a record
VERSION = 1


def new_ownership_record(location: TargetLocation, inode: int) -> bytes:
    """Return the record of a new staging directory with this inode number."""
    key, nonce = user_key(), secrets.token_hex(16)
    proof = {"inode": inode} if key is None else {"nonce": nonce, "code": _code(key, nonce, location)}
    return compact_json({"version": VERSION, **proof}).encode()


def is_ownership_record(data: bytes, location: TargetLocation, inode: int) -> bool:
    """Return whether ``data`` is the record of staging that this user made for ``location``."""
    try:
        record: Json = strict_json(data)
    except ValueError:
        return False
    if not isinstance(record, dict) or record.get("version") != VERSION:
        return False
    key, nonce, code = user_key(), record.get("nonce"), record.get("code")
    if key is None:
        return record.get("inode") == inode
    if not isinstance(nonce, str) or not isinstance(code, str):
        return False
    try:
        return hmac.compare_digest(code.encode(), _code(key, nonce, location).encode())
    except UnicodeEncodeError:  # surrogates, which only somebody else's record has
        return False


def _code(key: bytes, nonce: str, location: TargetLocation) -> str:
    message = compact_json(["deltaweights staging", nonce, location.target.name, location.inside])
    # The name's own bytes: where the locale cannot decode them, they are surrogates.
    return hmac.new(key, message.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()
