"""Replay: stored self-edits of earlier passages are mixed into a lesson; the base's own text comes by ``Settings.rehearsal``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from selfedit.edits import Document
from selfedit.keepers.base import Held, Keeper, Lesson
from selfedit.lm.load import LanguageModel


@dataclass(frozen=True)
class Replay(Keeper):
    """Old documents, drawn evenly over the earlier lessons.

    Attributes:
        share: of the old ones among old and new documents, not tokens; less where there are too few.
    """

    share: float

    def documents(self, lm: LanguageModel, held: Held, lesson: Lesson, seed: int) -> list[Document]:
        """Drawn anew for each lesson."""
        wanted = round(len(lesson.edits[0]) * self.share / (1 - self.share))
        places = drawn([len(old.edits[0]) for old in held.lessons], wanted, random.Random(seed))
        return [held.lessons[lesson].edits[0][at] for lesson, at in places]


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
