"""What rewards and screens are worth, for the report: the tables of ``selfedit bench rewards``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfedit.report.read import RunData
from selfedit.report.tables import Table

# How a self-edit's worth by each outcome is called.
OUTCOMES = {"accuracy": "accuracy", "likelihood": "the golds' likelihood"}
DIFFERENCES = ("minus_training_all", "minus_random", "all_minus_one")


def rewards_tables(run: RunData) -> list[Table]:
    """Each reward and screen by the self-edit that it takes, by either outcome, and what it costs."""
    table = run.table or {}
    first, second = (_worth_table(table, outcome) for outcome in OUTCOMES)
    first = replace(first, note=f"{_notes(table)} {first.note}")
    return [first, second, _cost_table(table), _stages_table(table), _same_table(table), _shares_table(table)]


def _notes(table: dict[str, Any]) -> str:
    overlap = ", ".join(f"{exam} {_mean(of, 2)}" for exam, of in table["overlap"].items() if of["n"]) or "-"
    return (
        f"{table['passages']} passages of {table['titles']} titles, taken as independent. "
        f"Accuracy of all self-edits {_mean(table['average'], 3)}, of the best by it {_mean(table['best'], 3)}. The "
        f"model's own quiz: {table['with_quiz']} of {table['passages']} passages. One training: "
        f"{table['training_seconds']['mean']:.1f} s, {table['training_tokens']['mean']:,.0f} labelled tokens. Share of an exam's "
        f"own questions that ask what a labelled one asks: {overlap}."
    )


def _named(row: dict[str, Any], name: str) -> str:
    return f"{row[name]} *" if row["named"] else str(row[name])


def _worth_table(table: dict[str, Any], outcome: str) -> Table:
    rows = []
    for row in table["rows"]:
        of, own = row[outcome], row["reliability"]
        reliable = None if own is None or own["single"] is None else f"{own['single']:.2f}"
        reliable = reliable if row["halves"] is None else _mean(row["halves"], 2)
        found = (_mean(of["rank_correlation"], 2), _mean(of["picked"], 3), _interval(of["minus_random"]))
        against = (_interval(of["minus_labelled"]), _interval(of["share"], ""))
        same = row["same_questions"]
        rows.append((_named(row, "name"), row["n"], reliable, *found, *against, _interval(same[outcome] if same else None)))
    return Table(
        f"Rewards and screens by {OUTCOMES[outcome]}, {table['passages']} passages",
        f"{table['edits']} self-edits each, {table['repeats']} seeds. Picked: {OUTCOMES[outcome]} of the self-edit taken, on "
        "questions and by seeds that chose nothing (each half of the questions in turn); rank: Spearman's rho with it within a "
        "passage, where not all are worth the same. Paired differences, to a random self-edit and to the pick of the labelled "
        "reward likelihood, with 95 % intervals; share: of what that pick gains over a random self-edit, on the same passages, if "
        "that gain's interval is above zero. Same questions: minus random on the questions that chose, by seeds that "
        "didn't, as the outer loop has it. Reliability: of one run's reward; of a look: rank correlation of its two halves. "
        "*: named before anything was measured; the best of the others is the best of many.",
        ("reward", "n", "reliability", "rank", "picked", "minus random", "minus labelled", "share", "same questions"),
        tuple(rows),
    )


def _cost_table(table: dict[str, Any]) -> Table:
    kinds = ("seconds", "trained_tokens", "read_tokens", "written_tokens")
    return Table(
        "What rewards and screens cost",
        f"Seconds and tokens a passage: exams made and sat, trainings or looks; trained: labelled ones, read: passed through the "
        f"model in all, written: decoded. The self-edits themselves: {table['writing']['seconds']:.0f} seconds, "
        f"{table['writing']['written']:.0f} tokens written.",
        ("reward", "n", "seconds", "trained", "read", "written"),
        tuple((_named(row, "name"), row["n"], *(_mean(row[f"{kind}_a_passage"], 0) for kind in kinds)) for row in table["rows"]),
    )


def _stages_table(table: dict[str, Any]) -> Table:
    rows = [
        (
            *(_named(row, "screen"), row["by"], row["count"], row["n"]),
            *(_mean(row["accuracy"]["picked"], 3), *(_interval(row["accuracy"][name]) for name in DIFFERENCES)),
            *(_interval(row["likelihood"][name]) for name in DIFFERENCES[:2]),
        )
        for row in table["two_stage"]
    ]
    return Table(
        f"Only {table['screened']} of {table['edits']} are trained, or fewer",
        "Of the few that look best, which are trained, the best by the reward is taken. Random: the mean over all choices of so "
        "many. All - one: what training all gains over one self-edit at random; where that is next to nothing, losing nothing "
        "against it says nothing of a screen. The last two: by the golds' likelihood.",
        (
            *("screen", "by", "trained", "n", "picked", "minus training all", "minus random", "all - one"),
            *("minus training all'", "minus random'"),
        ),
        tuple(rows),
    )


def _same_table(table: dict[str, Any]) -> Table:
    rows = []
    for row in table["two_stage"]:
        same = row["same_questions"]
        found = [_interval(same[outcome][name]) for outcome in OUTCOMES for name in DIFFERENCES]
        rows.append((_named(row, "screen"), row["by"], row["count"], row["n"], *found))
    return Table(
        "The same, where the questions that chose report, too",
        "By seeds that chose nothing, as the outer loop has it: a self-edit's gain on the questions that it is chosen by. The last "
        "three: by the golds' likelihood.",
        (
            *("screen", "by", "trained", "n", "minus training all", "minus random", "all - one"),
            *("minus training all'", "minus random'", "all - one'"),
        ),
        tuple(rows),
    )


def _shares_table(table: dict[str, Any]) -> Table:
    shares = ("cost_share", "cost_share_written", "cost_share_run", "cost_share_planned")
    return Table(
        "What training only a few costs",
        "Trainings and exams of the few and looks at all, as a share of training all; with writing: what writing took added on "
        "both sides; of a run: over so many passages, the first of which are looked at, tried whole and twice, and with those "
        f"trained again that tie for the best; of a larger run: the same over {table['planned']['passages']} passages with "
        f"{table['planned']['edits']} self-edits each.",
        ("screen", "by", "trained", "of its cost", "with writing", "of a run", "of a larger run"),
        tuple(
            (_named(row, "screen"), row["by"], row["count"], *(_share(row[name]) for name in shares)) for row in table["two_stage"]
        ),
    )


def _mean(value: dict[str, Any], digits: int) -> str | None:
    if not value["n"] or value["mean"] is None:
        return None
    return f"{value['mean']:.{digits}f}" + (f" ± {value['se']:.{digits}f}" if value["se"] is not None and value["n"] > 1 else "")


def _interval(value: dict[str, Any] | None, sign: str = "+") -> str | None:
    if value is None or value["mean"] is None:
        return None
    interval = "" if value["low"] is None else f" [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    return f"{value['mean']:{sign}.3f}{interval}"


def _share(value: dict[str, Any]) -> str | None:
    if value["mean"] is None:
        return None
    interval = "" if value["low"] is None else f" [{value['low']:.0%}, {value['high']:.0%}]"
    return f"{value['mean']:.0%}{interval}"
