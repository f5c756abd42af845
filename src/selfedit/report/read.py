"""A run's folder, of whatever kind, as the report wants it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit.contexts import Passage
from selfedit.errors import DataError
from selfedit.graders.text import place_in
from selfedit.runs import ROWS, read_rows
from selfedit.selection import Scored
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.documents import content_words

# What tells a table's kind.
TABLES = {"recipes": "puzzles", "matrix": "continual", "two_stage": "rewards"}


@dataclass(frozen=True)
class Edit:
    """One self-edit with its marks.

    Attributes:
        coverage: share of the passage's gold answers that occur in it, after the graders' normalisation; None without questions.
        unfaithful: share of its content words that come neither from the passage nor from its title; None without the passage.
    """

    scored: Scored
    title: str
    style: str
    text: str
    selected: bool
    status: str
    reason: str
    coverage: float | None
    unfaithful: float | None

    @property
    def words(self) -> int:
        """Length."""
        return len(self.text.split())


@dataclass(frozen=True)
class Round:
    """One round of a run that tried self-edits."""

    number: int
    metrics: dict[str, Any]
    edits: list[Edit]


@dataclass(frozen=True)
class RunData:
    """A run.

    Attributes:
        folder: where it lies.
        kind: ``train`` (rounds of self-edits, ours or converted), ``eval`` (a table of methods), ``puzzles`` (one of recipes), or
            ``continual`` (one of ways of keeping), or ``rewards`` (one of rewards and screens).
        rounds: of a train run.
        table: of an eval run, as ``table.json`` has it.
    """

    name: str
    folder: Path
    kind: str
    settings: dict[str, Any]
    rounds: list[Round] = field(default_factory=list)
    table: dict[str, Any] | None = None


def read_run(folder: Path) -> RunData:
    """Reads a run.

    Raises:
        DataError: no run there, or none that has anything to show yet.
    """
    file, name = folder / "run.json", folder.resolve().name
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no run there ({error}); give the folder of a run of selfedit train, eval or convert") from error
    if (folder / "table.json").is_file():
        table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        return RunData(name, folder, next((kind for key, kind in TABLES.items() if key in table), "eval"), settings, table=table)
    rounds = [_round(folder, index, metrics) for index, metrics in enumerate(read_rows(folder / "metrics.jsonl"), start=1)]
    if not rounds:
        raise DataError(f"{folder}: has no finished round and no table yet; let it end, or go on with it by --resume")
    return RunData(name, folder, "train", settings, rounds)


def passages_of(folder: Path) -> dict[str, Passage]:
    """Context id -> passage, of a run that keeps its data."""
    file = folder / "data.json"
    # Puzzles are an object by id.
    if not file.is_file() or not isinstance(json.loads(file.read_text(encoding="utf-8")), list):
        return {}
    return {passage.id: passage for passage in load_dataset(str(file))}


def scored_of(folder: Path, number: int) -> list[Scored]:
    """A round's self-edits with their rewards."""
    return [Scored.of_row(row) for row in read_rows(folder / f"round-{number:02d}" / "scored.jsonl")]


def covered(passage: Passage, text: str) -> float | None:
    """Share of the gold answers that occur in a text, after the graders' normalisation; None without questions."""
    hits = [float(place_in(text, question.answer) >= 0) for question in passage.questions]
    return fmean(hits) if hits else None


def unfaithful(passage: Passage, text: str) -> float | None:
    """Share of a text's content words that the passage and its title don't have; None for a text without any."""
    words = content_words(text)
    return len(words - content_words(f"{passage.title} {passage.text}")) / len(words) if words else None


def _round(folder: Path, number: int, metrics: dict[str, Any]) -> Round:
    own = folder / f"round-{number:02d}"
    passages = passages_of(folder)
    written = {row["context"]: row["edits"] for row in read_rows(own / "edits.jsonl")}
    chosen = {(row["context"], row["candidate"]) for row in _listed(own / "selected.json")}
    failed = {
        (row["context"], row["candidate"]): (row["status"], row["reason"])
        for row in read_rows(folder / ROWS)
        if row["round"] == number and row["status"] != "ok"
    }
    edits = []
    for scored in scored_of(folder, number):
        passage = passages.get(scored.context.split("-")[0])
        if len(written.get(scored.context, ())) <= scored.candidate:
            raise DataError(
                f"{own / 'edits.jsonl'}: has no self-edit {scored.candidate} of {scored.context}, which scored.jsonl names; "
                "bring the file back"
            )
        text = written[scored.context][scored.candidate]["text"]
        status, reason = failed.get((scored.context, scored.candidate), ("ok" if scored.tried else "not tried", ""))
        edits.append(
            Edit(
                scored,
                passage.title if passage else scored.context,
                written[scored.context][scored.candidate]["style"],
                text,
                (scored.context, scored.candidate) in chosen,
                status,
                reason,
                covered(passage, text) if passage else None,
                unfaithful(passage, text) if passage else None,
            )
        )
    return Round(number, metrics, edits)


def _listed(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text())) if file.is_file() else []
