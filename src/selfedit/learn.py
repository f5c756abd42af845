"""The main job: a model reads a passage, writes lessons, trains on each, sits an exam, and keeps the best if it helped."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import LearnConfig, Sampling
from selfedit.contexts import Passage, Question
from selfedit.edits import SelfEdit, TrainingPlan
from selfedit.errors import DataError, InvalidEditError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers, result
from selfedit.graders import Grader
from selfedit.graders.text import RECALL_THRESHOLD, recall_score
from selfedit.inner import Outcome, Trial, run_trials
from selfedit.keepers.replay import drawn
from selfedit.keepers.routes import keep_states
from selfedit.lm.adapter import load_adapter, policy_standing
from selfedit.lm.load import Identity, LanguageModel, dtype_name, identify, lasting, resolve_device
from selfedit.lm.stack import slots_that_fit
from selfedit.marks import Marks, mark_sitting, mean_marks, split_quiz
from selfedit.memory.compose import kept_by, newest_answers, passage_of, sample_kept, sit_kept
from selfedit.memory.ledger import Base, Memory
from selfedit.memory.rebuild import documents_of
from selfedit.memory.unfinished import Unfinished
from selfedit.rewards.self_quiz import Quiz, left_by, write_quiz
from selfedit.runs import policy_of
from selfedit.samplers.base import Written
from selfedit.samplers.local import write_edits
from selfedit.stats import best_of, tail_chance
from selfedit.tasks.base import Asked, Sitting, Task
from selfedit.tasks.general.jobs import prepare
from selfedit.tasks.knowledge.compile import split_passage
from selfedit.tasks.knowledge.exam import ExamForm, asked_in, exam_questions
from selfedit.tasks.knowledge.task import KnowledgeTask

# With fewer choosing questions than this a small gain is too likely to be noise.
FEW_QUESTIONS = 6
# In which forms the reporting half is asked.
REPORTED: tuple[ExamForm, ...] = ("titled", "bare")


@dataclass
class Candidate:
    """One self-edit with its trials; ``marks`` is on the choosing half, the mean over repeats.

    ``replayed``: for each plan the (entry, document) of those of its documents, the last ones, that are from earlier entries;
    they have no view, so with ``settings.distil`` they are plain SFT among the taught ones.
    """

    edit: SelfEdit
    plans: list[TrainingPlan]
    status: str = "ok"
    reason: str = ""
    outcomes: tuple[Outcome, ...] = ()
    marks: Marks | None = None
    replayed: list[list[tuple[int, int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Halves:
    """A quiz in two: what chooses among the self-edits, and what reports the gain."""

    choosing: list[int]
    reporting: list[int]
    chooser: Passage
    reporter: Passage

    @classmethod
    def of(cls, passage: Passage, questions: Sequence[Question], config: LearnConfig) -> Halves:
        """By ``config.quiz_split`` and the seed."""
        choosing, reporting = split_quiz(questions, config.quiz_split, config.seed)
        halves = [replace(passage, questions=tuple(questions[index] for index in part)) for part in (choosing, reporting)]
        return cls(choosing, reporting, *halves)


Progress = Callable[[str, dict[str, Any]], None]

# What no job's result depends on: by other ones an interrupted call still goes on.
AFTERWARDS = {"grader", "judge", "budget"}


def learn(
    config: LearnConfig,
    passage: Passage,
    questions: Sequence[Question],
    folder: Path,
    grader: Grader,
    progress: Progress,
    workers: int | None = None,
) -> dict[str, Any]:
    """Learns one passage into a memory (paper algorithm 1 without its last line, the policy's update).

    Duties, in order: lock the memory; find what the same call did before it was interrupted (``memory/unfinished.py``); a quiz, if
    there is none (``rewards/self_quiz.py``); the baseline's exam while the candidates are written; each candidate trained (in a
    stack on top of the memory's current state, in a bank on the base) and examined on the choosing half of the quiz; the best kept
    if it gains ``enough`` (how often chance alone would is told); the gain reported on the other half, as the memory would answer
    it; nothing kept if earlier entries lose more than ``config.budget``; the commit.

    Args:
        questions: none: the model makes a quiz by itself; where it can't, nothing is tried and the decision is ``no-quiz``.
        progress: called with (event, details): ``waiting, going on, started, quiz, left, preparing, baseline, wrote, steps,
            decided``.
        workers: processes; by default as many as a short timing says.

    Returns:
        What ``--json`` writes; only ``seconds`` differ between two runs with the same seed.

    Raises:
        DataError, ModelError, MemoryStoreError, GraderError.
    """
    halves = Halves.of(passage, questions, config) if questions else None
    task = KnowledgeTask(config.edit, margins=True)
    known = identify(config.model)
    writer = policy_of(config.writer, known.fingerprint)
    parts = split_passage(known, passage)
    base = Base(lasting(known.name), known.fingerprint)
    memory = Memory.create(folder, base, config.keep)
    with memory.writing(told=lambda: progress("waiting", {"folder": str(folder)})):
        memory.bind(base, config.keep)
        if config.replay and memory.keep == "bank":
            raise DataError(
                f"replay is {config.replay}, but {folder} keeps its adapters apart, so that no lesson disturbs another; give 0"
            )
        active = memory.state.entries
        earlier = [(entry.id, entry.record) for entry in memory.entries() if entry.id in active]
        again = [(replace(task, margins=False), passage_of(record)) for _, record in earlier]
        device, dtype = str(resolve_device(config.device)), dtype_name(known, config.device, config.dtype)
        unfinished = Unfinished(memory, _decides(config, passage, questions, known.fingerprint, writer.digest, device, dtype))
        now = kept_by(memory)
        choice = ModelChoice(config.model, device, dtype, now.stack, config.compiled)
        if unfinished.done:
            progress("going on", {"done": unfinished.done})
        progress("started", {"parts": len(parts), "quiz": halves is not None})
        made: Quiz | None = None
        kept: list[int] | None = None
        with LocalExecutor(choice, workers, lambda steps: progress("steps", {"done": steps})) as executor:
            if halves is None:
                made = result(unfinished.submit(executor, "quiz", Quiz, write_quiz, passage, config.quiz, config.seed))
                progress("quiz", {"quiz": made})
                if made.reason:
                    unfinished.close()
                    return _no_quiz(config, known, passage, made, made.reason)

            def examined(halves: Halves) -> Future[Any]:
                exams = exams_of(halves, task, again)
                return unfinished.submit(executor, "exam", list[Sitting], sit_kept, exams, now)

            wanted = (writer.folder, task, passage, config.edits, config.edit.sampling, config.seed)
            written = unfinished.submit(executor, "self-edits", list[Written], write_as, *wanted)
            sittings = examined(halves) if halves else None
            general = executor.submit(sample_kept, now)
            ready = executor.submit(prepare, (config.settings,))
            edits: list[Written] = result(written)
            if made is not None:
                left = left_by(made, [one.edit.text for one in edits], config.quiz)
                progress("left", {"left": left})
                if isinstance(left, str):
                    executor.give_up()
                    unfinished.close()
                    return _no_quiz(config, known, passage, made, left)
                kept = left
                questions = [made.questions[index] for index in kept]
                halves = Halves.of(passage, questions, config)
                sittings = examined(halves)
            assert halves is not None and sittings is not None
            chooser, reports = halves.chooser, _reports(task, halves.reporter)
            to_choose, to_report = task.asked(chooser), task.asked(halves.reporter)
            candidates = [_candidate(one.edit, index, task, known, chooser, config, earlier) for index, one in enumerate(edits)]
            plans = [plan for candidate in candidates for plan in candidate.plans]
            # By the machine, not by --workers: how trials are grouped must not depend on who runs them.
            processes = most_workers(config.device)
            share = max(1, -(-len(plans) // processes))
            slots = config.slots or min(slots_that_fit(known, config.settings, config.device, processes), share)
            ways = executor.submit(newest_answers, task, chooser, now.beside("", chooser))
            if not ready.done():
                progress("preparing", {})
            result(ready)
            groups = _groups(candidates, chooser, unfinished.folder, slots)
            jobs = [
                unfinished.submit(executor, name, list[Outcome], run_trials, [task], trials, slots, whole=partial(_saved, trials))
                for name, (_, trials) in groups.items()
            ]
            ahead = [one.plan.steps for name, (_, trials) in groups.items() if name not in unfinished.done for one in trials]
            progress("wrote", {"candidates": candidates, "steps": sum(ahead)})
            chosen_before, *before = result(sittings)
            baseline = mark_sitting(grader, to_choose, chosen_before)
            progress("baseline", {"marks": baseline})
            for (places, _), job in zip(groups.values(), jobs, strict=True):
                _fill_in(candidates, places, result(job), chosen_before, result(ways))
            _mark(candidates, grader, to_choose)
            best = choose(candidates)
            adapter = _adapter(unfinished.folder, best, slots) if best is not None else None
            accepted = best is not None and enough(candidates[best].marks, baseline)
            general_before: dict[str, float] = result(general)
            after, general_after = before, general_before
            if adapter is not None:
                then = now.beside(str(adapter), passage)
                changed = executor.submit(sample_kept, then)
                after = result(executor.submit(sit_kept, [*reports, *again], then))
                general_after = result(changed)
            others = _others(grader, earlier, before[len(reports) :], after[len(reports) :])
            over_budget = accepted and fall(others) > config.budget + 1e-9
            accepted = accepted and not over_budget
            if accepted and memory.keep == "bank":
                result(executor.submit(keep_states, (passage,), str(adapter)))
        chance = noise_chance(candidates, best, baseline, to_choose)
        report = _report(grader, to_report, before[: len(reports)], after[: len(reports)])
        report["general"] = {
            "n": general_before["n"],
            "right": {"before": general_before["right"], "after": general_after["right"]},
            "text": {"before": general_before["text"], "after": general_after["text"]},
        }
        known_config = config.model_copy(update={"dtype": dtype, "slots": slots})
        record: dict[str, Any] = {}
        if best is not None:
            # The mean of several runs chose it; the first one's adapter is what is kept.
            committed = mark_sitting(grader, to_choose, candidates[best].outcomes[0].sittings[0])
            record = _record(known_config, passage, questions, halves.choosing, candidates[best], baseline, committed, report)
            record["quiz_by"] = "model" if made else "user"
        progress("decided", {"best": best, "accepted": accepted, "chance": chance})
        entry = memory.commit(record, adapter).id if accepted and adapter is not None else None
        unfinished.close()
    return {
        "model": config.model,
        "fingerprint": known.fingerprint,
        "writer": writer.digest,
        "dtype": dtype,
        "slots": slots,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "passage": {"id": passage.id, "title": passage.title, "parts": len(parts)},
        "quiz": {"choosing": halves.choosing, "reporting": halves.reporting, "made": asdict(made) if made else None, "kept": kept},
        "baseline": {
            "accuracy": baseline.accuracy,
            "f1": baseline.f1,
            "logprob": baseline.log_probability,
            "margin": baseline.margin,
            "probability": baseline.probability,
            "questions": [
                {"question": one.question.question, "gold": one.question.answer, "paraphrase": one.paraphrase} | answer
                for one, answer in zip(to_choose, _answers(chosen_before, baseline), strict=True)
            ],
        },
        "candidates": [_candidate_row(candidate, baseline) for candidate in candidates],
        "best": best,
        "decision": "accepted" if accepted else "rejected",
        "over_budget": over_budget,
        "chance_by_noise": chance,
        "tried": sum(candidate.marks is not None for candidate in candidates),
        "report": report,
        "earlier": others,
        "memory": {"entry": entry},
    }


def _decides(config: LearnConfig, passage: Passage, questions: Sequence[Question], *fingerprints: str) -> list[Any]:
    """All that decides what the jobs of a call find, but for the memory."""
    known = [asdict(question) for question in questions]
    return [config.model_dump(mode="json", exclude=AFTERWARDS), asdict(passage), known, *fingerprints]


def exams_of(
    halves: Halves, task: KnowledgeTask, again: Sequence[tuple[KnowledgeTask, Passage]]
) -> list[tuple[KnowledgeTask, Passage]]:
    """The baseline's exams: the choosing half, the reporting half in each form, and the earlier entries'."""
    return [(task, halves.chooser), *_reports(task, halves.reporter), *again]


def _reports(task: KnowledgeTask, reporter: Passage) -> list[tuple[KnowledgeTask, Passage]]:
    return [(replace(task, form=form, margins=False), reporter) for form in REPORTED]


def _no_quiz(config: LearnConfig, known: Identity, passage: Passage, made: Quiz, reason: str) -> dict[str, Any]:
    """What ``--json`` writes where the model could make no quiz: nothing was tried, and the memory is as it was."""
    return {
        "model": config.model,
        "fingerprint": known.fingerprint,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "passage": {"id": passage.id, "title": passage.title},
        "quiz": {"made": asdict(made)},
        "decision": "no-quiz",
        "reason": reason,
        "memory": {"entry": None},
    }


def write_as(
    lm: LanguageModel, policy: str | None, task: Task, passage: Passage, count: int, sampling: Sampling, seed: int
) -> list[Written]:
    """A job: self-edits by a policy, or (None) by the base; without the memory, so what was learnt doesn't change the writing."""
    with policy_standing(lm, policy, alone=True):
        return write_edits(lm, task, passage, count, sampling, seed)


def choose(candidates: Sequence[Candidate]) -> int | None:
    """The best candidate: accuracy, ties by the golds' probability, then by lower index; None if none could be tried."""
    tried = [(index, candidate.marks) for index, candidate in enumerate(candidates) if candidate.marks is not None]
    if not tried:
        return None
    return max(tried, key=lambda pair: (pair[1].accuracy, pair[1].probability, -pair[0]))[0]


def enough(marks: Marks | None, baseline: Marks) -> bool:
    """Whether a gain is large enough to be kept.

    With 6 or more choosing questions any gain in accuracy; with fewer at least 2 questions' worth, or 1 with a gain in
    log-probability (in the form of ``Sitting.margins``) on most of the questions. A question's worth is the mean over its wordings.
    """
    if marks is None or marks.accuracy <= baseline.accuracy:
        return False
    if len(baseline.by_fact) >= FEW_QUESTIONS:
        return True
    gain = sum(marks.by_fact[group] - baseline.by_fact[group] for group in baseline.by_fact)
    likelier = sum(marks.margin_by_fact[group] > baseline.margin_by_fact[group] for group in baseline.by_fact)
    return gain >= 2 - 1e-9 or (gain >= 1 - 1e-9 and 2 * likelier > len(baseline.by_fact))


def noise_chance(candidates: Sequence[Candidate], best: int | None, baseline: Marks, asked: Sequence[Asked]) -> float | None:
    """How often the best of that many useless candidates would gain as many questions.

    A useless self-edit's answers don't depend on the question. How often such an answer is right by luck is read off the exam
    itself: answers to other questions, held against this question's gold (token recall, the most lenient grader). The chance is
    the binomial tail over the questions that were wrong before, a question counting as soon as one of its wordings is answered,
    corrected for the number of candidates tried (Sidak): an upper bound.
    """
    marks = candidates[best].marks if best is not None else None
    if marks is None:
        return None
    tried = [candidate for candidate in candidates if candidate.marks is not None]
    lucky = guess_rate(asked, [outcome.sittings[0] for candidate in tried for outcome in candidate.outcomes])
    gain = sum(marks.by_fact[group] - baseline.by_fact[group] for group in baseline.by_fact)
    wrong = sum(value < 1 for value in baseline.by_fact.values())
    wordings = max(Counter(one.group for one in asked).values())
    return best_of(tail_chance(gain, wrong, 1.0 - (1.0 - lucky) ** wordings), len(tried))


def guess_rate(asked: Sequence[Asked], sittings: Sequence[Sitting]) -> float:
    """Share of the answers that are right for another question than the one asked, with one hit and one miss added (Laplace)."""
    hits, pairs = 1, 2
    for sitting in sittings:
        for answer, one in zip(sitting.answers, asked, strict=True):
            for other in asked:
                if other.group != one.group:
                    pairs += 1
                    hits += any(recall_score(answer, gold) >= RECALL_THRESHOLD for gold in other.question.golds)
    return hits / pairs


def _candidate(
    edit: SelfEdit,
    index: int,
    task: Task,
    known: Identity,
    passage: Passage,
    config: LearnConfig,
    earlier: Sequence[tuple[int, dict[str, Any]]],
) -> Candidate:
    plans, replayed = [], []
    old = [documents_of(record) for _, record in earlier]
    for repeat in range(config.repeats):
        seed = seeds.derive(config.seed, edit.context_id, "train", index, repeat)
        try:
            plan = task.compile(known, passage, edit.text, config.settings, seed)
            wanted = round(len(plan.documents) * config.replay / (1 - config.replay))
            places = drawn([len(lesson) for lesson in old], wanted, random.Random(seed))
            plans.append(replace(plan, documents=(*plan.documents, *(old[lesson][at] for lesson, at in places))))
            replayed.append([(earlier[lesson][0], at) for lesson, at in places])
        except InvalidEditError as error:
            return Candidate(edit, [], "invalid", str(error))
    return Candidate(edit, plans, replayed=replayed)


def _groups(
    candidates: Sequence[Candidate], passage: Passage, folder: Path, slots: int
) -> dict[str, tuple[list[int], list[Trial]]]:
    """A job's name -> its candidates and their trials, ``slots`` of them; repeats after the first keep no adapter."""
    pairs = [
        (index, Trial(passage, plan, str(_adapter(folder, index, slots)) if repeat == 0 else None))
        for index, candidate in enumerate(candidates)
        for repeat, plan in enumerate(candidate.plans)
    ]
    parts = {f"trials-{at}-by-{slots}": pairs[at : at + slots] for at in range(0, len(pairs), slots)}
    return {name: ([index for index, _ in part], [trial for _, trial in part]) for name, part in parts.items()}


def _adapter(folder: Path, candidate: int, slots: int) -> Path:
    """Where a candidate's adapter is written; how many were trained side by side may change its last bits."""
    return folder / f"adapter-{candidate}-by-{slots}"


def _saved(trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> bool:
    """Whether the adapters that trials have left can be read."""
    for trial, outcome in zip(trials, outcomes, strict=True):
        if trial.adapter_folder is not None and outcome.status == "ok":
            try:
                load_adapter(Path(trial.adapter_folder))
            except MemoryStoreError:
                return False
    return True


def _fill_in(
    candidates: list[Candidate], places: Sequence[int], outcomes: Sequence[Outcome], before: Sitting, ways: Sequence[bool]
) -> None:
    """Adds outcomes to their candidates; a question that doesn't go the candidate's way keeps its answer of ``before``."""
    for index, outcome in zip(places, outcomes, strict=True):
        sittings = tuple(merged(sitting, before, ways) for sitting in outcome.sittings)
        candidates[index].outcomes += (replace(outcome, sittings=sittings),)


def _mark(candidates: list[Candidate], grader: Grader, asked: tuple[Asked, ...]) -> None:
    """Fills in each candidate's status and marks."""
    for candidate in candidates:
        failed = next((outcome for outcome in candidate.outcomes if outcome.status != "ok"), None)
        if failed is not None:
            candidate.status, candidate.reason = failed.status, failed.reason
        elif candidate.outcomes:
            candidate.marks = mean_marks([mark_sitting(grader, asked, outcome.sittings[0]) for outcome in candidate.outcomes])


def merged(now: Sitting, before: Sitting, ways: Sequence[bool]) -> Sitting:
    """Question by question ``now``'s answer where it goes that way, else ``before``'s."""
    chosen = [now if own else before for own in ways]
    values = tuple(sitting.log_probabilities[at] for at, sitting in enumerate(chosen))
    margins = tuple(sitting.margins[at] for at, sitting in enumerate(chosen)) if now.margins else ()
    return Sitting(tuple(sitting.answers[at] for at, sitting in enumerate(chosen)), values, margins)


def _candidate_row(candidate: Candidate, baseline: Marks) -> dict[str, Any]:
    marks = candidate.marks
    return {
        "edit": candidate.edit.text,
        "style": candidate.edit.style,
        "documents": len(candidate.plans[0].documents) if candidate.plans else 0,
        "reward": marks.accuracy if marks else 0.0,
        "accuracy": marks.accuracy if marks else None,
        "gain": marks.accuracy - baseline.accuracy if marks else None,
        "f1": marks.f1 if marks else None,
        "logprob": marks.log_probability if marks else None,
        "margin": marks.margin if marks else None,
        "probability": marks.probability if marks else None,
        "tokens": sum(outcome.tokens for outcome in candidate.outcomes),
        "seconds": round(sum(outcome.seconds for outcome in candidate.outcomes), 2),
        "status": candidate.status,
        "reason": candidate.reason,
        "questions": _answers(candidate.outcomes[0].sittings[0], marks) if marks else [],
    }


def _answers(sitting: Sitting, marks: Marks) -> list[dict[str, Any]]:
    """Question by question, in the order of the baseline's questions; of several repeats the first."""
    return [
        {"answer": answer, "correct": verdict.correct, "logprob": value}
        for answer, verdict, value in zip(sitting.answers, marks.verdicts, sitting.log_probabilities, strict=True)
    ]


def _report(grader: Grader, asked: tuple[Asked, ...], before: Sequence[Sitting], after: Sequence[Sitting]) -> dict[str, Any]:
    """The gain on questions that did not choose, of the best candidate, kept or not; sittings with title and without."""
    (old, old_bare), (new, new_bare) = before, after
    marks = {
        name: mark_sitting(grader, asked_in("bare", asked) if "bare" in name else asked, sitting)
        for name, sitting in (("old", old), ("new", new), ("old_bare", old_bare), ("new_bare", new_bare))
    }
    return {
        "n": len({one.group for one in asked}),
        "wordings": len(asked),
        "before": marks["old"].accuracy,
        "after": marks["new"].accuracy,
        "f1": {"before": marks["old"].f1, "after": marks["new"].f1},
        "logprob": {"before": marks["old"].log_probability, "after": marks["new"].log_probability},
        "question_alone": {"before": marks["old_bare"].accuracy, "after": marks["new_bare"].accuracy},
        "questions": [
            {
                "question": one.question.question,
                "gold": one.question.answer,
                "before": old.answers[i],
                "after": new.answers[i],
                "before_correct": marks["old"].verdicts[i].correct,
                "after_correct": marks["new"].verdicts[i].correct,
                "logprob_before": old.log_probabilities[i],
                "logprob_after": new.log_probabilities[i],
                "paraphrase": one.paraphrase,
            }
            for i, one in enumerate(asked)
        ],
    }


def _others(
    grader: Grader, earlier: Sequence[tuple[int, dict[str, Any]]], before: Sequence[Sitting], after: Sequence[Sitting]
) -> list[dict[str, Any]]:
    """What the best candidate does to the earlier entries' exams: shares of their wordings right, before and after."""
    rows = []
    for (number, record), old, new in zip(earlier, before, after, strict=True):
        asked = exam_questions(passage_of(record).questions)
        shares = [mark_sitting(grader, asked, sitting).accuracy for sitting in (old, new)]
        rows.append({"entry": number, "title": record["title"], "before": shares[0], "after": shares[1]})
    return rows


def fall(others: Sequence[dict[str, Any]]) -> float:
    """By how much the mean share right over earlier entries' exams falls."""
    return fmean(row["before"] - row["after"] for row in others) if others else 0.0


def _record(
    config: LearnConfig,
    passage: Passage,
    questions: Sequence[Question],
    choosing: list[int],
    candidate: Candidate,
    baseline: Marks,
    committed: Marks,
    report: dict[str, Any],
) -> dict[str, Any]:
    """What the ledger keeps of an entry: enough to show it, to re-sit its exam and to train it again."""
    plan, replayed = candidate.plans[0], candidate.replayed[0]
    return {
        "title": passage.title,
        "text": passage.text,
        "style": candidate.edit.style,
        "edit": candidate.edit.text,
        "documents": [document.stored() for document in plan.documents[: len(plan.documents) - len(replayed)]],
        "replayed": replayed,
        "settings": plan.settings.model_dump(mode="json"),
        "seed": plan.seed,
        "quiz": [
            {
                "question": q.question,
                "answer": q.answer,
                "aliases": list(q.aliases),
                "paraphrases": list(q.paraphrases),
                "chose": index in choosing,
            }
            for index, q in enumerate(questions)
        ],
        "marks": {
            "choosing": {
                "before": baseline.accuracy,
                "after": candidate.marks.accuracy if candidate.marks else None,
                "committed": committed.accuracy,
            },
            "reporting": {"n": report["n"], "before": report["before"], "after": report["after"]},
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.model_dump(mode="json"),
    }
