"""The manifest of a merge, from its plan and what was digested on the way.

Enters: a plan, the fragments of its shards, the records of the other files. Leaves: the manifest's bytes. Never: an open file.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.manifest import FileRecord, Fragment, TensorRecord, manifest_bytes
from deltaweights.merge.plan import InputRecord, Plan
from deltaweights.text import Json


def records_of(fragments: Mapping[str, Fragment]) -> dict[str, TensorRecord]:
    """Return the tensor records of all fragments by name."""
    return {record.name: record for file in sorted(fragments) for record in fragments[file].tensors}


def inexact_of(records: Mapping[str, TensorRecord]) -> dict[str, int] | None:
    """Return, by name, how many weights of each tensor do not come back, where there are any; None when not all were tried."""
    if any(record.inexact is None for record in records.values()):
        return None
    return {name: record.inexact for name, record in records.items() if record.inexact}


def merge_manifest(
    plan: Plan,
    fragments: Mapping[str, Fragment],
    files: Mapping[str, FileRecord],
    input_sha256: Mapping[str, Mapping[str, str]],
) -> tuple[bytes, str]:
    """Return the manifest's bytes, and the content digest of the result.

    ``files`` are all files of the target but the manifest and SHA256SUMS; ``input_sha256`` holds, by role and file name, the
    whole-file hashes of inputs that were made.
    """
    records = records_of(fragments)
    places = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    tensors = {
        tensor.spec.name: {
            "dtype": tensor.spec.dtype,
            "shape": list(tensor.spec.shape),
            "fate": tensor.match.fate.value,
            "file": places[tensor.spec.name],
            "digest": records[tensor.spec.name].digest,
        }
        for tensor in plan.tensors
    }
    digest = content_digest(
        (tensor.spec.name, tensor.spec.dtype, tensor.spec.shape, records[tensor.spec.name].digest)
        for tensor in plan.tensors
    )
    inexact = inexact_of(records)
    result: Json = {
        "content_digest": digest,
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "options": vars(plan.options),
        "nonfinite": {name: record.nonfinite for name, record in records.items() if record.nonfinite},
        **({} if inexact is None else {"inexact": inexact}),
        "files": {name: vars(files[name]) for name in sorted(files)},
        "tensors": tensors,
    }
    lead = plan.operation.lead
    inputs: Json = {
        "plan": plan.identity,
        "base": _input(plan.base, {n: r.base for n, r in records.items() if r.base}, input_sha256.get("base", {})),
        lead: _input(plan.lead, {n: r.delta for n, r in records.items()}, input_sha256.get(lead, {})),
    }
    return manifest_bytes(result, inputs), digest


def _input(record: InputRecord, digests: Mapping[str, str], sha256: Mapping[str, str]) -> Json:
    used = {name: record.tensors[name] for name in sorted(digests)}
    return {
        "container": record.container,
        "tensors_digest": content_digest((name, spec.dtype, spec.shape, digests[name]) for name, spec in used.items()),
        "files": {
            file.name: {
                "size": file.size,
                "header_digest": file.header_digest,
                **({"sha256": sha256[file.name]} if file.name in sha256 else {}),
                "checks": [*file.checks] + ["sha256"] * (file.name in sha256),
            }
            for file in record.files
        },
        "dropped": {
            dropped.spec.name: {
                "dtype": dropped.spec.dtype,
                "shape": list(dropped.spec.shape),
                "reason": dropped.reason,
            }
            for dropped in record.dropped
        },
        "tensors": {
            name: {"dtype": spec.dtype, "shape": list(spec.shape), "digest": digests[name]}
            for name, spec in used.items()
        },
    }
