"""A gate before the commit: earlier answers must stay inside budgets, else the update is scaled down, else rejected (STABLE).

Departures from STABLE: (1) only B is scaled, so the update shrinks by s, there by s squared. (2) The divergence is KL(old || new)
at each token of the standing model's own greedy answers, over its 50 likeliest tokens and all others as one, where STABLE
estimates it by the new answers' log-probabilities: so it can't fall below 0, and gains at one anchor pay for no loss at another.
(3) Anchors are drawn from the earlier lessons' quizzes, of which a gate sees one half, and from general questions. (4) An adapter
that consolidates (``consolidate.py``) is held to the same budgets against all that it would replace; it is never scaled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from selfedit.contexts import Question
from selfedit.edits import Prompt
from selfedit.graders.text import RECALL_THRESHOLD, recall_score
from selfedit.keepers.base import Cost, Held, Keeper
from selfedit.lm.adapter import Adapter, install, standing
from selfedit.lm.batch import Row, encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import Likeliest, divergences, likeliest, token_log_probabilities
from selfedit.tasks.knowledge.exam import LONGEST_ANSWER
from selfedit.tasks.knowledge.prompts import exam_prompt

# In all, and general ones among them.
MOST_ANCHORS, GENERAL_ANCHORS = 64, 16
SMALLEST, BISECTIONS = 0.1, 5
# Anchors of no passage; none of them is asked by ``selfedit eval general``.
GENERAL = (
    ("What do plants need to grow?", "water and light"),
    ("Where do whales live?", "in the sea"),
    ("What is a kitchen for?", "cooking"),
    ("Which metal rusts?", "iron"),
    ("What do you call frozen rain?", "snow"),
    ("What is the colour of coal?", "black"),
    ("How many wheels does a car have?", "four"),
    ("What do carpenters work with?", "wood"),
    ("What is the capital of Denmark?", "Copenhagen"),
    ("Which animal gives wool?", "sheep"),
    ("What do pupils go to?", "school"),
    ("What is used to write on a blackboard?", "chalk"),
    ("Which fruit is cider made from?", "apples"),
    ("What do you wear on your feet?", "shoes"),
    ("What is the name of the star nearest to us?", "the Sun"),
    ("What do firefighters put out?", "fires"),
)


@dataclass(frozen=True)
class Anchor:
    """A question with the standing model's answer, and how likely it finds the gold and the answer's tokens."""

    prompt: Prompt
    question: Question
    gold: Row
    gold_values: list[float]
    answer: Row
    spoken: Likeliest
    right: bool


@dataclass(frozen=True)
class Gate(Keeper):
    """Budgets, over the anchors.

    Attributes:
        exam_drop: share of them right before and wrong after.
        bits: mean over all golds' tokens of the fall of the log2-probability, where it falls.
        divergence: mean over all old answers' tokens of the KL divergence, in bits.
    """

    exam_drop: float
    bits: float
    divergence: float
    asks: ClassVar[bool] = True

    def admit(self, lm: LanguageModel, held: Held, adapter: Adapter, seed: int, cost: Cost) -> Adapter | None:
        """The adapter with B scaled by the largest of the bisected factors that stays inside all budgets."""
        anchors = anchors_of(lm, held, seed)
        moved = measured(lm, anchors, adapter)
        cost.notes |= {"anchors lost": moved.drop, "bits": moved.bits, "divergence": moved.divergence}
        low, high = (1.0, 1.0) if self.allows(moved) else (0.0, 1.0)
        for step in range(BISECTIONS if not low else 0):
            middle = (low + high) / 2 if step else SMALLEST
            if self.within(lm, anchors, scaled(adapter, middle)):
                low = middle
            else:
                high = middle
            if not low:
                break
        cost.notes["scale"] = low
        if not low:
            cost.reason = f"over the gate's budgets even at {SMALLEST} of its size"
            return None
        return adapter if low == 1 else scaled(adapter, low)

    def replaces(self, lm: LanguageModel, held: Held, adapter: Adapter, seed: int) -> bool:
        """Whether the adapter alone keeps the budgets against all that are held."""
        with standing(lm, held.adapters):
            anchors = anchors_of(lm, held, seed)
        return self.within(lm, anchors, adapter)

    def within(self, lm: LanguageModel, anchors: list[Anchor], adapter: Adapter) -> bool:
        """Whether the adapter, on top of what stands, keeps the budgets."""
        return self.allows(measured(lm, anchors, adapter))

    def allows(self, moved: Moved) -> bool:
        """Whether all three are inside the budgets."""
        return moved.drop <= self.exam_drop and moved.bits <= self.bits and moved.divergence <= self.divergence


@dataclass(frozen=True)
class Moved:
    """What an adapter does to the anchors, in the terms of a gate's budgets."""

    drop: float
    bits: float
    divergence: float


def measured(lm: LanguageModel, anchors: list[Anchor], adapter: Adapter) -> Moved:
    """What an adapter, on top of what stands, does to the anchors."""
    with active(lm, adapter):
        answers = answered(lm, [anchor.prompt for anchor in anchors])
        golds = token_log_probabilities(lm, [anchor.gold for anchor in anchors])
        moved = divergences(lm, [anchor.answer for anchor in anchors], [anchor.spoken for anchor in anchors])
    drop = fmean(
        float(anchor.right and not is_right(answer, anchor.question)) for anchor, answer in zip(anchors, answers, strict=True)
    )
    lost = [
        max(0.0, before - after) / math.log(2)
        for anchor, values in zip(anchors, golds, strict=True)
        for before, after in zip(anchor.gold_values, values, strict=True)
    ]
    return Moved(drop, fmean(lost), fmean(value / math.log(2) for values in moved for value in values))


def anchors_of(lm: LanguageModel, held: Held, seed: int) -> list[Anchor]:
    """Questions drawn evenly over all earlier lessons, and general ones, as the model that stands answers them."""
    chance = random.Random(seed)
    piles = [[(lesson.passage.title, one) for one in chance.sample(lesson.quiz, len(lesson.quiz))] for lesson in held.lessons]
    asked: list[tuple[str | None, Question]] = []
    while any(piles) and len(asked) < MOST_ANCHORS - GENERAL_ANCHORS:
        for pile in chance.sample(piles, len(piles)):
            if pile and len(asked) < MOST_ANCHORS - GENERAL_ANCHORS:
                asked.append(pile.pop())
    asked += [(None, Question(question, gold)) for question, gold in GENERAL[:GENERAL_ANCHORS]]
    prompts = [exam_prompt(one.question, title, lm.chat) for title, one in asked]
    answers = answered(lm, prompts)
    golds = [encode_answer(lm, prompt, one.answer) for prompt, (_, one) in zip(prompts, asked, strict=True)]
    spoken = [encode_answer(lm, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    values, before = token_log_probabilities(lm, golds), likeliest(lm, spoken)
    return [
        Anchor(prompt, one, gold, own, row, words, is_right(answer, one))
        for prompt, (_, one), gold, own, row, words, answer in zip(
            prompts, asked, golds, values, spoken, before, answers, strict=True
        )
    ]


def answered(lm: LanguageModel, prompts: list[Prompt]) -> list[str]:
    """Greedy answers, as an exam takes them: of a base model the first line."""
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    texts = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST_ANSWER, stop=stop)
    return texts if lm.chat else [text.split("\n")[0].strip() for text in texts]


def is_right(answer: str, question: Question) -> bool:
    """By token recall, answer by answer."""
    return max(recall_score(answer, gold) for gold in question.golds) >= RECALL_THRESHOLD


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The same update, so many times."""
    return replace(adapter, weights={name: (down, up * factor) for name, (down, up) in adapter.weights.items()})


@contextmanager
def active(lm: LanguageModel, adapter: Adapter) -> Iterator[None]:
    """An adapter on top of what stands, for a while."""
    install(lm, adapter)
    try:
        yield
    finally:
        install(lm, None)
