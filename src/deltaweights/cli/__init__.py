"""The command line: ``deltaweights COMMAND``, and the drop-in ``apply-delta``.

Enters: arguments. Leaves: results on stdout, everything else on stderr, and an exit code from docs/design.md. Never: a traceback
for something a user can cause, or an import of torch before a command needs it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``deltaweights``, and exit."""
    from deltaweights.cli.group import deltaweights  # noqa: PLC0415  (so that `import deltaweights.cli` stays free)
    from deltaweights.cli.run import run  # noqa: PLC0415

    sys.exit(run(deltaweights, "deltaweights"))


def apply_delta() -> None:
    """Run ``apply-delta``, and exit."""
    from deltaweights.cli.drop_in import apply_delta as command  # noqa: PLC0415
    from deltaweights.cli.run import run  # noqa: PLC0415

    sys.exit(run(command, "apply-delta"))
