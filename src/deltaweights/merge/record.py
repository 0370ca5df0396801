"""The manifest of a merge, from its plan and the fragments of its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.findings import Findings, ProofRecord, Verdict
from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord, manifest_pieces
from deltaweights.manifest.tally import Proof
from deltaweights.merge.base_proof import WIDER, stored_whole, untested, verdict
from deltaweights.merge.choices import ORIGINAL
from deltaweights.merge.plan import InputFileRecord, InputRecord, Plan, spec_document
from deltaweights.util.text import Json, LazyObject


def records_of(fragments: Mapping[str, Fragment]) -> dict[str, TensorRecord]:
    """Return the tensor records of all fragments by name."""
    return {record.name: record for file in sorted(fragments) for record in fragments[file].tensors}


def findings_of(
    records: Mapping[str, TensorRecord],
    *,
    other_dtype: frozenset[str] = frozenset(),
    stated: bool = False,
    rounded: str = "",
    allowed: bool = False,
    wider: frozenset[str] = frozenset(),
) -> Findings:
    """Return what was found in all tensors.

    ``other_dtype`` is ``Plan.rounded``; ``stated``: a recipe states the arithmetic of the delta; ``rounded``: how it seems to have
    been rounded since; ``allowed``: the user accepts a base that is not proved; ``wider`` as in ``wider_tensors``.
    """

    def counts(what: str) -> dict[str, int]:
        return {name: count for name, record in records.items() if (count := getattr(record.tally, what))}

    untried = any(record.tally.inexact is None for record in records.values())
    # Fragments of earlier releases do not have these.
    uncounted = not other_dtype or any(records[name].tally.not_restored is None for name in other_dtype)
    return Findings(
        **{what: counts(what) for what in ("nonfinite", "nonfinite_base", "nonfinite_lead", "overflow")},
        uniform={name: record.uniform for name, record in records.items() if record.uniform},
        inexact=None if untried else counts("inexact"),
        not_restored=None if untried or uncounted else _not_restored(records),
        proof=proof_of(
            {name: record.tally.proof for name, record in records.items() if record.tally.proof},
            stated=stated,
            rounded=rounded,
            allowed=allowed,
            wider=wider,
        ),
    )


def _not_restored(records: Mapping[str, TensorRecord]) -> dict[str, int]:
    found = {}
    for name, record in records.items():
        tally = record.tally
        count = tally.inexact if tally.not_restored is None else tally.not_restored
        if count:
            found[name] = count
    return found


def proof_of(
    proofs: Mapping[str, Proof],
    *,
    stated: bool = False,
    rounded: str = "",
    allowed: bool = False,
    wider: frozenset[str] = frozenset(),
) -> ProofRecord | None:
    """Return the base proof of all tensors together; None when there are none. The rest is as in ``findings_of``."""
    if not proofs:
        return None
    violated = {name for name, proof in proofs.items() if proof.violations}
    if violated and violated <= wider and not rounded:
        rounded = WIDER
    judged, total, whole = verdict(proofs), sum(proofs.values(), Proof()), stored_whole(proofs)
    record = ProofRecord(
        **asdict(total),
        verdict=judged.value,
        tensors={name: proofs[name].violations for name in proofs if name in violated},
        untested=untested(proofs),
        whole=whole,
        rounded=rounded if total.violations else "",
    )
    return replace(record, allowed=allowed and is_refused(record, stated=stated))


def is_refused(proof: ProofRecord, *, stated: bool) -> bool:
    """Return whether a merge with this proof is published only if the user insists."""
    unproved = proof.verdict not in {Verdict.PROVED, Verdict.NO_EVIDENCE, Verdict.NOT_CHECKED}
    return proof.refuted or bool(proof.whole) or (stated and unproved)


@dataclass(frozen=True)
class ResultDigests:
    """The digests of a merge. ``content`` is that of the result.

    ``original`` is the content digest of the same tensors in the original layout: without constant and vision tower tensors, and
    with the primary's names. ``read`` has the digests of the tensors that were read, by role and name in that input; ``inputs`` the
    content digests of these, by role.
    """

    content: str
    original: str
    read: Mapping[str, Mapping[str, str]]
    inputs: Mapping[str, str]


def digests_of(plan: Plan, records: Mapping[str, TensorRecord]) -> ResultDigests:
    """Return all digests of a merge whose tensors have ``records``."""
    rows = [(t.match, (t.spec.dtype, t.spec.shape, records[t.spec.name].digest)) for t in plan.tensors]
    content = original = content_digest((match.name, *row) for match, row in rows)
    if plan.options.layout != ORIGINAL:
        of_primary = (each for each in rows if plan.operation.source(each[0].fate) == plan.operation.primary)
        original = content_digest((match.primary.name, *row) for match, row in of_primary)
    read = _read_digests(plan, records)
    inputs = {
        role: content_digest(
            (s.name, s.dtype, s.shape, digests[s.name]) for s in plan.inputs[role].tensors if s.name in digests
        )
        for role, digests in read.items()
    }
    return ResultDigests(content, original, read, inputs)


def _read_digests(plan: Plan, records: Mapping[str, TensorRecord]) -> dict[str, dict[str, str]]:
    digests: dict[str, dict[str, str]] = {role: {} for role in plan.inputs}
    for tensor in plan.tensors:
        match, record = tensor.match, records[tensor.spec.name]
        role = plan.operation.source(match.fate)
        if role is not None:
            digests[role][match.primary.name] = record.delta
        if match.base is not None and record.base is not None:
            digests["base"][match.base.name] = record.base
    return digests


def merge_manifest(
    plan: Plan,
    digests: ResultDigests,
    records: Mapping[str, TensorRecord],
    files: Mapping[str, FileRecord],
    input_sha256: Mapping[str, Mapping[str, str]],
    origins: Mapping[str, Mapping[str, str]],
    findings: Findings,
    source_proof: ProofRecord | None = None,
) -> Iterator[str]:
    """Yield the manifest; ``files`` are all others of the target, ``input_sha256`` the known hashes by role and file name.

    ``source_proof`` is what the manifest of a checkpoint that was copied says of its base.
    """

    def tensors() -> Iterator[tuple[str, Json]]:
        for shard in plan.shards:
            for tensor in shard.tensors:
                row = {**spec_document(tensor.spec), "fate": tensor.match.fate.value}
                if tensor.match.renamed:
                    row["source"] = tensor.match.primary.name
                if tensor.match.base_name:
                    row["base"] = tensor.match.base_name
                yield tensor.spec.name, {**row, "file": shard.file, "digest": records[tensor.spec.name].digest}

    result: Json = {
        "content_digest": digests.content,
        **({"original_content_digest": digests.original} if plan.options.layout != ORIGINAL else {}),
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "options": plan.options.document(),
        **plan.recipe_document,
        **findings.document(),
        "files": {name: vars(files[name]) for name in sorted(files)},
        "tensors": LazyObject(tensors),
    }
    inputs: Json = {"plan": plan.identity}
    for role, record in plan.inputs.items():
        inputs[role] = {**origins.get(role, {}), **_input(role, record, digests, input_sha256.get(role, {}))}
    if source_proof is not None:
        inputs[plan.operation.primary]["proof"] = source_proof.document()
    return manifest_pieces(result, inputs)


def _input(role: str, record: InputRecord, digests: ResultDigests, sha256: Mapping[str, str]) -> Json:
    read = digests.read[role]

    def tensors() -> Iterator[tuple[str, Json]]:
        for spec in record.tensors:
            if spec.name in read:
                yield spec.name, {**spec_document(spec), "digest": read[spec.name]}

    return {
        "container": record.container,
        **record.naming.document,
        "tensors_digest": digests.inputs[role],
        "files": {file.name: _file(file, sha256.get(file.name)) for file in record.files},
        "dropped": {d.spec.name: {**spec_document(d.spec), "reason": d.reason} for d in record.dropped},
        "tensors": LazyObject(tensors),
    }


def _file(file: InputFileRecord, sha256: str | None) -> Json:
    hashed = {} if sha256 is None else {"sha256": sha256}
    return {"size": file.size, "header_digest": file.header_digest, **hashed, "checks": [*file.checks, *hashed]}
