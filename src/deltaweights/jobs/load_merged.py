"""base + delta as a model of transformers, without a copy on the disk."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deltaweights.errors import Mismatch
from deltaweights.hub.ids import ModelLocation
from deltaweights.inference.torch_tensors import as_tensor
from deltaweights.jobs.apply import apply_request
from deltaweights.jobs.iter_merged import TORCH, merged_tensors
from deltaweights.jobs.prepare import prepare
from deltaweights.merge.choices import TRANSFORMERS
from deltaweights.report import Report
from deltaweights.util.extras import require

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import MergeOptions


def load_merged(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    *,
    report: Report | None = None,
    **options: Unpack[MergeOptions],
) -> Any:
    """Return the model ``base + delta`` of transformers, ready for ``generate``, on ``device``; nothing is written.

    The weights are bit for bit those that ``apply_delta(..., layout="transformers")`` would write, in the stored dtype. The base is
    proved before the model is made. Memory: the model once on ``device``, once more in main memory if that is a GPU, and a tensor.
    The tokenizer is not part of it: load it from the folder or the id of the delta. Needs transformers.

    Raises what ``apply_delta`` raises, ``UsageError`` where transformers or torch is missing, and ``Mismatch`` when transformers
    has no class for the model.

    >>> from deltaweights import load_merged
    >>> model = load_merged("base", "delta")
    >>> model.num_parameters() > 0
    True
    """
    require("transformers", "load_merged")
    from deltaweights.inference import transformers_loader as loader  # noqa: PLC0415

    options.setdefault("layout", TRANSFORMERS)
    request, report = apply_request(base, delta, Path("merged"), **options), report or Report()
    with (
        TemporaryDirectory(prefix="deltaweights-") as folder,
        prepare(request.at(Path(folder) / "merged"), report) as prepared,
        loader.quiet_and_offline(),
    ):
        documents = Path(folder) / "configuration"
        documents.mkdir()
        for name, data in prepared.companions.files.items():
            (documents / name).write_bytes(data)
        try:
            config = loader.load("AutoConfig", documents)
            model_class = loader.default_model_class(config)
            state = {name: as_tensor(data, spec) for name, data, spec in merged_tensors(prepared, TORCH, report)}
            return loader.model_of_tensors(model_class, config, state, request.options.device)
        except loader.LibraryError as error:
            where, remedy = prepared.inputs.primary.path, "merge it with apply_delta, and see deltaweights check"
            raise Mismatch(f"transformers cannot load the model: {error}", where=where, remedy=remedy) from None
