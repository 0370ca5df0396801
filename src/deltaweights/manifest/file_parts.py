"""Which part of a checkpoint a file belongs to, by its name: weights, what loaders read beside them, or anything else."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from deltaweights.checkpoint.companions import SOURCE_MANIFEST
from deltaweights.manifest.records import MANIFEST

WEIGHTS, LOADER_FILES, EXTRAS = PARTS = ("weights", "loader_files", "extras")
"""The parts, as they are called in JSON."""

LOADABLE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack", ".py"})
"""Suffixes of files that loaders take weights or code from: docs/manifest-format.md names them."""

_WEIGHTS = LOADABLE - {".py", ".pkl"} | {
    ".ggml", ".onnx", ".ort", ".tflite", ".npz", ".npy", ".nemo", ".mlmodel", ".params", ".pdparams", ".pdmodel", ".pdiparams",
    ".tensors", ".distcp", ".pt2", ".ptl", ".th", ".torchscript", ".mar", ".keras", ".hdf5", ".pb", ".engine", ".trt", ".plan",
    ".llamafile",
}  # fmt: skip

_CODE = frozenset({".py", ".pyc", ".so", ".pyd", ".dylib", ".dll"})

_READ = _CODE | {
    ".pkl", ".pickle", ".joblib", ".dill", ".json", ".yaml", ".yml", ".toml",
    ".model", ".spm", ".jinja", ".jinja2", ".tiktoken", ".vocab", ".bpe", ".codes", ".tokenizer", ".arpa",
}  # fmt: skip
"""Code, pickles, configuration, tokenizers, chat templates: some loader or tokenizer reads files of these suffixes."""

_SPREAD_WEIGHTS = re.compile(r".*\.index(\..*)?\.json|.*\.ckpt\.(index|meta|data-.*)|.*\.onnx[._]data.*", re.DOTALL)
"""The index, which says where each tensor is (of a variant, too), and weights in several files with suffixes of their own."""

_TOKENIZER = re.compile(r".*(vocab|merges|dict|tokens).*\.txt|tokenizer\.(mm\.)?model\..*", re.DOTALL)
"""Plain lists of tokens, and the versions of Mistral's tokenizer, of which its library takes the last."""

_BY_NAME = frozenset({"modelfile", "template", "system", "params", "mlmodel", "requirements.txt"})
"""What Ollama makes a model of, and reads beside it on the Hub; MLflow's description; what inference servers install."""

TEMPLATES, GENERATE = READ_FOLDERS = "additional_chat_templates", "custom_generate"
"""The folders inside that transformers reads; in the latter is code."""


def part_of(name: str) -> str:
    """Return the part that a file (or a folder) of this name belongs to, whoever wrote it."""
    if name in {MANIFEST, SOURCE_MANIFEST}:
        return EXTRAS
    parts = set(map(_part_of, _readings(name)))
    return next(part for part in PARTS if part in parts)


def is_loadable(name: str) -> bool:
    """Return whether loaders look for weights, or code, in files of this name."""
    code = any(PurePosixPath(reading).suffix in _CODE for reading in _readings(name))
    return code or part_of(name) == WEIGHTS


def plain_name(name: str) -> str:
    """Return a name as the most lenient file system takes it: regardless of case, of what is not seen, and of what ends it."""
    if not name.isascii():
        name = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    return name.casefold().rstrip(" .")


def _readings(name: str) -> set[str]:
    """Return the plain name and, for Windows, where a colon ends it, what is before."""
    plain = plain_name(name)
    return {plain, plain_name(plain.partition(":")[0])}


def _part_of(plain: str) -> str:
    suffix = PurePosixPath(plain).suffix
    if suffix in _WEIGHTS or _SPREAD_WEIGHTS.fullmatch(plain):
        return WEIGHTS
    if suffix in _READ or plain in {*_BY_NAME, *READ_FOLDERS} or _TOKENIZER.fullmatch(plain):
        return LOADER_FILES
    return EXTRAS
