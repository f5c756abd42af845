"""Two questions about the inner loop, answered on dev data over the model's own self-edits.

1. Which settings (epochs, learning rate, layers, batch, rank) give the best exam?
2. Which form of the gold answer's log-probability ranks self-edits as the exam does?

    .venv/bin/python benchmarks/sweep_settings.py --sweep depth --edits benchmarks/results/dev-default --run runs/sweep --resume

The self-edits are those of an earlier ``selfedit eval knowledge`` run on almanac dev; a killed sweep goes on with ``--resume``.
The sweep ``batch`` starts from what ``depth`` chose: does a step of several documents, whose common beginning is read once,
learn as much in less time?
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from scipy import stats

from selfedit import seeds
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import Prompt
from selfedit.errors import DivergedError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.lm.adapter import install
from selfedit.lm.batch import Row, encode_answer, encode_document, encode_prompt
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import token_log_probabilities
from selfedit.lm.train_many import Job, train_many
from selfedit.marks import mark_sitting
from selfedit.runs import Run, write_json
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.compile import compile_edit
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.documents import passage_pieces
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams
from selfedit.tasks.knowledge.prompts import exam_prompt

BASES: dict[str, dict[str, Any]] = {
    "depth": {"rank": 32, "alpha": 64.0, "layers": "last:10", "epochs": 4, "learning_rate": 1e-3},
    "batch": {"rank": 32, "alpha": 64.0, "layers": "last:10", "epochs": 8, "learning_rate": 2e-3},
}
# What each setting changes in its sweep's base.
DEPTH: dict[str, dict[str, Any]] = {
    "base": {},
    "epochs 2": {"epochs": 2},
    "epochs 8": {"epochs": 8},
    "lr 5e-4": {"learning_rate": 5e-4},
    "lr 2e-3": {"learning_rate": 2e-3},
    "last 5, lr 2e-3": {"layers": "last:5", "learning_rate": 2e-3},
    "all layers": {"layers": "all"},
    "batch 4, lr 2e-3": {"batch_size": 4, "learning_rate": 2e-3},
    "rank 8": {"rank": 8, "alpha": 16.0},
    "lr 2e-3, epochs 8": {"learning_rate": 2e-3, "epochs": 8},
    "last 15, lr 2e-3": {"layers": "last:15", "learning_rate": 2e-3},
    "last 20, lr 2e-3": {"layers": "last:20", "learning_rate": 2e-3},
    "all layers, lr 2e-3": {"layers": "all", "learning_rate": 2e-3},
    "all layers, lr 5e-4": {"layers": "all", "learning_rate": 5e-4},
}
BATCH: dict[str, dict[str, Any]] = {
    "base": {},
    "batch 4": {"batch_size": 4},
    "batch 4, lr 4e-3": {"batch_size": 4, "learning_rate": 4e-3},
    "batch 4, lr 4e-3, epochs 4": {"batch_size": 4, "learning_rate": 4e-3, "epochs": 4},
    "batch 8, lr 4e-3": {"batch_size": 8, "learning_rate": 4e-3},
}
SWEEPS = {"depth": DEPTH, "batch": BATCH}
PASSAGES = {"depth": 4, "batch": 8}
MEASURES = ("accuracy", "f1", "logprob", "seconds")


class SweepConfig(BaseModel):
    """What decides a sweep's rows."""

    edits: str
    base: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    passages: int
    seed: int = 0


def try_setting(
    lm: LanguageModel, passage: Passage, texts: list[str], name: str, chosen: dict[str, Any], seed: int
) -> list[dict[str, Any]]:
    """A lease: a passage's self-edits under one setting, their answers and every form of the golds' log-probabilities."""
    asked = tuple(exam_questions(passage.questions))
    jobs = []
    for index, text in enumerate(texts):
        rows = tuple(encode_document(lm, document) for document in compile_edit([passage], text, EditConfig(), lm.chat))
        jobs.append(Job(rows, Settings(**chosen), seeds.derive(seed, passage.id, "train", index)))
    found = []
    begin = time.process_time()
    together = train_many(lm, jobs, len(jobs))
    seconds = (time.process_time() - begin) / len(jobs)
    for index, trained in enumerate(together):
        if isinstance(trained, DivergedError):
            raise trained
        install(lm, trained.adapter)
        sitting = sit_exams(lm, [Paper(passage, asked, "titled")])[0]
        forms = gold_forms(lm, passage)
        install(lm, None)
        marks = mark_sitting(RecallGrader(), asked, sitting)
        found.append(
            {
                "lease": f"{passage.id} {index} {name}",
                "passage": passage.id,
                "edit": index,
                "setting": name,
                "accuracy": marks.accuracy,
                "f1": marks.f1,
                "logprob": marks.log_probability,
                "correct": [verdict.correct for verdict in marks.verdicts],
                "forms": forms,
                "steps": len(trained.losses),
                "seconds": round(seconds, 2),
                "last_loss": trained.losses[-1],
                "answers": list(sitting.answers),
            }
        )
    return found


def gold_forms(lm: LanguageModel, passage: Passage) -> dict[str, list[float]]:
    """Form -> one value a question (first wordings only)."""
    prompts = [exam_prompt(q.question, passage.title, lm.chat) for q in passage.questions]
    golds = [q.answer for q in passage.questions]
    exam = token_log_probabilities(lm, [encode_answer(lm, p, gold) for p, gold in zip(prompts, golds, strict=True)])
    every = token_log_probabilities(lm, [encode_answer(lm, p, gold) for p in prompts for gold in golds])
    count = len(golds)
    means = [[fmean(every[q * count + g]) for g in range(count)] for q in range(count)]
    bare = [encode_answer(lm, exam_prompt(q.question, None, lm.chat), q.answer) for q in passage.questions]
    stem = [after_stem(lm, p, "The answer is", gold) for p, gold in zip(prompts, golds, strict=True)]
    sentence = [after_stem(lm, p, sentence_before(passage, gold), gold) for p, gold in zip(prompts, golds, strict=True)]
    return {
        "mean over tokens and end": [fmean(v) for v in exam],
        "mean over tokens": [fmean(v[:-1]) for v in exam],
        "sum over tokens and end": [sum(v) for v in exam],
        "first token": [v[0] for v in exam],
        "mean, against the other golds": [means[q][q] - fmean(means[q][g] for g in range(count) if g != q) for q in range(count)],
        "mean, against other questions": [means[q][q] - fmean(means[p][q] for p in range(count) if p != q) for q in range(count)],
        "question without title": [fmean(v) for v in token_log_probabilities(lm, bare)],
        "after 'The answer is'": [fmean(v) for v in token_log_probabilities(lm, stem)],
        "inside the passage's sentence": [fmean(v) for v in token_log_probabilities(lm, sentence)],
    }


def after_stem(lm: LanguageModel, prompt: Prompt, stem: str, gold: str) -> Row:
    """The gold answer after the beginning of an answer; only the gold is labelled."""
    head = (*encode_prompt(lm, prompt), *lm.tokenizer(stem, add_special_tokens=False)["input_ids"])
    tail = tuple(lm.tokenizer(f" {gold}" if stem else gold, add_special_tokens=False)["input_ids"])
    return Row((*head, *tail), len(head))


def sentence_before(passage: Passage, gold: str) -> str:
    """What stands before the gold answer in the passage's first sentence that has it."""
    for sentence in passage_pieces(passage.text):
        at = sentence.lower().find(gold.lower())
        if at >= 0:
            return sentence[:at].strip()
    return ""


def settings_table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting's means over passages and its paired difference to the base."""
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        by_passage: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["setting"] == name:
                by_passage[row["passage"]].append(row)
        cells[name] = {p: {m: fmean(r.get(m, math.nan) for r in rs) for m in MEASURES} for p, rs in by_passage.items()}
    whole = sorted(set.intersection(*(set(cell) for cell in cells.values())))
    return [
        {
            "setting": name,
            "n": len(whole),
            **{m: asdict(mean_and_error([cells[name][p][m] for p in whole])) for m in MEASURES},
            "f1_difference": asdict(
                paired_difference([cells[name][p]["f1"] for p in whole], [cells["base"][p]["f1"] for p in whole])
            ),
        }
        for name in names
    ]


def ranking_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well each form agrees with the exam, over pairs of trials of one passage and over single questions.

    ``edits``: pairs of different self-edits under one setting; ``trials``: all pairs of trials of a passage. Each is the share
    of pairs with unequal F1 that the form puts in the same order. ``questions``: chance that a question answered right has a higher
    value than the same question in another trial where it was answered wrong.
    """
    table = []
    for form in rows[0]["forms"]:
        value = {row["lease"]: fmean(row["forms"][form]) for row in rows}
        agree: dict[str, list[float]] = {"edits": [], "trials": []}
        for a, b in itertools.combinations(rows, 2):
            if a["passage"] != b["passage"] or a["f1"] == b["f1"]:
                continue
            hit = float((value[a["lease"]] > value[b["lease"]]) == (a["f1"] > b["f1"]))
            agree["trials"].append(hit)
            if a["setting"] == b["setting"] and a["edit"] != b["edit"]:
                agree["edits"].append(hit)
        by_question: dict[tuple[str, int], list[tuple[bool, float]]] = defaultdict(list)
        for row in rows:
            for at, score in enumerate(row["forms"][form]):
                by_question[row["passage"], at].append((row["correct"][first_wording(row, at)], score))
        wins = []
        for pairs in by_question.values():
            right, wrong = [s for ok, s in pairs if ok], [s for ok, s in pairs if not ok]
            if right and wrong:
                wins.append(float(stats.mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong)))
        correlations = []
        for passage in {row["passage"] for row in rows}:
            own = [row for row in rows if row["passage"] == passage]
            if len({row["f1"] for row in own}) > 1:
                correlations.append(float(stats.spearmanr([value[r["lease"]] for r in own], [r["f1"] for r in own]).statistic))
        table.append(
            {
                "form": form,
                "edits": asdict(mean_and_error(agree["edits"])),
                "trials": asdict(mean_and_error(agree["trials"])),
                "questions": asdict(mean_and_error(wins)),
                "spearman": asdict(mean_and_error(correlations)),
            }
        )
    return table


def first_wording(row: dict[str, Any], question: int) -> int:
    """Index in the exam of a question's first wording: each question has as many wordings as the others."""
    return question * (len(row["correct"]) // len(row["forms"]["first token"]))


def main() -> None:
    """Runs what is missing, prints and writes both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", choices=sorted(SWEEPS), default="depth")
    parser.add_argument("--edits", required=True, help="folder of an eval run whose self-edits are used")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    config = SweepConfig(
        edits=arguments.edits, base=BASES[arguments.sweep], settings=SWEEPS[arguments.sweep], passages=PASSAGES[arguments.sweep]
    )
    run = Run(arguments.run, config, arguments.resume)
    passages = {passage.id: passage for passage in load_dataset("almanac", "dev")}
    written = [json.loads(line) for line in (Path(arguments.edits) / "trials.jsonl").read_text().split("\n") if line]
    done = {row["lease"] for row in run.rows}
    leases = []
    for entry in written[: config.passages]:
        texts = [trial["edit"] for trial in entry["trials"] if trial["method"] == "self"]
        for name, change in config.settings.items():
            if not {f"{entry['passage']} {index} {name}" for index in range(len(texts))} <= done:
                leases.append((passages[entry["passage"]], texts, name, config.base | change, config.seed))
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32")) as executor:
        for rows in executor.map(try_setting, leases):
            for row in rows:
                if row["lease"] not in done:
                    run.append(row)
                    console.print(f"{len(run.rows)} {row['lease']}: {row['accuracy']:.0%}, F1 {row['f1']:.2f}", highlight=False)
    result = {"settings": settings_table(list(config.settings), run.rows), "forms": ranking_table(run.rows)}
    write_json(run.folder / "table.json", result)
    for key in ("settings", "forms"):
        table = Table(*result[key][0].keys())
        for line in result[key]:
            table.add_row(
                *(f"{v['mean']:.3f} ± {v['se']:.3f} ({v['n']})" if isinstance(v, dict) else str(v) for v in line.values())
            )
        console.print(table)


if __name__ == "__main__":
    main()
