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


def sit_exam(lm: LanguageModel, passage: Passage, asked: Sequence[Asked], form: ExamForm) -> Sitting:
    """Answers the questions of a form (``asked_in``) under what is installed now (paper section 4.1: greedy, without the passage).

    Args:
        form: ``titled`` puts the title before the question, as in the paper; ``bare`` asks the question alone, as ``ask``
            does; ``context`` also gives the passage.
    """
    asked = asked_in(form, asked)
    prompts = [
        exam_prompt(
            one.question.question,
            passage.title if form == "titled" else None,
            lm.chat,
            f"{passage.title}\n{passage.text}" if form == "context" else None,
        )
        for one in asked
    ]
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    texts = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST_ANSWER, stop=stop)
    answers = tuple(text if lm.chat else text.split("\n")[0].strip() for text in texts)
    rows = [encode_answer(lm, prompt, one.question.answer) for prompt, one in zip(prompts, asked, strict=True)]
    return Sitting(answers, tuple(log_probabilities(lm, rows)))
