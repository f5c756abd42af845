"""``selfedit eval knowledge``: methods side by side on the same passages, with standard errors and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import EvalConfig
from selfedit.contexts import Passage
from selfedit.edits import Document, TrainingPlan
from selfedit.errors import DataError, InvalidEditError, ModelError
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers
from selfedit.graders import Grader
from selfedit.graders.text import ExactMatchGrader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.marks import Marks, mark_sitting
from selfedit.runs import Run
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.knowledge.compile import passage_matched, passage_only, split_passage
from selfedit.tasks.knowledge.exam import ExamForm, asked_in, exam_questions
from selfedit.tasks.knowledge.task import KnowledgeTask

FORMS: tuple[ExamForm, ...] = ("titled", "bare")
# What a passage's row holds for each method; every entry is the mean over the method's trials on that passage.
MEASURES = ("accuracy", "paraphrased", "question_alone", "f1", "exact", "logprob", "failed", "tokens", "steps", "seconds")
CONTROLS = ("none", "passage", "passage-matched")


def evaluate(
    config: EvalConfig, passages: Sequence[Passage], grader: Grader, run: Run, workers: int | None, told: Callable[[int], None]
) -> dict[str, Any]:
    """Runs what is missing of a run and returns its table. Nothing is selected anywhere: ``self`` is the mean of its edits.

    Args:
        config: methods and settings.
        passages: with their questions.
        grader: marks in this process.
        run: the run's folder; finished passages are not done again.
        workers: processes, by default as many as a short timing says; a passage is one lease.
        told: called with the number of passages done.

    Raises:
        DataError: a passage without questions.
    """
    for passage in passages:
        if not passage.questions:
            raise DataError(f"{config.data}: the passage {passage.title!r} has no questions, so nothing can be tested")
    done = {row["passage"] for row in run.rows}
    waiting = [passage for passage in passages if passage.id not in done]
    told(len(passages) - len(waiting))
    if waiting:
        choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
        with LocalExecutor(choice, workers) as executor:
            slots = config.slots or slots_that_fit(
                identify(config.model), config.settings, config.device, most_workers(config.device)
            )
            for row in executor.map(evaluate_passage, [(passage, config, slots) for passage in waiting]):
                run.append(row)
                told(len(run.rows))
    rows = {row["passage"]: row for row in run.rows}
    return table(config, passages, [rows[passage.id] for passage in passages], grader)


def evaluate_passage(lm: LanguageModel, passage: Passage, config: EvalConfig, slots: int) -> dict[str, Any]:
    """A lease: every method on one passage, its trials side by side; answers only, grading comes later."""
    task = KnowledgeTask(config.edit)
    exams = [replace(task, form=form) for form in FORMS]
    trials: list[dict[str, Any]] = []
    if "none" in config.methods:
        trials.append(_row("none", sit(lm, [(exam, passage) for exam in exams])))
    if "context" in config.methods:
        try:
            trials.append(_row("context", sit(lm, [(replace(task, form="context"), passage)])))
        except ModelError as error:
            trials.append(_row("context", (), status="too long", reason=str(error)))

    waiting: list[tuple[str, dict[str, Any]]] = []
    plans: list[TrainingPlan] = []

    def seed(method: str, index: int) -> int:
        return seeds.derive(config.seed, passage.id, "train", method, index)

    def add(method: str, plan: TrainingPlan, **more: Any) -> None:
        waiting.append((method, more | {"documents": len(plan.documents)}))
        plans.append(plan)

    if "passage" in config.methods:
        documents = tuple(d for part in split_passage(lm, passage) for d in passage_only(part, config.edit, lm.chat))
        add("passage", TrainingPlan(documents, config.settings, seed("passage", 0)))
    if {"self", "passage-matched"} & set(config.methods):
        compiled: list[tuple[Document, ...]] = []
        for index, written in enumerate(write_edits(lm, task, passage, config.edits, config.edit.sampling, config.seed)):
            text = written.edit.text
            try:
                compiled_plan = task.compile(lm, passage, text, config.settings, seed("self", index))
            except InvalidEditError as error:
                if "self" in config.methods:
                    trials.append(_row("self", (), status="invalid", reason=str(error), edit=text))
                continue
            compiled.append(compiled_plan.documents)
            if "self" in config.methods:
                add("self", compiled_plan, edit=text, style=written.edit.style)
        if "passage-matched" in config.methods:
            matched = passage_matched(lm, passage, config.edit, compiled)
            add("passage-matched", TrainingPlan(matched, config.settings, seed("passage-matched", 0)))
    outcomes = run_trials(lm, exams, [Trial(passage, one) for one in plans], slots)
    for (method, more), outcome in zip(waiting, outcomes, strict=True):
        trials.append(
            _row(
                method,
                outcome.sittings,
                status=outcome.status,
                reason=outcome.reason,
                tokens=outcome.tokens,
                steps=len(outcome.losses),
                last_loss=outcome.losses[-1] if outcome.losses else None,
                seconds=outcome.seconds,
                **more,
            )
        )
    return {"passage": passage.id, "title": passage.title, "trials": trials}


def table(config: EvalConfig, passages: Sequence[Passage], rows: Sequence[dict[str, Any]], grader: Grader) -> dict[str, Any]:
    """Means over passages with standard errors, and each method's paired differences to the controls."""
    graded = [_graded(passage, row, grader) for passage, row in zip(passages, rows, strict=True)]
    methods = {}
    for method in config.methods:
        values = {m: [row[method][m] for row in graded] for m in MEASURES}
        kept = {m: [x for x in v if not math.isnan(x)] for m, v in values.items()}
        methods[method] = {m: asdict(mean_and_error(v)) for m, v in kept.items() if v}
    differences = [
        {
            "method": method,
            "control": control,
            "measure": measure,
            **asdict(paired_difference([row[method][measure] for row in graded], [row[control][measure] for row in graded])),
        }
        for control in CONTROLS
        if control in config.methods
        for method in config.methods
        if method != control and (method not in CONTROLS or CONTROLS.index(method) > CONTROLS.index(control))
        for measure in ("accuracy", "f1")
    ]
    return {
        "config": config.model_dump(mode="json"),
        "n": len(passages),
        "questions": sum(len(passage.questions) for passage in passages),
        "methods": methods,
        "differences": differences,
        "passages": [
            {"id": passage.id, "title": passage.title, "methods": {m: _plain(row[m]) for m in config.methods}}
            for passage, row in zip(passages, graded, strict=True)
        ],
    }


def _row(method: str, sittings: Sequence[Sitting], **more: Any) -> dict[str, Any]:
    return {"method": method, "status": "ok", "sittings": [asdict(sitting) for sitting in sittings], **more}


def _graded(passage: Passage, row: dict[str, Any], grader: Grader) -> dict[str, dict[str, float]]:
    """Method -> measure -> mean over the method's trials; one that failed counts 0 right and has no log-probability."""
    asked = exam_questions(passage.questions)
    alone = asked_in("bare", asked)
    first = [index for index, one in enumerate(asked) if not one.paraphrase]
    found: dict[str, list[dict[str, float]]] = {}
    for trial in row["trials"]:
        sittings = [Sitting(tuple(s["answers"]), tuple(s["log_probabilities"])) for s in trial["sittings"]]
        measures = dict.fromkeys(MEASURES, 0.0) | {"logprob": math.nan, "failed": float(trial["status"] != "ok")}
        if sittings:
            titled = mark_sitting(grader, asked, sittings[0])
            bare = mark_sitting(grader, alone, sittings[1]) if len(sittings) > 1 else None
            measures |= {
                "accuracy": _share(asked, titled, paraphrase=False),
                "paraphrased": _share(asked, titled, paraphrase=True),
                "question_alone": bare.accuracy if bare else math.nan,
                "f1": fmean(titled.f1s[i] for i in first),
                "exact": _share(asked, mark_sitting(ExactMatchGrader(), asked, sittings[0]), paraphrase=False),
                "logprob": fmean(sittings[0].log_probabilities[i] for i in first),
            }
        measures |= {name: float(trial.get(name) or 0) for name in ("tokens", "steps", "seconds")}
        found.setdefault(trial["method"], []).append(measures)
    return {method: {m: _mean(trial[m] for trial in trials) for m in MEASURES} for method, trials in found.items()}


def _mean(values: Iterable[float]) -> float:
    """The mean of those that are there; nan if none is."""
    there = [value for value in values if not math.isnan(value)]
    return fmean(there) if there else math.nan


def _share(asked: Sequence[Asked], marks: Marks, paraphrase: bool) -> float:
    hits = [float(v.correct) for one, v in zip(asked, marks.verdicts, strict=True) if one.paraphrase == paraphrase]
    return fmean(hits) if hits else math.nan


def _plain(measures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 6) for name, value in measures.items()}
