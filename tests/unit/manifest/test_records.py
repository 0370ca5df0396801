"""Fragments and manifests have the documented keys."""

from __future__ import annotations

import re

from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.util.text import strict_json
from tests.support.manifest_format import DOCUMENT, FIXTURE


def test_fragment_golden() -> None:
    """A fragment has the documented keys in the documented order, and is read back unchanged."""
    record = TensorRecord("w", "blake3:0", None, "blake3:1", Tally(nonfinite=2))
    tally = Tally(1, 2, 3, 4, 5, Proof(9, 8, 7, 6), 0.5)
    rich = TensorRecord("x", "blake3:0", "blake3:2", "blake3:1", tally, ("result", "base"))
    fragment = Fragment("plan1:2", "model.safetensors", FileRecord(3, "4"), (record, rich))
    expected = b"""{
  "format": "deltaweights-fragment",
  "version": 1,
  "plan": "plan1:2",
  "file": "model.safetensors",
  "size": 3,
  "sha256": "4",
  "tensors": [
    {"name": "w", "digest": "blake3:0", "base": null, "delta": "blake3:1", "nonfinite": 2},
    {
      "name": "x",
      "digest": "blake3:0",
      "base": "blake3:2",
      "delta": "blake3:1",
      "nonfinite": 1,
      "nonfinite_base": 2,
      "nonfinite_lead": 3,
      "overflow": 4,
      "inexact": 5,
      "proof": [9, 8, 7, 6],
      "sum": 0.5,
      "uniform": ["result", "base"]
    }
  ]
}
"""
    assert "".join(fragment.pieces()).encode() == expected
    assert Fragment.from_bytes(expected) == fragment


def test_every_documented_key_of_the_manifest_is_there() -> None:
    """Every key of the worked example is in a table of the document."""
    document = strict_json((FIXTURE / "out-with-card" / "manifest.json").read_bytes())
    for keys in (document, document["result"], document["inputs"], document["inputs"]["base"]):
        for key in keys:
            assert re.search(rf"^\|[^|]*`{key}`", DOCUMENT, re.MULTILINE), key
