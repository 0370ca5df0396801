"""Write the files beside the weights: companions, index, model card, manifest and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from deltaweights.checkpoint.companions import README as CARD
from deltaweights.errors import CheckFailed
from deltaweights.jobs.card_facts import card_facts
from deltaweights.jobs.model_card import model_card
from deltaweights.jobs.planned_result import PlannedResult
from deltaweights.manifest.digest import digested
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.manifest.records import MANIFEST, SUMS, FileRecord, Fragment, index_bytes, sums_bytes
from deltaweights.merge.record import digests_of, merge_manifest, records_of
from deltaweights.merge.shards import index_name
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import in_chunks


def write_documents(
    planned: PlannedResult,
    folder: OpenFolder,
    fragments: Mapping[str, Fragment],
    findings: Findings,
    source_proof: ProofRecord | None = None,
) -> tuple[str, str]:
    """Write everything but the weights into ``folder``; return the content digest and the manifest's sha256.

    ``source_proof`` is that of the checkpoint that was copied, if it is carried over.

    Raises ``InputOutputError``, and ``CheckFailed`` when the weights differ from the primary's own manifest.
    """
    plan = planned.plan
    records = records_of(fragments)
    digests = digests_of(plan, records)
    if planned.expected not in {None, digests.original}:
        raise CheckFailed(
            f"the {plan.operation.primary} is not what its own {MANIFEST} says",
            found=digests.original,
            expected=planned.expected,
            remedy="it was changed or damaged since it was made: find out where with "
            f"deltaweights verify --expect {planned.expected}",
        )
    documents = {**planned.companions, CARD: model_card(card_facts(planned, digests, findings, source_proof))}
    if len(plan.shards) > 1:
        weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        documents[index_name(plan.options.container)] = index_bytes(weight_map, plan.nbytes, plan.parameters)
    files = {shard.file: fragments[shard.file].record for shard in plan.shards}
    files |= {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in documents.items()}
    for name, data in documents.items():
        folder.write(name, data)
    manifest = merge_manifest(plan, digests, records, files, planned.hashes, planned.origins, findings, source_proof)
    sha256 = hashlib.sha256()
    folder.write(MANIFEST, digested(in_chunks(manifest), sha256))
    folder.write(SUMS, sums_bytes(files, sha256.hexdigest()))
    return digests.content, sha256.hexdigest()
