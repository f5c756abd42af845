"""The trials of the bench: each passage's exams, self-edits, looks and trainings, a row each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from selfedit import seeds
from selfedit.bench_rewards.figures import EXAMS, HALVES, Measured
from selfedit.bench_rewards.table import summarise
from selfedit.config import RewardBenchConfig
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, most_workers, result
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.lm.work import Cost, metered
from selfedit.marks import split_quiz
from selfedit.rewards.question_free import make_exam
from selfedit.rewards.screens import look
from selfedit.runs import Run
from selfedit.samplers.local import write_edits
from selfedit.tasks.base import Sitting, Task
from selfedit.tasks.knowledge.task import KnowledgeTask

LEAST_QUESTIONS = 4


def by_title(passages: Sequence[Passage]) -> list[Passage]:
    """First one passage of each title, then the second of each: passages of one article are no independent ones."""
    seen: Counter[str] = Counter()
    turns = []
    for one in passages:
        turns.append(seen[one.title])
        seen[one.title] += 1
    return [one for _, one in sorted(zip(turns, passages, strict=True), key=lambda pair: pair[0])]


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
    undecided = {}
    for name, maker in makers.items():
        kept = maker.kept(passage, materials[name], texts)
        if isinstance(kept, str):
            undecided[name] = kept
            continue
        whole = maker.examined(passage, materials[name])
        exams[name] = At(maker.task, replace(whole, questions=tuple(whole.questions[index] for index in kept)))
    baseline = sit(lm, [(exam, passage) for exam in exams.values()])
    first_sitting = {name: exam.cost for name, exam in exams.items()}
    looks = {
        name: asdict(look(lm, task, exams[name].examined, texts, config.settings, config.quiz, config.seed))
        for name in (*HALVES, "self-quiz")
        if name in exams
    }
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
        "exams": {name: [asdict(one) for one in exam.examined.questions] for name, exam in exams.items()},
        "undecided": undecided,
        "materials": materials,
        "baseline": {name: asdict(sitting) for name, sitting in zip(exams, baseline, strict=True)},
        "looks": looks,
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


def bench_rewards(
    config: RewardBenchConfig, passages: Sequence[Passage], run: Run, executor: LocalExecutor, told: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measures what is missing, then the table.

    Raises:
        DataError: too few passages with enough questions, or one with a question that stands twice.
    """
    usable = [one for one in passages if len(one.questions) >= LEAST_QUESTIONS]
    chosen = by_title(usable)[: config.passages]
    if len(chosen) < config.passages:
        raise DataError(
            f"{', '.join(config.data)}: has {len(chosen)} passages with {LEAST_QUESTIONS} questions, {config.passages} are wanted; "
            "give more --data, or fewer --passages"
        )
    for one in chosen:
        halves(one, config.seed)
    slots = config.slots or slots_that_fit(identify(config.model), config.settings, config.device, most_workers(config.device))
    done = {row["passage"] for row in run.rows}
    told(len(done), len(chosen))
    for job in executor.ended([executor.submit(measure, one, config, slots) for one in chosen if one.id not in done]):
        run.append(result(job))
        told(len(run.rows), len(chosen))
    rows = {row["passage"]: row for row in run.rows}
    return summarise([Measured.of(rows[one.id]) for one in chosen], config)
