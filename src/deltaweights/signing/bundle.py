"""The file that a signature is in: a Sigstore bundle around a DSSE envelope.

Enters: a payload and its signature, or the bytes of a bundle. Leaves: the other one. Never: a judgement whether the signature is
right.

Formats: https://docs.sigstore.dev/about/bundle/ (version 0.3, with a public key), https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from deltaweights.signing.spellings import refuse_second_spellings, spelled
from deltaweights.util.limits import BUNDLE
from deltaweights.util.text import Json, compact_json, strict_json

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


_OTHERS = frozenset(map(spelled, ("messageSignature", "certificate", "x509CertificateChain")))
"""What a bundle may hold in place of an envelope, or of a key; one that holds both says two things."""


@dataclass(frozen=True)
class Bundle:
    """A payload, the signature of its ``pae``, and the sha256 (hex) of the public key's PEM, which says whose it is."""

    payload: bytes
    signature: bytes
    key: str

    def to_bytes(self) -> bytes:
        """Return the bundle as it is written."""
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
    """Return the bundle in ``data``. Raises ``ValueError`` that says what is wrong with it."""
    document = strict_json(data, BUNDLE)
    if not isinstance(document, dict) or document.get("mediaType") != MEDIA_TYPE:
        raise ValueError(f"not a bundle of type {MEDIA_TYPE}")
    refuse_second_spellings(document)
    try:
        envelope = document["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"payload is not {PAYLOAD_TYPE}")
        signatures, material = envelope["signatures"], document["verificationMaterial"]
        if len(signatures) != 1:
            raise ValueError(f"{len(signatures)} signatures, not one")
        foreign = sorted(key for key in (*document, *material) if spelled(key) in _OTHERS)
        if foreign:
            raise ValueError(f"more than a signature by a key: {', '.join(foreign)}")
        key = material["publicKey"].get("hint")
        return Bundle(_decoded(envelope["payload"]), _decoded(signatures[0]["sig"]), "" if key is None else _text(key))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a bundle with one signature by a key: no {error}") from None


def pae(payload: bytes) -> bytes:
    """Return what is signed for ``payload``: DSSE's pre-authentication encoding, version 1."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _decoded(value: Json) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
