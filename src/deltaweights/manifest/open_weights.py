"""Open the weights in a folder to digest their tensors: those of one of our results, or of any checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.layout_names import MAIN_FILES, META_PART, SUFFIXES
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest_files import DigestRequest, assign_to_files
from deltaweights.manifest.verify_report import TENSOR

OPENERS = {".safetensors": open_safetensors, ".bin": open_torch_file}  # for weights files that we write, by suffix
SPREAD = "consolidated.*.pth"  # the "file" of a tensor spread over all parts of Meta's format (see ``LazyTensor.file``)

MAX_SHOWN = 8
"""How often, on average, the tensors of a checkpoint may show the bytes of its files. Tied weights and views show some twice; a
hostile file of a megabyte could have tensors of a petabyte."""


AddProblem = Callable[..., None]  # ``FolderCheck.add_problem``


def open_for_listing(root: Path) -> Checkpoint:
    """Open a folder's checkpoint, or single file. Raises ``MalformedInput`` also when tensors show stored bytes too often."""
    names = LocalDirectory(root).names()
    weights = [name for name in names if Path(name).suffix in SUFFIXES]
    is_single = len(weights) == 1 and not META_PART.fullmatch(weights[0]) and not set(names) & set(MAIN_FILES)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(root / weights[0] if is_single else root, "checkpoint"))
        shown = sum(tensor.spec.nbytes for tensor in checkpoint.tensors.values())
        stored = sum(each.file.size for each in checkpoint.files)
        if shown > MAX_SHOWN * stored:
            problem, remedy = "tensors show the same bytes too often", "do not use these weights"
            found, expected = f"{shown} bytes of tensors", f"at most {MAX_SHOWN} times the {stored} bytes of the files"
            raise MalformedInput(problem, where=root, found=found, expected=expected, remedy=remedy)
        stack.pop_all()  # the caller closes the checkpoint
        return checkpoint


def request_for(
    checkpoint: Checkpoint, names: Iterable[str], *, verify_checksums: bool, links: Collection[str]
) -> DigestRequest:
    """Return the request to digest the files ``names`` of a checkpoint's folder, and all its tensors."""
    names = frozenset(names)
    return DigestRequest(
        root=checkpoint.directory.path,
        names=names,
        opened={each.file.path.name: each.file for each in checkpoint.files if each.file.path.name in names},
        tensors=checkpoint.tensors.values(),
        extra_checksums=[tensor for each in checkpoint.files for tensor in each.extra_checksums],
        verify_checksums=verify_checksums,
        links=links,
    )


def open_result_weights(
    root: Path, names: list[str], add_problem: AddProblem, stack: ExitStack, links: Collection[str]
) -> DigestRequest:
    """Open the weights of a result, for ``stack`` to close; ``add_problem`` gets what is malformed or not ours: it is left out."""
    opened: dict[str, InputFile] = {}
    tensors: dict[str, LazyTensor] = {}
    sound = []
    for name in names:
        opener = OPENERS.get(Path(name).suffix)
        try:
            if opener is not None:
                weights = opener(LocalFile(root / name, follow=name in links))  # closes the file if it raises
                stack.callback(weights.file.close)
                _refuse_overlaps(weights)
                opened[name] = weights.file
                for tensor in sorted(tensors.keys() & weights.tensors.keys()):
                    add_problem(tensor, "is in two weights files", about=TENSOR)
                tensors |= weights.tensors
            sound.append(name)
        except (InputOutputError, MalformedInput) as error:
            add_problem(name, f"cannot be verified: {error}")
    return DigestRequest(root, sound, opened, tensors.values(), links=links)


def _refuse_overlaps(weights: WeightsFile) -> None:
    """Raise ``MalformedInput`` unless each tensor is a range of its own, as in all files that we write."""
    for tensor, file in assign_to_files(weights.tensors.values(), {id(weights.file): weights.file.path.name}):
        if file is None:
            problem, expected = "shares bytes with another, or is not in one piece", "bytes of its own, in order"
            where, name, remedy = tensor.path, tensor.spec.name, "the file was tampered with: get it again"
            raise MalformedInput(problem, where=where, tensor=name, expected=expected, remedy=remedy)
