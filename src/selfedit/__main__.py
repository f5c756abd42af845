"""``python -m selfedit``."""

from selfedit.cli.main import main

main()
