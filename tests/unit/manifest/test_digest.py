"""Digests have the documented values."""

from __future__ import annotations

import pytest

from deltaweights.manifest.digest import content_digest, tensor_digest, tensor_hasher
from tests.support.manifest_format import DOCUMENT

TENSOR_DIGESTS = {
    "": "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    "00000080": "blake3:cf2495c57caf3fe3203bf6f744b5ddfc88adf65ce6c10588ed7b25cc8daa7aeb",
    "003c00c0": "blake3:99b4604fe9339946f5fb8f9e1082631a41577648b3a170f6f01530a5e646aee2",
    "0000803f": "blake3:1628d491647767ca75acfd2183da4631eef590e9c8129503574e36927c16521c",
}


@pytest.mark.parametrize(("data", "digest"), TENSOR_DIGESTS.items())
def test_tensor_digest_golden(data: str, digest: str) -> None:
    """The tensor digest is BLAKE3 of the bytes, as the document's table says."""
    hasher = tensor_hasher()
    hasher.update(memoryview(bytes.fromhex(data)))
    assert tensor_digest(hasher) == digest
    assert f"`{digest}`" in DOCUMENT


def test_content_digest_golden() -> None:
    """The content digest has the documented values, and does not depend on the order in which tensors are given."""
    rows = [
        ("b", "F16", (2,), TENSOR_DIGESTS["003c00c0"]),
        ("a", "F32", (), TENSOR_DIGESTS["0000803f"]),
    ]
    expected = "dw1:70c5b22e3d56cb78df41c8f95d8df4d712f2db6a245603ce40b53e203a226e2f"
    assert content_digest(rows) == expected
    assert content_digest(reversed(rows)) == expected
    assert content_digest([]) == "dw1:" + TENSOR_DIGESTS[""].removeprefix("blake3:")
    assert expected in DOCUMENT


def test_content_digest_of_names_beyond_ascii() -> None:
    """Names are digested as UTF-8, sorted by its bytes, with only quote and backslash escaped."""
    rows = [(name, "F16", (1,), "blake3:00") for name in ('"', "\\", "é", "z", "\U0001f600")]
    assert content_digest(rows) == "dw1:9934eb2db119cd792fdd66523f5929980d589a7b062f9318073d4748756eb45e"
