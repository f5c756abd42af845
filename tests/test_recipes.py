"""Every recipe is one that its command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from selfedit.cli.main import app

RECIPES = Path(__file__).parent.parent / "recipes"
COMMANDS = {
    "continual": ("continual",),
    "arc": ("train", "arc"),
    "arc-eval": ("eval", "arc"),
    "learn": ("learn", "almanac:dev:1"),
    "train": ("train", "knowledge"),
    "eval": ("eval", "knowledge"),
    "rewards": ("bench", "rewards"),
}


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_dry_run_of_every_recipe(recipe: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *COMMANDS[next(name for name in sorted(COMMANDS, key=len, reverse=True) if recipe.stem.startswith(name))],
            "--config",
            str(recipe),
            "--dry-run",
        ],
    )
    assert done.exit_code == 0, done.output
    resolved, asked = yaml.safe_load(done.stdout), yaml.safe_load(recipe.read_text())
    for key, value in asked.items():
        kept = resolved[key]
        if key == "oracle" and isinstance(kept, dict):
            # Recipes stand in the settings as text.
            kept = {name: json.loads(text) for name, text in kept.items()}
        assert value.items() <= kept.items() or key in ("edit", "corpus") if isinstance(value, dict) else kept == value, key
    if recipe.parent.name == "laptop":
        assert "# estimate: " in done.stdout and "memory" in done.stdout
    else:
        assert "no estimate" in done.stdout or "estimate" in done.stdout or "learn" in recipe.stem
