"""The user's state folder, and the key in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.util.state import KEY, KEY_BYTES, state_folder, user_key


def test_the_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is random, for this user alone, and the same at each call."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = user_key()
    assert key is not None
    assert len(key) == KEY_BYTES
    assert user_key() == key
    assert (tmp_path / "deltaweights" / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deltaweights").stat().st_mode & 0o777 == 0o700


def test_home_is_used_without_a_state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative XDG_STATE_HOME is ignored, as its specification asks; without either there is no folder, and no key."""
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "deltaweights"
    monkeypatch.setenv("HOME", "")
    assert state_folder() is None
    assert user_key() is None


@pytest.mark.parametrize("harm", ["readable", "short", "a folder", "a link", "a folder of others"])
def test_a_key_that_is_not_secret_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """A key that others may read or have chosen proves nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    user_key()
    path = tmp_path / "deltaweights" / KEY
    if harm == "readable":
        path.chmod(0o640)
    elif harm == "a folder of others":
        path.parent.chmod(0o777)
    else:
        data = path.read_bytes()
        path.unlink()
        if harm == "short":
            path.touch(0o600)
        elif harm == "a folder":
            path.mkdir(0o700)
        else:
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
    assert user_key() is None
