"""What workers do in the outer loop: jobs, whose first argument is the language model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfedit import progress
from selfedit.config import OuterConfig, Sampling, Settings, TrainConfig
from selfedit.edits import Message, Prompt
from selfedit.errors import DivergedError
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import Adapter, install, load_adapter, new_adapter, policy_standing, save_adapter, standing, summed
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import LanguageModel
from selfedit.lm.preferences import train_preferences
from selfedit.lm.train_many import Job, train_many
from selfedit.rewards.exams import Exam
from selfedit.rewards.screens import FEATURES, look
from selfedit.samplers.local import write_edits
from selfedit.tasks.base import Task


def prepare_exam(lm: LanguageModel, exam: Exam, context: Any, seed: int, student: str | None) -> dict[str, Any]:
    """A job: what the exam of a context takes; what is known already is asked of the student."""
    start = time.perf_counter()
    with policy_standing(lm, student):
        material = exam.prepare(lm, context, seed)
    return {"material": material, "seconds": round(time.perf_counter() - start, 2)}


def look_at(
    lm: LanguageModel, task: Task, examined: Any, texts: Sequence[str], config: TrainConfig, seed: int, student: str | None
) -> dict[str, Any]:
    """A job: how the self-edits of a context look to the student."""
    start = time.perf_counter()
    wanted = FEATURES if config.screen == "ridge" else (config.screen,)
    with policy_standing(lm, student):
        found = look(lm, task, (examined,), texts, config.settings, config.quiz, seed, wanted)
    return {"features": found.features[0], "seconds": round(time.perf_counter() - start, 2)}


def write_and_sit(
    lm: LanguageModel,
    task: Task,
    context: Any,
    count: int,
    sampling: Sampling,
    seed: int,
    policy: str | None,
    student: str,
    examiner: Task,
    examined: Any,
) -> dict[str, Any]:
    """A job: a context's self-edits by the policy, and the student's exam before any of them."""
    start = time.perf_counter()
    with policy_standing(lm, policy):
        written = write_edits(lm, task, context, count, sampling, seed)
        baseline = sit(lm, [(examiner, examined)])[0] if student == "policy" else None
    baseline = baseline or sit(lm, [(examiner, examined)])[0]
    return {
        "edits": [{"text": one.edit.text, "style": one.edit.style, "texts": list(one.texts)} for one in written],
        "baseline": asdict(baseline),
        "seconds": round(time.perf_counter() - start, 2),
    }


def try_group(lm: LanguageModel, task: Task, trials: Sequence[Trial], slots: int, policy: str | None) -> list[Any]:
    """A job: trials side by side, on the policy or (None) on the base."""
    with policy_standing(lm, policy):
        return run_trials(lm, [task], trials, slots)


def sft(
    lm: LanguageModel, rows: Sequence[dict[str, Any]], config: OuterConfig, seed: int, policy: str | None, folder: str
) -> list[float]:
    """A job: one adapter trained on top of the policy, saved together with it as one adapter on the base; the losses."""
    before = [load_adapter(Path(policy))] if policy else []
    encoded = tuple(encode_answer(lm, _prompt(row), row["completion"]) for row in rows)
    if not encoded:
        return _unchanged(lm, before, config.outer, seed, folder)
    with standing(lm, before):
        (trained,) = train_many(lm, [Job(encoded, config.outer, seed)], 1, progress.report)
    if isinstance(trained, DivergedError):
        raise trained
    save_adapter(summed([*before, trained.adapter]), Path(folder), lm.name)
    return trained.losses


def dpo(
    lm: LanguageModel, rows: Sequence[dict[str, Any]], config: OuterConfig, seed: int, policy: str | None, folder: str
) -> list[float]:
    """A job: as ``sft``, but direct preference optimisation of what was preferred over what was refused; reference: the policy."""
    before = [load_adapter(Path(policy))] if policy else []
    pairs = [(encode_answer(lm, _prompt(row), row["completion"]), encode_answer(lm, _prompt(row), row["refused"])) for row in rows]
    if not pairs:
        return _unchanged(lm, before, config.outer, seed, folder)
    with standing(lm, before):
        try:
            trained = train_preferences(lm, pairs, config.outer, config.dpo_beta, seed)
        finally:
            install(lm, None)
    save_adapter(summed([*before, trained.adapter]), Path(folder), lm.name)
    return trained.losses


def _unchanged(lm: LanguageModel, before: Sequence[Adapter], settings: Settings, seed: int, folder: str) -> list[float]:
    """Nothing to train on: the policy as it was."""
    save_adapter(before[0] if before else new_adapter(lm, settings, seed), Path(folder), lm.name)
    return []


def _prompt(row: dict[str, Any]) -> Prompt:
    return tuple(Message(**turn) for turn in row["messages"])
