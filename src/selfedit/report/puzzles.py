"""What a report shows of puzzles: success with its intervals, the recipes as a picture, grids in ARC's colours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from selfedit.config import ArcEvalConfig
from selfedit.errors import InvalidEditError
from selfedit.report.plots import COLOURS, SOFT, STYLE, Picture, new_figure, picture_of
from selfedit.report.read import RunData
from selfedit.report.tables import Table
from selfedit.runs import ROWS, read_rows
from selfedit.tasks.arc.augment import GROUPS
from selfedit.tasks.arc.data import load_puzzles, title
from selfedit.tasks.arc.grids import PALETTE
from selfedit.tasks.arc.recipe import EPOCHS, LEARNING_RATES, SWITCHES, Recipe, parse_recipe

# Puzzles whose grids are shown, and the size of a cell in the page's pixels.
SHOWN, CELL = 12, 9
# The ends of the map that colours recipes by success.
SOLVED, UNSOLVED = mpl.colormaps["RdYlGn"](1.0), mpl.colormaps["RdYlGn"](0.0)


def solved_table(run: RunData) -> Table:
    """How many runs solved their puzzle, by method."""
    table = run.table or {}
    rows = []
    for method, of in table["methods"].items():
        spread = table["intervals"][method]
        rows.append(
            (
                method,
                f"{spread['solved']}/{spread['runs']}",
                str(spread["trained"]),
                f"{100 * of['accuracy']['mean']:.1f}",
                _range(spread["wilson"]),
                _range(spread["bootstrap"]) if spread["bootstrap"] else None,
                f"{100 * of['tests']['mean']:.1f}",
                f"{100 * of['cells']['mean']:.1f}",
                f"{100 * of['valid']['mean']:.0f}",
                f"{100 * of['readable']['mean']:.0f}",
                table["entropy"][method],
                f"{of['read']['mean']:.0f}",
                f"{of['seconds']['mean']:.0f}",
            )
        )
    return Table(
        f"Puzzles solved, {title(table['config']['data'], table['config']['split'])}",
        f"{table['n']} puzzles, {table['questions']} tests, seed {table['config']['seed']}. A run solves a puzzle if each of its "
        "tests is among two attempts. Trained: different trainings, equal ones and equal invalid recipes once; Wilson's interval "
        "takes them as independent; the other draws whole puzzles. "
        "Cells: right ones in a test's better attempt. Bits: entropy of the recipes over all puzzles.",
        (
            "method", "solved", "trained", "%", "Wilson 95 %", "by puzzle 95 %", "tests %", "cells %", "valid %", "readable %",
            "bits", "tokens", "seconds",
        ),
        tuple(rows),
    )  # fmt: skip


def recipes_table(run: RunData) -> Table:
    """Every recipe, for the CSV."""
    rows = [(row["puzzle"], row["method"], row["solved"], row["recipe"]) for row in (run.table or {})["recipes"]]
    return Table("Recipes", "", ("puzzle", "method", "solved", "recipe"), tuple(rows))


def puzzle_pictures(runs: Sequence[RunData]) -> list[Picture]:
    """Success and recipes of each run on puzzles."""
    found: list[Picture] = []
    with mpl.rc_context(STYLE):
        for run in runs:
            recipes = recipes_picture(run)
            if run.kind == "puzzles":
                found.append(solved_picture(run))
            found += [recipes] if recipes else []
    return found


def written_recipes(run: RunData) -> list[tuple[str, str, bool]]:
    """(method or round, recipe, whether it solved its puzzle) of a run on puzzles; none of another run."""
    if run.kind == "puzzles":
        return [(row["method"], row["recipe"], row["solved"]) for row in (run.table or {})["recipes"]]
    if "rendering" not in run.settings.get("config", {}).get("edit", {}):
        return []
    return [
        (f"round {one.number}", edit.text, edit.scored.accuracy == 1.0)
        for one in run.rounds
        for edit in one.edits
        if edit.scored.tried
    ]


def recipes_picture(run: RunData) -> Picture | None:
    """Learning rate against epochs of each method's or round's recipes, coloured by success; below, how often each switch is on."""
    by_method: dict[str, list[tuple[Recipe, bool]]] = {}
    for method, text, solved in written_recipes(run):
        try:
            by_method.setdefault(method, []).append((parse_recipe(text, free=True), solved))
        except InvalidEditError:
            continue
    if not by_method:
        return None
    figure = Figure(figsize=(2.6 * len(by_method) + 0.8, 4.6), layout="constrained")
    panes = figure.subplots(2, len(by_method), squeeze=False, gridspec_kw={"height_ratios": (3, 2)}, sharey="row")
    every = [recipe.training for recipes in by_method.values() for recipe, _ in recipes]
    # Recipes that were written freely lie beyond the grids too.
    rates = sorted({*LEARNING_RATES, *(f(one.learning_rate for one in every) for f in (min, max))})
    epochs = sorted({*EPOCHS, *(f(one.num_train_epochs for one in every) for f in (min, max))})
    for at, (method, recipes) in enumerate(by_method.items()):
        _scatter(panes[0][at], method, recipes, rates, epochs)
        _switches(panes[1][at], recipes)
    panes[0][0].set_ylabel("epochs")
    what = "method" if run.kind == "puzzles" else "round"
    caption = (
        f"{run.name}: recipes by {what}. Above: learning rate and epochs; size: how often; green: solved, red: not, share by "
        "share. Below: share of each group's augmentations that are on, and of recipes with loss on all tokens; green: of those "
        "that solved."
    )
    return picture_of(figure, f"recipes-{run.name}", caption)


def solved_picture(run: RunData) -> Picture:
    """Success by method with the interval over puzzles."""
    figure, axes = new_figure(4.6, 3.2)
    table = run.table or {}
    for at, spread in enumerate(table["intervals"].values()):
        share = 100 * spread["solved"] / max(1, spread["runs"])
        axes.barh(at, share, color=COLOURS[at % len(COLOURS)], height=0.6)
        if spread["bootstrap"]:
            axes.plot([100 * value for value in spread["bootstrap"]], [at, at], color=SOFT, linewidth=2)
    axes.set_yticks(range(len(table["intervals"])), list(table["intervals"]))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("runs that solved their puzzle, %")
    axes.set_title("Puzzles solved")
    return picture_of(figure, f"solved-{run.name}", f"{run.name}: bars: 95 % by drawing whole puzzles.")


def galleries(folder: Path) -> list[dict[str, Any]]:
    """``{title, grids: [{name, svg}]}`` of the first puzzles: each test, its right answer, and the methods' first attempts."""
    # Here, since other runs need no torch.
    from selfedit.puzzles.evaluate import assembled

    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    config = ArcEvalConfig.model_validate(json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"])
    puzzles = sorted(load_puzzles(str(folder / "data.json"), ""), key=lambda puzzle: puzzle.id)
    found = []
    for row in assembled(read_rows(folder / ROWS), config, puzzles[:SHOWN]):
        puzzle = data[row["puzzle"]]
        for at, test in enumerate(puzzle["test"]):
            grids = [{"name": "input", "svg": svg(test["input"])}, {"name": "right", "svg": svg(test["output"])}]
            for method in dict.fromkeys(trial["method"] for trial in row["trials"]):
                tried = [
                    json.loads(trial["sitting"]["answers"][at])
                    for trial in row["trials"]
                    if trial["method"] == method and trial["sitting"] is not None
                ]
                firsts = Counter(json.dumps(attempts[0]) for attempts in tried if attempts)
                if firsts:
                    most = json.loads(firsts.most_common(1)[0][0])
                    right = sum(test["output"] in attempts for attempts in tried)
                    grids.append({"name": f"{method}: {right} of {len(tried)}", "svg": svg(most)})
            found.append({"title": f"{row['puzzle']}, test {at + 1}", "grids": grids})
    return found


def svg(rows: Sequence[Sequence[int]]) -> str:
    """A grid as an SVG element."""
    width, height = CELL * max(len(row) for row in rows), CELL * len(rows)
    cells = "".join(
        f'<rect x="{CELL * x}" y="{CELL * y}" width="{CELL}" height="{CELL}" fill="{PALETTE[int(colour)]}"/>'
        for y, row in enumerate(rows)
        for x, colour in enumerate(row)
    )
    return f'<svg width="{width}" height="{height}" role="img" stroke="#555" stroke-width=".5">{cells}</svg>'


def _scatter(axes: Any, method: str, recipes: Sequence[tuple[Recipe, bool]], rates: Sequence[float], epochs: Sequence[int]) -> None:
    counts: Counter[tuple[float, int]] = Counter()
    hits: Counter[tuple[float, int]] = Counter()
    for recipe, solved in recipes:
        at = recipe.training.learning_rate, recipe.training.num_train_epochs
        counts[at] += 1
        hits[at] += solved
    shares = [hits[at] / counts[at] for at in counts]
    sizes = [30 + 300 * counts[at] / len(recipes) for at in counts]
    axes.scatter(
        [x for x, _ in counts], [y for _, y in counts], s=sizes, c=shares, cmap="RdYlGn", vmin=0, vmax=1, edgecolors=SOFT,
        linewidths=0.6,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=60)
    axes.minorticks_off()
    axes.set_yticks(epochs)
    axes.set_xlim(rates[0] / 2, rates[-1] * 2)
    axes.set_ylim(epochs[0] - 0.6, epochs[-1] + 0.6)
    axes.set_title(f"{method} (n={len(recipes)})")


def _switches(axes: Any, recipes: Sequence[tuple[Recipe, bool]]) -> None:
    # Of an extended recipe the augmentations that it names one by one count: a group is on as far as they are.
    on = [
        [
            *(sum(name in recipe.names for name in GROUPS[group]) / len(GROUPS[group]) for group in SWITCHES.values()),
            float(recipe.training.strategy == "train_using_all_tokens"),
        ]
        for recipe, _ in recipes
    ]
    every, right = np.array(on), np.array([solved for _, solved in recipes])
    places = range(every.shape[1])
    green = every[right].sum(axis=0) / len(recipes)
    axes.bar(places, green, color=SOLVED, width=0.6)
    axes.bar(places, every.mean(axis=0) - green, bottom=green, color=UNSOLVED, width=0.6)
    axes.set_xticks(places, [*SWITCHES.values(), "all tokens"], rotation=60)
    axes.set_ylim(0, 1)


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.0f} to {100 * high:.0f}"
