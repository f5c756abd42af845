"""The inner loop: trials in, outcomes out (paper section 3.1 and algorithm 1, the inner update and its test).

Every function here is a job: its first argument is the language model, and it runs in whichever worker is free.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError
from selfedit.lm.adapter import install, load_adapter, save_adapter
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import train
from selfedit.tasks.knowledge.exam import Asked, ExamForm, Sitting, sit_exam


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan to be trained and examined.

    Attributes:
        passage: whose exam it is.
        plan: what is trained.
        asked: the questions.
        forms: in which forms they are asked.
        adapter_folder: where the adapter is written, None to drop it.
    """

    passage: Passage
    plan: TrainingPlan
    asked: tuple[Asked, ...]
    forms: tuple[ExamForm, ...] = ("titled",)
    adapter_folder: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        status: ``ok``, or ``diverged`` with its reason.
        sittings: one for each form, empty unless ok.
        losses: one for each optimiser step.
        tokens: labelled tokens trained on, all epochs together.
        seconds: training and exam.
    """

    status: str
    reason: str
    sittings: tuple[Sitting, ...]
    losses: tuple[float, ...]
    tokens: int
    seconds: float


def run_trial(lm: LanguageModel, trial: Trial) -> Outcome:
    """Trains a fresh adapter on the plan, sits the exam without the passage, and takes the adapter off again."""
    start = time.perf_counter()
    rows = [encode_document(lm, document) for document in trial.plan.documents]
    try:
        trained = train(lm, rows, trial.plan.settings, trial.plan.seed)
        sittings = tuple(sit_exam(lm, trial.passage, trial.asked, form) for form in trial.forms)
        if trial.adapter_folder is not None:
            save_adapter(trained.adapter, Path(trial.adapter_folder), lm.name)
    except DivergedError as error:
        return Outcome("diverged", str(error), (), (), 0, time.perf_counter() - start)
    finally:
        install(lm, None)
    return Outcome("ok", "", sittings, tuple(trained.losses), trained.tokens, time.perf_counter() - start)


def sit(
    lm: LanguageModel, passage: Passage, asked: tuple[Asked, ...], forms: tuple[ExamForm, ...], adapter_folder: str | None = None
) -> tuple[Sitting, ...]:
    """The exam under a saved adapter, or (None) under what the model already knows: the baseline."""
    try:
        if adapter_folder is not None:
            install(lm, load_adapter(Path(adapter_folder)))
        return tuple(sit_exam(lm, passage, asked, form) for form in forms)
    finally:
        install(lm, None)
