"""One adapter for all lessons of a sequence, as a consolidation trains it: what it knows, and what it costs in general knowledge.

    .venv/bin/python benchmarks/together.py --of RUN --squad squad_dev.json --run runs/t --settings null_space=0 null_space=0.01

The lessons are those of a run of ``selfedit continual``; its passages must be in almanac dev or the SQuAD file. Each variant is the
defaults but for what it says; the exam with title and without, every third general question, and eight plain texts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from rehearsal import base, settings_of
from rich.console import Console

from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.lm.adapter import standing
from selfedit.lm.load import LanguageModel
from selfedit.lm.train_many import train_many
from selfedit.marks import mark_sitting
from selfedit.memory.compose import Kept, sample_kept
from selfedit.runs import Run
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.exam import Paper, asked_in, exam_questions, sit_exams
from selfedit.tasks.knowledge.task import KnowledgeTask


class TogetherConfig(BaseModel):
    """What decides the rows, but for the variants, which may be added to."""

    of: str
    squad: str | None
    seed: int = 1


def try_together(lm: LanguageModel, at: int, lessons: list[tuple[Passage, str]], variant: str, seed: int) -> dict[str, Any]:
    """A lease: one training of everything in a sequence, and its exams."""
    settings, task = settings_of(variant), KnowledgeTask(EditConfig())
    documents = [one for passage, text in lessons for one in task.compile(lm, passage, text, Settings(), 0).documents]
    start = time.perf_counter()
    (trained,) = train_many(lm, jobs_of(lm, [TrainingPlan(tuple(documents), settings, seed)]), 1)
    if isinstance(trained, DivergedError):
        return {"sequence": at, "variant": variant, "diverged": str(trained)}
    seconds = time.perf_counter() - start
    papers = [Paper(one, tuple(exam_questions(one.questions)), form) for form in ("titled", "bare") for one, _ in lessons]
    with standing(lm, [trained.adapter]):
        sat = sit_exams(lm, papers)
        general = sample_kept(lm, Kept("stack"))
    marks = [
        mark_sitting(RecallGrader(), asked_in(paper.form, paper.asked), sitting) for paper, sitting in zip(papers, sat, strict=True)
    ]
    titled, bare = marks[: len(lessons)], marks[len(lessons) :]
    return {
        "sequence": at,
        "variant": variant,
        "titled": fmean(one.accuracy for one in titled),
        "probability": fmean(one.probability for one in titled),
        "bare": fmean(one.accuracy for one in bare),
        "general": general["right"],
        "text": general["text"],
        "documents": len(documents),
        "tokens": trained.tokens,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Runs what is missing and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, required=True, help="a run of selfedit continual: its sequences and self-edits")
    parser.add_argument("--squad", help="flat data set with the passages that are not almanac's")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--settings", nargs="+", required=True, help="variants, such as null_space=0.01,learning_rate=4e-3")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, help="processes, one core each; default: as many as a short timing says")
    arguments = parser.parse_args()
    config = TogetherConfig(of=str(arguments.of), squad=arguments.squad)
    run = Run(arguments.run, config, arguments.resume)
    sources = [load_dataset("almanac", "dev"), load_dataset(config.squad) if config.squad else []]
    passages = {passage.id: passage for source in sources for passage in source}
    sequences = json.loads((arguments.of / "sequences.json").read_text())["sequences"][: arguments.sequences]
    rows = [json.loads(line) for line in (arguments.of / "edits.jsonl").read_text().splitlines()]
    texts = {row["passage"]: row["edits"][0] for row in rows}
    done = {(row["sequence"], row["variant"]) for row in run.rows}
    waiting = [(at, variant) for variant in arguments.settings for at in range(len(sequences)) if (at, variant) not in done]
    leases = [(at, [(passages[one], texts[one]) for one in sequences[at]], variant, config.seed) for at, variant in waiting]
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32"), arguments.workers) as executor:
        console.print("base", next(executor.map(base, [()])), highlight=False)
        for row in executor.map(try_together, leases):
            run.append(row)
            console.print(run.rows[-1], highlight=False)


if __name__ == "__main__":
    main()
