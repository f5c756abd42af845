"""The table of ``selfedit bench inner``; arguments are the command's (``--help`` lists them).

.venv/bin/python benchmarks/inner.py --notes NOTES.json --repeats 3 --json benchmarks/results/inner.json
"""

from __future__ import annotations

import typer

from selfedit.cli.bench import inner_command

if __name__ == "__main__":
    typer.run(inner_command)
