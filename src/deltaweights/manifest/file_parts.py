"""Which part of a checkpoint a file belongs to, by its name: weights, what loaders read beside them, or anything else."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from deltaweights.checkpoint.companions import SOURCE_MANIFEST
from deltaweights.manifest.records import MANIFEST

WEIGHTS, LOADER_FILES, EXTRAS = PARTS = ("weights", "loader_files", "extras")
"""The parts, as they are called in JSON."""

LOADABLE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack", ".py"})
"""Suffixes of files that loaders take weights or code from: docs/manifest-format.md names them."""

_WEIGHTS = LOADABLE - {".py", ".pkl"} | {".ggml", ".onnx", ".tflite", ".npz", ".npy", ".pdparams", ".nemo", ".mlmodel"}

_READ = frozenset({
    ".py", ".pyc", ".so", ".pyd", ".dylib", ".dll", ".pkl", ".pickle", ".joblib", ".dill",
    ".json", ".yaml", ".yml", ".toml", ".model", ".spm", ".jinja", ".jinja2", ".tiktoken", ".vocab", ".bpe", ".codes",
})  # fmt: skip
"""Code, pickles, configuration, tokenizers, chat templates: some loader or tokenizer reads files of these suffixes."""

_SPREAD_WEIGHTS = re.compile(r".*\.index\.json|.*\.ckpt\.(index|meta|data-.*)|.*\.onnx_data", re.IGNORECASE)
"""The index, which says where each tensor is, and weights in several files with suffixes of their own."""

_TOKENIZER_TEXT = re.compile(r".*(vocab|merges|dict|tokens).*\.txt", re.IGNORECASE)

TEMPLATES = "additional_chat_templates"
"""The one folder inside that transformers reads."""


def part_of(name: str) -> str:
    """Return the part that a file (or a folder) of this name belongs to, whoever wrote it."""
    if name in {MANIFEST, SOURCE_MANIFEST}:
        return EXTRAS
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _WEIGHTS or _SPREAD_WEIGHTS.fullmatch(name):
        return WEIGHTS
    if suffix in _READ or _TOKENIZER_TEXT.fullmatch(name) or name == TEMPLATES:
        return LOADER_FILES
    return EXTRAS
