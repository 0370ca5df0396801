"""The extras of this project: packages that only some commands need.

pyproject.toml says which distributions they install; here are the modules, so that a command can ask before it starts to work.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import UsageError

EXTRAS = {
    "gpu": ("torch",),
    "launch": ("torch", "accelerate"),
    "transformers": ("torch", "transformers", "accelerate", "PIL", "psutil"),
    "sign": ("cryptography", "sigstore", "requests"),
}
"""The modules that each extra installs."""

NAMES = {"PIL": "pillow"}
"""Modules whose distribution has another name."""

WITHOUT_GPU = ", or run with --device cpu"


def is_installed(extra: str) -> bool:
    """Return whether all packages of ``extra`` are there. Loads nothing."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def require(extra: str, what: str, otherwise: str = "", *, modules: Sequence[str] | None = None) -> None:
    """Raise ``UsageError`` if ``what`` cannot run because a package of ``extra`` is missing. Loads nothing.

    ``otherwise`` says how to do without, such as ``", or run with --device cpu"``; ``modules`` are those that are needed, if these
    are not all of the extra.
    """
    for module in EXTRAS[extra] if modules is None else modules:
        if find_spec(module) is None:
            remedy = f"pip install 'deltaweights[{extra}]'{otherwise}"
            problem = f"{what} needs {NAMES.get(module, module)}, which is not installed"
            raise UsageError(problem, remedy=remedy, code=ErrorCode.MISSING_PACKAGE)
