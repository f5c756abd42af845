"""Answers under invertible transforms, undone and voted to two attempts (paper appendix A)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfedit.contexts import Puzzle, Rows
from selfedit.tasks.arc.augment import GEOMETRIC, INVERSES, colour_permutation, inverse_colours, recoloured
from selfedit.tasks.arc.grids import Grid, as_rows
from selfedit.tasks.arc.items import Item

ATTEMPTS = 2
# The paper's: as it is, transposed, flipped, turned.
TRANSFORMS = ("", "transpose", "flip-rows", "flip-columns", "rotate-90", "rotate-180", "rotate-270")


@dataclass(frozen=True, slots=True)
class View:
    """One way to show a test: a transform ("" for none), an order of the demonstrations, and a permutation of the colours."""

    transform: str
    order: tuple[int, ...]
    colours: tuple[int, ...]

    @property
    def key(self) -> tuple[int | str, ...]:
        """Tells views of a puzzle apart."""
        return (self.transform, *self.order, *self.colours)

    def shown(self, puzzle: Puzzle, test: int) -> Item:
        """The test as it is shown; the answer is empty."""
        pairs = [puzzle.train[at] for at in self.order]
        shown = tuple((self._forth(given), self._forth(wanted)) for given, wanted in pairs)
        return Item(shown, self._forth(puzzle.test[test][0]), ())

    def undone(self, answer: Grid | None) -> Rows | None:
        """An answer to the test as it was shown, in the test's own form; of none there is none."""
        if answer is None:
            return None
        back = INVERSES[self.transform](answer) if self.transform else answer
        return as_rows(recoloured(back, inverse_colours(np.array(self.colours, dtype=np.int8))))

    def _forth(self, rows: Rows) -> Rows:
        grid = np.array(rows, dtype=np.int8)
        grid = GEOMETRIC[self.transform](grid) if self.transform else grid
        return as_rows(recoloured(grid, np.array(self.colours, dtype=np.int8)))


def views_of(puzzle: Puzzle, seed: int, orders: int = 2, recolour: bool = False) -> list[View]:
    """The views that a test is answered in: every transform with the demonstrations in so many orders.

    Args:
        orders: different ones, the first as they stand; fewer where there are no more.
        recolour: whether all but the plain view also permute the colours.
    """
    generator = np.random.default_rng(seed)
    plain = tuple(range(10))
    found = []
    count = len(puzzle.train)
    plainly = tuple(range(count))
    every = min(orders, math.factorial(count))
    for transform in TRANSFORMS:
        drawn = [plainly]
        while len(drawn) < every:
            order = tuple(int(at) for at in generator.permutation(count))
            drawn += [order] if order not in drawn else []
        for index, order in enumerate(drawn):
            first = not transform and not index
            colours = plain if first or not recolour else tuple(int(c) for c in colour_permutation(generator))
            found.append(View(transform, order, colours))
    return found


def voted(answers: Sequence[Rows | None], attempts: int = ATTEMPTS) -> list[Rows]:
    """The most frequent answers, at most so many; equals in the order in which they came."""
    counts = Counter(answer for answer in answers if answer is not None)
    first = {answer: at for at, answer in reversed(list(enumerate(answers))) if answer is not None}
    return sorted(counts, key=lambda answer: (-counts[answer], first[answer]))[:attempts]


def attempts_of(answer: str) -> list[Rows]:
    """A test's attempts, from a sitting's answer: JSON, the best one first."""
    return [tuple(tuple(row) for row in tried) for tried in json.loads(answer)]


def solved(puzzle: Puzzle, attempts: Sequence[Sequence[Rows]]) -> bool:
    """ARC's rule: every test's grid is among its attempts."""
    return all(wanted in tried for (_, wanted), tried in zip(puzzle.test, attempts, strict=True))
