"""Votes: what a view shows and undoes, and the rule of two attempts."""

from __future__ import annotations

import numpy as np

from selfedit.contexts import Puzzle
from selfedit.tasks.arc.vote import solved, views_of, voted

PUZZLE = Puzzle(
    "p",
    ((((1, 2), (3, 4), (5, 6)), ((9,),)), (((7,),), ((8, 0),))),
    ((((1, 2, 3),), ((3, 2, 1),)), (((4,),), ((5,),))),
)


def test_every_view_is_undone() -> None:
    views = views_of(PUZZLE, 0, orders=3, recolour=True)
    assert views[0].transform == "" and views[0].order == (0, 1) and views[0].colours == tuple(range(10))
    for view in views:
        for test, (given, wanted) in enumerate(PUZZLE.test):
            item = view.shown(PUZZLE, test)
            assert view.undone(np.array(item.query, dtype=np.int8)) == given
            assert wanted is not None and sorted(map(len, item.demonstrations)) == [2, 2]
    assert views[0].undone(None) is None


def test_votes_and_attempts() -> None:
    a, b, c = ((1,),), ((2,),), ((3,),)
    assert voted([c, a, None, b, a, b]) == [a, b] and voted([c, a, b]) == [c, a] and voted([None]) == []
    right = [wanted for _, wanted in PUZZLE.test if wanted is not None]
    assert solved(PUZZLE, [[a, right[0]], [right[1]]]) and not solved(PUZZLE, [[right[0]], [a, b]]) and not solved(PUZZLE, [[], []])
