"""Grids: every rendering inverts, every invertible augmentation round-trips, the geometric ones as numpy has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selfedit.errors import DataError
from selfedit.tasks.arc import augment
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.grids import Grid, as_rows, ended, grid_of, parse, render

GRIDS = arrays(np.int8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 9))


@given(GRIDS, st.sampled_from(["python-list", "digits", "words"]))
def test_renderings_invert(grid: Grid, how: str) -> None:
    text = render(grid, how)  # type: ignore[arg-type]
    found = parse(text + "\n\nmore", how)  # type: ignore[arg-type]
    assert found is not None and np.array_equal(found, grid)


def test_every_grid_of_arc_round_trips() -> None:
    puzzles = [puzzle for name in ("arc-1", "arc-2") for split in ("train", "evaluation") for puzzle in load_puzzles(name, split)]
    rows_of = {rows for one in puzzles for pair in (*one.train, *one.test) for rows in pair if rows}
    grids = [np.array(rows, dtype=np.int8) for rows in sorted(rows_of)]
    assert len(puzzles) > 1900 and len(grids) > 8000 and set(augment.INVERSES) == set(augment.GEOMETRIC)
    for at, grid in enumerate(grids):
        for how in ("python-list", "digits", "words"):
            found = parse(render(grid, how), how)  # type: ignore[arg-type]
            assert found is not None and np.array_equal(found, grid)
        name = sorted(augment.INVERSES)[at % len(augment.INVERSES)]
        assert np.array_equal(augment.INVERSES[name](augment.GEOMETRIC[name](grid)), grid)


def test_grids_among_other_text() -> None:
    for how, text in (("digits", "12\n34"), ("words", "blue red\ngreen yellow"), ("python-list", "[[1, 2], [3, 4]]")):
        assert parse(f"Output:\n{text}\nInput:\n5", how) is not None, how  # type: ignore[arg-type]
        found = parse(f"```\n{text}\n```", how)  # type: ignore[arg-type]
        assert found is not None and as_rows(found) == ((1, 2), (3, 4))
        assert ended(f"{text}\n\n", how) and not ended(text[:-1], how)  # type: ignore[arg-type]
    assert not ended("Output:\n12\n34", "digits") and ended("Output:\n12\n34\nInput:\n", "digits")
    assert parse("[" * 100_000 + "]]", "python-list") is None and parse("12\n3", "digits") is None


@given(GRIDS, st.sampled_from(sorted(augment.INVERSES)))
def test_invertible_augmentations_round_trip(grid: Grid, name: str) -> None:
    assert np.array_equal(augment.INVERSES[name](augment.GEOMETRIC[name](grid)), grid)


@given(GRIDS, st.integers(0, 2**32 - 1), st.integers(-9, 9), st.integers(-9, 9))
def test_colours_and_translations_round_trip(grid: Grid, seed: int, down: int, right: int) -> None:
    colours = augment.colour_permutation(np.random.default_rng(seed))
    assert np.array_equal(augment.recoloured(augment.recoloured(grid, colours), augment.inverse_colours(colours)), grid)
    assert np.array_equal(augment.translated(augment.translated(grid, down, right), -down, -right), grid)


def test_geometry_against_plain_lists() -> None:
    grid = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int8)
    expected = {
        "rotate-90": ((4, 1), (5, 2), (6, 3)),
        "rotate-180": ((6, 5, 4), (3, 2, 1)),
        "rotate-270": ((3, 6), (2, 5), (1, 4)),
        "flip-rows": ((4, 5, 6), (1, 2, 3)),
        "flip-columns": ((3, 2, 1), (6, 5, 4)),
        "transpose": ((1, 4), (2, 5), (3, 6)),
        "reflect-below": ((1, 2, 3), (4, 5, 6), (4, 5, 6), (1, 2, 3)),
        "reflect-above": ((4, 5, 6), (1, 2, 3), (1, 2, 3), (4, 5, 6)),
        "reflect-right": ((1, 2, 3, 3, 2, 1), (4, 5, 6, 6, 5, 4)),
        "reflect-left": ((3, 2, 1, 1, 2, 3), (6, 5, 4, 4, 5, 6)),
        "double-height": ((1, 2, 3), (1, 2, 3), (4, 5, 6), (4, 5, 6)),
        "double-width": ((1, 1, 2, 2, 3, 3), (4, 4, 5, 5, 6, 6)),
        "repeat-right": ((1, 2, 3, 1, 2, 3), (4, 5, 6, 4, 5, 6)),
        "repeat-down": ((1, 2, 3), (4, 5, 6), (1, 2, 3), (4, 5, 6)),
    }
    for name, rows in expected.items():
        assert as_rows(augment.GEOMETRIC[name](grid)) == rows, name
    assert len(augment.GROUPS["chain"]) == 6 and len(augment.GROUPS["basic"]) == 11
    doubled = augment.GEOMETRIC["rotate-90+double"](grid)
    assert np.array_equal(augment.INVERSES["rotate-90"](augment.INVERSES["double"](doubled)), grid)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "list of rows"),
        ([[1], [1, 2]], "ragged rows of 1, 2"),
        ([[10]], "colour 10"),
        ([[True]], "colour True"),
        ([[0] * 31], "1x31"),
    ],
)
def test_bad_grids_say_so(rows: object, said: str) -> None:
    with pytest.raises(DataError, match=f"task x, test 1, input: .*{said}"):
        grid_of(rows, "task x, test 1, input")


def test_what_is_no_grid_is_none() -> None:
    assert parse("", "digits") is None and parse("12\n3", "digits") is None and parse("[[1, 2], [3", "python-list") is None
    assert parse("blue pink", "words") is None
