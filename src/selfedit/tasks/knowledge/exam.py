"""The exam of a passage: closed-book questions, answered greedily in one batch, and the gold answers' log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from selfedit import seeds
from selfedit.contexts import Passage, Question
from selfedit.lm.batch import encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.tasks.knowledge.prompts import exam_prompt

ExamForm = Literal["titled", "bare", "context"]
LONGEST_ANSWER = 32
# A margin holds a gold against so many others at most, drawn by a hash: else a long quiz would cost its square.
MOST_OTHER_GOLDS = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One wording of a question; ``group`` is shared by a question and its paraphrases, ``paraphrase`` marks the latter."""

    question: Question
    group: int
    paraphrase: bool


@dataclass(frozen=True, slots=True)
class Sitting:
    """What an exam brought, one entry for each wording asked.

    Attributes:
        answers: what the model said.
        log_probabilities: the mean natural log-probability of the gold answer's tokens and the end of the turn.
        margins: the same minus its mean over the other questions' gold answers in the gold's place; empty if not asked for. A
            model that learnt to answer at all makes every gold likelier; the margin says whether it tells them apart. Of the
            forms tried on dev it ranks self-edits most as the exam does (docs/lab-book.md).
    """

    answers: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    margins: tuple[float, ...] = ()


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
    """

    passage: Passage
    asked: tuple[Asked, ...]
    form: ExamForm
    slot: int = 0
    margins: bool = False


def sit_exams(lm: LanguageModel, papers: Sequence[Paper], first: int = 0) -> list[Sitting]:
    """Answers the questions of every paper in one batch (paper section 4.1: greedy, without the passage).

    Departure from the paper: an answer ends after 32 tokens, there after 64; a longer one is no short answer.

    Args:
        papers: in rising order of their slots.
        first: the lowest layer at which slots differ.
    """
    questions = [(paper, one) for paper in papers for one in asked_in(paper.form, paper.asked)]
    slots = [paper.slot for paper, _ in questions]
    prompts = [
        exam_prompt(
            one.question.question,
            paper.passage.title if paper.form == "titled" else None,
            lm.chat,
            f"{paper.passage.title}\n{paper.passage.text}" if paper.form == "context" else None,
        )
        for paper, one in questions
    ]
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    texts = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST_ANSWER, stop=stop, slots=slots, first=first)
    answers = [text if lm.chat else text.split("\n")[0].strip() for text in texts]
    golds = [_golds(paper, one) for paper, one in questions]
    rows = [encode_answer(lm, prompt, gold) for prompt, texts in zip(prompts, golds, strict=True) for gold in texts]
    owners = [slot for slot, texts in zip(slots, golds, strict=True) for _ in texts]
    likelihoods = iter(log_probabilities(lm, rows, owners, first))
    weighed = iter([[next(likelihoods) for _ in texts] for texts in golds])
    said = iter(answers)
    sittings = []
    for paper in papers:
        asked = asked_in(paper.form, paper.asked)
        values = [next(weighed) for _ in asked]
        margins = tuple(own - fmean(others) if others else own for own, *others in values) if paper.margins else ()
        sittings.append(Sitting(tuple(next(said) for _ in asked), tuple(own for own, *_ in values), margins))
    return sittings


def _golds(paper: Paper, one: Asked) -> list[str]:
    """The gold answer, then (for margins) the other questions' different golds."""
    own = one.question.answer
    others = dict.fromkeys(other.question.answer for other in paper.asked if other.group != one.group) if paper.margins else {}
    drawn = sorted((gold for gold in others if gold != own), key=lambda gold: seeds.derive(one.question.question, gold))
    return [own, *drawn[:MOST_OTHER_GOLDS]]
