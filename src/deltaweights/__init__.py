"""Rebuild models that were published as delta weights: streamed, bit for bit, with checksums.

``apply_delta`` adds a delta to its base and publishes the merged checkpoint, ``make_delta`` makes the delta of a fine-tuned model;
``verify`` checks a folder against its manifest or a pinned digest. All raise subclasses of ``DeltaweightsError``. Importing this
package imports neither torch nor the jobs.
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
