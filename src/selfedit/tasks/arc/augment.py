"""Augmentations of a puzzle's pairs: the paper's groups (appendix A), vectorised and seeded.

``GEOMETRIC`` maps a name to a function of one grid, the same for input and output; each has its exact inverse in ``INVERSES``. The
groups are those that a recipe switches: basic, size, chain, repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from selfedit.tasks.arc.grids import LARGEST, Grid

Transform = Callable[[Grid], Grid]


def _rotate(quarters: int) -> Transform:
    return lambda grid: np.rot90(grid, -quarters)


def _double(rows: int, columns: int) -> Transform:
    return lambda grid: np.repeat(np.repeat(grid, rows, 0), columns, 1)


def _reflect(axis: int, before: bool) -> Transform:
    """The grid beside its mirror image along an axis."""

    def reflected(grid: Grid) -> Grid:
        mirror = np.flip(grid, axis)
        return np.concatenate([mirror, grid] if before else [grid, mirror], axis)

    return reflected


def _chain(first: str, second: str) -> Transform:
    return lambda grid: GEOMETRIC[second](GEOMETRIC[first](grid))


def _undone(first: str, second: str) -> Transform:
    return lambda grid: INVERSES[first](INVERSES[second](grid))


GEOMETRIC: dict[str, Transform] = {
    "rotate-90": _rotate(1),
    "rotate-180": _rotate(2),
    "rotate-270": _rotate(3),
    "flip-rows": lambda grid: np.flip(grid, 0),
    "flip-columns": lambda grid: np.flip(grid, 1),
    "transpose": lambda grid: grid.T,
    "reflect-below": _reflect(0, before=False),
    "reflect-above": _reflect(0, before=True),
    "reflect-right": _reflect(1, before=False),
    "reflect-left": _reflect(1, before=True),
    "double": _double(2, 2),
    "double-height": _double(2, 1),
    "double-width": _double(1, 2),
    "repeat-down": lambda grid: np.tile(grid, (2, 1)),
    "repeat-right": lambda grid: np.tile(grid, (1, 2)),
    "repeat-both": lambda grid: np.tile(grid, (2, 2)),
}
CHAINED = ("rotate-90", "rotate-180", "rotate-270", "flip-rows", "flip-columns", "transpose")
GEOMETRIC |= {f"{first}+double": _chain(first, "double") for first in CHAINED}

INVERSES: dict[str, Transform] = {
    "rotate-90": _rotate(3),
    "rotate-180": _rotate(2),
    "rotate-270": _rotate(1),
    "flip-rows": GEOMETRIC["flip-rows"],
    "flip-columns": GEOMETRIC["flip-columns"],
    "transpose": GEOMETRIC["transpose"],
    "reflect-below": lambda grid: grid[: grid.shape[0] // 2],
    "reflect-above": lambda grid: grid[grid.shape[0] // 2 :],
    "reflect-right": lambda grid: grid[:, : grid.shape[1] // 2],
    "reflect-left": lambda grid: grid[:, grid.shape[1] // 2 :],
    "double": lambda grid: grid[::2, ::2],
    "double-height": lambda grid: grid[::2],
    "double-width": lambda grid: grid[:, ::2],
    "repeat-down": lambda grid: grid[: grid.shape[0] // 2],
    "repeat-right": lambda grid: grid[:, : grid.shape[1] // 2],
    "repeat-both": lambda grid: grid[: grid.shape[0] // 2, : grid.shape[1] // 2],
}

INVERSES |= {f"{first}+double": _undone(first, "double") for first in CHAINED}

TRANSLATE = "translate"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "basic": (
        "rotate-90", "rotate-180", "rotate-270", "flip-rows", "flip-columns", "reflect-below", "reflect-above", "reflect-right",
        "reflect-left", TRANSLATE, "transpose",
    ),
    "size": ("double", "double-height", "double-width"),
    "chain": tuple(name for name in GEOMETRIC if "+" in name),
    "repeat": ("repeat-down", "repeat-right", "repeat-both"),
}  # fmt: skip


def translated(grid: Grid, down: int, right: int) -> Grid:
    """Shifted around the edges; the inverse shifts by the negatives."""
    return np.roll(grid, (down, right), (0, 1))


def recoloured(grid: Grid, colours: Grid) -> Grid:
    """Each colour replaced by the one at its place in a permutation of 0 to 9."""
    return colours[grid]


def colour_permutation(generator: np.random.Generator) -> Grid:
    """A permutation of the ten colours; black moves like the others."""
    return generator.permutation(10).astype(np.int8)


def inverse_colours(colours: Grid) -> Grid:
    """The permutation that undoes one."""
    return np.argsort(colours).astype(np.int8)


def fits(grid: Grid) -> bool:
    """Whether a grid is at most 30x30."""
    return bool(max(grid.shape) <= LARGEST)
