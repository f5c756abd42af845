"""Which contexts a round is about."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfedit import seeds
from selfedit.config import OuterConfig
from selfedit.errors import DataError
from selfedit.runs import read_rows


def draw(config: OuterConfig, contexts: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The contexts of each round, all different; of a control, those that the other run took rows of.

    Args:
        config: numbers and seed.
        contexts: those of each data set, which are drawn from in turn while they last: a small one isn't lost in a large one.
    """
    if config.control_of:
        by_id = {context.id: context for part in contexts for context in part}
        rounds = taken(Path(config.control_of), config.rounds)
        missing = {row["context"] for rows in rounds for row in rows} - set(by_id)
        if missing:
            raise DataError(f"{config.control_of}: took contexts that {', '.join(config.data)} doesn't have; give the same --data")
        return [[by_id[context] for context in dict.fromkeys(row["context"] for row in rows)] for rows in rounds]
    shuffled = [sorted(part, key=lambda context: seeds.derive(config.seed, "draw", context.id)) for part in contexts]
    in_turn = {context.id: context for row in itertools.zip_longest(*shuffled) for context in row if context is not None}
    order, needed = list(in_turn.values()), config.rounds * config.contexts
    if len(order) < needed:
        raise DataError(
            f"{config.rounds} rounds of {config.contexts} need {needed} contexts and {', '.join(config.data)} has {len(order)}; "
            "give fewer rounds, fewer a round, or more data"
        )
    return [order[at : at + config.contexts] for at in range(0, needed, config.contexts)]


def check_begun(folder: Path, drawn: Sequence[Sequence[Any]]) -> None:
    """That a run's rounds so far are about the contexts that are drawn for them now.

    Raises:
        DataError: the data have changed.
    """
    for number, contexts in enumerate(drawn, start=1):
        file = folder / f"round-{number:02d}" / "edits.jsonl"
        if strangers := {row["context"] for row in read_rows(file)} - {context.id for context in contexts}:
            raise DataError(
                f"{file}: round {number} has {len(strangers)} contexts that would not be drawn for it now; give --data as it was: "
                "a run that has begun takes no more or other data"
            )


def taken(run: Path, rounds: int) -> list[list[dict[str, Any]]]:
    """What a finished run selected in each of its first rounds, one row a self-edit."""
    found = []
    for number in range(1, rounds + 1):
        file = run / f"round-{number:02d}" / "selected.json"
        if not file.is_file():
            raise DataError(f"{run}: has no finished round {number}; let that run end first, or give fewer rounds")
        found.append(json.loads(file.read_text()))
    return found
