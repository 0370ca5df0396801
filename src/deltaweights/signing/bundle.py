"""The signature file: a Sigstore bundle around a DSSE envelope.

Formats: https://docs.sigstore.dev/about/bundle/ (version 0.3, with a public key), https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from deltaweights.util.limits import BUNDLE, Limit
from deltaweights.util.text import Json, compact_json, strict_json

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
# What a bundle may have in place of an envelope and a key (or certificate), normalized. With both, programs could differ.
_NOT_WITH_KEY = {"messagesignature", "certificate", "x509certificatechain"}
_NOT_WITH_CERTIFICATE = {"messagesignature", "publickey", "x509certificatechain"}


@dataclass(frozen=True)
class Bundle:
    """A payload, the signature of its ``pae``, and the sha256 (hex) of the public key's PEM as a hint; "" for no hint."""

    payload: bytes
    signature: bytes
    key: str

    def to_bytes(self) -> bytes:
        """Return the bundle as a JSON document."""
        document = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.key}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": ""}],
            },
        }
        return f"{compact_json(document)}\n".encode()


def parse_bundle(data: bytes) -> Bundle:
    """Parse a bundle with a signature by a key, which is not verified. Raises ``ValueError``."""
    document = _parse(data)
    try:
        envelope, material = document["dsseEnvelope"], document["verificationMaterial"]
        _refuse_more(document, _NOT_WITH_KEY, "by a key")
        hint = material["publicKey"].get("hint")
        key = "" if hint is None else _text(hint)
        return Bundle(_from_base64(envelope["payload"]), _from_base64(envelope["signatures"][0]["sig"]), key)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a bundle with one signature by a key: no {error}") from None


def check_keyless(data: bytes) -> None:
    """Raise ``ValueError`` unless ``data`` is a bundle with a certificate and one envelope; nothing is verified."""
    document = _parse(data)
    _refuse_more(document, _NOT_WITH_CERTIFICATE, "by a certificate")
    if not isinstance(document["verificationMaterial"].get("certificate"), dict):
        raise ValueError("not a bundle with a certificate")


def is_keyless(data: bytes) -> bool:
    """Return whether ``data`` is a bundle with a certificate, of Sigstore's keyless way."""
    try:
        check_keyless(data)
    except ValueError:
        return False
    return True


def _parse(data: bytes) -> dict[str, Json]:
    """Parse what all bundles have: the media type, one envelope with one signature, and material to verify it with."""
    document = parse_protobuf_json(data, BUNDLE)
    if not isinstance(document, dict) or document.get("mediaType") != MEDIA_TYPE:
        raise ValueError(f"not a bundle of type {MEDIA_TYPE}")
    envelope, material = document.get("dsseEnvelope"), document.get("verificationMaterial")
    if not isinstance(envelope, dict) or not isinstance(material, dict):
        raise ValueError("not a bundle with an envelope and material to verify it with")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise ValueError(f"payload is not {PAYLOAD_TYPE}")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise ValueError(f"{len(signatures) if isinstance(signatures, list) else 'no list of'} signatures, not one")
    return document


def _refuse_more(document: dict[str, Json], alternatives: set[str], by: str) -> None:
    material = document["verificationMaterial"]
    extra = sorted(key for key in (*document, *material) if _normalized(key) in alternatives)
    if extra:
        raise ValueError(f"more than a signature {by}: {', '.join(extra)}")


def parse_protobuf_json(data: bytes, limit: Limit) -> Json:
    """Parse JSON that other programs read with protobuf. Raises ``ValueError``, also for one key of an object in two spellings.

    Protobuf's readers take ``messageSignature`` and ``message_signature`` for one field; which of them wins depends on the reader.
    """
    document = strict_json(data, limit)
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            seen: dict[str, str] = {}
            for key in value:
                other = seen.setdefault(_normalized(key), key)
                if other != key:
                    raise ValueError(f"one key in two spellings: {other} and {key}")
            pending += value.values()
    return document


def _normalized(key: str) -> str:
    return key.replace("_", "").casefold()


def pae(payload: bytes) -> bytes:
    """Return the bytes that are signed for ``payload``: DSSE's pre-authentication encoding, version 1."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _from_base64(value: Json) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
