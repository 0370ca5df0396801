"""The law for any bytes: they are read, or refused in one printable line, quickly and in little memory."""

from __future__ import annotations

import time

from deltaweights.errors import DeltaweightsError
from tests.fuzz.targets import Target

SECONDS = 5.0


def hold(target: Target, data: bytes) -> bool:
    """Return whether ``data`` is read; raise ``AssertionError`` for a bad message or a long time, and unexpected errors."""
    began = time.process_time()
    accepted = True
    try:
        target.read(data)
    except (
        DeltaweightsError,
        ValueError,
    ) as error:  # readers of documents raise ValueError, and their callers add the file
        accepted = False
        if type(error) is ValueError:
            line = str(DeltaweightsError("unusable", where="given", found=error))
        elif isinstance(error, DeltaweightsError):
            line = str(error)
        else:
            raise  # a UnicodeDecodeError or JSONDecodeError is raised by accident
        assert line.isprintable(), line
        assert len(line) < 5_000, f"a message of {len(line)} characters"
    assert time.process_time() - began < SECONDS, "took too long"
    return accepted
