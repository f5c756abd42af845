"""General knowledge: questions, sentences to complete, plain text, all written for this package; did learning break anything?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from typing import Any

from selfedit.contexts import Question
from selfedit.edits import Message
from selfedit.graders import ExamItem
from selfedit.graders.text import RecallGrader
from selfedit.lm.batch import Row, encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities, token_log_probabilities
from selfedit.stats import mean_and_error
from selfedit.tasks.knowledge.prompts import exam_prompt

# Tokens of an answer and of a sentence's end.
LONGEST_ANSWER, LONGEST_END = 24, 6


@dataclass(frozen=True, slots=True)
class General:
    """What a model says of the general questions and texts.

    Attributes:
        answers: to the questions, then the sentences' ends.
        log_probabilities: mean of each gold's tokens, in the same order.
        text: natural log-probability of each token of the plain texts, text by text.
    """

    answers: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    text: tuple[tuple[float, ...], ...]


def load_general() -> dict[str, list[Any]]:
    """``{questions: [{question, answer}], completions: [{begins, answer}], texts: [str]}``."""
    return dict(json.loads(files(__name__).joinpath("data.json").read_text(encoding="utf-8")))


def general_questions() -> list[str]:
    """What is asked: the questions, then the sentences' beginnings."""
    data = load_general()
    return [item["question"] for item in data["questions"]] + [item["begins"] for item in data["completions"]]


def general_golds(lm: LanguageModel, places: Sequence[int] | None = None) -> list[float]:
    """Mean natural log-probability of each gold's tokens, under whatever is installed.

    Args:
        lm: the model.
        places: of which of the ``general_questions``; None: of all.
    """
    data = load_general()
    rows = [encode_answer(lm, exam_prompt(item["question"], None, lm.chat), item["answer"]) for item in data["questions"]]
    rows += [_completed(lm, item) for item in data["completions"]]
    return log_probabilities(lm, rows if places is None else [rows[at] for at in places])


def sit_general(lm: LanguageModel) -> General:
    """Answers and log-probabilities under whatever is installed, in a few batches."""
    data = load_general()
    asked = [exam_prompt(item["question"], None, lm.chat) for item in data["questions"]]
    begun = [(Message("text", item["begins"]),) for item in data["completions"]]
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    answers = generate(lm, [encode_prompt(lm, prompt) for prompt in asked], LONGEST_ANSWER, stop=stop)
    answers += generate(lm, [encode_prompt(lm, prompt) for prompt in begun], LONGEST_END)
    texts = [Row(tuple(lm.tokenizer(text)["input_ids"]), 0) for text in data["texts"]]
    spoken = token_log_probabilities(lm, texts)
    return General(tuple(answers), tuple(general_golds(lm)), tuple(tuple(values) for values in spoken))


def marked(sat: General) -> dict[str, Any]:
    """``{n, right, logprob, perplexity}``: share of golds in the answers, golds' mean log-probability, perplexity of the texts.

    Means with standard errors over items; the perplexity's is over texts, of its logarithm.
    """
    data = load_general()
    golds = [item["answer"] for item in (*data["questions"], *data["completions"])]
    exam = [ExamItem(Question("", gold), answer, at) for at, (gold, answer) in enumerate(zip(golds, sat.answers, strict=True))]
    right = [float(verdict.correct) for verdict in RecallGrader().mark(exam)]
    losses = mean_and_error([-fmean(values) for values in sat.text])
    every = [value for values in sat.text for value in values]
    return {
        "n": len(golds),
        "right": mean_and_error(right),
        "logprob": mean_and_error(sat.log_probabilities),
        "perplexity": math.exp(-fmean(every)),
        "loss": losses,
    }


def _completed(lm: LanguageModel, item: dict[str, str]) -> Row:
    head = encode_prompt(lm, (Message("text", item["begins"]),))
    return Row((*head, *lm.tokenizer(f" {item['answer']}", add_special_tokens=False)["input_ids"]), len(head))
