"""The pictures of a report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

from selfedit.report.read import RunData
from selfedit.report.tables import by_passage
from selfedit.stats import Mean, mean_and_error

INK, SOFT, GRID = "#22252a", "#6b7280", "#e5e7eb"
# Okabe and Ito's colours, which most colour-blind readers tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: Any = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "figure.dpi": 150.0,
    "savefig.bbox": "tight",
}


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption; the name is its file's."""

    name: str
    caption: str
    png: bytes


def pictures_of(runs: Sequence[RunData]) -> list[Picture]:
    """Every picture that the runs have data for."""
    with mpl.rc_context(STYLE):
        trained = [run for run in runs if run.kind == "train"]
        found = []
        if trained:
            found += [_reward_by_round(trained), _before_and_after(trained), _spread(trained[0]), _texts(trained)]
        found += [_methods(run, at) for at, run in enumerate(runs, start=1) if run.kind == "eval"]
        return found


def _half(mean: Mean) -> float:
    """Half of the 95 % t-interval; nothing of one value."""
    return 0.0 if mean.n < 2 else float(stdtrit(mean.n - 1, 0.975) * mean.se)


def _reward_by_round(runs: Sequence[RunData]) -> Picture:
    figure, axes = new_figure(4.6, 3.2)
    for index, run in enumerate(runs):
        means = [mean_and_error(by_passage((e for e in one.edits if e.scored.tried), "reward")) for one in run.rounds]
        shown = [(one.number + 0.06 * index, mean) for one, mean in zip(run.rounds, means, strict=True) if mean.n]
        if not shown:
            continue
        x, y = [at for at, _ in shown], [mean.mean for _, mean in shown]
        error = [_half(mean) for _, mean in shown]
        axes.errorbar(x, y, error, marker="o", capsize=3, color=_colour(index), label=run.name, linewidth=1.8)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    _rounds_on_x(axes, runs)
    axes.set_title("Reward by round")
    _legend(axes, runs)
    return picture_of(
        figure, "reward-by-round", "Mean reward (gain over the baseline) of a passage's self-edits; bars: 95 % over passages."
    )


def _before_and_after(runs: Sequence[RunData]) -> Picture:
    figure, axes = new_figure(4.6, 3.2)
    labels: list[str] = []
    for index, run in enumerate(runs):
        for one in run.rounds:
            before, after = mean_and_error(by_passage(one.edits, "baseline")), mean_and_error(by_passage(one.edits, "accuracy"))
            if not after.n:
                continue
            at = len(labels)
            labels.append(f"{run.name}, round {one.number}" if len(runs) > 1 else f"round {one.number}")
            axes.plot([100 * before.mean, 100 * after.mean], [at, at], color=GRID, linewidth=4, zorder=1, solid_capstyle="round")
            axes.errorbar(100 * before.mean, at, xerr=_se(before.se), fmt="o", color=SOFT, capsize=2, zorder=2)
            axes.errorbar(100 * after.mean, at, xerr=_se(after.se), fmt="o", color=_colour(index), capsize=2, zorder=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("questions right, %")
    axes.set_title("Before and after a self-edit")
    return picture_of(
        figure, "before-and-after", "Grey: without the self-edit; coloured: with it. Means over passages, bars: standard errors."
    )


def _spread(run: RunData) -> Picture:
    figure, axes = new_figure(4.6, 3.2)
    generator = np.random.default_rng(0)
    for one in run.rounds:
        tried = [edit for edit in one.edits if edit.scored.runs]
        for selected, colour, size in ((False, SOFT, 9), (True, COLOURS[1], 16)):
            chosen = [edit for edit in tried if edit.selected == selected]
            x = one.number + generator.uniform(-0.22, 0.22, len(chosen))
            label = ("selected" if selected else "not selected") if one is run.rounds[0] else None
            axes.scatter(x, [edit.scored.reward for edit in chosen], s=size, color=colour, alpha=0.7, linewidths=0, label=label)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    _rounds_on_x(axes, [run])
    axes.set_title("Every self-edit's reward")
    axes.legend(loc="best", fontsize=8)
    return picture_of(figure, "rewards", f"{run.name}: one dot a self-edit, the mean of its runs.")


def _texts(runs: Sequence[RunData]) -> Picture:
    mpl_figure = Figure(figsize=(9.4, 2.9), layout="constrained")
    for place, (value, title, scale) in enumerate(
        (
            ("words", "Words a self-edit", 1),
            ("coverage", "Gold answers covered, %", 100),
            ("unfaithful", "Words not from the passage, %", 100),
        )
    ):
        axes = mpl_figure.add_subplot(1, 3, place + 1)
        for index, run in enumerate(runs):
            means = [mean_and_error(by_passage(one.edits, value)) for one in run.rounds]
            shown = [(one.number, mean) for one, mean in zip(run.rounds, means, strict=True) if mean.n]
            x, y = [at for at, _ in shown], [scale * mean.mean for _, mean in shown]
            error = [scale * _half(mean) for _, mean in shown]
            axes.errorbar(x, y, error, marker="o", capsize=3, color=_colour(index), label=run.name, linewidth=1.8)
        _rounds_on_x(axes, runs)
        axes.set_title(title)
        if place == 0:
            _legend(axes, runs)
    return picture_of(
        mpl_figure, "texts", "What is written: length, coverage of the gold answers, and what the passage doesn't say; bars: 95 %."
    )


def _methods(run: RunData, index: int) -> Picture:
    methods = (run.table or {})["methods"]
    figure, axes = new_figure(5.4, 0.5 + 0.36 * len(methods))
    for at, of in enumerate(methods.values()):
        accuracy = of["accuracy"]
        axes.barh(
            at,
            100 * accuracy["mean"],
            xerr=_se(accuracy["se"]),
            color=COLOURS[0],
            height=0.62,
            error_kw={"ecolor": INK, "capsize": 3},
        )
    axes.set_yticks(range(len(methods)), list(methods))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("questions right without the passage, %")
    axes.set_title(run.name)
    return picture_of(figure, f"methods-{index}", "Means over passages; bars: standard errors.")


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _rounds_on_x(axes: Any, runs: Sequence[RunData]) -> None:
    numbers = sorted({one.number for run in runs for one in run.rounds})
    axes.set_xticks(numbers)
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_xlabel("round")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _legend(axes: Any, runs: Sequence[RunData]) -> None:
    if len(runs) > 1:
        axes.legend(loc="best", fontsize=8)


def _se(value: float | None) -> float:
    return 0.0 if value is None or np.isnan(value) else 100 * value


def picture_of(figure: Figure, name: str, caption: str) -> Picture:
    """A figure as PNG."""
    buffer = io.BytesIO()
    # Without the software's name and the date the same run gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(name, caption, buffer.getvalue())
