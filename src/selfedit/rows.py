"""SFT rows of any run: what a writer would be trained on under a rule."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from selfedit import seeds
from selfedit.config import LABEL_FREE, ArcTrainConfig, CreditName, SelectionRule, TrainConfig
from selfedit.convert import is_converted
from selfedit.errors import DataError
from selfedit.report.read import passages_of, scored_of
from selfedit.runs import read_rows
from selfedit.selection import Scored, select


def selected_rows(
    folder: Path,
    rule: SelectionRule | None,
    number: int,
    fraction: float | None,
    seed: int | None,
    credit: CreditName | None = None,
) -> list[dict[str, Any]]:
    """``{prompt, completion}`` of each selected self-edit, stripped; of ours one for each request, in turns if the model takes any.

    Args:
        number: the round; 0: all.
        rule, fraction, seed: None: the run's.
        credit: self-edits as they are, or rows put together of their lines that taught; None: as the run did.

    Raises:
        DataError: a control or a draw at random, which weighs nothing; a run of dpo without a rule; no run, or no such round in it,
            or its self-edits are gone; credit by lines where the run's own questions aren't the passages'.
    """
    rounds = sorted(int(path.parent.name.removeprefix("round-")) for path in folder.glob("round-*/scored.jsonl"))
    chosen_rounds = [one for one in rounds if number in (0, one)]
    if not chosen_rounds:
        raise DataError(f"{folder}: no {'round' if not number else f'round {number}'} with rewards; give a run of train or convert")
    rows = []
    converted = is_converted(folder)
    theirs = {} if converted else json.loads((folder / "run.json").read_text())["config"]
    if theirs.get("control_of"):
        raise DataError(f"{folder}: a control at random weighs nothing; what it took is in its round-NN/rows.jsonl")
    if theirs.get("rule") == "random" and rule not in (None, "random"):
        raise DataError(f"{folder}: was drawn at random and has no rewards, so nothing in it can be selected by {rule}")
    if theirs.get("algorithm") == "dpo" and rule is None:
        raise DataError(f"{folder}: was trained by preferences, its pairs are in round-NN/rows.jsonl; for rows of SFT give --rule")
    rule = rule or theirs.get("rule", "best-positive")
    fraction = theirs.get("fraction", 0.2) if fraction is None else fraction
    seed = theirs.get("seed", 0) if seed is None else seed
    for one in chosen_rounds:
        scored = scored_of(folder, one)
        chosen = select(rule, scored, fraction, seeds.derive(seed, one, "select"))
        file = folder / f"round-{one:02d}" / "edits.jsonl"
        written = {row["context"]: row for row in read_rows(file)}
        if missing := {context for context, _ in chosen} - set(written):
            raise DataError(
                f"{file}: has no self-edits of {', '.join(sorted(missing)[:3])}, which scored.jsonl names; bring the file back"
            )
        if converted:
            rows += [
                {"prompt": written[context]["prompt"], "completion": written[context]["edits"][candidate]["text"].strip()}
                for context, candidate in chosen
            ]
        else:
            rows += _own_rows(folder, chosen, written, {(of.context, of.candidate): of for of in scored}, credit)
    return rows


def _own_rows(
    folder: Path,
    chosen: list[tuple[str, int]],
    written: dict[str, dict[str, Any]],
    scored: dict[tuple[str, int], Scored],
    credit: CreditName | None,
) -> list[dict[str, Any]]:
    # Here, since converted runs need no torch.
    from selfedit.lm.load import identify
    from selfedit.tasks.arc.data import load_puzzles
    from selfedit.tasks.arc.task import ArcTask
    from selfedit.tasks.base import Candidate, answered
    from selfedit.tasks.knowledge.credit import LineCredit
    from selfedit.tasks.knowledge.task import KnowledgeTask

    settings = json.loads((folder / "run.json").read_text())["config"]
    known = identify(settings["model"])
    task: ArcTask | KnowledgeTask
    contexts: dict[str, Any]
    credit = credit or settings.get("credit", "edit")
    if "rendering" in settings["edit"]:
        task = ArcTask(ArcTrainConfig.model_validate(settings).edit)
        contexts = {puzzle.id: puzzle for puzzle in load_puzzles(str(folder / "data.json"), "")}
    else:
        task, contexts = KnowledgeTask(TrainConfig.model_validate(settings).edit), dict[str, Any](passages_of(folder))
    by_id: dict[str, list[int]] = defaultdict(list)
    for context, candidate in chosen:
        by_id[context].append(candidate)
    own: list[dict[str, Any]] = []
    for context, candidates in by_id.items():
        texts = {candidate: written[context]["edits"][candidate]["texts"] for candidate in candidates}
        if credit == "edit":
            own += [row for at in candidates for row in answered(task, known, contexts[context], at, texts[at])]
            continue
        if isinstance(task, ArcTask) or settings["reward"] in LABEL_FREE:
            raise DataError(f"{folder}: only a passage's own questions say which lines taught them; give --credit edit")
        tried = [Candidate(at, texts[at], scored[context, at].gains) for at in candidates]
        own += LineCredit(task).rows(known, contexts[context], task.asked(contexts[context]), tried)
    rows: list[dict[str, Any]] = []
    for row in own:
        if known.chat and row["messages"][0]["role"] != "text":
            completion = [{"role": "assistant", "content": row["completion"].strip()}]
            rows.append({"prompt": row["messages"], "completion": completion})
        else:
            prompt = "\n".join(turn["content"] for turn in row["messages"])
            rows.append({"prompt": prompt, "completion": row["completion"].strip()})
    return rows
