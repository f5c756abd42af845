"""One puzzle from beginning to end: ``selfedit solve``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfedit import seeds
from selfedit.config import ArcEvalConfig, RecipeConfig
from selfedit.contexts import Puzzle, Rows
from selfedit.errors import DataError, InvalidEditError
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import policy_standing
from selfedit.lm.load import load_model
from selfedit.lm.stack import slots_that_fit
from selfedit.runs import policy_of
from selfedit.samplers.local import write_edits
from selfedit.tasks.arc.recipe import HAND_MADE
from selfedit.tasks.arc.task import ArcTask
from selfedit.tasks.arc.vote import attempts_of, solved, voted
from selfedit.tasks.base import Sitting

Attempts = list[list[Rows]]


def solve(config: ArcEvalConfig, puzzle: Puzzle, recipe: str | None, told: Callable[[str], None]) -> dict[str, Any]:
    """Answers before and after training on a recipe, or on several; the attempts of several recipes are voted once more.

    Args:
        config: model, number of recipes, writer, settings.
        puzzle: its tests may lack their outputs.
        recipe: a recipe; None: the model (or the writer) writes ``config.edits`` of them.
        told: called with what is being done.

    Returns:
        ``{task, before, after, solved_before, solved, recipes}``: attempts for each test, the first one best; None where a test's
        output isn't known.
    """
    lm = load_model(config.model, config.device, config.dtype)
    policy = policy_of(config.writer, lm.fingerprint)
    task = ArcTask(config.edit, config.seed)
    if (reason := task.too_long(lm, puzzle)) is not None:
        raise DataError(f"{reason}; a model with a longer one may do, or another --set edit.rendering")
    told("answering in context")
    before = _attempts(sit(lm, [(task, puzzle)])[0])
    texts = [recipe] if recipe is not None else []
    if not texts:
        told("writing recipes")
        with policy_standing(lm, policy.folder):
            texts = [one.edit.text for one in write_edits(lm, task, puzzle, config.edits, config.edit.sampling, config.seed)]
    rows: list[dict[str, Any]] = []
    trials = []
    for text in dict.fromkeys(texts):
        row = {"recipe": text, "count": texts.count(text), "status": "invalid", "reason": "", "after": None}
        try:
            plan = task.compile(lm, puzzle, text, config.settings, seeds.derive(config.seed, puzzle.id, "train", text))
            trials.append((row, Trial(puzzle, plan)))
        except InvalidEditError as error:
            row["reason"] = str(error)
        rows.append(row)
    slots = config.slots or min(slots_that_fit(lm, config.settings, config.device, 1), max(1, len(trials)))
    told(f"training on {sum(len(trial.plan.documents) for _, trial in trials)} items")
    for (row, _), outcome in zip(trials, run_trials(lm, [task], [t for _, t in trials], slots), strict=True):
        row |= {"status": outcome.status, "reason": outcome.reason, "tokens": outcome.tokens, "seconds": round(outcome.seconds, 2)}
        row["after"] = _attempts(outcome.sittings[0]) if outcome.sittings else None
    after: Attempts = []
    for test in range(len(puzzle.test)):
        # A recipe's first attempt weighs twice its second.
        votes = [
            tried
            for row in rows
            if row["after"]
            for at, tried in enumerate(row["after"][test])
            for _ in range(row["count"] * (2 - at))
        ]
        after.append(voted(votes))
    known = all(wanted is not None for _, wanted in puzzle.test)
    return {
        "task": puzzle.id,
        "before": before,
        "after": after,
        "solved_before": solved(puzzle, before) if known else None,
        "solved": solved(puzzle, after) if known else None,
        "recipes": rows,
    }


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


def _attempts(sitting: Sitting) -> Attempts:
    return [attempts_of(answer) for answer in sitting.answers]
