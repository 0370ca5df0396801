"""Transformers, kept quiet, off the network, and to its word.

Enters: a folder, or names and shapes. Leaves: the library's own objects: configuration, model class, tokenizer, processor, and
what became of the names. Never: code from a folder or the Hub, a byte of weights, a line on stderr, or an exception of the
library's: they leave as ``Refusal``.

Every class is one of the package's own: ``trust_remote_code`` is False wherever it can be said.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from deltaweights.errors import DeltaweightsError

LONGEST_REASON = 300
"""Characters of an exception's text that are kept: some are pages."""

LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""What every ``from_pretrained`` is given."""

PANIC = "PanicException"
"""What code in Rust raises where it gives up, tokenizers' on a damaged file say; no ``Exception``, and of no module to import."""

ATTENTION = "eager"
"""How attention is computed where nothing is: every model has it, and a configuration could name one that is fetched."""

Shape = tuple[int, ...]


class Refusal(Exception):
    """The library does not take what it was given; the text says why, on one line."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turn whatever the library raises into ``Refusal``; what this program raises on purpose passes."""
    try:
        with _MUTE:
            yield
    except (DeltaweightsError, Refusal):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # a signal's, or the interpreter's end
        raise Refusal(reason(error)) from error


class _Mute:
    """Keeps what code that is not Python's writes to stderr, such as the traceback of a panic, away from it.

    It is the process's stderr: the first of several threads turns it off, the last one on again.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._kept = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            try:
                self._kept = os.dup(2)
            except OSError:  # there is no stderr
                self._kept = -1
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._kept >= 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = -1


_MUTE = _Mute()


def reason(error: BaseException) -> str:
    """Return the text of an exception on one line, cut where it is long; its class where it has none."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, AttributeError, TypeError, IndexError, MemoryError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


@contextmanager
def quietly() -> Iterator[None]:
    """Import transformers, and while this lasts keep its remarks off stderr and all of it off the network."""
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        import huggingface_hub.constants  # noqa: PLC0415  (seconds, for those who need it)
        import transformers.utils.hub  # noqa: PLC0415
        from transformers.utils import logging as library_logging  # noqa: PLC0415

        logging: Any = library_logging

        # Both are read from the environment once, when they are imported; the second went with transformers 5.
        for module, name in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE"),
            (transformers.utils.hub, "_is_offline_mode"),
        ):
            if hasattr(module, name):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, True)
        placing = getLogger("accelerate")
        stack.callback(placing.setLevel, placing.level)
        placing.setLevel(CRITICAL)
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity(CRITICAL)
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield


def load_config(folder: Path) -> Any:
    """Return the configuration as the library reads it. Raises ``Refusal``."""
    from transformers import AutoConfig  # noqa: PLC0415

    with refusals():
        return AutoConfig.from_pretrained(str(folder), **LOCAL)


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer. Raises ``Refusal``."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    with refusals():
        return AutoTokenizer.from_pretrained(str(folder), **LOCAL)


def load_processor(folder: Path) -> Any:
    """Return the folder's processor: that of images and its tokenizer. Raises ``Refusal``, also when it is a tokenizer alone."""
    from transformers import AutoProcessor  # noqa: PLC0415

    with refusals():
        loader: Any = AutoProcessor
        processor = loader.from_pretrained(str(folder), **LOCAL)
    if not hasattr(processor, "image_processor"):
        raise Refusal(f"it has no processor of images, only {type(processor).__name__}")
    return processor


def named_class(name: str, config: Any) -> Any | None:
    """Return the model class of transformers of that name, or None when it has none, or one for another configuration."""
    import transformers  # noqa: PLC0415

    with refusals():
        found: Any = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and found.config_class is type(config) and _is_the_librarys_own(found) else None


def usual_class(config: Any) -> Any:
    """Return the model class that the library takes for a configuration: one that answers, about images where it can.

    Raises ``Refusal`` when it has none.
    """
    import transformers  # noqa: PLC0415

    with refusals():
        for mapping in (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING):
            found: Any = mapping.get(type(config), None)
            found = found[0] if isinstance(found, tuple) else found
            if found is not None and _is_the_librarys_own(found):
                return found
    raise Refusal(f"no class that answers for model_type {config.model_type}")


def _is_the_librarys_own(found: type) -> bool:
    return found.__module__.startswith("transformers.models.")


def empty_model(model_class: Any, config: Any) -> Any:
    """Return a model whose weights have shapes and no memory, tied as its configuration has it. Raises ``Refusal``."""
    import torch  # noqa: PLC0415

    with refusals(), torch.device("meta"):
        model = model_class._from_config(config, attn_implementation=ATTENTION)
        model.tie_weights()
        return model


def ends(model: Any) -> tuple[Any, Any]:
    """Return the weights of a model's input and output embeddings, the latter None where it has none. Raises ``Refusal``."""
    with refusals():
        output = model.get_output_embeddings()
        return model.get_input_embeddings().weight, None if output is None else output.weight


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint's names, by the library's own word; all names are those of the model.

    ``mismatched`` has, by name, the shape that was given and the one that the model has.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[Shape, Shape]]


def load_names(model_class: Any, config: Any, shapes: Mapping[str, Shape]) -> Loaded:
    """Let the library load tensors that have names and shapes, and no memory; return what it says of them.

    It is ``from_pretrained`` itself that does it, with all that it renames, ties and ignores. Raises ``Refusal``.
    """
    import torch  # noqa: PLC0415

    def leave(*_arguments: object, **_options: object) -> None:
        """Do nothing: what is missing is not to be filled with random numbers, of which some versions make gigabytes."""

    # Under the name of its parent, by which the library looks up how to rename.
    fillers = (
        "_move_missing_keys_from_meta_to_device",
        "_move_missing_keys_from_meta_to_cpu",
        "_initialize_missing_keys",
    )
    body = {"__module__": model_class.__module__} | {name: leave for name in fillers if hasattr(model_class, name)}
    probe: Any = type(model_class.__name__, (model_class,), body)
    with refusals():
        given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        _, told = probe.from_pretrained(
            None,
            config=config,
            state_dict=given,
            device_map={"": "meta"},
            torch_dtype=torch.float32,
            attn_implementation=ATTENTION,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        mismatched = {name: (tuple(found), tuple(expected)) for name, found, expected in told["mismatched_keys"]}
        return Loaded(
            tuple(sorted(set(told["missing_keys"]) - mismatched.keys())),
            tuple(sorted(told["unexpected_keys"])),
            mismatched,
        )
