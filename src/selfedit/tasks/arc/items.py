"""Training items of a puzzle: its own demonstration pairs, left out one or two at a time, under a recipe's augmentations.

Paper appendix A: leave-one-out and leave-two-out, every augmentation of the groups that are switched on, then colours and the
order of the demonstrations permuted; at most 250 items. Departures: (1) everything is drawn from one seed; (2) items that come
out equal are one; (3) the limit takes a random part over all augmentations, there the first ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from selfedit.contexts import Puzzle, Rows
from selfedit.tasks.arc.augment import GEOMETRIC, TRANSLATE, colour_permutation, fits, recoloured, translated
from selfedit.tasks.arc.grids import Grid, as_rows

MOST_ITEMS = 250
MOST_LEFT_OUT = 2


@dataclass(frozen=True, slots=True)
class Item:
    """Demonstrations, a query, and its answer."""

    demonstrations: tuple[tuple[Rows, Rows], ...]
    query: Rows
    answer: Rows


Pairs = list[tuple[Grid, Grid]]


def items_of(puzzle: Puzzle, names: Sequence[str], seed: int, limit: int = MOST_ITEMS, permutations: int = 1) -> list[Item]:
    """The items that a recipe trains on, in random order.

    Args:
        names: augmentations that are switched on; the plain items are always there.
        seed: of the translations, permutations, order and choice.
        limit: most items.
        permutations: how often each item also comes with permuted colours, and with its demonstrations in another order.
    """
    generator = np.random.default_rng(seed)
    found: dict[Item, None] = {}
    for pairs in left_out([(np.array(given), np.array(wanted)) for given, wanted in puzzle.train]):
        for changed in _augmented(pairs, names, generator):
            found.setdefault(_item(changed))
            for _ in range(permutations):
                colours = colour_permutation(generator)
                found.setdefault(_item([(recoloured(a, colours), recoloured(b, colours)) for a, b in changed]))
                order = [*generator.permutation(len(changed) - 1), len(changed) - 1]
                found.setdefault(_item([changed[at] for at in order]))
    items = list(found)
    return [items[at] for at in generator.permutation(len(items))[:limit]]


def left_out(pairs: Pairs) -> Iterator[Pairs]:
    """Every way to leave out one pair or two and to ask for one of them; the query stands last. Of a single pair: itself alone."""
    if len(pairs) == 1:
        yield pairs
    for count in range(1, MOST_LEFT_OUT + 1):
        if len(pairs) <= count:
            return
        for out in itertools.combinations(range(len(pairs)), count):
            kept = [pair for at, pair in enumerate(pairs) if at not in out]
            for query in out:
                yield [*kept, pairs[query]]


def _augmented(pairs: Pairs, names: Sequence[str], generator: np.random.Generator) -> Iterator[Pairs]:
    """The pairs as they are, then under each augmentation; one that makes a grid larger than 30x30 is left out."""
    yield pairs
    for name in names:
        if name == TRANSLATE:
            down, right = (int(step) for step in generator.integers(1, 5, 2))
            changed = [(translated(a, down, right), translated(b, down, right)) for a, b in pairs]
        else:
            change = GEOMETRIC[name]
            changed = [(change(a), change(b)) for a, b in pairs]
        if all(fits(grid) for pair in changed for grid in pair):
            yield changed


def _item(pairs: Pairs) -> Item:
    *shown, (query, answer) = pairs
    return Item(tuple((as_rows(a), as_rows(b)) for a, b in shown), as_rows(query), as_rows(answer))
