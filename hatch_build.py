"""Builds ``merge/kernels.so`` into the wheel where there is a C compiler. Without one the wheel is pure Python, and only slower.

``CC`` names the compiler. ``DELTAWEIGHTS_PURE=1`` asks for the pure wheel, which every platform can use.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/deltaweights/merge/kernels.c")
LIBRARY = SOURCE.with_suffix(".so")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling finds it by this name
    """Compiles before a wheel is packed, an editable one included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; tell hatchling of the library and of the platform that it is for."""
        del version
        if self.target_name != "wheel":
            return
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)  # of another machine, or of an older source
        platform = sysconfig.get_platform()
        problem = (
            "asked for" if os.environ.get("DELTAWEIGHTS_PURE") == "1" else build(Path(self.root, SOURCE), platform)
        )
        if problem:
            self.app.display_warning(
                f"deltaweights without its compiled library ({problem}): the same results, more slowly"
            )
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform.replace('-', '_').replace('.', '_')}"  # it uses nothing of Python


def build(source: Path, platform: str) -> str:
    """Compile ``source`` beside itself for ``platform``; return what went wrong, or nothing."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler {compiler[0]}"
    machines = {"universal2": ("arm64", "x86_64")}.get(platform.rpartition("-")[2], (platform.rpartition("-")[2],))
    flags = [flag for machine in machines for flag in ("-arch", machine)] if sys.platform == "darwin" else []
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        made = Path(folder, LIBRARY.name)
        command = [*compiler, "-std=c11", "-O3", "-shared", "-fPIC", *flags, "-o", str(made), str(source)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            return f"{compiler[0]} failed: {done.stderr.strip()[-500:]}"
        made.rename(source.with_suffix(".so"))
    return ""
