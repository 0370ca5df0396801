"""Checkpoints of training frameworks, whose weights are spread over ranks: DeepSpeed, torch.distributed (FSDP), Megatron."""

from __future__ import annotations

import posixpath
import re
import shlex

from deltaweights.checkpoint.foreign.listing import Layout, Recognised, Subject, some
from deltaweights.util.text import natural_key

ZERO_TO_FP32, LATEST, METADATA = "zero_to_fp32.py", "latest", ".metadata"

_STATES = re.compile(
    r"(bf16_|fp16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt|layer_\d+-model.*_states\.pt"
)
_STEP = re.compile(r"global_step\d+")
_DISTRIBUTED = re.compile(r"__\d+_\d+\.distcp")
_TRACKER, _MEGATRON_FILE = "latest_checkpointed_iteration.txt", "model_optim_rng.pt"
_NESTED = (b"\x8c\x05model", b"X\x05\x00\x00\x00model")
"""How a pickle spells "model" as a string of its own: accelerate saves ``{"model": state_dict}``."""


def deepspeed(subject: Subject) -> Recognised | None:
    """Recognise DeepSpeed's folder, or that of one step in it."""
    own = subject.matching(_STATES)
    steps = sorted(
        (n for n, f in subject.listing.folders.items() if any(map(_STATES.fullmatch, f.files))), key=natural_key
    )
    steps = steps or sorted(filter(_STEP.fullmatch, subject.listing.folders), key=natural_key)
    if not (own or steps or ZERO_TO_FP32 in subject.files):
        return None
    if own:
        where, root, tag = subject, subject.below(".."), subject.name
    elif steps:
        latest = subject.heads.get(LATEST, b"").decode("utf-8", "replace").strip()
        tag = latest if latest in steps else steps[-1]
        where, root = subject.below(tag), subject
    else:
        found = f"what DeepSpeed left of a checkpoint ({ZERO_TO_FP32}), without the weights"
        return Recognised(Layout.DEEPSPEED, found, f"fetch its folder global_step..., too, and run {ZERO_TO_FP32}")
    states = where.matching(_STATES)
    found = f"a DeepSpeed checkpoint ({some([*(f'{step}/' for step in steps), *states], 3)})"
    if states and not any("optim_states" in name or name.startswith(("zero", "layer")) for name in states):
        # Without ZERO, the one file has the whole model, and the script refuses it.
        remedy = f"load {where.path(states[0])} with torch, torch.save its 'module' as pytorch_model.bin, and give that"
        return Recognised(Layout.DEEPSPEED, found, remedy)
    script = root.quoted(ZERO_TO_FP32) if ZERO_TO_FP32 in root.files else "-m deepspeed.utils.zero_to_fp32"
    remedy = f"run python {script} {root.quoted()} OUT -t {shlex.quote(tag)}, and give OUT"
    return Recognised(Layout.DEEPSPEED, found, remedy)


def distributed(subject: Subject) -> Recognised | None:
    """Recognise what torch.distributed.checkpoint writes, as FSDP does, in the folder or one below."""
    for path in ("", *sorted(subject.listing.folders, key=natural_key)):
        part = subject.below(path) if path else subject
        names = part.matching(_DISTRIBUTED)
        if not names or path.startswith("optimizer"):
            continue
        found = f"a distributed checkpoint of torch, as FSDP saves ({posixpath.join(path, names[0])})"
        if any(spelling in part.heads.get(METADATA, b"") for spelling in _NESTED):
            return Recognised(
                Layout.DISTRIBUTED, found, f"run accelerate merge-weights {part.quoted()} OUT, and give OUT"
            )
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {part.quoted()} OUT.pt"
        return Recognised(Layout.DISTRIBUTED, found, f"run {command}, and give OUT.pt")
    return None


def megatron(subject: Subject) -> Recognised | None:
    """Recognise Megatron's folder, or that of one iteration in it."""
    parts = [posixpath.join(path, _MEGATRON_FILE) for path, f in subject.listing.walk() if _MEGATRON_FILE in f.files]
    if not parts and _TRACKER not in subject.files:
        return None
    found = f"a checkpoint of Megatron ({some(parts or [_TRACKER], 2)})"
    remedy = "export it to Hugging Face's layout with the converter of the code that trained it, and give that"
    return Recognised(Layout.MEGATRON, found, remedy)
