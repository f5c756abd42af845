"""The puzzle domain in the loops: a recipe compiles, trains, and a puzzle that a tiny model can learn is solved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfedit.config import RecipeConfig, Sampling, Settings
from selfedit.contexts import Puzzle
from selfedit.errors import InvalidEditError
from selfedit.graders.attempts import AttemptsGrader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.batch import encode_document
from selfedit.marks import mark_sitting
from selfedit.samplers.local import write_edits
from selfedit.tasks.arc import task as module
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.task import ArcTask

# Whatever comes in, the answer is 3.
PUZZLE = Puzzle("always-3", tuple((((n,),), ((3,),)) for n in (1, 2, 4, 5)), ((((6,),), ((3,),)),))
RECIPE = {
    "data_generation": dict.fromkeys(
        ("use_basic_augmentations", "use_size_augmentations", "use_chain_augmentations", "use_repeat_augmentations"), False
    ),
    "training": {"strategy": "train_using_output_tokens", "learning_rate": 1e-3, "num_train_epochs": 5},
}


def recipe(**training: Any) -> str:
    return json.dumps(RECIPE | {"training": RECIPE["training"] | training})


def test_a_recipe_overrules_the_settings(lm: Any) -> None:
    task = ArcTask(RecipeConfig(most_tokens=10**6))
    plan = task.compile(lm, PUZZLE, recipe(), Settings(epochs=1, rank=4), 0)
    assert (plan.settings.epochs, plan.settings.learning_rate, plan.settings.rank) == (5, 1e-3, 4)
    assert plan.documents == task.compile(lm, PUZZLE, recipe(), Settings(epochs=1, rank=4), 0).documents
    every = task.compile(lm, PUZZLE, recipe(strategy="train_using_all_tokens"), Settings(rank=4), 0)
    rows = [encode_document(lm, one.documents[0]) for one in (plan, every)]
    assert len(rows[0].ids) == len(rows[1].ids) and rows[0].labelled < 5 < rows[1].labelled == len(rows[1].ids) - 1
    small = ArcTask(RecipeConfig(most_tokens=3000)).compile(lm, PUZZLE, recipe(), Settings(), 0)
    sizes = [len(encode_document(lm, document).ids) for document in small.documents]
    assert 0 < 5 * sum(sizes) <= 3000 and len(sizes) < len(plan.documents)
    with pytest.raises(InvalidEditError, match="within 100 in all"):
        ArcTask(RecipeConfig(most_tokens=100)).compile(lm, PUZZLE, recipe(), Settings(), 0)
    with pytest.raises(InvalidEditError, match="optimiser steps, more than 10"):
        ArcTask(RecipeConfig(most_tokens=10**6, most_steps=10)).compile(lm, PUZZLE, recipe(), Settings(), 0)
    with pytest.raises(InvalidEditError, match="no JSON"):
        task.compile(lm, PUZZLE, "rotate it", Settings(), 0)


def test_written_recipes_parse_and_equal_ones_are_equal_texts(lm: Any) -> None:
    task = ArcTask(RecipeConfig(most_tokens=10**6, most_steps=10**4))
    written = write_edits(lm, task, PUZZLE, 4, Sampling(temperature=1.5, top_p=1.0, max_new_tokens=400), 0)
    for one in written:
        assert task.compile(lm, PUZZLE, one.edit.text, Settings(), 0).documents and json.loads(one.texts[0]) == json.loads(
            one.edit.text
        )


def examined(lm: Any, monkeypatch: pytest.MonkeyPatch, task: ArcTask, puzzle: Puzzle) -> list[tuple[Any, ...]]:
    """What ``generate`` is called with by an exam."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "generate", lambda *given, **_: calls.append(given) or [""] * len(given[1]))
    monkeypatch.setattr(module, "log_probabilities", lambda _, rows, *more: [0.0] * len(rows))
    task.examine(lm, [(0, puzzle)], 0)
    return calls


@pytest.mark.parametrize("how", ["digits", "words", "python-list"])
def test_every_answer_of_arc_1_has_room(lm: Any, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    task, cells = ArcTask(RecipeConfig(rendering=how, orders=1)), lambda rows: len(rows) * len(rows[0])
    grown = []
    for puzzle in load_puzzles("arc-1", "evaluation"):
        shown = [rows for pair in puzzle.train for rows in pair] + [given for given, _ in puzzle.test]
        if max(cells(wanted) for _, wanted in puzzle.test) > 2 * max(map(cells, shown)):
            grown.append(puzzle.id)
            (limits,) = {tuple(call[2]) for call in examined(lm, monkeypatch, task, puzzle)}
            assert min(limits) > max(len(lm.tokenizer(task.written(wanted or ()))["input_ids"]) for _, wanted in puzzle.test)
    assert grown == ["833dafe3", "ad7e01d0", "ccd554ac"]
    full = tuple(tuple([6] * 30) for _ in range(30))
    size = len(lm.tokenizer(task.written(full))["input_ids"])
    most = max(examined(lm, monkeypatch, task, Puzzle("full", ((full, full),), ((full, full),)))[0][2])
    assert size < most < 1.2 * size, "no more than a grid of 30x30 takes"


def test_sampled_answers_are_of_the_run_s_seed(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = RecipeConfig(orders=1, samples=2)
    drawn = [[call[5] for call in examined(lm, monkeypatch, ArcTask(edit, seed), PUZZLE)[1:]] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and len({seed for run in drawn[1:] for call in run for seed in call}) == 2 * 2 * 7


def test_training_at_test_time_solves_what_context_does_not(lm: Any) -> None:
    task, settings = ArcTask(RecipeConfig(most_tokens=10**7)), Settings(rank=8, alpha=16, layers="all", clip=1e6)
    before = mark_sitting(AttemptsGrader(), task.asked(PUZZLE), sit(lm, [(task, PUZZLE)])[0])
    plan = task.compile(lm, PUZZLE, recipe(), settings, 0)
    # The recipe's grid is for real models; a tiny random one needs larger steps, and no colour but 3 as the answer.
    documents = tuple(d for d in plan.documents if d.text == "3")[:12]
    strong = plan.settings.model_copy(update={"learning_rate": 5e-3, "epochs": 20})
    (outcome,) = run_trials(lm, [task], [Trial(PUZZLE, type(plan)(documents, strong, 0))], 1)
    after = mark_sitting(AttemptsGrader(), task.asked(PUZZLE), outcome.sittings[0])
    assert (before.accuracy, after.accuracy) == (0.0, 1.0), outcome.sittings
    assert outcome.sittings[0].log_probabilities[0] > sit(lm, [(task, PUZZLE)])[0].log_probabilities[0]
