"""Rebuild models that were published as delta weights: streamed, bit for bit, with checksums.

    import deltaweights

    deltaweights.apply_delta("llama-7b", "llava-med-delta", "llava-med-7b")  # writes a verified checkpoint
    deltaweights.verify("llava-med-7b").raise_if_failed()

- Merge: ``apply_delta`` (``apply_part`` and ``finish_parts`` on several machines); ``make_delta`` for the other way.
- In memory: ``iter_merged`` yields tensors, ``load_merged`` returns a model of transformers; neither writes anything.
- Look: ``inspect_checkpoint``, ``diff_checkpoints``, ``check_base``, ``check_structure``, ``answer``.
- Verify: ``verify``, ``list_checkpoint``, ``pin_model``, ``verify_lock``, ``read_signature``, ``read_keyless_signature``.
- Publish: ``sign_folder``, ``sign_keyless``, ``convert_checkpoint``, ``export_checkpoint``.

Checkpoints are paths or Hub ids. All raise subclasses of ``DeltaweightsError``; each error has the fields ``where``, ``tensor``,
``found``, ``expected``, ``remedy`` and ``code``. ``report=ProgressBar()`` shows a bar, any other ``Report`` gets what is said.
Importing this package imports neither torch nor the jobs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # without the module ``typing``: the command line is to listen to signals as early as can be
    from deltaweights.cluster.finish import FinishResult, finish_parts
    from deltaweights.cluster.part import PartResult, apply_part
    from deltaweights.diff.compare import DiffReport, diff_checkpoints
    from deltaweights.errors import (
        CheckFailed,
        DeltaweightsError,
        InputOutputError,
        MalformedInput,
        Mismatch,
        TargetBusy,
        UsageError,
    )
    from deltaweights.inference.answer import Answer, answer
    from deltaweights.inference.structure import StructureReport, check_structure
    from deltaweights.jobs.apply import ApplyResult, apply_delta
    from deltaweights.jobs.check_base import BaseReport, check_base
    from deltaweights.jobs.convert import ConvertResult, convert_checkpoint, export_checkpoint
    from deltaweights.jobs.inspect import InspectReport, inspect_checkpoint
    from deltaweights.jobs.iter_merged import iter_merged
    from deltaweights.jobs.load_merged import load_merged
    from deltaweights.jobs.lock_file import Pin
    from deltaweights.jobs.make import MakeResult, make_delta
    from deltaweights.jobs.pin import pin_model
    from deltaweights.jobs.verify_lock import PinnedModel, verify_lock
    from deltaweights.manifest.listing import Listing, list_checkpoint
    from deltaweights.manifest.verify import verify
    from deltaweights.manifest.verify_report import VerifyReport
    from deltaweights.report import ProgressBar, Report
    from deltaweights.signing.folder import (
        SignResult,
        read_keyless_signature,
        read_signature,
        sign_folder,
        sign_keyless,
    )

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ApplyResult",
    "BaseReport",
    "CheckFailed",
    "ConvertResult",
    "DeltaweightsError",
    "DiffReport",
    "FinishResult",
    "InputOutputError",
    "InspectReport",
    "Listing",
    "MakeResult",
    "MalformedInput",
    "Mismatch",
    "PartResult",
    "Pin",
    "PinnedModel",
    "ProgressBar",
    "Report",
    "SignResult",
    "StructureReport",
    "TargetBusy",
    "UsageError",
    "VerifyReport",
    "__version__",
    "answer",
    "apply_delta",
    "apply_part",
    "check_base",
    "check_structure",
    "convert_checkpoint",
    "diff_checkpoints",
    "export_checkpoint",
    "finish_parts",
    "inspect_checkpoint",
    "iter_merged",
    "list_checkpoint",
    "load_merged",
    "make_delta",
    "pin_model",
    "read_keyless_signature",
    "read_signature",
    "sign_folder",
    "sign_keyless",
    "verify",
    "verify_lock",
]

_HOMES = {
    "CheckFailed": "deltaweights.errors",
    "DeltaweightsError": "deltaweights.errors",
    "InputOutputError": "deltaweights.errors",
    "MalformedInput": "deltaweights.errors",
    "Mismatch": "deltaweights.errors",
    "TargetBusy": "deltaweights.errors",
    "UsageError": "deltaweights.errors",
    "ApplyResult": "deltaweights.jobs.apply",
    "apply_delta": "deltaweights.jobs.apply",
    "apply_part": "deltaweights.cluster.part",
    "PartResult": "deltaweights.cluster.part",
    "FinishResult": "deltaweights.cluster.finish",
    "finish_parts": "deltaweights.cluster.finish",
    "Answer": "deltaweights.inference.answer",
    "answer": "deltaweights.inference.answer",
    "StructureReport": "deltaweights.inference.structure",
    "check_structure": "deltaweights.inference.structure",
    "BaseReport": "deltaweights.jobs.check_base",
    "check_base": "deltaweights.jobs.check_base",
    "ConvertResult": "deltaweights.jobs.convert",
    "convert_checkpoint": "deltaweights.jobs.convert",
    "export_checkpoint": "deltaweights.jobs.convert",
    "InspectReport": "deltaweights.jobs.inspect",
    "inspect_checkpoint": "deltaweights.jobs.inspect",
    "iter_merged": "deltaweights.jobs.iter_merged",
    "load_merged": "deltaweights.jobs.load_merged",
    "DiffReport": "deltaweights.diff.compare",
    "diff_checkpoints": "deltaweights.diff.compare",
    "MakeResult": "deltaweights.jobs.make",
    "make_delta": "deltaweights.jobs.make",
    "Listing": "deltaweights.manifest.listing",
    "list_checkpoint": "deltaweights.manifest.listing",
    "ProgressBar": "deltaweights.report",
    "Report": "deltaweights.report",
    "SignResult": "deltaweights.signing.folder",
    "read_signature": "deltaweights.signing.folder",
    "sign_folder": "deltaweights.signing.folder",
    "sign_keyless": "deltaweights.signing.folder",
    "read_keyless_signature": "deltaweights.signing.folder",
    "Pin": "deltaweights.jobs.lock_file",
    "pin_model": "deltaweights.jobs.pin",
    "PinnedModel": "deltaweights.jobs.verify_lock",
    "verify_lock": "deltaweights.jobs.verify_lock",
    "VerifyReport": "deltaweights.manifest.verify_report",
    "verify": "deltaweights.manifest.verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltaweights' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (only programs that use the API need it)

    return getattr(import_module(_HOMES[name]), name)
