"""One puzzle from beginning to end: ``selfedit solve``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfedit.config import ArcEvalConfig, RecipeConfig
from selfedit.contexts import Puzzle, Rows
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers
from selfedit.lm.load import Identity, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.puzzles.evaluate import Lease, training_seed, try_recipes, write_recipes
from selfedit.runs import policy_of
from selfedit.tasks.arc.recipe import HAND_MADE
from selfedit.tasks.arc.task import ArcTask
from selfedit.tasks.arc.vote import attempts_of, solved, voted

Attempts = list[list[Rows]]


def solve(
    config: ArcEvalConfig, puzzle: Puzzle, recipe: str | None, workers: int | None, told: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Answers before and after training on a recipe, or on several; the attempts of several recipes are voted once more.

    Jobs are those of ``selfedit eval arc``: the same seed and recipe give the same weights there.

    Args:
        config: model, number of recipes, writer, settings.
        puzzle: its tests may lack their outputs.
        recipe: a recipe; None: the model (or the writer) writes ``config.edits`` of them.
        workers: processes, which share the recipes.
        told: called with what is being done, how far, and of how much, if that is known.

    Returns:
        ``{task, before, after, solved_before, solved, recipes}``: attempts for each test, the first one best; None where a test's
        output isn't known.
    """
    known = identify(config.model)
    policy = policy_of(config.writer, known.fingerprint)
    task = ArcTask(config.edit, config.seed)
    if (reason := task.too_long(known, puzzle)) is not None:
        raise DataError(f"{reason}; a model with a longer one may do, or another --set edit.rendering")
    writer = "seal-writer" if config.writer else "ttt"
    asked = config.model_copy(update={"methods": ("icl",) if recipe is not None else ("icl", writer)})
    choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
    counted: list[int] = []
    with LocalExecutor(choice, workers, lambda steps: told("training", steps, counted[0]) if counted else None) as executor:
        told("answering in context" + ("" if recipe is not None else " and writing recipes"), 0, None)
        (first,) = executor.map(write_recipes, [(Lease(asked, puzzle, policy.folder, {}),)])
        texts = [recipe] if recipe is not None else [text for text, _ in first["written"][writer]]
        distinct = list(dict.fromkeys(texts))
        counted.append(sum(_steps(task, known, puzzle, text, config) for text in distinct))
        told("training", 0, counted[0])
        most = config.slots or slots_that_fit(known, config.settings, config.device, most_workers(config.device))
        side_by_side = min(most, math.ceil(len(distinct) / max(1, executor.workers)))
        numbers = [(text, 0) for text in distinct]
        groups = [tuple(numbers[at : at + side_by_side]) for at in range(0, len(numbers), side_by_side)]
        done = executor.map(try_recipes, [(config, puzzle, group, side_by_side, None) for group in groups])
        by_text = {row["recipe"]: row for rows in done for row in rows}
    tried = [
        {
            "recipe": text,
            "count": texts.count(text),
            **{name: by_text[text][name] for name in ("status", "reason", "tokens", "seconds")},
            "after": _attempts(by_text[text]["sitting"]) if by_text[text]["sitting"] else None,
        }
        for text in distinct
    ]
    after: Attempts = []
    for test in range(len(puzzle.test)):
        # A recipe's first attempt weighs twice its second.
        votes = [
            attempt
            for row in tried
            if row["after"]
            for at, attempt in enumerate(row["after"][test])
            for _ in range(row["count"] * (2 - at))
        ]
        after.append(voted(votes))
    before = _attempts(first["icl"]["sitting"])
    with_outputs = all(wanted is not None for _, wanted in puzzle.test)
    return {
        "task": puzzle.id,
        "before": before,
        "after": after,
        "solved_before": solved(puzzle, before) if with_outputs else None,
        "solved": solved(puzzle, after) if with_outputs else None,
        "recipes": tried,
    }


def _steps(task: ArcTask, known: Identity, puzzle: Puzzle, text: str, config: ArcEvalConfig) -> int:
    """Optimiser steps of a recipe's training; none of one that can't be compiled."""
    try:
        return task.compile(known, puzzle, text, config.settings, training_seed(config, puzzle, (text, 0))).steps
    except InvalidEditError:
        return 0


def read_recipe(given: str, edit: RecipeConfig) -> str:
    """``hand-made``, or the recipe in a file, as far as the settings let recipes go.

    Raises:
        DataError: no such file, or no recipe in it; names the field.
    """
    if given == "hand-made":
        return HAND_MADE.text()
    try:
        return ArcTask(edit).read(Path(given).read_text(encoding="utf-8")).text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{given}: can't be read ({error}); give hand-made, or a file with a recipe") from error
    except InvalidEditError as error:
        raise DataError(f"{given}: {error}") from error


def _attempts(sitting: dict[str, Any]) -> Attempts:
    return [attempts_of(answer) for answer in sitting["answers"]]
