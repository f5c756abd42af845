"""A result file of the reference code becomes a run folder, every aggregate computed again from the verdicts on single questions.

Departures: a run that has no verdicts counts as one that could not be tried; there it leaves zeros that look like results.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from selfedit import __version__
from selfedit.contexts import Passage, Question
from selfedit.errors import DataError
from selfedit.runs import ROWS, keep_rows, read_rows, write_json
from selfedit.selection import Scored, round_summary
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.data import flat_dataset

# How far a file's own aggregate (rounded to 4 digits) may be from the one computed again.
ROUNDING = 1.01e-4
# What tells the results of many passages at once and of sequences.
FORMS = {"server_reply", "mean_over_sequences"}


def convert(file: Path, folder: Path) -> dict[str, Any]:
    """Writes the run folder and returns ``{overall, stored, differs, below}``.

    Aggregates computed again, the file's own, and the names of those that differ by more than rounding; ``below`` says where the
    means of single articles and completions do.

    Raises:
        DataError: the file isn't such a result, or the folder exists; names the item and the field.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists; give a folder that doesn't")
    data = _load(file)
    if "server_reply" in data:
        return _convert_corpus(file, data, folder)
    if "mean_over_sequences" in data:
        return _convert_continual(file, data, folder)
    passages: list[Passage] = []
    edits, trials, scored = [], [], []
    for index, article in enumerate(data["articles"]):
        at = f"{file}, article {index + 1}"
        passage = _passage(article, at)
        again = sum(known.id == passage.id for known in passages)
        context = f"{passage.id}-{again + 1}" if again else passage.id
        passages.append(passage)
        prompt = article.get("prompt", "")
        written = []
        for candidate, completion in enumerate(_listed(article, "completions", at)):
            here = f"{at}, completion {candidate + 1}"
            text = completion.get("text")
            if not isinstance(text, str):
                raise DataError(f"{here}: field text is missing or not text")
            written.append({"text": text, "style": str(data.get("exp_name", "")), "texts": [text]})
            one, rows = _scored(context, candidate, completion, here)
            scored.append(one)
            trials += rows
        edits.append({"context": context, "prompt": prompt, "edits": written, "policy": "external"})
    if not edits:
        raise DataError(f"{file}: no articles in it")
    overall = aggregates(scored)
    scratch = _started(file, data, folder)
    (scratch / "round-01").mkdir()
    write_json(scratch / "data.json", flat_dataset(passages))
    keep_rows(scratch / ROWS, trials)
    keep_rows(scratch / "round-01" / "edits.jsonl", edits)
    keep_rows(scratch / "round-01" / "scored.jsonl", [asdict(one) for one in scored])
    summary = {"round": 1, **round_summary(scored, [], "accuracy"), "overall": overall}
    keep_rows(scratch / "metrics.jsonl", [summary])
    scratch.rename(folder)
    return _compared(overall, data, _below(data["articles"], scored))


def _convert_corpus(file: Path, data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A result of many passages at once: one adapter, one verdict a question; a run folder of the kind ``eval``."""
    reply = data["server_reply"]
    verdicts: dict[str, list[float]] = {}
    for method in ("baseline", "adapter"):
        marks = reply.get(f"{method}_correct") if isinstance(reply, dict) else None
        if not isinstance(marks, list) or not marks or not all(isinstance(mark, (bool, int)) and mark in (0, 1) for mark in marks):
            raise DataError(f"{file}: field server_reply.{method}_correct is missing or no list of verdicts (true or false)")
        verdicts[method] = [float(mark) for mark in marks]
    before, after = verdicts["baseline"], verdicts["adapter"]
    if len(before) != len(after):
        raise DataError(f"{file}: server_reply has {len(before)} verdicts of the baseline and {len(after)} of the adapter")
    overall = {
        "baseline_accuracy": _rounded(fmean(before)),
        "adapter_accuracy": _rounded(fmean(after)),
        "gain": _rounded(fmean(after) - fmean(before)),
    }
    difference = asdict(paired_difference(after, before))
    table = {
        "n": len(before),
        "questions": len(before),
        "unit": "questions (the file does not say which passage each is of, so errors take no account of that)",
        "config": {"data": data.get("dataset") or file.name, "split": "", "seed": None},
        "methods": {method: {"accuracy": asdict(mean_and_error(marks))} for method, marks in verdicts.items()},
        "differences": [{"method": "adapter", "control": "baseline", "measure": "accuracy", **difference}],
        "passages": [
            {"id": f"question {number}", "methods": {"baseline": {"accuracy": one}, "adapter": {"accuracy": other}}}
            for number, (one, other) in enumerate(zip(before, after, strict=True), start=1)
        ],
    }
    scratch = _started(file, data, folder)
    write_json(scratch / "table.json", table)
    scratch.rename(folder)
    return _compared(overall, data)


def _convert_continual(file: Path, data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A summary of sequences: matrices of means and deviations; a run folder of the kind ``continual``. No verdicts are in it."""
    count = data.get("n_sequences")
    if not isinstance(count, int) or count < 1:
        raise DataError(f"{file}: field n_sequences is missing or no number of sequences")
    means, spreads = (_matrix(data, name, file) for name in ("mean_over_sequences", "std_over_sequences"))
    columns = len(means[0])
    matrix = [
        [
            {"n": count, "mean": means[step][column], "se": spreads[step][column] / math.sqrt(count)}
            # Row 0 is the model before; later rows have no exam of passages that are yet to come.
            if not step or column < step
            else None
            for column in range(columns)
        ]
        for step in range(columns + 1)
    ]
    last, own = means[columns], [means[column + 1][column] for column in range(columns)]
    overall: dict[str, float | None] = {
        "before": _rounded(fmean(means[0])),
        # Of all questions: which ones the model knew before isn't in the file.
        "all_own": _rounded(fmean(own)),
        "all_after": _rounded(fmean(last)),
        "forgetting": _rounded(fmean(a - b for a, b in zip(own[:-1], last[:-1], strict=True))) if columns > 1 else None,
    }
    figures = {name: {"n": count, "mean": value, "se": None} for name, value in overall.items() if value is not None}
    table = {
        "config": {"data": data.get("dataset") or file.name, "passages": columns, "seed": None},
        "n": count,
        "questions": None,
        "methods": {"merge": figures},
        "matrix": {"merge": matrix},
        "differences": [],
    }
    scratch = _started(file, data, folder)
    write_json(scratch / "table.json", table)
    scratch.rename(folder)
    return _compared(overall, data)


def _matrix(data: dict[str, Any], name: str, file: Path) -> list[list[float]]:
    """(K + 1) rows of K numbers."""
    rows = data.get(name)
    whole = isinstance(rows, list) and len(rows) > 1 and all(isinstance(row, list) and len(row) == len(rows) - 1 for row in rows)
    if not whole or not all(isinstance(value, (int, float)) for row in rows or [] for value in row):
        raise DataError(f"{file}: field {name} is missing or no matrix of one row more than columns")
    return [[float(value) for value in row] for row in rows or []]


def _started(file: Path, data: dict[str, Any], folder: Path) -> Path:
    """The folder's unfinished form, with its ``run.json``."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be made ({error}); give another folder") from error
    settings = {key: value for key, value in data.items() if key not in ("articles", "overall", "server_reply", "per_article")}
    config = {"source": file.name, "reference": settings}
    write_json(scratch / "run.json", {"version": __version__, "commit": None, "config": config})
    return scratch


def _below(articles: list[dict[str, Any]], scored: list[Scored]) -> list[str]:
    """Where the file's means of a completion or an article differ from those of its verdicts."""
    found = []
    listed = iter(scored)
    for number, article in enumerate(articles, start=1):
        own = [next(listed) for _ in article["completions"]]
        levels = [(f"article {number}", article, [one for one in own if one.usable])]
        pairs = enumerate(zip(article["completions"], own, strict=True), start=1)
        levels += [(f"article {number}, completion {at}", part, [one] if one.usable else []) for at, (part, one) in pairs]
        for place, part, ones in levels:
            stored = part.get("stats")
            if not ones or not isinstance(stored, dict):
                continue
            after, before = fmean(_number(one.accuracy) for one in ones), fmean(_number(one.baseline) for one in ones)
            for name, value in (("adapter_mean", after), ("baseline_mean", before), ("gain_mean", after - before)):
                given = stored.get(name)
                if isinstance(given, (int, float)) and abs(given - value) > ROUNDING:
                    found.append(f"{place}: {name} {given}, computed {value:.4f}")
    return found


def _compared(overall: Mapping[str, float | None], data: dict[str, Any], below: Sequence[str] = ()) -> dict[str, Any]:
    """What ``convert`` returns: aggregates, the file's own, and which of them differ."""
    stored: dict[str, Any] = data["overall"] if isinstance(data.get("overall"), dict) else {}
    differs = [
        name
        for name, value in overall.items()
        if isinstance(stored.get(name), (int, float)) and value is not None and abs(stored[name] - value) > ROUNDING
    ]
    return {"overall": dict(overall), "stored": stored, "differs": differs, "below": list(below)}


def aggregates(scored: list[Scored]) -> dict[str, float | None]:
    """The reference code's ``overall``: means over articles of means over completions of means over runs; sample deviations."""
    by_article: dict[str, list[Scored]] = {}
    for one in scored:
        by_article.setdefault(one.context, []).append(one)
    tried = [[one for one in ones if one.accuracy is not None and one.baseline is not None] for ones in by_article.values()]
    tried = [ones for ones in tried if ones]
    before = [fmean(_number(one.baseline) for one in ones) for ones in tried]
    after = [fmean(_number(one.accuracy) for one in ones) for ones in tried]
    over = [_deviation([_number(one.accuracy) for one in ones]) for ones in tried]
    within = [fmean(_deviation([fmean(run) for run in one.verdicts]) for one in ones) for ones in tried]
    return {
        "baseline_mean_accuracy": _rounded(fmean(before)) if before else None,
        "baseline_std_of_article_means": _rounded(_deviation(before)) if before else None,
        "adapter_mean_accuracy": _rounded(fmean(after)) if after else None,
        "adapter_std_of_article_means": _rounded(_deviation(after)) if after else None,
        "mean_adapter_std_over_completions": _rounded(fmean(over)) if over else None,
        "mean_adapter_std_within_completions": _rounded(fmean(within)) if within else None,
        "mean_gain": _rounded(fmean(a - b for a, b in zip(after, before, strict=True))) if after else None,
    }


def is_converted(folder: Path) -> bool:
    """Whether a run folder was made of a result file."""
    rows = read_rows(folder / "round-01" / "edits.jsonl")
    return bool(rows) and rows[0].get("policy") == "external"


def _scored(context: str, candidate: int, completion: dict[str, Any], at: str) -> tuple[Scored, list[dict[str, Any]]]:
    """A completion's rewards and its runs' rows; its own baseline, as the reference code graded it again for each."""
    by_run: dict[int, list[dict[str, Any]]] = {}
    for number, question in enumerate(_listed(completion, "questions", at)):
        here = f"{at}, question {number + 1}"
        for field, kinds in (("rep", int), ("adapter_correct", bool), ("baseline_correct", bool)):
            if not isinstance(question.get(field), kinds):
                raise DataError(f"{here}: field {field} is missing or no {kinds.__name__}")
        by_run.setdefault(question["rep"], []).append(question)
    if not by_run:
        return Scored(context, candidate, 0.0, 0.0, 0.0, usable=False), []
    runs, rows = [], []
    for repeat, questions in sorted(by_run.items()):
        after = fmean(float(q["adapter_correct"]) for q in questions)
        before = fmean(float(q["baseline_correct"]) for q in questions)
        runs.append((after, before, tuple(bool(q["adapter_correct"]) for q in questions)))
        rows.append(
            {
                "round": 1,
                "context": context,
                "candidate": candidate,
                "repeat": repeat,
                "policy": "external",
                "status": "ok",
                "reason": "",
                "questions": questions,
                "tokens": 0,
                "seconds": 0.0,
            }
        )
    accuracy, baseline = fmean(after for after, _, _ in runs), fmean(before for _, before, _ in runs)
    first = next(iter(sorted(by_run.items())))[1]
    one = Scored(
        context,
        candidate,
        reward=round(accuracy - baseline, 9),
        # The reference ranks by accuracy, with equals in the order in which they stand.
        value=round(accuracy, 9),
        tie=0.0,
        usable=True,
        accuracy=accuracy,
        baseline=baseline,
        runs=tuple({"accuracy": after - before} for after, before, _ in runs),
        verdicts=tuple(verdicts for _, _, verdicts in runs),
        baseline_verdicts=tuple(bool(q["baseline_correct"]) for q in first),
    )
    return one, rows


def _passage(article: Any, at: str) -> Passage:
    if not isinstance(article, dict):
        raise DataError(f"{at}: not an object")
    for field in ("title", "context"):
        if not isinstance(article.get(field), str) or not article[field].strip():
            raise DataError(f"{at}: field {field} is missing, empty or not text")
    golds: dict[str, str] = {}
    for completion in _listed(article, "completions", at):
        for question in _listed(completion, "questions", at):
            if not all(isinstance(question.get(field), str) and question[field].strip() for field in ("question", "answer")):
                raise DataError(f"{at}: a question without its text or its answer")
            golds.setdefault(question["question"], question["answer"])
    return Passage(
        article["title"].strip(), article["context"].strip(), tuple(Question(text, answer) for text, answer in golds.items())
    )


def _listed(item: Any, field: str, at: str) -> list[dict[str, Any]]:
    found = item.get(field) if isinstance(item, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{at}: field {field} is missing or no list of objects")
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; give a result of a run of trials (JSON with articles)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: can't be read as JSON ({error})") from error
    if not isinstance(data, dict) or not (isinstance(data.get("articles"), list) or FORMS & set(data)):
        raise DataError(f"{file}: neither articles nor {' nor '.join(sorted(FORMS))} in it; give a result, not a data set")
    return data


def _number(value: float | None) -> float:
    return value if value is not None else 0.0


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _rounded(value: float) -> float:
    return round(value, 4)
