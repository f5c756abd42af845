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
# Where seconds count, of so many questions one is asked.
SAMPLED = 3


@dataclass(frozen=True, slots=True)
class General:
    """What a model says of the general questions and texts.

    Attributes:
        answers: to the questions, then the sentences' ends.
        log_probabilities: mean of each gold's tokens, in the same order; the end of the turn is none of them, since a model that
            learns short answers learns to end them too.
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


def sit_general(lm: LanguageModel) -> General:
    """Answers and log-probabilities under whatever is installed, in a few batches."""
    data = load_general()
    found = general_items(lm, range(len(general_questions())))
    text = spoken(lm, range(len(data["texts"])))
    return General(tuple(answer for answer, _ in found), tuple(value for _, value in found), tuple(text))


def sampled() -> range:
    """Places of those of the ``general_questions`` that are asked where seconds count."""
    return range(0, len(general_questions()), SAMPLED)


def sample(items: Sequence[tuple[str, float]], text: Sequence[Sequence[float]]) -> dict[str, float]:
    """``{n, right, text}`` of the ``sampled`` questions' items and the texts' tokens.

    How many questions, the share right, the mean natural log-probability of a text's token.
    """
    right = _right([answer for answer, _ in items], sampled())
    return {"n": len(items), "right": fmean(right), "text": fmean(value for values in text for value in values)}


def general_items(lm: LanguageModel, places: Sequence[int]) -> list[tuple[str, float]]:
    """Answer and mean log-probability of the gold's tokens for those of the ``general_questions``."""
    data = load_general()
    count = len(data["questions"])
    order = sorted(places, key=lambda at: at >= count)
    asked = [data["questions"][at] for at in order if at < count]
    begun = [data["completions"][at - count] for at in order if at >= count]
    prompts = [encode_prompt(lm, exam_prompt(item["question"], None, lm.chat)) for item in asked]
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    ended = [encode_prompt(lm, (Message("text", item["begins"]),)) for item in begun]
    answers = generate(lm, prompts, LONGEST_ANSWER, stop=stop) + generate(lm, ended, LONGEST_END)
    closed = [encode_answer(lm, exam_prompt(item["question"], None, lm.chat), item["answer"]) for item in asked]
    golds = [Row(row.ids[:-1], row.unlabelled) for row in closed] + [_completed(lm, item) for item in begun]
    found = dict(zip(order, zip(answers, log_probabilities(lm, golds), strict=True), strict=True))
    return [found[at] for at in places]


def spoken(lm: LanguageModel, places: Sequence[int]) -> list[tuple[float, ...]]:
    """Natural log-probability of each token of those plain texts."""
    texts = load_general()["texts"]
    rows = [Row(tuple(lm.tokenizer(texts[at])["input_ids"]), 0) for at in places]
    return [tuple(values) for values in token_log_probabilities(lm, rows)]


def changed(now: General, before: General) -> dict[str, float]:
    """``{general, general_share, general_right, text, text_share}``: what became of a model's general knowledge.

    The golds' mean log-probability in nats and as a share of what it was; the share right; the plain texts' log-probability a
    token in nats, and as a share. A model that learnt short answers finds short golds likelier whatever it forgot, so the
    latter three say more.
    """
    gold, gold_before = (fmean(one.log_probabilities) for one in (now, before))
    said, said_before = (fmean(value for values in one.text for value in values) for one in (now, before))
    return {
        "general": gold - gold_before,
        "general_share": (gold - gold_before) / abs(gold_before),
        "general_right": fmean(right(now)) - fmean(right(before)),
        "text": said - said_before,
        "text_share": (said - said_before) / abs(said_before),
    }


def by_item(sat: General) -> dict[str, list[float]]:
    """``{right, logprob, text}``: of each question 1 or 0, and its gold's log-probability; of each plain text a token's mean."""
    return {"right": right(sat), "logprob": list(sat.log_probabilities), "text": [fmean(values) for values in sat.text]}


def right(sat: General) -> list[float]:
    """1 for each answer that is right, else 0."""
    return _right(sat.answers, range(len(sat.answers)))


def _right(answers: Sequence[str], places: Sequence[int]) -> list[float]:
    data = load_general()
    golds = [item["answer"] for item in (*data["questions"], *data["completions"])]
    pairs = enumerate(zip(places, answers, strict=True))
    exam = [ExamItem(Question("", golds[at]), answer, index) for index, (at, answer) in pairs]
    return [float(verdict.correct) for verdict in RecallGrader().mark(exam)]


def marked(sat: General) -> dict[str, Any]:
    """``{n, right, logprob, perplexity}``: share of golds in the answers, golds' mean log-probability, perplexity of the texts.

    Means with standard errors over items; the perplexity's is over texts, of its logarithm.
    """
    losses = mean_and_error([-fmean(values) for values in sat.text])
    every = [value for values in sat.text for value in values]
    return {
        "n": len(sat.answers),
        "right": mean_and_error(right(sat)),
        "logprob": mean_and_error(sat.log_probabilities),
        "perplexity": math.exp(-fmean(every)),
        "loss": losses,
    }


def _completed(lm: LanguageModel, item: dict[str, str]) -> Row:
    head = encode_prompt(lm, (Message("text", item["begins"]),))
    return Row((*head, *lm.tokenizer(f" {item['answer']}", add_special_tokens=False)["input_ids"]), len(head))
