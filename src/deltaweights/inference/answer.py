"""One answer of a model: the sign of life of a checkpoint.

Enters: a folder, a question, images. Leaves: the most likely answer, and how fast it came. Never: sampling, code from the folder,
pickles, weights that were made up because the folder lacks them, or a load that memory cannot hold.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, Mismatch, UsageError
from deltaweights.inference.bounds import absurd_size
from deltaweights.inference.folder import Held, read_folder
from deltaweights.inference.loading import (
    LOCAL,
    Refusal,
    load_config,
    load_processor,
    load_tokenizer,
    quietly,
    refusals,
    usual_class,
)
from deltaweights.inference.memory import Memory, Placement, cache_bytes, check_device, free_memory, need_of, place
from deltaweights.inference.prompts import GREETING, QUESTION, Prompt, make_prompt, open_images
from deltaweights.merge.rules import is_buffer
from deltaweights.report import Report
from deltaweights.util.interruption import run_in_side_thread
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Torch's names of the dtypes that models run in, by safetensors'."""


@dataclass(frozen=True)
class Answer:
    """What a model answered: ``tokens`` in ``seconds``, reading the prompt included; ``placement`` says where the weights were."""

    text: str
    tokens: int
    seconds: float
    tokens_per_second: float
    model_class: str
    placement: str


def answer(
    folder: str | os.PathLike[str],
    prompt: str | None = None,
    images: Sequence[str | Path] = (),
    *,
    max_new_tokens: int = 128,
    dtype: str = "auto",
    device: str = "auto",
    conversation: str | None = None,
    memory: Memory | None = None,
    report: Report | None = None,
) -> Answer:
    """Load ``folder`` with transformers and return its greedy answer to ``prompt``, about ``images`` if there are any.

    ``dtype`` is float16, bfloat16, float32, or auto, that in which most weights are stored; ``device`` is cpu, cuda, cuda:N, or
    auto: GPUs first, then main memory, and what does not fit stays on the disk. ``memory`` stands in for what is free. Raises
    ``Mismatch`` for a folder that transformers does not run, ``CheckFailed`` when it lacks weights, ``InputOutputError`` when
    memory cannot hold it or a file is not there, ``MalformedInput`` and ``UsageError``.
    """
    report, path = report or Report(), Path(folder)
    check_device(device)
    held = read_folder(path)
    _refuse_what_does_not_run(held, images)
    pictures = open_images(images)
    with quietly(), exact_products():
        try:
            config = load_config(path)
            model_class = usual_class(config)
            sees = getattr(config, "vision_config", None) is not None
            tool = load_processor(path) if sees else load_tokenizer(path)
            question = prompt if prompt is not None else QUESTION if pictures else GREETING
            asked = make_prompt(tool, question, pictures, conversation, path, sees=sees)
            weights = _dtype_of(held) if dtype == "auto" else dtype
            with refusals():
                cache = cache_bytes(config.get_text_config(), asked.length + max_new_tokens, weights)
            need = need_of((tensor.spec for tensor in held.tensors.values()), weights, cache)
            free = memory or free_memory(device)
            placement = place(need, free, device, path)
            if placement.spills:
                report.warn(
                    f"the model takes {human_bytes(need.all)}, and {human_bytes(free.host + sum(free.gpus))} are free: the rest"
                    " of the weights is read from the disk for every token, which is slow"
                )
            report.note(f"loading {human_bytes(need.weights)} of weights as {weights}")
            with TemporaryDirectory(prefix="deltaweights-", ignore_cleanup_errors=True) as offload, refusals():
                return run_in_side_thread(
                    lambda: _generate(
                        _load(held, model_class, config, weights, placement, offload), asked, max_new_tokens
                    )
                )
        except Refusal as refusal:
            raise _error(refusal, path) from None


def _refuse_what_does_not_run(held: Held, images: Sequence[object]) -> None:
    shown = shlex.quote(str(held.path))
    if held.is_original:
        remedy = f"deltaweights export {shown} --target NEW writes a folder that they run"
        raise Mismatch(
            "a LLaVA in its original layout, which current libraries do not run", where=held.path, remedy=remedy
        )
    if held.container != "safetensors":
        remedy = f"deltaweights convert --base {shown} --target NEW writes it in safetensors"
        raise Mismatch("weights in pickles, which are not loaded", where=held.path / held.start, remedy=remedy)
    absurd = absurd_size(held)
    if absurd is not None:
        where, remedy = held.path / absurd[0], "the configuration is damaged or hostile: get it again"
        raise Mismatch("states a size that no model has", where=where, found=absurd[1], remedy=remedy)
    if images and "vision_config" not in held.config:
        raise UsageError("an image for a model that takes none", where=held.path, remedy="leave out --image")


def _dtype_of(held: Held) -> str:
    """Return torch's name of the dtype in which most weights are stored, of those that models run in."""
    counts: Counter[str] = Counter()
    for tensor in held.tensors.values():
        if tensor.spec.dtype in DTYPES and not is_buffer(tensor.spec.name):
            counts[tensor.spec.dtype] += tensor.spec.count
    return DTYPES[max(counts, key=lambda name: counts[name])] if counts else "float32"


def _load(held: Held, model_class: Any, config: Any, dtype: str, placement: Placement, offload: str) -> Any:
    """Return the model with its weights; raises ``CheckFailed`` when some are missing, which the library would make up."""
    import torch  # noqa: PLC0415

    model, told = model_class.from_pretrained(
        str(held.path),
        config=config,
        torch_dtype=getattr(torch, dtype),
        device_map=placement.device_map,
        max_memory=placement.most,
        offload_folder=offload,
        use_safetensors=True,
        attn_implementation="sdpa",  # a configuration could name one that comes from elsewhere
        output_loading_info=True,
        **LOCAL,
    )
    missing = sorted(told["missing_keys"])
    if missing:
        remedy = f"deltaweights check {shlex.quote(str(held.path))} tells what else is wrong"
        found = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        raise CheckFailed(f"lacks {counted(len(missing), 'tensor')}", where=held.path, found=found, remedy=remedy)
    return model


def _generate(model: Any, prompt: Prompt, most: int) -> Answer:
    import torch  # noqa: PLC0415

    inputs = prompt.inputs.to(_entrance(model))
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)

    def is_done(numbers: Any, _scores: object, **_options: object) -> Any:
        """Stop at a stop string, as the code of 2023 did; the library's ``stop_strings`` looks at the prompt's end, too."""
        return torch.tensor([prompt.answer(numbers[0, prompt.length :].tolist())[1]], device=numbers.device)

    began = time.monotonic()
    with torch.inference_mode():
        numbers = model.generate(
            **inputs, max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True, stopping_criteria=[is_done]
        )
    seconds = time.monotonic() - began
    new = numbers[0, prompt.length :].tolist()
    text, _ = prompt.answer(new)
    return Answer(text, len(new), seconds, len(new) / max(seconds, 1e-9), type(model).__name__, _where(model))


def _map(model: Any) -> list[str]:
    """Return where each part of the model is, in torch's names; the disk is "disk"."""
    placed = getattr(model, "hf_device_map", None) or {"": model.device}
    return [f"cuda:{device}" if isinstance(device, int) else str(device) for device in placed.values()]


def _entrance(model: Any) -> str:
    """Return the device that takes the inputs: hooks bring them to where each part is computed."""
    return next((device for device in _map(model) if device != "disk"), "cpu")


def _where(model: Any) -> str:
    parts = Counter(_map(model))
    return next(iter(parts)) if len(parts) == 1 else ", ".join(f"{n} parts on {device}" for device, n in parts.items())


@contextmanager
def exact_products() -> Iterator[None]:
    """Have GPUs multiply float32 as float32, without TF32's shorter numbers, while this lasts."""
    import torch  # noqa: PLC0415

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _error(refusal: Refusal, path: Path) -> DeltaweightsError:
    """Return what to tell the user when the library failed."""
    cause = refusal.__cause__
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or "allocate memory" in str(cause):
        remedy = "end other programs, or try --max-new-tokens with a smaller number"
        return InputOutputError("memory ran out", where=path, found=refusal, remedy=remedy)
    remedy = f"deltaweights check {shlex.quote(str(path))} may tell why"
    return Mismatch("transformers does not run it", where=path, found=refusal, remedy=remedy)
