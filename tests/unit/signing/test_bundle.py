"""Bundles: what is written is read back, and other documents are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.signing.bundle import Bundle, pae, parse_bundle

BUNDLES = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "another type": b'{"mediaType":"text/plain"}',
    "duplicate key": b'{"mediaType":"a","mediaType":"b"}',
    "no signature": json.dumps({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": {"payloadType": "application/vnd.in-toto+json", "payload": "", "signatures": []},
    }).encode(),
}  # fmt: skip


@pytest.mark.parametrize("data", BUNDLES.values(), ids=BUNDLES)
def test_other_documents_are_refused(data: bytes) -> None:
    """What is not a bundle with one signature is refused as a ``ValueError``."""
    with pytest.raises(ValueError, match=r"."):
        parse_bundle(data)


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_a_bundle_is_read_back(payload: bytes, signature: bytes) -> None:
    """Payload, signature and key of a bundle are read back as they were written."""
    bundle = Bundle(payload, signature, "0" * 64)
    assert parse_bundle(bundle.to_bytes()) == bundle
    assert pae(payload).endswith(b" " + payload) or not payload
