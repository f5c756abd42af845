"""The exam of a passage: closed-book questions, answered greedily in one batch, and the gold answers' log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfedit.contexts import Passage, Question
from selfedit.lm.batch import encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.tasks.knowledge.prompts import exam_prompt

ExamForm = Literal["titled", "bare", "context"]
LONGEST_ANSWER = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """One wording of a question; ``group`` is shared by a question and its paraphrases, ``paraphrase`` marks the latter."""

    question: Question
    group: int
    paraphrase: bool


@dataclass(frozen=True, slots=True)
class Sitting:
    """An exam's answers and, for each question, the mean natural log-probability of a gold answer's token."""

    answers: tuple[str, ...]
    log_probabilities: tuple[float, ...]


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
    """

    passage: Passage
    asked: tuple[Asked, ...]
    form: ExamForm
    slot: int = 0


def sit_exams(lm: LanguageModel, papers: Sequence[Paper], first: int = 0) -> list[Sitting]:
    """Answers the questions of every paper in one batch (paper section 4.1: greedy, without the passage).

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
    texts = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST_ANSWER, stop=stop, slots=slots)
    answers = [text if lm.chat else text.split("\n")[0].strip() for text in texts]
    rows = [encode_answer(lm, prompt, one.question.answer) for prompt, (_, one) in zip(prompts, questions, strict=True)]
    likelihoods = log_probabilities(lm, rows, slots, first)
    sittings = []
    at = 0
    for paper in papers:
        end = at + len(asked_in(paper.form, paper.asked))
        sittings.append(Sitting(tuple(answers[at:end]), tuple(likelihoods[at:end])))
        at = end
    return sittings
