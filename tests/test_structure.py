"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "selfedit"
ROOMS = [
    "errors", "seeds", "progress", "config", "contexts", "edits", "stats", "remote", "graders", "lm", "tasks", "samplers", "marks",
    "rewards", "selection", "keepers", "runs", "inner", "executors", "memory", "convert", "learn", "outer",
    "evaluate", "corpus",
    "puzzles", "matrix", "continual", "report", "rows", "estimate", "bench", "bench_rewards", "cli", "__main__",
]  # fmt: skip


def test_config_imports_without_torch() -> None:
    code = "import sys, selfedit.config, selfedit.edits, selfedit.contexts; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_quick_because_it_imports_no_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom selfedit.cli.main import app\n"
        "assert CliRunner().invoke(app, ['learn', '--help']).exit_code == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_import_only_from_rooms_above() -> None:
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfedit."):
                other = str(node.module).split(".")[1]
                assert ROOMS.index(other) <= ROOMS.index(room), f"{file.name} imports {node.module}"


def test_no_pickle_eval_or_remote_code() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        for word in ("import pickle", "torch.load(", " eval(", " exec(", "trust_remote_code=True"):
            assert word not in text, f"{file}: {word}"
