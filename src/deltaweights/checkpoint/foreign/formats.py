"""Weights in formats that this program does not read, by the names of files and their first bytes."""

from __future__ import annotations

import re

from deltaweights.checkpoint.file_type import CONVERTED_FROM, GGML, GGUF, looks_like_easylm
from deltaweights.checkpoint.foreign.listing import Layout, Recognised, Subject, either, some
from deltaweights.checkpoint.layout_names import SUFFIXES
from deltaweights.util.text import UTF8_MARK, natural_key, strict_json

ADAPTER_CONFIG, LLAVA_LORA, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"
ADAPTER = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin", LLAVA_LORA)

_ENCRYPTED = re.compile(r".+\.[0-9a-f]{64}\.enc|.+\.(bin|json|model|safetensors|pth)\.enc")
_GGML_NAME = re.compile(r"ggml-.+\.bin|.+[.-]ggml.*\.bin|.+\.ggml")
_ORBAX = frozenset({"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"})
_TENSORFLOW = re.compile(
    r"tf_model(-\d+-of-\d+)?\.h5|.+\.weights\.h5|.+\.keras|saved_model\.pb|.+\.ckpt.*\.(index|meta)|.+\.tflite"
)
_OTHERS = (
    (Layout.ONNX, "an ONNX model", (".onnx", ".onnx_data", ".ort")),
    (Layout.NUMPY, "NumPy arrays", (".npz", ".npy")),
)


def adapter(subject: Subject) -> Recognised | None:
    """Recognise an adapter of peft, or of LLaVA's training with LoRA."""
    names = [name for name in ADAPTER if name in subject.files]
    if not names:
        return None
    base = adapter_base(subject.heads.get(ADAPTER_CONFIG, b""))
    found = f"a LoRA or other PEFT adapter ({some(names)})" + (f" of {base}" if base else "")
    if LLAVA_LORA in names:
        script = (
            f"scripts/merge_lora_weights.py --model-path {subject.quoted()} --model-base BASE --save-model-path OUT"
        )
        return Recognised(Layout.ADAPTER, found, f"merge it with LLaVA's {script}, and give OUT")
    merge = f"AutoPeftModelForCausalLM.from_pretrained({subject.path()!r}).merge_and_unload().save_pretrained('OUT')"
    return Recognised(Layout.ADAPTER, found, f"merge it into its base with peft: {merge}, and give OUT")


def adapter_base(config: bytes) -> str:
    """Return the model that an adapter's configuration names, empty when it names none."""
    try:
        base = strict_json(config.removeprefix(UTF8_MARK))["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError):
        return ""
    return base if isinstance(base, str) else ""


def projector(subject: Subject) -> Recognised | None:
    """Recognise the folder of LLaVA's first stage of training."""
    if PROJECTOR not in subject.files or any(name.endswith(SUFFIXES) for name in subject.files if name != PROJECTOR):
        return None
    found = f"LLaVA's projector alone ({PROJECTOR}), without a language model"
    return Recognised(
        Layout.PROJECTOR, found, f"copy {PROJECTOR} beside the weights that it belongs to, and give their folder"
    )


def xor_payload(subject: Subject) -> Recognised | None:
    """Recognise files that are to be XORed with a base's files of the same names, in the folder or one below."""
    script = "xor_codec.py"
    for path in ("", *sorted(subject.listing.folders)):
        payload = subject.below(path) if path else subject
        coded = sorted(
            n for n, head in payload.heads.items() if n.endswith(".json") and "/" not in n and is_coded(head)
        )
        if coded or (path and script in subject.files and payload.listing.has_checkpoint):
            tell = f"{script} beside it" if script in subject.files else f"{coded[0]} is no text"
            folder = f" in {path}/" if path else ""
            remedy = (
                f"decode it with the {script} that was published with it: python {script} OUT {payload.quoted()} BASE, "
                "where BASE is the published one byte for byte; OUT is the finished model"
            )
            return Recognised(Layout.XOR, f"an XOR payload{folder} ({tell})", remedy)
    return None


def is_coded(head: bytes) -> bool:
    """Return whether a JSON file was XORed with another: equal beginnings give zeros, and what differs something else."""
    return head.startswith(b"\0\0") and head[2:4] != b"\xfe\xff" and any(head)


def encrypted(subject: Subject) -> Recognised | None:
    """Recognise files that were encrypted with Meta's weights as the key (point-alpaca, BELLE)."""
    names = subject.matching(_ENCRYPTED)
    if not names:
        return None
    remedy = (
        "decrypt them with their publisher's decrypt.py and Meta's consolidated.00.pth; that gives the finished model"
    )
    return Recognised(Layout.ENCRYPTED, f"files encrypted with Meta's weights ({some(names, 2)})", remedy)


def llama_cpp(subject: Subject) -> Recognised | None:
    """Recognise GGUF, and the formats before it."""
    gguf = subject.matching(re.compile(r".+\.gguf", re.IGNORECASE)) or subject.starting(GGUF)
    if gguf:
        return Recognised(Layout.GGUF, f"GGUF of llama.cpp ({some(gguf, 2)})", CONVERTED_FROM)
    ggml = subject.starting(*GGML) or subject.matching(_GGML_NAME)
    if ggml:
        return Recognised(Layout.GGML, f"GGML of llama.cpp ({some(ggml, 2)})", CONVERTED_FROM)
    return None


def flax(subject: Subject) -> Recognised | None:
    """Recognise flax's msgpack, and EasyLM's stream of it, which Koala is published in."""
    streams = sorted(name for name, head in subject.heads.items() if "/" not in name and looks_like_easylm(head))
    names = subject.ending(".msgpack")
    if streams:
        found = f"a stream of msgpack as EasyLM writes, such as Koala's diffs ({some(streams, 2)})"
        tools = "EasyLM.scripts.diff_checkpoint --recover_diff=True, then EasyLM.models.llama.convert_easylm_to_hf"
        return Recognised(
            Layout.EASYLM, found, f"add and convert it with EasyLM: {tools}; that gives the finished model"
        )
    if names or "flax_model.msgpack.index.json" in subject.files:
        found = f"flax weights ({some(names or ['flax_model.msgpack.index.json'], 2)})"
        return Recognised(Layout.FLAX, found, _converted_by_transformers(subject, "from_flax", "flax"))
    return None


def tensorflow(subject: Subject) -> Recognised | None:
    """Recognise TensorFlow's and Keras's files."""
    names = subject.matching(_TENSORFLOW)
    if not names:
        return None
    of_transformers = any(name.startswith("tf_model") for name in names)
    remedy = _converted_by_transformers(subject, "from_tf", "tensorflow") if of_transformers else CONVERTED_FROM
    return Recognised(Layout.TENSORFLOW, f"TensorFlow weights ({some(names, 2)})", remedy)


def _converted_by_transformers(subject: Subject, keyword: str, package: str) -> str:
    call = f"AutoModelForCausalLM.from_pretrained({subject.path()!r}, {keyword}=True).save_pretrained('OUT')"
    return f"convert it with transformers 4 and {package}: {call}, and give OUT"


def other_formats(subject: Subject) -> Recognised | None:
    """Recognise Orbax, ONNX and NumPy."""
    orbax = sorted(_ORBAX & subject.files.keys())
    if orbax:
        return Recognised(Layout.ORBAX, f"a JAX checkpoint of Orbax ({some(orbax)})", CONVERTED_FROM)
    for layout, title, suffixes in _OTHERS:
        names = subject.ending(*suffixes)
        if names:
            return Recognised(layout, f"{title} ({some(names, 2)})", CONVERTED_FROM)
    return None


def diffusers(subject: Subject) -> Recognised | None:
    """Recognise a pipeline of several models."""
    if "model_index.json" not in subject.files:
        return None
    parts = sorted((n for n, listing in subject.listing.folders.items() if listing.has_checkpoint), key=natural_key)
    remedy = f"give the folder of one model in it: {either([subject.path(name) for name in parts])}" if parts else ""
    found = "a pipeline of Diffusers (model_index.json)"
    return Recognised(Layout.DIFFUSERS, found, remedy or "give the folder of a language model")
