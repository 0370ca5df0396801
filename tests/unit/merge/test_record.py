"""Tests of digests and the base proof as the manifest records them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.parse import parse_manifest
from deltaweights.merge.record import proof_of
from tests.support.base_pairs import MOVED, UNLIKE
from tests.support.float_bits import DTYPES
from tests.support.merging import merge_and_load, small_base
from tests.support.pairs import Tensors, delta_tensors, reference, save

CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def digest_of(tensors: Tensors) -> str:
    """Compute the content digest as docs/manifest-format.md states it, without our code."""
    lines = []
    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name].contiguous()
        digest = blake3(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        row = [name, CODES[tensor.dtype], list(tensor.shape), f"blake3:{digest}"]
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return f"dw1:{blake3(''.join(lines).encode()).hexdigest()}"


@pytest.mark.parametrize("stored", DTYPES)
def test_the_content_digest_is_what_its_definition_says(tmp_path: Path, stored: str) -> None:
    """The content digest equals one computed here from the reference's tensors, however the result is sharded."""
    base = small_base()
    delta = delta_tensors(base)
    delta["model.größe.weight"] = base["model.größe.weight"] = torch.ones(3).half()
    expected = digest_of(reference(base, delta, torch.float16, DTYPES[stored]))
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    for size in (2000, 9000, 10**9):
        merged = merge_and_load(tmp_path, f"merged-{size}", dtype=stored, max_shard_size=size)
        assert merged.result.content_digest == expected
        assert parse_manifest((merged.folder / "manifest.json").read_bytes()).content_digest == expected


def test_a_proof_record_names_untested_tensors() -> None:
    """``untested`` is in the JSON only if it has names; a record without it, from an older version, can be read."""
    whole, holed = proof_of({"moved": MOVED}), proof_of({"moved": MOVED, "b10": UNLIKE, "b2": UNLIKE})
    assert whole is not None
    assert holed is not None
    assert (whole.untested, list(whole.document())) == (
        (),
        ["weights", "region", "violations", "evidence", "verdict", "tensors"],
    )
    assert (holed.verdict, holed.document()["untested"]) == ("partial", ["b2", "b10"])
    for record in (whole, holed):
        assert ProofRecord.from_document(json.loads(json.dumps(record.document()))) == record
