"""SFT rows of any run: what a writer would be trained on under a rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit import seeds
from selfedit.config import ArcTrainConfig, SelectionRule, TrainConfig
from selfedit.convert import is_converted
from selfedit.errors import DataError
from selfedit.report.read import passages_of, scored_of
from selfedit.runs import read_rows
from selfedit.selection import select

if TYPE_CHECKING:
    from selfedit.tasks.base import Task


def selected_rows(folder: Path, rule: SelectionRule, number: int, fraction: float, seed: int) -> list[dict[str, Any]]:
    """``{prompt, completion}`` of each selected self-edit, stripped; of ours one for each request, in turns if the model takes any.

    Args:
        number: the round; 0: all.

    Raises:
        DataError: no run, or no such round in it.
    """
    rounds = sorted(int(path.parent.name.removeprefix("round-")) for path in folder.glob("round-*/scored.jsonl"))
    chosen_rounds = [one for one in rounds if number in (0, one)]
    if not chosen_rounds:
        raise DataError(f"{folder}: no {'round' if not number else f'round {number}'} with rewards; give a run of train or convert")
    rows = []
    converted = is_converted(folder)
    for one in chosen_rounds:
        chosen = select(rule, scored_of(folder, one), fraction, seeds.derive(seed, "select", one))
        written = {row["context"]: row for row in read_rows(folder / f"round-{one:02d}" / "edits.jsonl")}
        if converted:
            rows += [
                {"prompt": written[context]["prompt"], "completion": written[context]["edits"][candidate]["text"].strip()}
                for context, candidate in chosen
            ]
        else:
            rows += _own_rows(folder, chosen, written)
    return rows


def _own_rows(folder: Path, chosen: list[tuple[str, int]], written: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    # Here, since converted runs need no torch.
    from selfedit.lm.load import identify
    from selfedit.tasks.arc.data import load_puzzles
    from selfedit.tasks.arc.task import ArcTask
    from selfedit.tasks.knowledge.task import KnowledgeTask

    settings = json.loads((folder / "run.json").read_text())["config"]
    known = identify(settings["model"])
    task: Task
    contexts: dict[str, Any]
    if "rendering" in settings["edit"]:
        task = ArcTask(ArcTrainConfig.model_validate(settings).edit)
        contexts = {puzzle.id: puzzle for puzzle in load_puzzles(str(folder / "data.json"), "")}
    else:
        task, contexts = KnowledgeTask(TrainConfig.model_validate(settings).edit), dict[str, Any](passages_of(folder))
    rows: list[dict[str, Any]] = []
    for context, candidate in chosen:
        requests = task.requests(known, contexts[context], candidate)
        for request, text in zip(requests, written[context]["edits"][candidate]["texts"], strict=True):
            if not text.strip():
                continue
            if known.chat and request.prompt[0].role != "text":
                turns = [message._asdict() for message in request.prompt]
                rows.append({"prompt": turns, "completion": [{"role": "assistant", "content": text.strip()}]})
            else:
                rows.append({"prompt": "\n".join(message.content for message in request.prompt), "completion": text.strip()})
    return rows
