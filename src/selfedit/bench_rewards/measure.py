"""The trials of the bench: each passage's exams, self-edits, looks and trainings, a row each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from selfedit import seeds
from selfedit.bench_rewards.figures import ASKING, EXAMS, HALVES, Measured
from selfedit.bench_rewards.table import summarise
from selfedit.config import RewardBenchConfig
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DataError, InvalidEditError, SelfeditError
from selfedit.executors.local import LocalExecutor, most_workers, result
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.lm.work import Cost, metered
from selfedit.marks import split_quiz
from selfedit.rewards.question_free import make_exam
from selfedit.rewards.screens import FEATURES, Look, look
from selfedit.runs import Run
from selfedit.samplers.local import write_edits
from selfedit.tasks.base import Sitting, Task
from selfedit.tasks.knowledge.task import KnowledgeTask

LEAST_QUESTIONS = 4


def in_turn(data: Sequence[Sequence[Passage]]) -> list[Passage]:
    """Passages of each data set in turn, first one of each title, then the second of each.

    Passages of one article are no independent ones, and the first of all are what ridge is fitted on.
    """
    order: dict[str, tuple[tuple[int, int, int], Passage]] = {}
    for which, passages in enumerate(data):
        seen: Counter[str] = Counter()
        places: Counter[int] = Counter()
        for one in passages:
            turn = seen[one.title]
            order.setdefault(one.id, ((turn, places[turn], which), one))
            seen[one.title] += 1
            places[turn] += 1
    return [one for _, one in sorted(order.values(), key=lambda pair: pair[0])]


@dataclass
class At:
    """A task that examines one fixed context, whatever context it is given: several exams of one trial.

    Attributes:
        cost: of all sittings so far.
    """

    task: Task
    examined: Passage
    cost: Cost = field(default_factory=Cost)

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Any]], first: int) -> list[Sitting]:
        """Sits the fixed context's exam."""
        found, cost = metered(lm, lambda: self.task.examine(lm, [(slot, self.examined) for slot, _ in seats], first))
        self.cost += cost
        return found


def halves(passage: Passage, seed: int) -> tuple[Passage, Passage]:
    """The passage with one half of its questions, and with the other.

    Raises:
        DataError: a question stands twice.
    """
    parts = split_quiz(passage.questions, 0.5, seed)
    first, second = (replace(passage, questions=tuple(passage.questions[index] for index in part)) for part in parts)
    return first, second


def measure(lm: LanguageModel, passage: Passage, config: RewardBenchConfig, slots: int) -> dict[str, Any]:
    """A lease: a passage's exams, self-edits, looks and trials."""
    task = KnowledgeTask(config.edit)
    costs: dict[str, Cost] = {}

    def timed(name: str, job: Callable[[], Any]) -> Any:
        found, costs[name] = metered(lm, job, waiting=name in EXAMS and bool(config.quiz.url))
        return found

    makers = {name: make_exam(reward, task, config.quiz, config.edit) for name, reward in EXAMS.items()}
    materials = {name: timed(name, partial(maker.prepare, lm, passage, config.seed)) for name, maker in makers.items()}
    written = timed("writing", lambda: write_edits(lm, task, passage, config.edits, config.edit.sampling, config.seed))
    texts = [one.edit.text for one in written]
    exams: dict[str, Any] = {name: At(task, half) for name, half in zip(HALVES, halves(passage, config.seed), strict=True)}
    undecided, kept = {}, {}
    for name, maker in makers.items():
        found = maker.kept(passage, materials[name], texts)
        kept[name] = [] if isinstance(found, str) else found
        if isinstance(found, str):
            undecided[name] = found
        # All entries are sat; which of them count, and whether they are enough, is the table's.
        whole = maker.examined(passage, materials[name])
        if whole.questions:
            exams[name] = At(maker.task, whole)
    baseline = sit(lm, [(exam, passage) for exam in exams.values()])
    first_sitting = {name: exam.cost for name, exam in exams.items()}

    def looked(examined: Sequence[Passage], wanted: Sequence[str]) -> Look:
        return look(lm, task, examined, texts, config.settings, config.quiz, config.seed, wanted)

    looks = {"labelled": looked([exams[half].examined for half in HALVES], FEATURES)}
    if kept["self-quiz"]:
        whole = exams["self-quiz"].examined
        asked = replace(whole, questions=tuple(whole.questions[at] for at in kept["self-quiz"]))
        looks["self-quiz"] = looked([asked], ASKING)
    planned = []
    for index, text in enumerate(texts):
        try:
            for repeat in range(config.repeats):
                seed = seeds.derive(config.seed, passage.id, "train", index, repeat)
                plan = task.compile(lm, passage, text, config.settings, seed)
                planned.append((index, repeat, Trial(passage, TrainingPlan(plan.documents, plan.settings, seed))))
        except InvalidEditError:
            continue
    outcomes = timed("trials", lambda: run_trials(lm, list(exams.values()), [trial for *_, trial in planned], slots))
    sittings = {name: exam.cost - first_sitting[name] for name, exam in exams.items()}
    return {
        "passage": passage.id,
        "title": passage.title,
        "edits": texts,
        "exams": {name: stored_questions(exam.examined) for name, exam in exams.items()},
        "kept": kept,
        "undecided": undecided,
        "materials": materials,
        "baseline": {name: asdict(sitting) for name, sitting in zip(exams, baseline, strict=True)},
        "looks": {source: asdict(found) for source, found in looks.items()},
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "sittings": {name: asdict(cost) for name, cost in sittings.items()},
        "trials": [
            {
                "edit": index,
                "repeat": repeat,
                "status": outcome.status,
                "tokens": outcome.tokens,
                "sittings": {name: asdict(sitting) for name, sitting in zip(exams, outcome.sittings, strict=False)},
            }
            for (index, repeat, _), outcome in zip(planned, outcomes, strict=True)
        ],
    }


def stored_questions(passage: Passage) -> list[dict[str, Any]]:
    """As a row has them."""
    return [asdict(one) for one in passage.questions]


def bench_rewards(
    config: RewardBenchConfig,
    data: Sequence[Sequence[Passage]],
    run: Run,
    executor: LocalExecutor,
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measures what is missing, then the table. A passage that fails ends the run after all others are measured.

    Args:
        data: the passages of each data set.

    Raises:
        DataError: too few passages with enough questions, one with a question that stands twice, or whose questions aren't those
            that the run has of it.
    """
    chosen = in_turn([[one for one in part if len(one.questions) >= LEAST_QUESTIONS] for part in data])[: config.passages]
    if len(chosen) < config.passages:
        raise DataError(
            f"{', '.join(config.data)}: has {len(chosen)} passages with {LEAST_QUESTIONS} questions, {config.passages} are wanted; "
            "give more --data, or fewer --passages"
        )
    rows = {row["passage"]: row for row in run.rows}
    for one in chosen:
        own = dict(zip(HALVES, map(stored_questions, halves(one, config.seed)), strict=True))
        if one.id in rows and json.loads(json.dumps(own)) != {half: rows[one.id]["exams"][half] for half in HALVES}:
            raise DataError(
                f"{run.folder}: the questions about {one.title!r} aren't what they were; give --data as it was, or another --run"
            )
    slots = config.slots or slots_that_fit(identify(config.model), config.settings, config.device, most_workers(config.device))
    told(len(rows), len(chosen))
    # The longest first, so that no worker is left with one alone.
    missing = sorted((one for one in chosen if one.id not in rows), key=lambda one: -len(one.text))
    jobs = {executor.submit(measure, one, config, slots): one for one in missing}
    failed: SelfeditError | None = None
    for job in executor.ended(jobs):
        try:
            run.append(result(job))
        except SelfeditError as error:
            failed = failed or SelfeditError(f"passage {jobs[job].title!r}: {error}")
            continue
        told(len(run.rows), len(chosen))
    if failed is not None:
        raise failed
    rows = {row["passage"]: row for row in run.rows}
    return summarise([Measured.of(rows[one.id]) for one in chosen], config)
