"""Whose adapter answers: how often a bank's likeness finds a question's passage, and what comes to an adapter that shouldn't.

    .venv/bin/python benchmarks/routing.py --squad squad_dev.json [--split dev] [--passages 36]

Passages of almanac and of the SQuAD file in turn, three questions of each. ``right``: share of the questions whose own passage is
the most like of so many held; by threshold: ``own`` questions that reach it, and ``others`` (about passages that aren't held),
``general`` questions and texts of ``selfedit eval general`` that do though they shouldn't. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console

from selfedit.contexts import Passage
from selfedit.keepers.routes import embedded, likenesses, neutral_texts, query_of
from selfedit.lm.load import load_model
from selfedit.tasks.general import general_questions, load_general
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.exam import Asked, ExamForm

QUESTIONS = 3
HELD = (2, 6, 12, 36)
THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5)
FORMS: tuple[ExamForm, ...] = ("titled", "bare")


def main() -> None:
    """Prints the rows, and writes them with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", required=True, help="flat data set with SQuAD passages")
    parser.add_argument("--split", default="dev", help="of almanac")
    parser.add_argument("--passages", type=int, default=36)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_model("builtin:smollm2-135m", "cpu", "float32")
    both = zip_longest(load_dataset("almanac", arguments.split), load_dataset(arguments.squad))
    passages = [one for one in chain.from_iterable(both) if one is not None and one.questions][: arguments.passages]
    owners = [at for at, passage in enumerate(passages) for _ in passage.questions[:QUESTIONS]]
    keys, neutral_Nd = embedded(lm, [passage.view for passage in passages]), torch.cat(embedded(lm, neutral_texts()))

    def like(queries: Sequence[str]) -> list[list[float]]:
        return likenesses(embedded(lm, queries), keys, neutral_Nd).tolist()

    asked = [Asked(question, 0, paraphrase=False) for passage in passages for question in passage.questions[:QUESTIONS]]
    found = {form: like([query_of(passages[at], one, form) for at, one in zip(owners, asked, strict=True)]) for form in FORMS}
    others = {"general": like(general_questions()), "texts": like(load_general()["texts"])}
    rows = [row for held in HELD if held <= len(passages) for row in rows_of(passages, held, owners, found, others)]
    for row in rows:
        Console().print(row, highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"split": arguments.split, "passages": len(passages), "rows": rows}, indent=1) + "\n")


def rows_of(
    passages: Sequence[Passage],
    held: int,
    owners: Sequence[int],
    found: dict[ExamForm, list[list[float]]],
    others: dict[str, list[list[float]]],
) -> list[dict[str, object]]:
    """The passages dealt into banks of so many, what is left over left out; means over all banks."""
    banks = [range(at, at + held) for at in range(0, len(passages) - held + 1, held)]
    rows: list[dict[str, object]] = [{"held": held, "banks": len(banks)}]
    for form, of in found.items():
        own = [(row[at], max(row[one] for one in bank)) for bank in banks for at, row in zip(owners, of, strict=True) if at in bank]
        rows[0][f"right {form}"] = round(fmean(mine >= best for mine, best in own), 3)
    for threshold in THRESHOLDS:
        row: dict[str, object] = {"held": held, "threshold": threshold}
        for form, of in found.items():
            best = [(at in bank, max(one[place] for place in bank)) for bank in banks for at, one in zip(owners, of, strict=True)]
            for name, wanted in (("own", True), ("others", False)):
                shares = [value >= threshold for own, value in best if own is wanted]
                row[f"{name} {form}"] = round(fmean(shares), 3) if shares else None
        for name, of in others.items():
            row[name] = round(fmean(max(one[place] for place in bank) >= threshold for bank in banks for one in of), 3)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
