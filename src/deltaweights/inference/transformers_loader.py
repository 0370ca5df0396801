"""Loads configurations, tokenizers, processors and model classes with transformers: quietly, offline, without remote code.

Nothing here reads weights. Failures of transformers and its libraries are raised as ``LibraryError``.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from deltaweights.errors import DeltaweightsError

MAX_REASON = 300  # characters of an exception's text that are kept: some have pages
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # for every from_pretrained
PANIC = "PanicException"  # of Rust code, such as tokenizers: a BaseException that no module exports
ATTENTION = "eager"  # for meta models: all have it, and a configuration could name a kernel that would be fetched

Shape = tuple[int, ...]


class LibraryError(Exception):
    """Transformers, or a library below it, failed; the text says why on one line."""


@contextmanager
def transformers_errors() -> Iterator[None]:
    """Turn whatever a library raises into ``LibraryError``; this package's own errors pass."""
    try:
        with _STDERR:
            yield
    except (DeltaweightsError, LibraryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # an interrupt, or the interpreter's exit
        raise LibraryError(reason(error)) from error


class _StderrSilencer:
    """Keeps native code from writing to stderr, such as the traceback of a panic in Rust.

    File descriptor 2 belongs to the process: of several threads, the first one redirects it and the last one restores it.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._redirection = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                with suppress(OSError):  # there may be no stderr
                    saved = os.dup(2)
                    self._redirection.callback(os.close, saved)
                    self._redirection.callback(os.dup2, saved, 2)
                    with open(os.devnull, "wb") as null:
                        os.dup2(null.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._redirection.close()


_STDERR = _StderrSilencer()


def reason(error: BaseException) -> str:
    """Return an exception's text on one line, cut when long, with its class where the text alone says little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, AttributeError, TypeError, IndexError, MemoryError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."


@contextmanager
def quiet_and_offline() -> Iterator[None]:
    """Import transformers, and keep it from writing to stderr and from using the network."""
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        import huggingface_hub.constants  # noqa: PLC0415  (takes seconds)
        import transformers.utils.hub  # noqa: PLC0415
        from transformers.utils import logging as library_logging  # noqa: PLC0415

        logging: Any = library_logging

        # Both are read from the environment at import; transformers 5 has dropped the second one.
        switches = (huggingface_hub.constants, "HF_HUB_OFFLINE"), (transformers.utils.hub, "_is_offline_mode")
        for module, name in switches:
            if hasattr(module, name):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, True)
        accelerate = getLogger("accelerate")
        stack.callback(accelerate.setLevel, accelerate.level)
        accelerate.setLevel(CRITICAL)
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity(CRITICAL)
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield


def load(auto_class: str, folder: Path) -> Any:
    """Return what a class of transformers, such as ``AutoConfig``, loads from ``folder``. Raises ``LibraryError``."""
    import transformers  # noqa: PLC0415

    with transformers_errors():
        return getattr(transformers, auto_class).from_pretrained(str(folder), **LOCAL)


def load_processor(folder: Path) -> Any:
    """Return the folder's processor of images and text. Raises ``LibraryError``, also for a tokenizer alone."""
    processor = load("AutoProcessor", folder)
    if not hasattr(processor, "image_processor"):
        raise LibraryError(f"no image processor, only {type(processor).__name__}")
    return processor


def model_class_named(name: str, config: Any) -> Any | None:
    """Return transformers' model class of that name; None when there is none, or it is for another kind of configuration."""
    import transformers  # noqa: PLC0415

    with transformers_errors():
        found: Any = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and found.config_class is type(config) and _is_built_in(found) else None


def default_model_class(config: Any) -> Any:
    """Return transformers' class for a configuration that generates text, from images too where there is one.

    Raises ``LibraryError`` when there is none.
    """
    import transformers  # noqa: PLC0415

    with transformers_errors():
        for mapping in (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING):
            found: Any = mapping.get(type(config), None)
            found = found[0] if isinstance(found, tuple) else found
            if found is not None and _is_built_in(found):
                return found
    raise LibraryError(f"no class generates text for model_type {config.model_type}")


def _is_built_in(found: type) -> bool:
    return found.__module__.startswith("transformers.models.")


def meta_model(model_class: Any, config: Any) -> Any:
    """Return a model on the meta device, with tied weights where the configuration ties them. Raises ``LibraryError``."""
    import torch  # noqa: PLC0415

    with transformers_errors(), torch.device("meta"):
        model = model_class._from_config(config, attn_implementation=ATTENTION)
        model.tie_weights()
        return model


def model_of_tensors(model_class: Any, config: Any, state: dict[str, Any], device: str) -> Any:
    """Return a model with the weights ``state``, all of one dtype, on ``device``. Raises ``LibraryError`` unless all fit."""
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    place = {} if device == "cpu" else {"device_map": {"": device.replace("auto", "cuda:0")}}
    with transformers_errors():
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=max(dtypes, key=str), output_loading_info=True, **place
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise LibraryError(f"{what.replace('_keys', '')} weights: {sorted(map(str, info[what]))[0]}")
    return model.eval()


def embedding_weights(model: Any) -> tuple[Any, Any]:
    """Return the weights of the input and output embeddings, None for an output that does not exist. Raises ``LibraryError``."""
    with transformers_errors():
        output = model.get_output_embeddings()
        return model.get_input_embeddings().weight, None if output is None else output.weight


@dataclass(frozen=True)
class LoadingInfo:
    """What transformers reports after loading tensors, by the model's names; ``mismatched`` has given and expected shapes."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[Shape, Shape]]


def load_names(model_class: Any, config: Any, shapes: Mapping[str, Shape]) -> LoadingInfo:
    """Return what ``from_pretrained`` itself, with all that it renames, ties and ignores, says about tensors on the meta device.

    Raises ``LibraryError``.
    """
    import torch  # noqa: PLC0415

    def skip(*_arguments: object, **_options: object) -> None:
        """Do not fill missing tensors with random numbers: some versions allocate gigabytes."""

    move = "_move_missing_keys_from_meta_to"
    fillers = (f"{move}_device", f"{move}_cpu", "_initialize_missing_keys")
    # The parent's name, because transformers looks up by it how to rename tensors.
    body = {"__module__": model_class.__module__} | {name: skip for name in fillers if hasattr(model_class, name)}
    probe: Any = type(model_class.__name__, (model_class,), body)
    with transformers_errors():
        _, info = probe.from_pretrained(
            None,
            config=config,
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
            device_map={"": "meta"},
            torch_dtype=torch.float32,
            attn_implementation=ATTENTION,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        mismatched = {name: (tuple(found), tuple(expected)) for name, found, expected in info["mismatched_keys"]}
        missing = set(info["missing_keys"]) - mismatched.keys()
        return LoadingInfo(tuple(sorted(missing)), tuple(sorted(info["unexpected_keys"])), mismatched)
