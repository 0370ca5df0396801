"""``python -m deltaweights``."""

from deltaweights.cli import main

main()
