"""Puzzles in every form, and errors that name the task and the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfedit.errors import DataError
from selfedit.tasks.arc.data import PAPER_EVAL_RUN, PAPER_TRAIN, check_solved, load_puzzles
from selfedit.tasks.arc.grids import Rendering, parse, render

TASK: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}],
    "test": [{"input": [[3, 4]], "output": [[4, 3]]}, {"input": [[5]]}],
}


def test_a_task_a_folder_and_kaggle_s_two_files(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(TASK))
    (single,) = load_puzzles(str(tmp_path / "one.json"), "")
    assert single.id == "one" and single.test[0] == (((3, 4),), ((4, 3),)) and single.test[1][1] is None
    assert load_puzzles(str(tmp_path), "") == [single]
    many = tmp_path / "kaggle" / "arc_challenges.json"
    many.parent.mkdir()
    many.write_text(json.dumps({"a1": TASK}))
    (tmp_path / "kaggle" / "arc_solutions.json").write_text(json.dumps({"a1": [[[9, 9]], [[8]]]}))
    (found,) = load_puzzles(str(many), "")
    assert found.id == "a1" and [wanted for _, wanted in found.test] == [((9, 9),), ((8,),)]
    check_solved([found])
    # Data sets that overlap have a puzzle twice; two puzzles of one id are a fault.
    check_solved([found, found])
    with pytest.raises(DataError, match="task a1: two different puzzles"):
        check_solved([found, replace(found, train=found.test)])
    with pytest.raises(DataError, match="task one, test 2: the field output is missing"):
        check_solved([single])
    with pytest.raises(DataError, match=r"of Kaggle's files give one itself, such as .*arc_challenges.json"):
        load_puzzles(str(many.parent), "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(train=[]), "no demonstration pair"),
        (lambda t: t.pop("train"), "no demonstration pair"),
        (lambda t: t.pop("test"), "no test"),
        (lambda t: t["train"][0].pop("output"), "train 1: the field output"),
        (lambda t: t["test"][1].pop("input"), "test 2: the field input"),
        (lambda t: t["train"][0].update(input=[[1], [1, 2]]), "train 1, input: ragged"),
        (lambda t: t["test"][0].update(output=[[11]]), "test 1, output: colour 11"),
        (lambda t: t["train"][0].update(output=[[0] * 31]), "train 1, output: 1x31"),
    ],
)
def test_bad_tasks_name_the_field(tmp_path: Path, change: Any, said: str) -> None:
    task = json.loads(json.dumps(TASK))
    change(task)
    (tmp_path / "bad.json").write_text(json.dumps(task))
    with pytest.raises(DataError, match=said):
        load_puzzles(str(tmp_path / "bad.json"), "")


def test_arc_1_and_2_with_the_paper_s_splits() -> None:
    assert [len(load_puzzles("arc-1", split)) for split in ("train", "evaluation")] == [400, 400]
    assert [len(load_puzzles("arc-2", split)) for split in ("train", "evaluation")] == [1000, 120]
    assert [puzzle.id for puzzle in load_puzzles("arc-1", "paper-train")] == list(PAPER_TRAIN)
    small = [{puzzle.id for puzzle in load_puzzles("arc-1", f"laptop-{part}")} for part in ("train", "eval")]
    assert len(small[0]) >= 7 and len(small[1]) >= 8 and not small[0] & small[1]
    # They are one rule, turned by 180 degrees.
    assert {"3c9b0459", "6150a2bd"} <= small[0]
    run = load_puzzles("arc-1", "paper-eval-run")
    assert len(run) == len(PAPER_EVAL_RUN) == 8 and next(p for p in run if p.id == "b1fc8b8e").test[1][1] is not None
    with pytest.raises(DataError, match="unknown split"):
        load_puzzles("arc-1", "laptop-x")


@pytest.mark.parametrize("how", ["python-list", "digits", "words"])
def test_every_grid_of_arc_1_survives_every_rendering(how: Rendering) -> None:
    grids = [
        grid
        for split in ("train", "evaluation")
        for p in load_puzzles("arc-1", split)
        for pair in (*p.train, *p.test)
        for grid in pair
    ]
    for rows in grids:
        grid = np.array(rows, dtype=np.int8)
        found = parse(render(grid, how), how)
        assert found is not None and np.array_equal(found, grid)
    assert len(grids) > 3000
