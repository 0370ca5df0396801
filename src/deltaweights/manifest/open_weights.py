"""Open weights to digest their tensors: those of one of our results, or of any checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest_files import DigestRequest, assign_to_files
from deltaweights.manifest.verify_report import TENSOR
from deltaweights.manifest.verify_source import VerifySource

OPENERS = {".safetensors": open_safetensors, ".bin": open_torch_file}  # for weights files that we write, by suffix
SPREAD = "consolidated.*.pth"  # the "file" of a tensor spread over all parts of Meta's format (see ``LazyTensor.file``)

AddProblem = Callable[..., None]  # ``FolderCheck.add_problem``


def request_for(
    source: VerifySource, checkpoint: Checkpoint, names: Iterable[str], *, verify_checksums: bool
) -> DigestRequest:
    """Return the request to digest the files ``names`` of a checkpoint's source, and all its tensors."""
    names = frozenset(names)
    return DigestRequest(
        source=source,
        names=names,
        opened={each.file.path.name: each.file for each in checkpoint.files if each.file.path.name in names},
        tensors=checkpoint.tensors.values(),
        extra_checksums=[tensor for each in checkpoint.files for tensor in each.extra_checksums],
        verify_checksums=verify_checksums,
    )


def open_result_weights(
    source: VerifySource, names: list[str], add_problem: AddProblem, stack: ExitStack
) -> DigestRequest:
    """Open the weights of a result, for ``stack`` to close; ``add_problem`` gets what is malformed or not ours: it is left out."""
    opened: dict[str, InputFile] = {}
    tensors: dict[str, LazyTensor] = {}
    sound = []
    for name in names:
        opener = OPENERS.get(Path(name).suffix)
        try:
            if opener is not None:
                weights = opener(source.open(name))  # closes the file if it raises
                stack.callback(weights.file.close)
                _refuse_overlaps(weights)
                opened[name] = weights.file
                for tensor in sorted(tensors.keys() & weights.tensors.keys()):
                    add_problem(tensor, "is in two weights files", about=TENSOR)
                tensors |= weights.tensors
            sound.append(name)
        except (InputOutputError, MalformedInput) as error:
            add_problem(name, f"cannot be verified: {error}")
    return DigestRequest(source, sound, opened, tensors.values())


def _refuse_overlaps(weights: WeightsFile) -> None:
    """Raise ``MalformedInput`` unless each tensor is a range of its own, as in all files that we write."""
    for tensor, file in assign_to_files(weights.tensors.values(), {id(weights.file): weights.file.path.name}):
        if file is None:
            problem, expected = "shares bytes with another, or is not in one piece", "bytes of its own, in order"
            where, name, remedy = tensor.path, tensor.spec.name, "the file was tampered with: get it again"
            raise MalformedInput(problem, where=where, tensor=name, expected=expected, remedy=remedy)
