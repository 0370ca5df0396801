"""The user's state folder, and the secret key in it that proves what this user made."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from deltaweights.errors import InputOutputError
from deltaweights.util.open_folder import OpenFolder

KEY = "key"
KEY_BYTES = 32


def state_folder() -> Path | None:
    """Return our state folder by the XDG Base Directory Specification; None without a usable XDG_STATE_HOME or HOME."""
    state, home = (Path(os.environ.get(name, "")) for name in ("XDG_STATE_HOME", "HOME"))
    if state.is_absolute():
        return state / "deltaweights"
    with contextlib.suppress(OSError):
        if home.is_absolute() and home.stat().st_uid in {0, os.geteuid()}:  # sudo may keep the caller's HOME
            return home / ".local" / "state" / "deltaweights"
    return None


def user_key() -> bytes | None:
    """Return this user's secret key, made by the first call; None where none can be kept private. Raises ``InputOutputError``."""
    path = state_folder()
    if path is None:
        return None
    try:
        path.mkdir(0o700, parents=True, exist_ok=True)
        folder = OpenFolder.at(path, follow=False)
    except (OSError, InputOutputError):
        return None
    with folder:
        status = folder.status()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None
        if folder.look(KEY) is None:
            with contextlib.suppress(InputOutputError):  # a full or read-only disk
                folder.write_once(KEY, secrets.token_bytes(KEY_BYTES), mode=0o600)
        found = folder.look(KEY)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            return None
        key = folder.read(KEY, KEY_BYTES)
        return key if len(key) == KEY_BYTES else None
