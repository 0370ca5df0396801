"""Compare the bytes of files, and the tensors in them, with what is stated of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest_files import DigestRequest, digest_all
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.open_weights import open_result_weights, request_for
from deltaweights.manifest.parse import TensorRow, original_digest
from deltaweights.manifest.stated_hashes import compare_stated
from deltaweights.manifest.verify_report import CONTENT, FILE, TENSOR
from deltaweights.report import Report


def compare_files(check: FolderCheck, workers: int, report: Report, *, with_tensors: bool) -> Digests:
    """Read every file that has the stated size, and compare its hash; return the digests, also of tensors if asked for."""
    files = check.files
    names = [name for name in sorted(check.stated) if name in files and check.compare_size(name)]
    errors = dict(check.source.errors)
    digests = check.source.digests
    if digests is None:
        with ExitStack() as stack:
            opened = _open_weights(check, names, stack) if with_tensors else None
            request = opened or DigestRequest(check.source, names)
            digests = digest_all(request, errors.__setitem__, workers, report)
    for name in sorted(errors):
        about = FILE if name in check.stated else TENSOR
        check.add_problem(name, f"cannot be verified: {errors[name]}", about=about)
    for name in names:
        if name in digests.files:
            for fault in compare_stated(check.source, name, check.stated[name], digests.files[name]):
                check.add_problem(name, *fault)
    return digests


def _open_weights(check: FolderCheck, names: list[str], stack: ExitStack) -> DigestRequest | None:
    """Open the weights among ``names``, for ``stack`` to close, and return the request to digest them and all other files.

    Returns None, and adds a problem, when they cannot be opened at all.
    """
    if check.manifest is not None and not check.is_listing:
        request = open_result_weights(check.source, names, check.add_problem, stack)
    else:
        try:
            checkpoint = stack.enter_context(check.source.checkpoint())
        except (InputOutputError, MalformedInput) as error:
            check.add_problem(check.source.title, f"weights cannot be verified: {error}", about=CONTENT)
            return None
        request = request_for(check.source, checkpoint, names, verify_checksums=False)
    places = check.manifest.places if check.manifest is not None else {}
    problem = "is in another file than the manifest says"
    for tensor in request.tensors:
        name, file = tensor.spec.name, tensor.file
        if places.get(name, file) != file:
            check.add_problem(name, problem, file, places[name], about=TENSOR)
    return request


def stated_tensors(check: FolderCheck) -> Mapping[str, TensorRow]:
    """Return the tensors that the manifest states, of one file alone those in it."""
    if check.manifest is None or check.source.only is None:
        return check.manifest.tensors if check.manifest else {}
    places = check.manifest.places
    return {name: row for name, row in check.manifest.tensors.items() if places[name] == check.source.only}


def compare_tensors(check: FolderCheck, rows: Mapping[str, TensorRow]) -> None:
    """Compare the tensors in the files with those in the manifest."""
    stated = stated_tensors(check)
    for name in sorted(set(rows) | set(stated)):
        if name not in rows:
            check.add_problem(name, "tensor is in the manifest, in no weights file", about=TENSOR)
        elif name not in stated:
            check.add_problem(name, "tensor is in a weights file, not in the manifest", about=TENSOR)
        elif rows[name] != stated[name]:
            found, expected = str(rows[name]), str(stated[name])
            check.add_problem(name, "tensor is not what the manifest says", found, expected, about=TENSOR)


def original_digest_of(check: FolderCheck, rows: Mapping[str, TensorRow]) -> str | None:
    """Return the content digest of the original layout, if the folder is in another one."""
    if check.manifest is None or not check.manifest.original_content_digest:
        return None
    return original_digest(check.manifest, rows)
