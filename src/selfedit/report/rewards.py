"""What rewards and screens are worth, for the report: the tables of ``selfedit bench rewards``."""

from __future__ import annotations

from typing import Any

from selfedit.report.read import RunData
from selfedit.report.tables import Table


def rewards_table(run: RunData) -> Table:
    """Each reward and screen by the self-edit that it takes."""
    table = run.table or {}
    rows = []
    for row in table["rows"]:
        single = row["reliability"]["single"] if row["reliability"] else None
        against = (_interval(row["picked_minus_random"]), _interval(row["picked_minus_accuracy"]))
        cost = [_mean(row[f"{kind}_a_passage"], 0) for kind in ("seconds", "trained_tokens", "read_tokens", "written_tokens")]
        reliability = None if single is None else f"{single:.2f}"
        rows.append(
            (row["name"], row["n"], reliability, _mean(row["rank_correlation"], 2), _mean(row["picked"], 3), *against, *cost)
        )
    return Table(
        f"Rewards and screens on {table['passages']} passages",
        f"{table['edits']} self-edits each, {table['repeats']} seeds; to write: {table['writing']['seconds']:.0f} seconds, "
        f"{table['writing']['written']:.0f} tokens a passage. Reliability: of one run. Picked: accuracy of the self-edit "
        "taken, on questions and by seeds that chose nothing (each half of the questions in turn); rank: Spearman's rho with it "
        "within a passage, where not all are worth the same. Paired differences, "
        "to a random self-edit and to the labelled accuracy's pick, with 95 % intervals. Seconds and tokens: a passage, exams made "
        "and sat, trainings or looks; trained: labelled ones, read: passed through the model in all, written: decoded.",
        (
            *("reward", "n", "reliability", "rank", "picked", "minus random", "minus accuracy"),
            *("seconds", "trained", "read", "written"),
        ),
        tuple(rows),
    )


def stages_table(run: RunData) -> Table:
    """Training only what looks best, against training all."""
    table = run.table or {}
    rows = [
        (
            row["screen"],
            row["by"],
            row["count"],
            row["n"],
            _mean(row["picked"], 3),
            _interval(row["minus_training_all"]),
            _interval(row["minus_random"]),
            *(_share(row[name]) for name in ("cost_share", "cost_share_written", "cost_share_run")),
        )
        for row in table["two_stage"]
    ]
    return Table(
        f"Only {table['screened']} of {table['edits']} are trained, or fewer",
        "Of the few that look best, which are trained, the best by the reward is taken. Cost: trainings and exams of the few and "
        "looks at all, as a share of training all; with writing: what writing took added on both sides; of a run: over so many, "
        "the first of which are looked at, tried whole and twice, and with those trained again that tie for the best. Random: the "
        "mean over all choices of so many.",
        (
            *("screen", "by", "trained", "n", "picked", "minus training all", "minus random"),
            *("of its cost", "with writing", "of a run"),
        ),
        tuple(rows),
    )


def _mean(value: dict[str, Any], digits: int) -> str | None:
    if not value["n"] or value["mean"] is None:
        return None
    return f"{value['mean']:.{digits}f}" + (f" ± {value['se']:.{digits}f}" if value["se"] is not None and value["n"] > 1 else "")


def _interval(value: dict[str, Any] | None) -> str | None:
    if value is None or value["mean"] is None:
        return None
    interval = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"{value['mean']:+.3f}{interval}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"
