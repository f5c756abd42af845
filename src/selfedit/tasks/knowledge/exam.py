"""The exam of a passage: closed-book questions, answered greedily in one batch, and the gold answers' log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfedit import seeds
from selfedit.contexts import Passage, Question
from selfedit.lm.load import LanguageModel
from selfedit.tasks.base import Asked, Item, Sitting, sit_items
from selfedit.tasks.knowledge.prompts import exam_prompt

ExamForm = Literal["titled", "bare", "context"]
LONGEST_ANSWER = 32
# A margin holds a gold against so many others at most, drawn by a hash: else a long quiz would cost its square.
MOST_OTHER_GOLDS = 8


def exam_questions(questions: Sequence[Question], groups: Sequence[int] | None = None) -> list[Asked]:
    """All wordings of the chosen questions (all by default)."""
    asked = []
    for group in range(len(questions)) if groups is None else groups:
        question = questions[group]
        asked.append(Asked(question, group, paraphrase=False))
        asked += [Asked(replace(question, question=text), group, paraphrase=True) for text in question.paraphrases]
    return asked


def asked_in(form: ExamForm, asked: Sequence[Asked]) -> tuple[Asked, ...]:
    """What is asked in a form: every wording, but without title only the first one."""
    return tuple(one for one in asked if form != "bare" or not one.paraphrase)


@dataclass(frozen=True, slots=True)
class Paper:
    """One exam to be sat.

    Attributes:
        passage: whose exam it is.
        asked: the questions.
        form: ``titled`` puts the title before the question, as in the paper; ``bare`` asks the question alone, as ``ask``
            does; ``context`` also gives the passage.
        slot: whose adapter (``lm/stack.py``) answers; without slots what is installed answers.
        margins: whether the other questions' golds are weighed too.
        beside: questions of the same exam whose golds are among those others, and that are not asked here.
    """

    passage: Passage
    asked: tuple[Asked, ...]
    form: ExamForm
    slot: int = 0
    margins: bool = False
    beside: tuple[Asked, ...] = ()


def asked_about(papers: Sequence[Paper]) -> tuple[Asked, ...]:
    """The questions of several papers as one exam, each a group of its own."""
    return tuple(replace(one, group=group) for group, one in enumerate(one for paper in papers for one in paper.asked))


def sit_exams(lm: LanguageModel, papers: Sequence[Paper], first: int = 0) -> list[Sitting]:
    """Answers the questions of every paper in one batch (paper section 4.1: greedy, without the passage).

    Departure from the paper: an answer ends after 32 tokens, there after 64; a longer one is no short answer.

    Args:
        papers: in rising order of their slots.
        first: the lowest layer at which slots differ.
    """
    questions = [(paper, one) for paper in papers for one in asked_in(paper.form, paper.asked)]
    prompts = [
        exam_prompt(
            one.question.question,
            paper.passage.title if paper.form == "titled" else None,
            lm.chat,
            paper.passage.view if paper.form == "context" else None,
        )
        for paper, one in questions
    ]
    items = [
        Item(prompt, one.question.answer, _other_golds(paper, one), paper.slot)
        for prompt, (paper, one) in zip(prompts, questions, strict=True)
    ]
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    found = iter(sit_items(lm, items, first, LONGEST_ANSWER, stop))
    sittings = []
    for paper in papers:
        own = [next(found) for _ in asked_in(paper.form, paper.asked)]
        answers = tuple(answer if lm.chat else answer.split("\n")[0].strip() for answer, _, _ in own)
        margins = tuple(margin for _, _, margin in own) if paper.margins else ()
        sittings.append(Sitting(answers, tuple(likelihood for _, likelihood, _ in own), margins))
    return sittings


def _other_golds(paper: Paper, one: Asked) -> tuple[str, ...]:
    """For margins: the other questions' different golds."""
    if not paper.margins:
        return ()
    others = {other.question.answer for other in (*paper.asked, *paper.beside) if other.group != one.group} - {one.question.answer}
    return tuple(sorted(others, key=lambda gold: seeds.derive(one.question.question, gold))[:MOST_OTHER_GOLDS])
