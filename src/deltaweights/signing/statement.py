"""The signed statement: an in-toto statement with the sha256 of every file.

The format is that of OpenSSF Model Signing, predicate type ``https://model_signing/signature/v1.0``
(https://github.com/sigstore/model-transparency), in in-toto's Statement v1 (https://github.com/in-toto/attestation).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltaweights.signing.bundle import parse_protobuf_json
from deltaweights.util.limits import STATEMENT
from deltaweights.util.text import Json, compact_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
METHOD = {"method": "files", "hash_type": "sha256"}


def statement_bytes(subject: str, digests: Mapping[str, str], ignored: Iterable[str]) -> bytes:
    """Return the statement that the model has exactly the files in ``digests`` (sha256 in hex by name), besides ``ignored``.

    ``subject`` names the model for readers and is not compared. Its digest is that over the files' digests, in the names' order.
    """
    names = sorted(digests)
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names]
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": _digest_of(digests[name] for name in names)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {**METHOD, "allow_symlinks": False, "ignore_paths": sorted(ignored)},
            "resources": resources,
        },
    }
    return compact_json(document).encode()


@dataclass(frozen=True)
class Statement:
    """The sha256 (hex) of every file that is signed, by name, and the names that its signer left out, with all below them."""

    digests: dict[str, str]
    ignored: frozenset[str]


def parse_statement(data: bytes) -> Statement:
    """Parse a signed statement. Raises ``ValueError``."""
    document = parse_protobuf_json(data, STATEMENT)
    for key, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if _get(document, key, str) != expected:
            raise ValueError(f"{key} is {document[key]}, not {expected}")
    predicate = _get(document, "predicate", dict)
    serialization = _get(predicate, "serialization", dict)
    for key, expected in METHOD.items():
        if serialization.get(key) != expected:
            raise ValueError(f"files are digested by {key} {serialization.get(key)}: only {expected} is supported")
    digests: dict[str, str] = {}
    for resource in _get(predicate, "resources", list):
        name, algorithm, digest = (_get(resource, key, str) for key in ("name", "algorithm", "digest"))
        if algorithm != "sha256" or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"the digest of {name} is not a sha256")
        if name in digests:
            raise ValueError(f"{name} is named twice")
        digests[name] = digest
    subjects = _get(document, "subject", list)
    if len(subjects) != 1:
        raise ValueError(f"{len(subjects)} subjects, not one")
    if _get(_get(subjects[0], "digest", dict), "sha256", str) != _digest_of(digests.values()):
        raise ValueError("the subject's digest is not that of its files")
    return Statement(digests, _ignored(serialization))


def _ignored(serialization: Json) -> frozenset[str]:
    paths = serialization.get("ignore_paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("ignore_paths is no list of names")
    return frozenset(paths)


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _get(value: Json, key: str, kind: type) -> Json:
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise ValueError(f"{key} is missing or of the wrong type")
    return value[key]
