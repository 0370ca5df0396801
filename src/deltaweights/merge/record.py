"""The manifest of a merge, from its plan and what was digested on the way.

Enters: a plan, the fragments of its shards, the records of the other files. Leaves: the manifest's bytes. Never: an open file.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.manifest.manifest import FileRecord, Fragment, TensorRecord, manifest_bytes
from deltaweights.manifest.tally import Proof
from deltaweights.merge.evidence import Verdict, untested, verdict
from deltaweights.merge.plan import ORIGINAL, InputRecord, Plan
from deltaweights.text import Json


def records_of(fragments: Mapping[str, Fragment]) -> dict[str, TensorRecord]:
    """Return the tensor records of all fragments by name."""
    return {record.name: record for file in sorted(fragments) for record in fragments[file].tensors}


def findings_of(records: Mapping[str, TensorRecord], *, allowed: bool = False) -> Findings:
    """Return what was found in all tensors; ``allowed`` says that the user lets a base pass that is not proved."""

    def counts(what: str) -> dict[str, int]:
        return {name: count for name, record in records.items() if (count := getattr(record.tally, what))}

    untried = any(record.tally.inexact is None for record in records.values())
    return Findings(
        nonfinite=counts("nonfinite"),
        nonfinite_base=counts("nonfinite_base"),
        nonfinite_lead=counts("nonfinite_lead"),
        overflow=counts("overflow"),
        uniform={name: record.uniform for name, record in records.items() if record.uniform},
        inexact=None if untried else counts("inexact"),
        proof=proof_of({n: r.tally.proof for n, r in records.items() if r.tally.proof}, allowed=allowed),
    )


def proof_of(proofs: Mapping[str, Proof], *, allowed: bool = False) -> ProofRecord | None:
    """Return what the tensors together say of the base; None when there are none."""
    if not proofs:
        return None
    said = verdict(proofs)
    return ProofRecord(
        **vars(sum(proofs.values(), Proof())),
        verdict=said.value,
        tensors={name: proof.violations for name, proof in proofs.items() if proof.violations},
        untested=untested(proofs),
        allowed=allowed and said not in {Verdict.PROVED, Verdict.NO_EVIDENCE},
    )


def digests_of(plan: Plan, records: Mapping[str, TensorRecord]) -> tuple[str, str]:
    """Return the content digest of the result, and that of the same tensors in the original layout.

    The second leaves out what only the other layout holds, and has the names of the lead; it is the first where the layouts
    are one.
    """
    there, original = [], []
    for tensor in plan.tensors:
        match, row = tensor.match, (tensor.spec.dtype, tensor.spec.shape, records[tensor.spec.name].digest)
        there.append((match.name, *row))
        if plan.operation.source(match.fate) == plan.operation.lead:
            original.append((match.lead.name, *row))
    return content_digest(there), content_digest(original)


def read_digests(plan: Plan, records: Mapping[str, TensorRecord]) -> dict[str, dict[str, str]]:
    """Return the digests of the tensors that were read, by role and their name in that input."""
    digests: dict[str, dict[str, str]] = {role: {} for role in plan.inputs}
    for tensor in plan.tensors:
        match, record = tensor.match, records[tensor.spec.name]
        role = plan.operation.source(match.fate)
        if role is not None:
            digests[role][match.lead.name] = record.delta
        if match.base is not None and record.base is not None:
            digests["base"][match.base.name] = record.base
    return digests


def tensors_digest(record: InputRecord, digests: Mapping[str, str]) -> str:
    """Return the content digest of an input, as far as it was read: of the tensors that ``digests`` names."""
    used = ((name, record.tensors[name]) for name in digests)
    return content_digest((name, spec.dtype, spec.shape, digests[name]) for name, spec in used)


def merge_manifest(
    plan: Plan,
    fragments: Mapping[str, Fragment],
    files: Mapping[str, FileRecord],
    input_sha256: Mapping[str, Mapping[str, str]],
    origins: Mapping[str, Mapping[str, str]],
    findings: Findings,
) -> tuple[bytes, str]:
    """Return the manifest's bytes, and the content digest of the result.

    ``files`` are all files of the target but the manifest and SHA256SUMS; ``input_sha256`` holds, by role and file name, the
    whole-file hashes of inputs that were made, ``origins`` by role where inputs are from and how far they are verified.
    """
    records = records_of(fragments)
    places = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    tensors = {
        tensor.spec.name: {
            "dtype": tensor.spec.dtype,
            "shape": list(tensor.spec.shape),
            "fate": tensor.match.fate.value,
            **({"source": tensor.match.lead.name} if tensor.match.renamed else {}),
            "file": places[tensor.spec.name],
            "digest": records[tensor.spec.name].digest,
        }
        for tensor in plan.tensors
    }
    digest, original = digests_of(plan, records)
    result: Json = {
        "content_digest": digest,
        **({"original_content_digest": original} if plan.options.layout != ORIGINAL else {}),
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "options": plan.options.document(),
        **({"recipe": {"name": plan.recipe.name, "digest": plan.recipe.digest}} if plan.recipe else {}),
        **findings.document(),
        "files": {name: vars(files[name]) for name in sorted(files)},
        "tensors": tensors,
    }
    digests = read_digests(plan, records)
    inputs: Json = {
        "plan": plan.identity,
        **{
            role: {**origins.get(role, {}), **_input(of, digests[role], input_sha256.get(role, {}))}
            for role, of in plan.inputs.items()
        },
    }
    return manifest_bytes(result, inputs), digest


def _input(record: InputRecord, digests: Mapping[str, str], sha256: Mapping[str, str]) -> Json:
    used = {name: record.tensors[name] for name in sorted(digests)}
    return {
        "container": record.container,
        "tensors_digest": tensors_digest(record, digests),
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
