"""What is due for any bytes: read, or refused in one printable line; at once, and in little memory.

Enters: a target and bytes. Leaves: nothing, or an exception that is a finding. Never: an error that a reader may raise.
"""

from __future__ import annotations

import time

from deltaweights.errors import DeltaweightsError
from tests.fuzz.targets import Target

SECONDS = 5.0


def hold(target: Target, data: bytes) -> bool:
    """Tell whether ``data`` is read; raise what is not due: another exception, a bad message, a long time."""
    began = time.process_time()
    accepted = True
    try:
        target.read(data)
    except (
        DeltaweightsError,
        ValueError,
    ) as error:  # ValueError is what readers of documents raise, for their callers to place
        accepted = False
        if type(error) is ValueError:
            line = str(DeltaweightsError("unusable", where="given", found=error))
        elif isinstance(error, DeltaweightsError):
            line = str(error)
        else:
            raise  # a UnicodeDecodeError, a JSONDecodeError: nobody meant that one
        assert line.isprintable(), line
        assert len(line) < 5_000, f"a message of {len(line)} characters"
    assert time.process_time() - began < SECONDS, "took too long"
    return accepted
