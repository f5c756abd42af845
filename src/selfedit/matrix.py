"""From the rows of ``selfedit continual`` to its table: which questions are counted, the matrix, and what it comes to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import ContinualConfig
from selfedit.contexts import Passage, Question
from selfedit.errors import DataError
from selfedit.graders import Grader
from selfedit.keepers import keeper
from selfedit.marks import mark_sitting, split_quiz
from selfedit.stats import jackknife, mean_and_error, mean_of_known, paired_difference
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.general import General, changed
from selfedit.tasks.knowledge.exam import ExamForm, asked_in, exam_questions

# Rows of the model before any commit; the same for all methods.
BASE_METHOD = "base"
# Where a row keeps the exam in each form.
FORMS: dict[str, ExamForm] = {"sittings": "titled", "bare": "bare"}
# What methods and their costs are held against, where the run has it; methods otherwise against the run's first one.
CONTROL = "merge"
# Share of a quiz that methods see which decide by it.
SHOWN = 0.5
# What methods are held against the control by, and in which unit.
TESTED = {
    "immediate": "points",
    "retained": "points",
    "along": "points",
    "bare": "points",
    "retention": "points",
    "gain_own": "points",
    "gain_after": "points",
    "retention_gain": "points",
    "retention_margin": "points",
    "forgetting": "points",
    "general": "nats",
    "general_right": "points",
    "text": "nats",
    "locality": "points",
    "locality_logprob": "nats",
}
# What the base's own figure is taken off already: as shares of it, or points.
AGAINST_BASE = {
    "general_share": "%",
    "general_right": "points",
    "text_share": "%",
    "locality": "points",
    "locality_logprob": "nats",
}
# Ratios of means over sequences: what stayed of what was there.
RETENTIONS = {
    "retention": ("earlier_after", "earlier_own"),
    "retention_gain": ("gain_after", "gain_own"),
    "retention_margin": ("margin_after", "margin_own"),
}
# What lies beyond a sequence.
BEYOND = ("general", "general_share", "general_right", "text", "text_share", "locality", "locality_logprob")


def halves(config: ContinualConfig, passage: Passage) -> tuple[list[int], list[int]]:
    """Places of a passage's questions that methods may look at, and of those that are counted, for every method of the run.

    In a run with a method that decides by questions (``gate``, ``retention``) these are two halves; in any other run nobody looks
    and all are counted. A quiz that can't be split (one question, or one asked twice) is counted whole and shown to nobody.
    """
    every = list(range(len(passage.questions)))
    if not any(keeper(method, config.keep).asks for method in config.methods):
        return [], every
    try:
        return split_quiz(passage.questions, SHOWN, seeds.derive(config.seed, passage.id, "shown"))
    except DataError:
        return [], every


def shown(config: ContinualConfig, passage: Passage) -> tuple[Question, ...]:
    """The questions that methods may look at."""
    return tuple(passage.questions[at] for at in halves(config, passage)[0])


def table(
    config: ContinualConfig,
    drawn: Sequence[Sequence[Passage]],
    elsewhere: Sequence[Asked],
    rows: Sequence[dict[str, Any]],
    grader: Grader,
) -> dict[str, Any]:
    """By method: the matrix and what it comes to; means and standard errors over sequences; differences to the control.

    A sequence that a method hasn't gone through yet is left out of its figures, which have an ``n`` each; the table's is of those
    planned.

    ``immediate``: share right just after a passage's own commit, before a consolidation that it sets off; ``retained``: after the
    last one; both of the counted questions that the base got wrong. ``along``: the same over all exams after later commits, not
    the last alone, which may come just after a consolidation. ``bare_own``, ``bare``: as ``immediate`` and ``retained``, asked
    without titles, of those that the base got wrong so. ``earlier_own``, ``earlier_after``: as ``immediate`` and ``retained``, of
    all passages but the last, after which nothing was learnt that could be kept or lost. ``retention``: the mean of the latter
    over the mean of the former, both over sequences, with a jackknife's error. ``gain_own``, ``gain_after``, ``retention_gain``:
    the same three of how much more probable than to the base the golds of all counted questions are (each by the geometric mean
    over its tokens and the end of the turn), which is less noisy than what is right, but which later lessons raise too by teaching
    the same form of answers. ``margin_own``, ``margin_after``, ``retention_margin``: the same of the golds' log-probability less
    that of the exam's other golds in their place, in nats, of which the form is no part; none of rows without them. ``all_own``,
    ``all_after``: of all counted questions, just after the own and after the last commit. ``forgetting`` is Avalanche's: the mean
    fall from the one to the other, over all passages but the last. ``general``, ``general_share``, ``general_right``, ``text``,
    ``text_share``: what became of general knowledge (``tasks/general``). ``locality``: change of the share right about passages of
    no sequence; ``locality_logprob``: of the golds' mean log-probability, in nats. ``accepted`` and what happened (``diverged``):
    shares of the commits. ``tokens, seconds, commit_bytes``: a commit's mean; ``state_bytes``: of all adapters after the last one.
    ``tokens_to_merge, seconds_to_merge``: a commit's over one of ``merge``, where the run has it, with a jackknife's error; a
    consolidation is shared out over the commits of its sequence. ``routed, found``: at the last step's exam; ``routed_bare,
    found_bare``: without titles; ``astray_general``: general questions and texts that came to an adapter.

    The control of a difference is ``merge``, in a run without it the first method, and of what became of general knowledge the base
    too; a sequence without one of the two figures is left out of it.
    """
    base = {row["sequence"]: row for row in rows if row["method"] == BASE_METHOD}
    figures: dict[str, dict[int, dict[str, float]]] = {}
    matrices: dict[str, list[list[list[float]]]] = {}
    for method in config.methods:
        figures[method], matrices[method] = {}, []
        # What happened to one sequence happened 0 times to the others.
        happened = {name for row in rows if row["method"] == method for name in row["happened"]}
        for at, sequence in enumerate(drawn):
            own = {row["step"]: row for row in rows if row["method"] == method and row["sequence"] == at}
            if len(own) < len(sequence) or not {0, at} <= base.keys():
                continue
            found, matrix = _sequence(config, own | {0: base[at]}, sequence, grader, happened)
            figures[method][at] = found | _beyond(own[len(sequence)], base[0], elsewhere, grader)
            matrices[method].append(matrix)
    means = {method: _means(list(of.values())) | _to_merge(figures, method) for method, of in figures.items()}
    control = CONTROL if CONTROL in config.methods else config.methods[0]
    return {
        "config": config.model_dump(mode="json"),
        "n": config.sequences,
        "control": control,
        "related": related(drawn),
        "questions": sum(len(exam_questions(passage.questions)) for sequence in drawn for passage in sequence),
        "counted": sum(len(_counted(config, passage)) for sequence in drawn for passage in sequence),
        "methods": {method: of for method, of in means.items() if of},
        "matrix": {method: _over_sequences(of) for method, of in matrices.items()},
        "differences": _differences(figures, control),
    }


def related(drawn: Sequence[Sequence[Passage]]) -> int:
    """Sequences in which two passages have one title."""
    return sum(len({passage.title for passage in sequence}) < len(sequence) for sequence in drawn)


def _counted(config: ContinualConfig, passage: Passage) -> list[Asked]:
    return exam_questions(passage.questions, halves(config, passage)[1])


def _verdicts(config: ContinualConfig, passage: Passage, sitting: dict[str, Any], form: ExamForm, grader: Grader) -> list[bool]:
    """Of the counted questions; the whole exam is marked, since one answer to all of them is no answer."""
    asked = asked_in(form, exam_questions(passage.questions))
    counted = set(halves(config, passage)[1])
    marks = mark_sitting(grader, asked, Sitting(tuple(sitting["answers"]), tuple(sitting["log_probabilities"])))
    return [verdict.correct for one, verdict in zip(asked, marks.verdicts, strict=True) if one.group in counted]


def _probability(sitting: dict[str, Any], chosen: Sequence[bool]) -> float:
    """Mean probability of the chosen golds, of each the geometric mean over its tokens; nan of none."""
    own = [math.exp(value) for value, there in zip(sitting["log_probabilities"], chosen, strict=True) if there]
    return fmean(own) if own else math.nan


def _margin(sitting: dict[str, Any], chosen: Sequence[bool]) -> float:
    """Mean margin of the chosen golds; nan of none, or where none was asked for."""
    own = [value for value, there in zip(sitting.get("margins", ()), chosen, strict=False) if there]
    return fmean(own) if own else math.nan


def _sequence(
    config: ContinualConfig, own: dict[int, dict[str, Any]], sequence: Sequence[Passage], grader: Grader, happened: set[str]
) -> tuple[dict[str, float], list[list[float]]]:
    """A sequence's figures, and its matrix: a row a step, a column a passage; nan where there was no exam."""
    count = len(sequence)
    titled = {
        (step, column): _verdicts(config, passage, row["sittings"][passage.id], "titled", grader)
        for step, row in own.items()
        for column, passage in enumerate(sequence)
        if passage.id in row["sittings"]
    }
    bare = {
        (step, column): _verdicts(config, passage, own[step]["bare"][passage.id], "bare", grader)
        for step in own
        for column, passage in enumerate(sequence)
        if passage.id in own[step]["bare"]
    }
    columns, steps = range(count), [own[step] for step in range(1, count + 1)]
    # Where a consolidation came with a commit, the row has the exam before it apart.
    new, new_bare = (
        [_verdicts(config, p, row.get("own", row)[key][p.id], form, grader) for row, p in zip(steps, sequence, strict=True)]
        for key, form in FORMS.items()
    )

    def gain(row: dict[str, Any], column: int, of: Callable[[dict[str, Any], Sequence[bool]], float]) -> float:
        passage = sequence[column]
        counted = set(halves(config, passage)[1])
        chosen = [one.group in counted for one in exam_questions(passage.questions)]
        now, before = (of(found["sittings"][passage.id], chosen) for found in (row, own[0]))
        return now - before

    immediate = [_share(new[c], unknown=titled[0, c]) for c in columns]
    retained = [_share(titled[count, c], unknown=titled[0, c]) for c in columns]
    figures = {
        "before": mean_of_known([_share(titled[0, c]) for c in columns]),
        "immediate": mean_of_known(immediate),
        "retained": mean_of_known(retained),
        "along": mean_of_known([_share(of, unknown=titled[0, c]) for (step, c), of in titled.items() if step > c + 1]),
        "bare_own": mean_of_known([_share(new_bare[c], unknown=bare[0, c]) for c in columns]),
        "bare": mean_of_known([_share(bare[count, c], unknown=bare[0, c]) for c in columns]),
        "earlier_own": mean_of_known(immediate[:-1]),
        "earlier_after": mean_of_known(retained[:-1]),
        **{
            f"{name}_{when}": mean_of_known([gain(rows[c], c, of) for c in columns[:-1]])
            for name, of in (("gain", _probability), ("margin", _margin))
            for when, rows in (("own", [row.get("own", row) for row in steps]), ("after", [steps[-1]] * count))
        },
        "forgetting": mean_of_known([_share(new[c]) - _share(titled[count, c]) for c in columns[:-1]]),
        "all_own": mean_of_known([_share(new[c]) for c in columns]),
        "all_after": mean_of_known([_share(titled[count, c]) for c in columns]),
        "accepted": fmean(float(row["accepted"]) for row in steps),
        **{name: fmean(row[name] for row in steps) for name in ("tokens", "seconds", "commit_bytes")},
        "state_bytes": float(steps[-1]["state_bytes"]),
    }
    notes: dict[str, list[float]] = defaultdict(list)
    for row in steps:
        for name, value in row["notes"].items():
            notes[name].append(value)
    figures |= {name: fmean(values) for name, values in notes.items()}
    figures |= {name: fmean(float(name in row["happened"]) for row in steps) for name in happened}
    matrix = [[_share(titled[step, c]) if (step, c) in titled else math.nan for c in columns] for step in range(count + 1)]
    return figures, matrix


def _share(verdicts: Sequence[bool], unknown: Sequence[bool] | None = None) -> float:
    """Share right, of those that were wrong before where that is given; nan of none."""
    kept = [float(right) for at, right in enumerate(verdicts) if unknown is None or not unknown[at]]
    return fmean(kept) if kept else math.nan


def _beyond(last: dict[str, Any], base: dict[str, Any], elsewhere: Sequence[Asked], grader: Grader) -> dict[str, float]:
    """What a sequence did to general knowledge and to other passages, and how its last exam was routed; nan: not measured."""
    figures: dict[str, float] = dict.fromkeys(BEYOND, math.nan) | last["answering"]
    for form in ("bare", "general"):
        figures |= {f"{name}_{form}": value for name, value in last[f"answering_{form}"].items()}
    if last["general"] is not None:
        figures |= changed(*(General(**row["general"]) for row in (last, base)))
    if elsewhere and last["elsewhere"] is not None:
        marks = [
            mark_sitting(
                grader, elsewhere, Sitting(tuple(row["elsewhere"]["answers"]), tuple(row["elsewhere"]["log_probabilities"]))
            )
            for row in (last, base)
        ]
        figures["locality"] = marks[0].accuracy - marks[1].accuracy
        now, before = (fmean(row["elsewhere"]["log_probabilities"]) for row in (last, base))
        figures["locality_logprob"] = now - before
    return figures


def _means(of: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Each figure over the sequences that have it."""
    names = list(dict.fromkeys(name for one in of for name in one))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        values = [value for one in of if not math.isnan(value := one.get(name, math.nan))]
        if values:
            found[name] = asdict(mean_and_error(values))
    for name, (after, own) in RETENTIONS.items():
        pairs = [(one[after], one[own]) for one in of]
        retention = jackknife([pair for pair in pairs if not math.isnan(sum(pair))], _ratio)
        if not math.isnan(retention.mean):
            found[name] = asdict(retention)
    return found


def _to_merge(figures: dict[str, dict[int, dict[str, float]]], method: str) -> dict[str, dict[str, Any]]:
    """What a commit costs over one of ``merge``, of the sequences that both have gone through; nothing where that says nothing."""
    of, control = figures[method], figures.get(CONTROL, {})
    found = {}
    for name in ("tokens", "seconds") if method != CONTROL else ():
        ratio = jackknife([(of[at][name], control[at][name]) for at in of if at in control], _ratio)
        if not math.isnan(ratio.mean):
            found[f"{name}_to_merge"] = asdict(ratio)
    return found


def _ratio(pairs: Sequence[tuple[float, ...]]) -> float:
    below = sum(pair[1] for pair in pairs)
    return sum(pair[0] for pair in pairs) / below if below else math.nan


def _differences(figures: dict[str, dict[int, dict[str, float]]], control: str) -> list[dict[str, Any]]:
    """Of every other method to the control, paired by sequence."""
    found: list[dict[str, Any]] = []
    for method, of in figures.items():
        for name, unit in TESTED.items():
            if method == control:
                continue
            parts = RETENTIONS.get(name, (name,))
            units = [
                tuple(side[at][part] for side in (of, figures[control]) for part in parts) for at in of if at in figures[control]
            ]
            units = [one for one in units if not math.isnan(sum(one))]
            if not units:
                continue
            if name in RETENTIONS:
                whole = jackknife(units, lambda chosen: _ratio(chosen) - _ratio([one[2:] for one in chosen]))
                if math.isnan(whole.mean):
                    continue
                values = asdict(whole) | {"p": math.nan}
            else:
                values = asdict(paired_difference([one[0] for one in units], [one[1] for one in units]))
            found.append({"method": method, "control": control, "measure": name, "unit": unit, **values})
    for method, of in figures.items():
        for name, unit in AGAINST_BASE.items():
            changes = [one[name] for one in of.values() if not math.isnan(one.get(name, math.nan))]
            if changes:
                values = asdict(paired_difference(changes, [0.0] * len(changes)))
                found.append({"method": method, "control": BASE_METHOD, "measure": name, "unit": unit, **values})
    return found


def _over_sequences(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[dict[str, Any] | None]]:
    """Each cell's mean over sequences; None where there was no exam."""
    found: list[list[dict[str, Any] | None]] = []
    for step in range(len(matrices[0]) if matrices else 0):
        columns = [[m[step][column] for m in matrices if not math.isnan(m[step][column])] for column in range(len(matrices[0][0]))]
        found.append([asdict(mean_and_error(values)) if values else None for values in columns])
    return found
