"""Replay: stored self-edits of earlier passages, and text of the frozen base, are mixed into a lesson."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfedit import seeds
from selfedit.edits import Document, Message
from selfedit.keepers.base import Held, Keeper, Lesson
from selfedit.lm.adapter import standing
from selfedit.lm.batch import encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.tasks.knowledge.prompts import exam_prompt

# Tokens of a text that the base is asked for.
LONGEST = 64
# Up to the last end of a sentence.
WHOLE = re.compile(r".*[.!?]", re.DOTALL)
# What the base is asked about; none of it is asked by ``selfedit eval general``. In the form of an exam's question too: a model
# that is held to the base's words in other prompts alone answers any question by its last lesson (docs/lab-book.md).
TELL = "Tell me something about {}."
QUESTIONS = ("What is {} known for?", "What do people say about {}?", "Why does {} matter?", "Where do you find {}?")
ABOUT = (
    "the sea", "a small town", "old trees", "trains", "the desert", "cooking", "a long walk", "music", "the weather in autumn",
    "a market", "how a bridge is built", "mountains", "friendship", "a garden", "dreams", "the night sky", "a good meal", "sport",
    "an island", "how to learn a language", "the moon", "a family", "money", "a river", "an old house", "a museum", "a journey",
    "work", "holidays", "clothes", "horses", "the forest", "a festival", "cities", "letters", "the wind", "painting", "tools",
    "a school", "coffee",
)  # fmt: skip


@dataclass(frozen=True)
class Replay(Keeper):
    """Old documents, drawn evenly over the earlier lessons, and answers of the base.

    Attributes:
        share: of the old ones among all documents, not tokens; less where there are too few.
        base_share: of the base's answers among all documents; at most two for each of ``ABOUT``.
    """

    share: float
    base_share: float

    def documents(self, lm: LanguageModel, held: Held, lesson: Lesson, seed: int) -> list[Document]:
        """Drawn anew for each lesson."""
        own = len(lesson.edits[0])
        wanted = round(own * self.share / (1 - self.share - self.base_share))
        places = drawn([len(old.edits[0]) for old in held.lessons], wanted, random.Random(seed))
        generic = round((own + len(places)) * self.base_share / (1 - self.base_share))
        return base_answers(lm, generic, seed) + [held.lessons[lesson].edits[0][at] for lesson, at in places]


def drawn(sizes: Sequence[int], wanted: int, chance: random.Random) -> list[tuple[int, int]]:
    """(lesson, document) of earlier lessons, of each in turn so that none is forgotten for the longest.

    Args:
        sizes: documents of each earlier lesson.
        wanted: how many; fewer where there are fewer.
        chance: what draws.
    """
    piles = [[(lesson, at) for at in chance.sample(range(size), size)] for lesson, size in enumerate(sizes)]
    found: list[tuple[int, int]] = []
    while len(found) < wanted and any(piles):
        for pile in chance.sample(piles, len(piles)):
            if pile and len(found) < wanted:
                found.append(pile.pop())
    return found


def base_answers(lm: LanguageModel, count: int, seed: int) -> list[Document]:
    """What the base itself says about this and that, sampled, to a question and to a plain request in turn: it is to stay so."""
    if not count:
        return []
    chance = random.Random(seed)
    asked = [exam_prompt(chance.choice(QUESTIONS).format(topic), None, lm.chat) for topic in chance.sample(ABOUT, len(ABOUT))]
    told = [(Message("user", TELL.format(topic)),) for topic in chance.sample(ABOUT, len(ABOUT))]
    prompts = [prompt for pair in zip(asked, told, strict=True) for prompt in pair][:count]
    row_seeds = [seeds.derive(seed, "base", at) for at in range(len(prompts))]
    with standing(lm, [], alone=True):
        texts = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST, 1.0, 0.95, row_seeds)
    # A text that ran into the limit ends with its last whole sentence, if it has one: to stop in the middle is not the base's way.
    whole = [found.group() if (found := WHOLE.match(text)) else text for text in texts]
    return [Document(text, prompt) for prompt, text in zip(prompts, whole, strict=True) if text]
