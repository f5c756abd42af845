"""Grids as arrays and as text; every rendering inverts exactly."""

from __future__ import annotations

import itertools
import json

import numpy as np
from numpy.typing import NDArray

from selfedit.config import Rendering
from selfedit.errors import DataError

Grid = NDArray[np.int8]
COLOURS = ("black", "blue", "red", "green", "yellow", "gray", "magenta", "orange", "cyan", "maroon")
# ARC's own, colour by colour.
PALETTE = ("#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
LARGEST = 30
DIGITS = {str(colour): colour for colour in range(10)}
WORDS = {name: colour for colour, name in enumerate(COLOURS)}


def grid_of(rows: object, at: str) -> Grid:
    """A checked grid (rows, columns) of colours 0 to 9.

    Raises:
        DataError: not a list of equally long rows of numbers 0 to 9, empty, or larger than 30x30; begins with ``at``.
    """
    if not isinstance(rows, (list, tuple)) or not rows or not all(isinstance(row, (list, tuple)) and row for row in rows):
        raise DataError(f"{at}: a grid is a list of rows, each a list of colours; none may be empty")
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{at}: ragged rows of {', '.join(str(len(row)) for row in rows)} cells; all must be equally long")
    for row in rows:
        for cell in row:
            if not isinstance(cell, int) or isinstance(cell, bool) or not 0 <= cell <= 9:
                raise DataError(f"{at}: colour {cell!r}; colours are the numbers 0 to 9")
    if len(rows) > LARGEST or len(rows[0]) > LARGEST:
        raise DataError(f"{at}: {len(rows)}x{len(rows[0])} cells; a grid has at most {LARGEST}x{LARGEST}")
    return np.array(rows, dtype=np.int8)


def as_rows(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Plain numbers, row by row."""
    return tuple(tuple(int(cell) for cell in row) for row in grid)


def render(grid: Grid, how: Rendering) -> str:
    """A grid as text: ``python-list`` is the paper's, ``digits`` a row a line, ``words`` names of colours."""
    if how == "python-list":
        return str([list(row) for row in as_rows(grid)])
    if how == "digits":
        return "\n".join("".join(str(cell) for cell in row) for row in as_rows(grid))
    return "\n".join(" ".join(COLOURS[cell] for cell in row) for row in as_rows(grid))


def parse(text: str, how: Rendering) -> Grid | None:
    """The first grid in a text, whatever stands before it (``Output:``, a code fence) and after it; None where there is none."""
    try:
        if how == "python-list":
            begin = text.index("[[")
            return grid_of(json.loads(text[begin : text.index("]]", begin) + 2]), "answer")
        rows = [_cells(line, how) for line in text.split("\n")]
        begin = next(at for at, row in enumerate(rows) if row)
        return grid_of(list(itertools.takewhile(bool, rows[begin:])), "answer")
    except (ValueError, StopIteration, TypeError, RecursionError):
        return None


def ended(text: str, how: Rendering) -> bool:
    """Whether a text that is being written has a whole grid and has gone on after it."""
    if how == "python-list":
        return "[[" in text and "]]" in text[text.index("[[") :]
    rows = [bool(_cells(line, how)) for line in text.split("\n")[:-1]]
    return any(before and not after for before, after in itertools.pairwise(rows))


def _cells(line: str, how: Rendering) -> list[int]:
    """The colours of a line that is a row of a grid; none of another."""
    cells = list(line.strip()) if how == "digits" else line.split()
    known = DIGITS if how == "digits" else WORDS
    return [known[cell] for cell in cells] if all(cell in known for cell in cells) else []
