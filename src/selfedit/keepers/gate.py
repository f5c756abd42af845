"""A gate before the commit: earlier answers must stay inside budgets, else the update is scaled down, else rejected (STABLE).

Departures from STABLE: (1) only B is scaled, so the update shrinks by s, there by s squared; (2) the divergence is estimated on
the committed model's own greedy answers; (3) anchors are the earlier passages' questions and general ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

from selfedit.edits import Prompt
from selfedit.graders.text import recall_score
from selfedit.keepers.base import Cost, Held, Keeper
from selfedit.lm.adapter import Adapter, install
from selfedit.lm.batch import encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import token_log_probabilities
from selfedit.tasks.knowledge.exam import LONGEST_ANSWER
from selfedit.tasks.knowledge.prompts import exam_prompt

MOST_ANCHORS, GENERAL_ANCHORS = 32, 16
SMALLEST, BISECTIONS = 0.1, 5
RIGHT = 0.5
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
    """A question with its gold, the committed model's answer, and how likely it finds both, token by token."""

    prompt: Prompt
    gold: str
    answer: str
    gold_values: tuple[float, ...]
    answer_values: tuple[float, ...]
    right: bool


@dataclass(frozen=True)
class Gate(Keeper):
    """Budgets, each a mean over the anchors.

    Attributes:
        exam_drop: share of them right before and wrong after.
        bits: loss of the golds' log2-probability a token, where there is a loss.
        divergence: fall of the log2-probability of the old answers' tokens (an estimate of the KL divergence).
    """

    exam_drop: float
    bits: float
    divergence: float

    def admit(self, lm: LanguageModel, held: Held, adapter: Adapter, cost: Cost) -> Adapter | None:
        """The adapter with B scaled by the largest of the bisected factors that stays inside all budgets."""
        anchors = anchors_of(lm, held)
        if self.within(lm, anchors, adapter):
            cost.notes["scale"] = 1.0
            return adapter
        low, high = 0.0, 1.0
        for step in range(BISECTIONS):
            middle = SMALLEST if not step else (low + high) / 2
            if self.within(lm, anchors, scaled(adapter, middle)):
                low = middle
            else:
                high = middle
            if not low:
                break
        cost.notes["scale"] = low
        return scaled(adapter, low) if low else None

    def within(self, lm: LanguageModel, anchors: list[Anchor], adapter: Adapter) -> bool:
        """Whether the adapter, on top of what stands, keeps the budgets."""
        with active(lm, adapter):
            after = sat(lm, [(anchor.prompt, anchor.gold, anchor.answer) for anchor in anchors])
        drop = fmean(float(before.right and not now.right) for before, now in zip(anchors, after, strict=True))
        lost = [max(0.0, fmean(b.gold_values) - fmean(a.gold_values)) / math.log(2) for b, a in zip(anchors, after, strict=True)]
        moved = [(fmean(b.answer_values) - fmean(a.answer_values)) / math.log(2) for b, a in zip(anchors, after, strict=True)]
        return drop <= self.exam_drop and fmean(lost) <= self.bits and fmean(moved) <= self.divergence


def anchors_of(lm: LanguageModel, held: Held) -> list[Anchor]:
    """The latest lessons' questions in turn, and general ones, as the model that stands answers them."""
    asked: list[tuple[Prompt, str]] = []
    questions = [[(lesson.passage, one) for one in lesson.passage.questions] for lesson in reversed(held.lessons)]
    for at in range(max((len(own) for own in questions), default=0)):
        for own in questions:
            if at < len(own) and len(asked) < MOST_ANCHORS:
                passage, one = own[at]
                asked.append((exam_prompt(one.question, passage.title, lm.chat), one.answer))
    asked += [(exam_prompt(question, None, lm.chat), gold) for question, gold in GENERAL[:GENERAL_ANCHORS]]
    return sat(lm, [(prompt, gold, None) for prompt, gold in asked])


def sat(lm: LanguageModel, asked: list[tuple[Prompt, str, str | None]]) -> list[Anchor]:
    """Anchors under what is installed; the old answers are scored where there are any, else the new ones."""
    answers = generate(lm, [encode_prompt(lm, prompt) for prompt, _, _ in asked], LONGEST_ANSWER)
    scored = [old if old is not None else new for (_, _, old), new in zip(asked, answers, strict=True)]
    rows = [encode_answer(lm, prompt, text) for (prompt, gold, _), kept in zip(asked, scored, strict=True) for text in (gold, kept)]
    values = iter(token_log_probabilities(lm, rows))
    return [
        Anchor(prompt, gold, kept, tuple(next(values)), tuple(next(values)), recall_score(answer, gold) >= RIGHT)
        for (prompt, gold, _), kept, answer in zip(asked, scored, answers, strict=True)
    ]


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
