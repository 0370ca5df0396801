"""What a result can be: its dtypes, layouts and containers, and the devices that can compute it. Loads nothing."""

from __future__ import annotations

import re

from deltaweights.errors import UsageError

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""The dtypes that sums are made and stored in: torch's name, which people type, to safetensors' name, which files hold."""

DIGITS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Binary digits of the numbers of each dtype."""

TORCH_NAMES = {code: name for name, code in DTYPES.items()}
ORIGINAL, TRANSFORMERS = "original", "transformers"
LAYOUTS = (ORIGINAL, TRANSFORMERS)  # how tensors are named: as in the input, or as current transformers names them
SAFETENSORS, TORCH = "safetensors", "torch"
CONTAINERS = {"safetensors": SAFETENSORS, "bin": TORCH}
"""How weights are stored: the name that people type, to the one in plans and manifests."""


def check_device_name(name: str) -> None:
    """Raise ``UsageError`` for what cannot be a device. Whether this machine has it is only known once torch is loaded."""
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", name):
        raise UsageError("no such device", found=name, expected="cpu, cuda, cuda:N or auto")
