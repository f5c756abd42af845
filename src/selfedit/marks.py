"""From answers to marks: a sitting graded, summed up, and the choosing and reporting halves of a quiz."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from selfedit import seeds
from selfedit.contexts import Question
from selfedit.errors import DataError
from selfedit.graders import ExamItem, Grader, Verdict
from selfedit.graders.text import f1_score
from selfedit.tasks.base import Asked, Sitting


@dataclass(frozen=True, slots=True)
class Marks:
    """A graded sitting.

    Attributes:
        verdicts: one for each wording asked.
        accuracy: share of the wordings answered correctly.
        f1: mean token F1.
        f1s: each wording's.
        log_probability: mean over the wordings of the gold answer's mean token log-probability.
        log_probabilities: each wording's.
        probability: mean over the wordings of the gold's probability, the geometric mean over its tokens.
        margin: mean over the wordings of the margin (``Sitting.margins``); nan where it was not asked for.
        by_fact: question group -> share of its wordings answered correctly.
        margin_by_fact: question group -> mean margin over its wordings.
    """

    verdicts: tuple[Verdict, ...]
    accuracy: float
    f1: float
    f1s: tuple[float, ...]
    log_probability: float
    log_probabilities: tuple[float, ...]
    probability: float
    margin: float
    by_fact: dict[int, float]
    margin_by_fact: dict[int, float]

    def likelier(self, before: Marks) -> list[float]:
        """Of each wording how much the gold's probability rose."""
        pairs = zip(self.log_probabilities, before.log_probabilities, strict=True)
        return [math.exp(now) - math.exp(then) for now, then in pairs]


def mark_sitting(grader: Grader, asked: Sequence[Asked], sitting: Sitting) -> Marks:
    """Grades a whole sitting at once."""
    verdicts = grader.mark([ExamItem(one.question, answer, one.group) for one, answer in zip(asked, sitting.answers, strict=True)])
    correct: dict[int, list[float]] = defaultdict(list)
    margins: dict[int, list[float]] = defaultdict(list)
    for one, verdict, margin in zip(asked, verdicts, sitting.margins or [math.nan] * len(asked), strict=True):
        correct[one.group].append(float(verdict.correct))
        margins[one.group].append(margin)
    f1s = [max(f1_score(answer, gold) for gold in one.question.golds) for one, answer in zip(asked, sitting.answers, strict=True)]
    return Marks(
        verdicts=tuple(verdicts),
        accuracy=fmean(float(verdict.correct) for verdict in verdicts),
        f1=fmean(f1s),
        f1s=tuple(f1s),
        log_probability=fmean(sitting.log_probabilities),
        log_probabilities=sitting.log_probabilities,
        probability=fmean(map(math.exp, sitting.log_probabilities)),
        margin=fmean(sitting.margins) if sitting.margins else math.nan,
        by_fact={group: fmean(values) for group, values in correct.items()},
        margin_by_fact={group: fmean(values) for group, values in margins.items()},
    )


def mean_marks(marks: Sequence[Marks]) -> Marks:
    """The mean over repeats of the same exam; verdicts are those of the first, F1s too."""
    return Marks(
        verdicts=marks[0].verdicts,
        accuracy=fmean(m.accuracy for m in marks),
        f1=fmean(m.f1 for m in marks),
        f1s=marks[0].f1s,
        log_probability=fmean(m.log_probability for m in marks),
        log_probabilities=tuple(fmean(values) for values in zip(*(m.log_probabilities for m in marks), strict=True)),
        probability=fmean(m.probability for m in marks),
        margin=fmean(m.margin for m in marks),
        by_fact={group: fmean(m.by_fact[group] for m in marks) for group in marks[0].by_fact},
        margin_by_fact={group: fmean(m.margin_by_fact[group] for m in marks) for group in marks[0].margin_by_fact},
    )


def split_quiz(questions: Sequence[Question], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the questions that choose and of those that report; a question and its paraphrases stay together.

    Raises:
        DataError: fewer than two questions, or the same question twice.
    """
    if len(questions) < 2:
        raise DataError(f"the quiz has {len(questions)} question(s); give at least 2, since one part chooses and the rest reports")
    seen: dict[str, int] = {}
    for number, question in enumerate(questions, start=1):
        for text in {" ".join(wording.casefold().split()).rstrip(" ?.!") for wording in (question.question, *question.paraphrases)}:
            if text in seen:
                raise DataError(
                    f"the quiz asks {question.question!r} twice (questions {seen[text]} and {number}); one might choose and the "
                    "other report. Take one out, or make it a paraphrase of the other"
                )
            seen[text] = number
    order = list(range(len(questions)))
    random.Random(seeds.derive(seed, "quiz")).shuffle(order)
    choosing = min(len(order) - 1, max(1, round(share * len(order))))
    return sorted(order[:choosing]), sorted(order[choosing:])
