r"""The split `laptop`: small puzzles that the embedded model solves after training on the hand-made recipe, and not in context.

    .venv/bin/python benchmarks/screen_arc.py --run runs/screen --set settings.layers=last:15 --set edit.most_tokens=16000 \
        --set edit.permutations=5 --set settings.batch_size=1 --set settings.rank=64 --set settings.alpha=128

The rule: of ARC-AGI-1's training and of its evaluation tasks, the 20 each whose largest test, shown as digits with all
demonstrations and its answer, has the fewest tokens (equals by id); of these, the tasks that a training run solves by HAND_MADE, by
the same without augmentations (for rules in which a direction counts), or by that for two epochs (of what was near then). One run
of this script for each recipe (--recipe, --tasks). The seed is SCREENING_SEED, which no table uses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from selfedit import seeds
from selfedit.cli.common import build_config
from selfedit.config import ArcEvalConfig
from selfedit.contexts import Puzzle
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.attempts import AttemptsGrader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.batch import encode_prompt
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.marks import mark_sitting
from selfedit.runs import Run
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.items import Item
from selfedit.tasks.arc.prompts import item_prompt
from selfedit.tasks.arc.recipe import HAND_MADE
from selfedit.tasks.arc.task import ArcTask
from selfedit.tasks.base import Sitting

SCREENED, SCREENING_SEED = 20, 20_260_101


class ScreenConfig(BaseModel):
    """What decides the rows."""

    arc: ArcEvalConfig = ArcEvalConfig()
    screened: int = SCREENED
    recipe: str = HAND_MADE.text()


def tokens_of(known: Identity, task: ArcTask, puzzle: Puzzle) -> int:
    """Of the largest test with its answer."""
    sizes = []
    for given, wanted in puzzle.test:
        prompt = encode_prompt(known, item_prompt(Item(puzzle.train, given, ()), task.edit.rendering, known.chat))
        sizes.append(len(prompt) + len(known.tokenizer(task.written(wanted or ()))["input_ids"]))
    return max(sizes)


def screen(lm: LanguageModel, puzzle: Puzzle, config: ScreenConfig) -> dict[str, Any]:
    """A lease: one puzzle in context and after training."""
    task = ArcTask(config.arc.edit)

    def marks(sitting: Sitting) -> dict[str, Any]:
        marked = mark_sitting(AttemptsGrader(), task.asked(puzzle), sitting)
        return {
            "solved": all(verdict.correct for verdict in marked.verdicts),
            "cells": [round(verdict.score, 3) for verdict in marked.verdicts],
            "log_probabilities": [round(value, 3) for value in sitting.log_probabilities],
        }

    seed = seeds.derive(SCREENING_SEED, puzzle.id)
    before = marks(sit(lm, [(task, puzzle)])[0])
    plan = task.compile(lm, puzzle, config.recipe, config.arc.settings, seed)
    (outcome,) = run_trials(lm, [task], [Trial(puzzle, plan)], 1)
    return {
        "task": puzzle.id,
        "before": before,
        "after": marks(outcome.sittings[0]) if outcome.sittings else None,
        "items": len(plan.documents),
        "steps": len(outcome.losses),
        "seconds": round(outcome.seconds, 1),
    }


def main() -> None:
    """Screens what is missing and prints the ids of each half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="any setting of selfedit eval arc")
    parser.add_argument("--recipe", default=HAND_MADE.text(), help="as JSON; default: the hand-made one")
    parser.add_argument("--tasks", nargs="*", help="only these ids of the screened ones")
    arguments = parser.parse_args()
    config = ScreenConfig(arc=build_config(ArcEvalConfig, None, {}, arguments.sets), recipe=arguments.recipe)
    run = Run(arguments.run, config, arguments.resume)
    known, task, console = identify(config.arc.model), ArcTask(config.arc.edit), Console()
    halves = {}
    for split in ("train", "evaluation"):
        ranked = sorted(load_puzzles("arc-1", split), key=lambda puzzle: (tokens_of(known, task, puzzle), puzzle.id))
        halves[split] = ranked[: config.screened]
    done = {row["task"] for row in run.rows}
    wanted = {puzzle.id for half in halves.values() for puzzle in half if not arguments.tasks or puzzle.id in arguments.tasks}
    waiting = [(puzzle, config) for half in halves.values() for puzzle in half if puzzle.id in wanted - done]
    with LocalExecutor(ModelChoice(config.arc.model, dtype="float32"), arguments.workers) as executor:
        for row in executor.map(screen, waiting):
            run.append(row)
            console.print(
                f"{len(run.rows)} of {2 * config.screened}: {row['task']} {row['before']} {row['after']}", highlight=False
            )
    by_id = {row["task"]: row for row in run.rows}
    for split, half in halves.items():
        rows = [by_id[puzzle.id] for puzzle in half if puzzle.id in by_id]
        kept = [row["task"] for row in rows if row["after"] and row["after"]["solved"] and not row["before"]["solved"]]
        context = [row["task"] for row in rows if row["before"]["solved"]]
        console.print(f"{split}: {len(kept)} of {len(rows)}: {' '.join(kept)}; in context: {' '.join(context)}", highlight=False)


if __name__ == "__main__":
    main()
