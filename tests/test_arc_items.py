"""Training items: what is left out, what the groups add, limits and seeds."""

from __future__ import annotations

import numpy as np

from selfedit.contexts import Puzzle
from selfedit.tasks.arc.augment import GROUPS
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


def test_groups_against_an_independent_way() -> None:
    def expected(change: object) -> set[Item]:
        def of(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(int(c) for c in row) for row in change(np.array(rows)))  # type: ignore[operator]

        return {
            Item(tuple((of(a), of(b)) for a, b in item.demonstrations), of(item.query), of(item.answer)) for item in plain(PUZZLE)
        }

    size = set(items_of(PUZZLE, GROUPS["size"], 0, 10_000, permutations=0))
    assert size == set(plain(PUZZLE)) | expected(lambda g: np.kron(g, np.ones((2, 2), int))) | expected(
        lambda g: np.kron(g, np.ones((2, 1), int))
    ) | expected(lambda g: np.kron(g, np.ones((1, 2), int)))
    repeat = set(items_of(PUZZLE, GROUPS["repeat"], 0, 10_000, permutations=0))
    assert expected(lambda g: np.block([[g, g], [g, g]])) <= repeat and expected(lambda g: np.block([[g, g]])) <= repeat
    basic = set(items_of(PUZZLE, GROUPS["basic"], 0, 10_000, permutations=0))
    for change in (lambda g: g[::-1, ::-1], lambda g: g.T, lambda g: g[::-1], lambda g: np.block([[g, g[:, ::-1]]])):
        assert expected(change) <= basic


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
