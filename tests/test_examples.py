"""The worked examples of the docs run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_task_of_your_own(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, EXAMPLES / "own_task.py", run, tiny_model], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (run / "round-01" / "policy" / "adapter_model.safetensors").is_file() and "round-01/policy" in done.stdout
    assert len((run / "trials.jsonl").read_text().split("\n")) == 4 * 3 + 1
