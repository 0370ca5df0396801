"""What Linux tells of the processor."""

from __future__ import annotations

from pathlib import Path

CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Documented in the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu."""


def second_level_cache(caches: Path = CPU_CACHES) -> int | None:
    """Return the bytes of the first core's second-level cache; None where the system does not tell."""
    for folder in sorted(caches.glob("index*")):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
            if level == "2":
                return int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return None
