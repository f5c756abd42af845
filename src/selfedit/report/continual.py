"""What a report shows of sequences: what each way of keeping kept, and the matrices as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from selfedit.matrix import RETENTIONS
from selfedit.report.plots import STYLE, Picture, picture_of
from selfedit.report.read import RunData
from selfedit.report.tables import Table, with_interval

SHARES = ("before", "immediate", "retained", "along", "bare_own", "bare")
FALLS = ("forgetting", "all_own", "all_after")
COSTS = (("tokens", 1, 0), ("seconds", 1, 0), ("commit_bytes", 1e-6, 0), ("state_bytes", 1e-6, 0))
# Over means of merge: older tables have none.
RATIOS = ("tokens_to_merge", "seconds_to_merge")
# What retention is made of.
PARTS = ("earlier_own", "earlier_after", "gain_own", "gain_after", "margin_own", "margin_after")
# Figures of what lies beyond, each with its scale and digits.
FAR = (
    ("general", 1, 3), ("general_share", 100, 1), ("general_right", 100, 1), ("text", 1, 3), ("text_share", 100, 1),
    ("locality", 100, 1), ("locality_logprob", 1, 3),
)  # fmt: skip
KNOWN = {*SHARES, *RETENTIONS, *FALLS, *PARTS, *(name for name, _, _ in (*FAR, *COSTS)), "accepted", *RATIOS}
# Above so many passages the cells get no figures of their own.
MOST_LABELLED = 12


def kept_table(run: RunData) -> Table:
    """What each method kept, and at what cost."""
    table = run.table or {}
    rows = []
    for method, of in table["methods"].items():
        shares = [_pm(of.get(name), 100, 1) for name in SHARES]
        falls = [*(with_interval(of.get(name), 100, 1) for name in RETENTIONS), *(_pm(of.get(name), 100, 1) for name in FALLS)]
        ratios = [with_interval(of.get(name), 1, 2) for name in RATIOS]
        costs = [_pm(of.get(name), scale, digits) for name, scale, digits in COSTS]
        beyond = [_pm(of.get(name), scale, digits) for name, scale, digits in FAR]
        others = ", ".join(f"{name} {of[name]['mean']:.2f}" for name in of if name not in KNOWN)
        accepted = _pm(of.get("accepted"), 100, 0)
        rows.append((method, of["all_after"]["n"], *shares, *falls, *beyond, accepted, *costs, *ratios, others or None))
    older = any("retention" in of and "earlier_own" not in of for of in table["methods"].values())
    counted = "all passages of a sequence (an older table)" if older else "all passages of a sequence but the last"
    return Table(
        "What was kept",
        f"{table['n']} sequences of {table['config'].get('passages')} passages; means and standard errors over n sequences. "
        "Immediate: right just after the own commit; retained: after the last one; along: after later ones in the mean; no title: "
        "immediate and retained, asked without it; all five of what the model didn't know before. Retention: retained over "
        f"immediate, of {counted}, with the jackknife's 95 % interval; by probability: the same of how much "
        "more probable the golds became, by margin: of how much likelier than the exam's other golds in their place. "
        "Before, all at the own commit, all at the end, "
        "and forgetting (the mean fall): of all counted questions. General: change of general questions' gold "
        "log-probability, in nats and in % of the base's, and of what is right, in points; text: change of plain texts' "
        "log-probability a token. Locality: change of what is right about passages of no sequence, and of its golds' "
        "log-probability. Tokens, seconds, MB: of a commit; x merge: over a commit of merge, with the jackknife's 95 % interval.",
        (
            "method", "n", "before %", "immediate %", "retained %", "along %", "immediate no title %", "retained no title %",
            "retention %", "by probability %", "by margin %", "forgetting", "all at the own commit %",
            "all at the end %", "general", "general %", "general right", "text", "text %", "locality",
            "locality nats", "accepted %", "tokens", "seconds", "MB", "MB in all", "tokens x merge", "seconds x merge",
            "notes",
        ),
        tuple(rows),
    )  # fmt: skip


def kept_differences_table(run: RunData) -> Table:
    """Every method against the first one, of general knowledge against the base too; each measure in its unit."""
    rows = []
    for row in (run.table or {})["differences"]:
        scale, digits = (1, 3) if row["unit"] == "nats" else (100, 1)
        mean, low, high = (None if row[name] is None else f"{scale * row[name]:+.{digits}f}" for name in ("mean", "low", "high"))
        between = mean if low is None else f"{mean} [{low}, {high}]"
        p = None if row["p"] is None else f"{row['p']:.3f}"
        rows.append((f"{row['method']} - {row['control']}", row["measure"], row["unit"], row["n"], between, p))
    return Table(
        "Paired differences",
        "By sequence; 95 % t-interval, two-sided sign-flip p; of retention the jackknife's interval.",
        ("pair", "measure", "unit", "n", "difference", "p"),
        tuple(rows),
    )


def matrices_table(run: RunData) -> Table:
    """Every cell, for the CSV."""
    rows = [
        (method, step, column + 1, cell["n"], cell["mean"], cell["se"])
        for method, matrix in (run.table or {})["matrix"].items()
        for step, row in enumerate(matrix)
        for column, cell in enumerate(row)
        if cell is not None
    ]
    return Table("Matrix", "", ("method", "after commits", "passage", "n", "mean", "se"), tuple(rows))


def continual_pictures(runs: Sequence[RunData]) -> list[Picture]:
    """A heat map a method."""
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        return [
            _heat_map(run, method, matrix)
            for run in runs
            if run.kind == "continual"
            for method, matrix in (run.table or {})["matrix"].items()
            if matrix
        ]


def _heat_map(run: RunData, method: str, matrix: Sequence[Sequence[dict[str, Any] | None]]) -> Picture:
    shares = np.array([[np.nan if cell is None else 100 * cell["mean"] for cell in row] for row in matrix])
    side = min(6.0, 1.4 + 0.42 * max(shares.shape))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="YlGnBu", vmin=0, vmax=max(50.0, float(np.nanmax(shares))), aspect="auto")
    if shares.shape[1] <= MOST_LABELLED:
        for (step, column), value in np.ndenumerate(shares):
            if not np.isnan(value):
                axes.text(column, step, f"{value:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xlabel("passage")
    axes.set_ylabel("after so many commits")
    every = max(1, shares.shape[1] // 8)
    axes.set_xticks(range(0, shares.shape[1], every), [str(at + 1) for at in range(0, shares.shape[1], every)])
    axes.set_title(method)
    figure.colorbar(shown, label="questions right, %")
    caption = f"{run.name}, {method}: share of each passage's questions right, means over sequences."
    return picture_of(figure, f"matrix-{run.name}-{method}", caption)


def _pm(value: dict[str, Any] | None, scale: float, digits: int) -> str | None:
    if value is None:
        return None
    error = "" if value["se"] is None or np.isnan(value["se"]) else f" ± {scale * value['se']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{error}"
