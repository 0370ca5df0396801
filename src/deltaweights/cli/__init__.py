"""The command line: ``deltaweights COMMAND``, and the drop-in ``apply-delta``.

Enters: arguments. Leaves: results on stdout, everything else on stderr, and an exit code from docs/design.md. Never: a traceback
for something a user can cause, or an import of torch before a command needs it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run ``deltaweights``, and exit."""
    from deltaweights.cli.group import deltaweights  # noqa: PLC0415  (so that `import deltaweights.cli` stays free)
    from deltaweights.cli.run import run  # noqa: PLC0415

    _exit(run(deltaweights, "deltaweights"))


def apply_delta() -> NoReturn:
    """Run ``apply-delta``, and exit."""
    from deltaweights.cli.drop_in import apply_delta as command  # noqa: PLC0415
    from deltaweights.cli.run import run  # noqa: PLC0415

    _exit(run(command, "apply-delta"))


def _exit(code: int) -> NoReturn:
    # Everything is written and every thread has ended; taking torch apart would cost 0.3 s more and do no good.
    with contextlib.suppress(OSError):  # standard output was flushed before, and its failure is what the code says
        if sys.stderr is not None:
            sys.stderr.flush()
    os._exit(code)
