"""The figures of a report: rows of plain values, for the page and for CSV alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from selfedit.report.read import Edit, Round, RunData
from selfedit.stats import Mean, jackknife, mean_and_error, paired_difference

# How an eval run's measures are called in tables.
MEASURE_NAMES = {
    "accuracy": "correct",
    "paraphrased": "in other words",
    "question_alone": "no title",
    "f1": "F1",
    "logprob": "log-prob",
    "locality": "elsewhere",
    "locality_logprob": "elsewhere log-prob",
}


@dataclass(frozen=True)
class Table:
    """Columns and rows; a cell is text, a number or None."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def by_passage(edits: Iterable[Edit], value: str) -> list[float]:
    """Each passage's mean over its self-edits of a figure; passages without any are left out."""
    return list(of_passages(edits, value).values())


def of_passages(edits: Iterable[Edit], value: str) -> dict[str, float]:
    """The same by passage."""
    found: dict[str, list[float]] = defaultdict(list)
    for edit in edits:
        figure = getattr(edit.scored, value) if hasattr(edit.scored, value) else getattr(edit, value)
        if figure is not None:
            found[edit.scored.context].append(float(figure))
    return {context: fmean(values) for context, values in found.items()}


def rounds_table(run: RunData) -> Table:
    """What each round wrote and how well it did."""
    rows = []
    for one in run.rounds:
        metrics = one.metrics
        rows.append(
            (
                one.number,
                metrics["contexts"],
                f"{metrics['usable']}/{metrics['edits']}",
                _pm(mean_and_error(by_passage(one.edits, "baseline")), 100),
                _pm(mean_and_error(by_passage(one.edits, "accuracy")), 100),
                _stored(metrics["reward"]),
                metrics["selected"],
                _stored(metrics["reward_selected"]),
                _pm(mean_and_error(by_passage(one.edits, "words")), 1, 0),
                _pm(mean_and_error(by_passage(one.edits, "coverage")), 100),
                _pm(mean_and_error(by_passage(one.edits, "unfaithful")), 100),
            )
        )
    return Table(
        "Rounds",
        "Means and standard errors over passages. Reward: gain over the baseline, in the reward's own unit. Coverage: share of the "
        "gold answers that stand in the self-edit. Unfaithful: share of its content words that the passage doesn't have.",
        (
            "round", "passages", "usable", "before %", "after %", "reward", "selected", "their reward", "words", "coverage %",
            "unfaithful %",
        ),
        tuple(rows),
    )  # fmt: skip


def noise_table(run: RunData) -> Table:
    """How far a reward can be trusted."""
    rows = []
    for one in run.rounds:
        for kind, noise in one.metrics["reliability"].items():
            if noise is not None:
                variances = (_figure(noise["edit_variance"]), _figure(noise["seed_variance"]))
                shares = (_share(noise, "single"), _share(noise, "mean"))
                rows.append((one.number, kind, noise["contexts"], noise["trials"], *variances, *shares))
    return Table(
        "Noise of the reward",
        "Variance within a passage between self-edits and between training runs of one self-edit; reliability is the former's "
        "share, of one run and of the mean of a self-edit's runs, ± by leaving out each passage in turn. All kinds of reward on "
        "the same trials.",
        ("round", "reward", "passages", "trials", "between edits", "between runs", "reliability of one", "of the mean"),
        tuple(rows),
    )


def retested_table(run: RunData) -> Table:
    """What the best of a passage is worth on a run that did not choose it."""
    rows = [
        (one.number, best["seen"]["n"], _stored(best["average"]), _stored(best["seen"]), _stored(best["retested"]))
        for one in run.rounds
        if (best := one.metrics["best_retested"]) and best["seen"]["n"]
    ]
    return Table(
        "The best, tested again",
        "Of each passage the best self-edit by one run: its reward in that run, and in its other runs, which didn't choose it.",
        ("round", "passages", "all self-edits", "best as seen", "best again"),
        tuple(rows),
    )


def cost_table(run: RunData) -> Table:
    """What a run has cost."""
    names, parts = ("tokens", "rows", "seconds"), ("exams", "writing", "screening", "trying", "policy")
    rows: list[tuple[Any, ...]] = []
    for one in run.rounds:
        cost = one.metrics.get("cost") or {}
        rows.append((one.number, *(one.metrics.get(name) for name in names), *(cost.get(part) for part in parts)))
    if len(rows) > 1:
        rows.append(("all", *(round(sum(row[at] or 0 for row in rows), 1) for at in range(1, 1 + len(names) + len(parts)))))
    return Table(
        "Cost",
        "Labelled tokens of the inner loop, rows the policy was trained on, seconds of all workers and what they went into.",
        ("round", *names, *parts),
        tuple(rows),
    )


def methods_table(run: RunData) -> Table:
    """An eval run's means."""
    table = run.table or {}
    names = ("accuracy", "paraphrased", "question_alone", "f1", "exact", "locality")
    rows = []
    for method, of in table["methods"].items():
        shares = [_stored(of.get(name), 100) for name in names]
        nats = (_stored(of.get("locality_logprob")), _stored(of.get("logprob")))
        rows.append((method, *shares, *nats, *(_number(of, name) for name in ("tokens", "steps", "seconds"))))
    config = table["config"]
    return Table(
        f"Methods on {config['data']} {config['split']}".strip(),
        f"{table['n']} passages, {table['questions']} questions, seed {config['seed']}; means and standard errors over passages."
        if "unit" not in table
        else f"n = {table['n']} {table['unit']}.",
        (
            "method", "correct %", "in other words %", "no title %", "F1 %", "exact %", "elsewhere %", "elsewhere log-prob",
            "log-prob", "tokens", "steps", "seconds",
        ),
        tuple(rows),
    )  # fmt: skip


def differences_table(run: RunData) -> Table:
    """An eval run's paired differences."""
    rows = [
        (
            f"{row['method']} - {row['control']}",
            MEASURE_NAMES.get(row["measure"], row["measure"]),
            row["n"],
            _interval(row, 1, 2) if row["measure"].endswith("logprob") else _interval(row),
            _p(row["p"]),
        )
        for row in (run.table or {})["differences"]
    ]
    return Table(
        "Paired differences",
        "In points, log-probabilities in nats a token; 95 % t-interval, two-sided sign-flip p. Elsewhere: questions about other "
        "passages, what was disturbed.",
        ("pair", "measure", "n", "difference", "p"),
        tuple(rows),
    )


def comparison(runs: Sequence[RunData]) -> Table | None:
    """Every later run against the first of its kind, passage by passage, where both have the same."""
    rows: list[tuple[Any, ...]] = []
    firsts: dict[str, RunData] = {}
    for other in runs:
        first = firsts.setdefault(other.kind, other)
        if first is other:
            continue
        for label, ours, theirs in _pairs(first, other):
            shared = [key for key in ours if key in theirs]
            if len(shared) > 1:
                found = paired_difference([theirs[key] for key in shared], [ours[key] for key in shared])
                row = {"n": found.n, "mean": found.mean, "low": found.low, "high": found.high}
                rows.append((f"{other.name} - {first.name}", label, found.n, _interval(row), _p(found.p)))
        for method in ("seal-writer", "seal"):
            rows += _share_of_gain(first, other, method)
    if not rows:
        return None
    return Table(
        "Runs compared",
        "Paired by passage, each the mean of its self-edits: points, 95 % t-interval, two-sided sign-flip p. Share of the gain: of "
        "what the first run's policy gained over the base's own self-edits, if that gain's interval is above zero; a ratio of "
        "means with the jackknife's interval.",
        ("runs", "what", "n", "difference", "p"),
        tuple(rows),
    )


def _share_of_gain(first: RunData, other: RunData, method: str) -> list[tuple[Any, ...]]:
    """How much of the gain of the first run's policy another one has, on the same passages."""
    if first.kind != "eval" or any({method, "self"} - set((run.table or {})["methods"]) for run in (first, other)):
        return []
    gains = []
    for run in (first, other):
        with_policy, without = _of_method(run, method), _of_method(run, "self")
        gains.append({key: value - without[key] for key, value in with_policy.items() if key in without})
    units = [(gains[1][key], gains[0][key]) for key in gains[0] if key in gains[1]]
    # A ratio to a gain that may be none says nothing.
    if len(units) < 2 or not paired_difference([mine for _, mine in units], [0.0] * len(units)).low > 0:
        return []
    found = jackknife(units, lambda chosen: fmean(a for a, _ in chosen) / (fmean(b for _, b in chosen) or math.nan))
    interval = f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return [(f"{other.name} of {first.name}", f"{method} - self, share of the gain", len(units), interval, None)]


def edits_table(run: RunData) -> Table:
    """Every self-edit, for the CSV."""
    rows = [
        (
            one.number, edit.scored.context, edit.title, edit.scored.candidate, edit.style, edit.status, edit.scored.baseline,
            edit.scored.accuracy, edit.scored.reward if edit.scored.tried else None, edit.selected, edit.words, edit.coverage,
            edit.unfaithful,
        )
        for one in run.rounds
        for edit in one.edits
    ]  # fmt: skip
    columns = (
        "round", "context", "title", "candidate", "style", "status", "before", "after", "reward", "selected", "words", "coverage",
        "unfaithful",
    )  # fmt: skip
    return Table("Self-edits", "", columns, tuple(rows))


def extremes(one: Round, count: int = 3) -> list[tuple[Edit, Edit]]:
    """The best and the worst self-edit of the passages where they are furthest apart."""
    by_context: dict[str, list[Edit]] = defaultdict(list)
    for edit in one.edits:
        if edit.scored.usable and edit.scored.runs:
            by_context[edit.scored.context].append(edit)
    pairs = [(max(own, key=_value), min(own, key=_value)) for own in by_context.values() if len(own) > 1]
    pairs.sort(key=lambda pair: _value(pair[1]) - _value(pair[0]))
    return pairs[:count]


def _value(edit: Edit) -> float:
    return edit.scored.value


def _pairs(first: RunData, other: RunData) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    if first.kind in ("eval", "puzzles"):
        methods = [m for m in (first.table or {})["methods"] if m in (other.table or {})["methods"]]
        measures = {"accuracy": "correct"} | ({"question_alone": "no title", "f1": "F1"} if first.kind == "eval" else {})
        pairs = [
            (f"{m}, {title}", _of_method(first, m, name), _of_method(other, m, name))
            for m in methods
            for name, title in measures.items()
        ]
        if first.kind == "puzzles":
            pairs += [
                (f"{m} - {control}, solved", _of_method(first, control), _of_method(other, m)) for m, control in _new(first, other)
            ]
        return [pair for pair in pairs if pair[1] and pair[2]]
    found = []
    for ours, theirs in zip(first.rounds, other.rounds, strict=False):
        # A control at random tries nothing, so what it has in common with others is what was written.
        for figure, title in (("accuracy", "right"), ("coverage", "gold answers covered"), ("unfaithful", "words not from it")):
            found.append((f"round {ours.number}, {title}", of_passages(ours.edits, figure), of_passages(theirs.edits, figure)))
    return found


def _new(first: RunData, other: RunData) -> list[tuple[str, str]]:
    """Methods that only a later run on puzzles has, each with its controls that the first one has."""
    # Here, since other runs need no torch.
    from selfedit.puzzles.evaluate import CONTROLS

    known = (first.table or {})["methods"]
    added = [method for method in (other.table or {})["methods"] if method not in known]
    return [(method, control) for method in added for control in CONTROLS[method] if control in known]


def _of_method(run: RunData, method: str, measure: str = "accuracy") -> dict[str, float]:
    rows = (run.table or {})["passages"]
    return {row["id"]: value for row in rows if (value := row["methods"][method].get(measure)) is not None}


def _pm(mean: Mean, scale: float, digits: int = 1) -> str | None:
    if not mean.n:
        return None
    error = "" if math.isnan(mean.se) else f" ± {scale * mean.se:.{digits}f}"
    return f"{scale * mean.mean:.{digits}f}{error}"


def _stored(value: dict[str, Any] | None, scale: float = 1) -> str | None:
    """A mean as a run keeps it."""
    if not value or not value["n"] or value["mean"] is None:
        return None
    digits = 1 if scale > 1 else 3
    error = "" if value["se"] is None or math.isnan(value["se"]) else f" ± {scale * value['se']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{error}"


def with_interval(value: dict[str, Any] | None, scale: float, digits: int) -> str | None:
    """A ratio or the like with its interval, which one unit doesn't give."""
    if value is None:
        return None
    low, high = value["low"], value["high"]
    between = "" if low is None or math.isnan(low) else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"{scale * value['mean']:.{digits}f}{between}"


def _number(of: dict[str, Any], name: str) -> str | None:
    return f"{of[name]['mean']:.0f}" if name in of else None


def _share(noise: dict[str, Any], name: str) -> str | None:
    """A reliability with its error, which runs of before don't have."""
    value, error = noise[name], noise.get(f"{name}_se")
    if value is None or math.isnan(value):
        return None
    return f"{value:.2f}" + ("" if error is None or math.isnan(error) else f" ± {error:.2f}")


def _figure(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.4f}"


def _interval(row: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
    mean, low, high = (row[name] for name in ("mean", "low", "high"))
    if row["n"] < 2 or low is None:
        return f"{scale * mean:+.{digits}f}"
    return f"{scale * mean:+.{digits}f} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


def _p(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else ("<.001" if value < 0.001 else f"{value:.3f}")
