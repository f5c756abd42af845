"""Training items: what is left out, what the groups add, limits and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from selfedit.contexts import Puzzle
from selfedit.tasks.arc.augment import CHAINED, GEOMETRIC, GROUPS
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.items import Item, items_of, left_out

PAIRS = tuple((((n, 0), (0, 0)), ((0, 0), (0, n))) for n in (1, 2, 3))
PUZZLE = Puzzle("p", PAIRS, ((((4, 0), (0, 0)), None),))


def plain(puzzle: Puzzle) -> list[Item]:
    return items_of(puzzle, [], 0, permutations=0)


def test_one_and_two_are_left_out() -> None:
    items = plain(PUZZLE)
    assert len(items) == 3 + 3 * 2 and all(item.query not in [given for given, _ in item.demonstrations] for item in items)
    assert sorted(len(item.demonstrations) for item in items) == [1] * 6 + [2] * 3
    assert len(plain(Puzzle("p", PAIRS[:1], PUZZLE.test))) == 1, "of a single pair: itself, without demonstrations"
    two = [(np.array(a), np.array(b)) for a, b in PAIRS[:2]]
    assert len(list(left_out(two))) == 2


# Each augmentation of the paper's groups said in another way.
ONE_LINERS: dict[str, Callable[[Any], Any]] = {
    "rotate-90": lambda g: g[::-1].T,
    "rotate-180": lambda g: g[::-1, ::-1],
    "rotate-270": lambda g: g.T[::-1],
    "flip-rows": lambda g: g[::-1],
    "flip-columns": lambda g: g[:, ::-1],
    "transpose": lambda g: np.einsum("ij->ji", g),
    "reflect-below": lambda g: np.block([[g], [g[::-1]]]),
    "reflect-above": lambda g: np.block([[g[::-1]], [g]]),
    "reflect-right": lambda g: np.block([[g, g[:, ::-1]]]),
    "reflect-left": lambda g: np.block([[g[:, ::-1], g]]),
    "double": lambda g: np.kron(g, np.ones((2, 2), int)),
    "double-height": lambda g: np.kron(g, np.ones((2, 1), int)),
    "double-width": lambda g: np.kron(g, np.ones((1, 2), int)),
    "repeat-down": lambda g: np.block([[g], [g]]),
    "repeat-right": lambda g: np.block([[g, g]]),
    "repeat-both": lambda g: np.block([[g, g], [g, g]]),
}
CHAINS = {f"{name}+double": ONE_LINERS[name] for name in CHAINED}


def rows_after(change: Callable[[Any], Any], rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(c) for c in row) for row in change(np.array(rows)))


def items_after(change: Callable[[Any], Any], puzzle: Puzzle) -> set[Item]:
    def of(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return rows_after(change, rows)

    return {Item(tuple((of(a), of(b)) for a, b in item.demonstrations), of(item.query), of(item.answer)) for item in plain(puzzle)}


def test_every_augmentation_against_an_independent_way() -> None:
    doubled = {name: lambda g, first=first: np.kron(first(g), np.ones((2, 2), int)) for name, first in CHAINS.items()}
    changes = ONE_LINERS | doubled
    assert set(changes) == set(GEOMETRIC)
    puzzles = [PUZZLE, *load_puzzles("arc-1", "train")[2:5]]
    for puzzle in puzzles:
        for name, change in changes.items():
            small = {item for item in items_after(change, puzzle) if all(max(len(g), len(g[0])) <= 30 for g in grids_of(item))}
            found = set(items_of(puzzle, [name], 0, 10_000, permutations=0))
            assert found == set(plain(puzzle)) | small, f"{puzzle.id}, {name}"


def grids_of(item: Item) -> list[tuple[tuple[int, ...], ...]]:
    return [grid for pair in (*item.demonstrations, (item.query, item.answer)) for grid in pair]


def test_seeds_limits_and_large_grids() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert items_of(PUZZLE, names, 1) == items_of(PUZZLE, names, 1) != items_of(PUZZLE, names, 2)
    assert len(items_of(PUZZLE, names, 1)) == 250 and len(items_of(PUZZLE, names, 1, 40)) == 40
    large = tuple((tuple([n] * 20 for n in range(2)), ((n,),)) for n in range(2))
    wide = Puzzle("w", tuple((tuple(tuple(row) for row in a), b) for a, b in large), PUZZLE.test)
    assert all(max(len(item.query), len(item.query[0])) <= 30 for item in items_of(wide, names, 0, 10_000))


def test_colours_are_permuted_in_all_grids_alike() -> None:
    for item in items_of(PUZZLE, [], 3, 10_000):
        for given, wanted in (*item.demonstrations, (item.query, item.answer)):
            assert given[0][0] == wanted[1][1] and given[1][1] == wanted[0][0], "the rule holds in every colour"
