"""The names that weights have in the layouts that are read."""

from __future__ import annotations

import re

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
MAIN_FILES = (*SAFETENSORS, *TORCH)
"""The files that say where the weights of a Hugging Face folder are: an index, or the only weights file."""

PARAMS = "params.json"
"""The configuration beside the weights in Meta's format."""

META_PART = re.compile(r"consolidated\.([0-9]{2})\.pth")
"""The names of the weights files in Meta's format."""

HF_WEIGHTS = re.compile(r"(pytorch_)?model(-[0-9]+-of-[0-9]+)?\.(bin|safetensors)")
"""The names that Hugging Face gives to weights files."""

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""The suffixes of weights files."""

STATE_SUFFIXES = (".aria2", ".st", ".lftp-pget-status")
"""What downloaders (aria2, axel, lftp) write beside a file, with its name in front, until the file is complete: until then it
has its final name, and often its final size."""

EXPECTED = " or ".join((*MAIN_FILES, "consolidated.00.pth"))
"""What a folder of weights must hold, for messages."""
