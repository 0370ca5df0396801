"""Writes the locks: the requirements of the action and of the containers, with the sha256 of every wheel that may be installed.

    .venv/bin/python scripts/lock.py

To be run after a change of constraints.txt, which says the versions. pip says the digests, of whatever index it is set up for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

HEAD = "# Written by scripts/lock.py: what {what}, with the sha256 of its wheels.\n"

GLIBC = [[f"manylinux_2_28_{machine}", f"manylinux2014_{machine}"] for machine in ("x86_64", "aarch64")]
MUSL = [[f"musllinux_1_2_{machine}", f"musllinux_1_1_{machine}"] for machine in ("x86_64", "aarch64")]
MACOS = [["macosx_11_0_arm64"], ["macosx_10_12_x86_64"]]


@dataclass(frozen=True)
class Lock:
    """What is locked: the packages ``names``, and with ``whole`` all that they need, for Python versions and platforms."""

    what: str
    names: tuple[str, ...]
    pythons: tuple[str, ...]
    platforms: list[list[str]]
    whole: bool = False


LOCKS = {
    "scripts/ci/requirements.txt": Lock(
        "`deltaweights verify` needs",
        ("blake3", "click", "tqdm", "typing-extensions"),
        ("3.10", "3.11", "3.12", "3.13", "3.14"),
        [*GLIBC, *MUSL, *MACOS],
    ),
    # pip evaluates markers for the Python that it runs on: what only some need is named.
    "scripts/ci/hub-and-signatures.txt": Lock(
        "`deltaweights verify` needs for models of the Hub, locks and signatures",
        ("cryptography", "exceptiongroup", "huggingface-hub", "importlib-resources", "requests", "sigstore", "tomli"),
        ("3.10", "3.11", "3.12", "3.13", "3.14"),
        [*GLIBC, *MUSL, MACOS[0]],  # cryptography has no wheels for Intel's Macs any longer
        whole=True,
    ),
    "scripts/container/requirements.txt": Lock(
        "the containers hold",
        ("blake3", "click", "huggingface-hub", "numkong", "numpy", "safetensors", "tqdm"),
        ("3.12",),
        GLIBC,
        whole=True,
    ),
    "scripts/container/build.txt": Lock("builds the wheel in them", ("hatchling",), ("3.12",), GLIBC, whole=True),
}


def main() -> None:
    """Write all locks anew."""
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    known = {canonicalize_name(pin.name) for pin in constraints}
    for path, lock in LOCKS.items():
        digests: dict[str, set[str]] = {}
        for python in lock.pythons:
            applies = {"python_version": python}
            here = [pin for pin in constraints if pin.marker is None or pin.marker.evaluate(applies)]
            pins = {canonicalize_name(pin.name): f"{pin.name}{pin.specifier}" for pin in here}
            names = map(canonicalize_name, lock.names)  # some are pinned for some Pythons only
            wanted = [pins[name] for name in names if name in pins or name not in known]
            for platforms in lock.platforms:
                for line, digest in wheels(wanted, pins.values(), python, platforms, whole=lock.whole):
                    digests.setdefault(line, set()).add(digest)
        lines = []
        for pin in sorted(constraints, key=lambda pin: (canonicalize_name(pin.name), str(pin.marker))):
            version = f"{canonicalize_name(pin.name)}{pin.specifier}"
            if version in digests:
                marker = f"; {pin.marker}" if pin.marker and len(lock.pythons) > 1 else ""
                hashes = (f" \\\n  --hash=sha256:{digest}" for digest in sorted(digests.pop(version)))
                lines.append(version + marker + "".join(hashes))
        if digests:
            sys.exit(f"lock: constraints.txt does not pin {', '.join(sorted(digests))}")
        (ROOT / path).write_text(HEAD.format(what=lock.what) + "\n".join(lines) + "\n")


def wheels(
    wanted: Iterable[str], pins: Iterable[str], python: str, platforms: list[str], *, whole: bool
) -> Iterator[tuple[str, str]]:
    """Yield name==version and sha256 of the wheels that pip would install."""
    command = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--report", "-", "--ignore-installed", "--only-binary", ":all:", *([] if whole else ["--no-deps"])]
    command += ["--implementation", "cp", "--python-version", python, *(f"--platform={name}" for name in platforms)]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "constraints.txt")
        kept.write_text("".join(f"{pin}\n" for pin in pins))
        command += ["--target", folder, "--constraint", str(kept), *wanted]  # a dry run: nothing comes there
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    for item in json.loads(done.stdout)["install"]:
        metadata = item["metadata"]
        name = f"{canonicalize_name(metadata['name'])}=={metadata['version']}"
        yield name, item["download_info"]["archive_info"]["hashes"]["sha256"]


if __name__ == "__main__":
    main()
