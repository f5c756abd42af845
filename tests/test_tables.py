"""What the commands print of a run fits a terminal of 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from selfedit.cli import evaluate, puzzles

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.mark.parametrize("run", ["writers-test-2", "notes-settings", "arc-eval", "arc-seal"])
def test_nothing_is_cut_in_eighty_columns(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    for module in (evaluate, puzzles):
        monkeypatch.setattr(module, "out", Console(file=text, width=80))
    result = json.loads((RESULTS / run / "table.json").read_text())
    (puzzles.show if run.startswith("arc") else evaluate.show)(result)
    assert "…" not in text.getvalue(), text.getvalue()
    assert max(len(line) for line in text.getvalue().splitlines()) <= 80
    for method in result["methods"]:
        # A long name goes on in the next line.
        assert sum(line.strip().startswith(method[:15]) for line in text.getvalue().splitlines()) >= 2, text.getvalue()
    assert ("Paired differences" in text.getvalue()) == bool(result["differences"]), "one method alone has none"
