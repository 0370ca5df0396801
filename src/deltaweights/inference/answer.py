"""``deltaweights try``: a model's greedy answer to one question, without sampling, remote code or pickles."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, Mismatch, UsageError
from deltaweights.inference import transformers_loader as loader
from deltaweights.inference.memory import (
    FreeMemory,
    Placement,
    check_device,
    free_memory,
    kv_cache_bytes,
    memory_need,
    place,
)
from deltaweights.inference.model_folder import ModelFolder, read_model_folder
from deltaweights.inference.prompts import GREETING, QUESTION, Prompt, make_prompt, open_images
from deltaweights.inference.size_limits import implausible_size
from deltaweights.report import Report
from deltaweights.util.extras import require
from deltaweights.util.interruption import run_in_side_thread
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted, shell_quoted

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # torch's names of what models run in
GREEDY = {"do_sample": False, "num_beams": 1, "use_cache": True}


@dataclass(frozen=True)
class Answer:
    """A model's answer: ``tokens`` in ``seconds``, including the prompt; ``placement`` says where the weights were."""

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
    memory: FreeMemory | None = None,
    report: Report | None = None,
) -> Answer:
    """Load ``folder`` with transformers and return its greedy answer to ``prompt``, about ``images`` if there are any.

    ``dtype`` is float16, bfloat16, float32, or auto: that of most stored weights. ``device`` is cpu, cuda, cuda:N, or auto: GPUs
    first, then main memory, and the rest stays on the disk. ``memory`` replaces what is measured as free. Raises ``Mismatch`` for
    a folder that transformers cannot run, ``CheckFailed`` when weights are missing, ``InputOutputError`` when memory is too small
    or a file cannot be read, ``MalformedInput`` and ``UsageError``.

    >>> from deltaweights import answer
    >>> print(answer("merged", "What is a delta?", max_new_tokens=4).text)  # doctest: +SKIP
    """
    require("transformers", "an answer")
    report, path = report or Report(), Path(folder)
    check_device(device)
    model_folder = read_model_folder(path)
    _refuse_unsupported(model_folder, images)
    if model_folder.base is not None and model_folder.base.warning is not None:
        report.warn(f"{path}: {model_folder.base.warning}")
    pictures = open_images(images)
    if prompt is None:
        prompt = QUESTION if pictures else GREETING
    with loader.quiet_and_offline(), without_tf32():
        try:
            config = loader.load("AutoConfig", path)
            model_class = loader.default_model_class(config)
            vision = getattr(config, "vision_config", None) is not None
            tool = loader.load_processor(path) if vision else loader.load("AutoTokenizer", path)
            tokens = make_prompt(tool, prompt, pictures, conversation, path, vision=vision)
            dtype = _dtype_of(model_folder) if dtype == "auto" else dtype
            with loader.transformers_errors():
                cache = kv_cache_bytes(config.get_text_config(), tokens.length + max_new_tokens, dtype)
            need = memory_need((tensor.spec for tensor in model_folder.tensors.values()), dtype, cache)
            free = memory or free_memory(device)
            placement = place(need, free, device, path)
            if placement.spills:
                have = human_bytes(free.host + sum(free.gpus))
                slow = "the rest of the weights is read from the disk for every token, which is slow"
                report.warn(f"the model takes {human_bytes(need.total)}, but {have} are free: {slow}")
            report.note(f"loading {human_bytes(need.weights)} of weights as {dtype}")
            temporary = TemporaryDirectory(prefix="deltaweights-", ignore_cleanup_errors=True)
            with temporary as offload, loader.transformers_errors():
                arguments = model_folder, model_class, config, dtype, placement, offload
                return run_in_side_thread(lambda: _generate(_load(*arguments), tokens, max_new_tokens))
        except loader.LibraryError as error:
            raise _error(error, path) from None


def _refuse_unsupported(folder: ModelFolder, images: Sequence[object]) -> None:
    shown = shell_quoted(folder.path)
    if folder.is_original:
        problem = "a LLaVA in its original layout, which current libraries cannot run"
        remedy = f"deltaweights export {shown} --target NEW writes a folder that they can"
        raise Mismatch(problem, where=folder.path, remedy=remedy)
    if folder.container != "safetensors":
        where, remedy = folder.path / folder.weights_file, f"deltaweights convert --base {shown} --target NEW"
        raise Mismatch("weights in pickles, which are not loaded", where=where, remedy=f"{remedy} writes safetensors")
    implausible = implausible_size(folder)
    if implausible is not None:
        file, found = implausible
        remedy = "the configuration is damaged or hostile: get it again"
        raise Mismatch("has an implausible size", where=folder.path / file, found=found, remedy=remedy)
    if images and "vision_config" not in folder.config:
        raise UsageError("this model takes no images", where=folder.path, remedy="omit --image")


def _dtype_of(folder: ModelFolder) -> str:
    by_count = [dtype for dtype, _ in folder.weights_by_dtype().most_common() if dtype in DTYPES]
    return DTYPES[by_count[0]] if by_count else "float32"


def _load(folder: ModelFolder, model_class: Any, config: Any, dtype: str, placement: Placement, offload: str) -> Any:
    """Return the model. Raises ``CheckFailed`` when weights are missing, which transformers would fill with random numbers."""
    import torch  # noqa: PLC0415

    model, info = model_class.from_pretrained(
        str(folder.path),
        config=config,
        torch_dtype=getattr(torch, dtype),
        device_map=placement.device_map,
        max_memory=placement.max_memory,
        offload_folder=offload,
        use_safetensors=True,
        attn_implementation="sdpa",  # a configuration could name one that would be fetched
        output_loading_info=True,
        **loader.LOCAL,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        remedy = f"run deltaweights check {shell_quoted(folder.path)} for the rest"
        found = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        raise CheckFailed(f"lacks {counted(len(missing), 'tensor')}", where=folder.path, found=found, remedy=remedy)
    return model


def _generate(model: Any, prompt: Prompt, max_new_tokens: int) -> Answer:
    import torch  # noqa: PLC0415

    placed = getattr(model, "hf_device_map", None) or {"": model.device}
    devices = [f"cuda:{device}" if isinstance(device, int) else str(device) for device in placed.values()]
    # Hooks move the inputs on to the device of each part.
    inputs = prompt.inputs.to(next((device for device in devices if device != "disk"), "cpu"))
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)

    def is_done(tokens: Any, _scores: object, **_options: object) -> Any:
        """Stop at a stop string of the answer; the library's ``stop_strings`` also matches one at the prompt's end."""
        return torch.tensor([prompt.decode(tokens[0, prompt.length :].tolist())[1]], device=tokens.device)

    began = time.monotonic()
    with torch.inference_mode():
        tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens, stopping_criteria=[is_done])
    seconds = time.monotonic() - began
    new = tokens[0, prompt.length :].tolist()
    parts = Counter(devices)
    listed = ", ".join(f"{counted(count, 'part')} on {device}" for device, count in parts.items())
    return Answer(
        text=prompt.decode(new)[0],
        tokens=len(new),
        seconds=seconds,
        tokens_per_second=len(new) / max(seconds, 1e-9),
        model_class=type(model).__name__,
        placement=devices[0] if len(parts) == 1 else listed,
    )


@contextmanager
def without_tf32() -> Iterator[None]:
    """Have GPUs multiply float32 in full precision."""
    import torch  # noqa: PLC0415

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with ExitStack() as stack:
        for backend in backends:
            stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
            backend.allow_tf32 = False
        yield


def _error(error: loader.LibraryError, path: Path) -> DeltaweightsError:
    cause = error.__cause__
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or "allocate memory" in str(cause):
        remedy = "end other programs, or try a smaller --max-new-tokens"
        return InputOutputError("out of memory", where=path, found=error, remedy=remedy)
    remedy = f"run deltaweights check {shell_quoted(path)}, which may tell why"
    return Mismatch("transformers cannot run the model", where=path, found=error, remedy=remedy)
