"""The inner loop: trials in, outcomes out (paper section 3.1 and algorithm 1, the inner update and its test).

Every function here is a job: its first argument is the language model, and it runs in whichever worker is free.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit import progress
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError
from selfedit.lm.adapter import install, load_adapter, save_adapter
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import Slots
from selfedit.lm.train import Trained
from selfedit.lm.train_many import train_many
from selfedit.tasks.base import Sitting, Task
from selfedit.tasks.general.jobs import jobs_of


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan to be trained and examined.

    Attributes:
        context: whose exam it is.
        plan: what is trained.
        adapter_folder: where the adapter is written, None to drop it.
    """

    context: Any
    plan: TrainingPlan
    adapter_folder: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        status: ``ok``, or ``diverged`` with its reason.
        sittings: one for each task that examined, empty unless ok.
        losses: one for each optimiser step.
        tokens: labelled tokens trained on, all epochs together.
        seconds: training and exam.
        exam_seconds: the exam's part of them.
    """

    status: str
    reason: str
    sittings: tuple[Sitting, ...]
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    exam_seconds: float = 0.0


def run_trials(lm: LanguageModel, tasks: Sequence[Task], trials: Sequence[Trial], slots: int) -> list[Outcome]:
    """Trains a fresh adapter for each trial, ``slots`` side by side, and sits each task's exam of its context.

    Trials whose settings adapt other layers are trained apart. The seconds of trials that share a pass are shared out by tokens.
    """
    outcomes: list[Outcome | None] = [None] * len(trials)
    shapes = dict.fromkeys((trial.plan.settings.targets, trial.plan.settings.layers) for trial in trials)
    for shape in shapes:
        chosen = [i for i, t in enumerate(trials) if (t.plan.settings.targets, t.plan.settings.layers) == shape]
        for index, outcome in zip(chosen, _run_alike(lm, tasks, [trials[i] for i in chosen], slots), strict=True):
            outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _run_alike(lm: LanguageModel, tasks: Sequence[Task], trials: Sequence[Trial], slots: int) -> list[Outcome]:
    start = time.perf_counter()
    jobs = jobs_of(lm, [trial.plan for trial in trials])
    trained = train_many(lm, jobs, slots, progress.report)
    began = time.perf_counter()
    sittings = _examine(lm, tasks, trials, trained, slots)
    examined = (time.perf_counter() - began) / max(1, len(trials))
    spent = time.perf_counter() - start
    weights = [sum(len(row.ids) * (job.settings.epochs if row.epoch is None else 1) for row in job.rows) for job in jobs]
    outcomes = []
    for trial, result, sat, weight in zip(trials, trained, sittings, weights, strict=True):
        seconds = spent * weight / sum(weights)
        if isinstance(result, DivergedError):
            outcomes.append(Outcome("diverged", str(result), (), (), 0, seconds))
            continue
        if trial.adapter_folder is not None:
            save_adapter(result.adapter, Path(trial.adapter_folder), lm.name)
        outcomes.append(Outcome("ok", "", sat, tuple(result.losses), result.tokens, seconds, examined))
    return outcomes


def _examine(
    lm: LanguageModel, tasks: Sequence[Task], trials: Sequence[Trial], trained: Sequence[Trained | DivergedError], count: int
) -> list[tuple[Sitting, ...]]:
    """Every exam of every adapter that was trained, ``count`` adapters in a batch."""
    sittings: list[tuple[Sitting, ...]] = [()] * len(trials)
    whole = [(index, result.adapter) for index, result in enumerate(trained) if isinstance(result, Trained)]
    for at in range(0, len(whole), count):
        part = whole[at : at + count]
        settings = trials[part[0][0]].plan.settings
        rank = max(adapter.rank for _, adapter in part)
        seats = Slots(lm, settings.targets, settings.layers, rank, len(part), training=False)
        for slot, (_, adapter) in enumerate(part):
            seats.put(slot, adapter)
        contexts = [(slot, trials[index].context) for slot, (index, _) in enumerate(part)]
        with seats.installed():
            by_task = [task.examine(lm, contexts, seats.first) for task in tasks]
        for at_part, (index, _) in enumerate(part):
            sittings[index] = tuple(sat[at_part] for sat in by_task)
    return sittings


def sit(lm: LanguageModel, exams: Sequence[tuple[Task, Any]], adapter_folder: str | None = None) -> list[Sitting]:
    """The exam of each (task, context) under a saved adapter, or (None) under what the model already knows: the baseline."""
    try:
        if adapter_folder is not None:
            install(lm, load_adapter(Path(adapter_folder)))
        return [task.examine(lm, [(0, context)], 0)[0] for task, context in exams]
    finally:
        install(lm, None)
