"""``selfedit bench rewards``: every reward and every screen on the same trials; which of them finds the self-edit that teaches?

Of each passage's own questions one half may choose, the other half is the exam that the choice never sees: what a self-edit is
worth is its accuracy there, and, less noisy, how much likelier the golds have become, with seeds of training that did not choose
it; then the halves change places. Each figure is a mean over passages, each the mean over which half and which seed chooses. Both
halves are marked as one exam, as a run's would be, and reliability is of rewards on all questions, which is what a run takes. A
share of each passage's sentences is left out of its own lesson (``edit.held_out``), for the reward ``sentences``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import REWARD_EXAMS, RewardBenchConfig, RewardName
from selfedit.contexts import Passage, Question
from selfedit.edits import TrainingPlan
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, most_workers, result
from selfedit.graders import ExamItem, Verdict
from selfedit.graders.text import RECALL_THRESHOLD, RecallGrader, recall_score
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.lm.work import Cost, metered
from selfedit.marks import Marks, mark_sitting, split_quiz
from selfedit.rewards import LikelihoodReward, Reward, make_reward
from selfedit.rewards.question_free import make_exam
from selfedit.rewards.screens import FEATURES, Tried, look, scores_of
from selfedit.rewards.self_quiz import copied
from selfedit.runs import Run
from selfedit.samplers.local import write_edits
from selfedit.stats import jackknife, mean_and_error, mean_of_known, paired_difference, rank_correlation, reliability
from selfedit.tasks.base import Sitting, Task
from selfedit.tasks.knowledge.task import KnowledgeTask

LEAST_QUESTIONS = 4
SCREENS = (*FEATURES, "ridge")
# Each exam by one of the rewards that are taken on it.
EXAMS = {exam: reward for reward, exam in REWARD_EXAMS.items() if exam != "labelled"}
HALVES = ("first half", "second half")
# Contexts that a run of two stages tries whole, each self-edit twice, to learn what its screen is worth.
NOISE_CONTEXTS = 4
SOURCES = ("labelled", "self-quiz")
# Exams of the model's own that ask questions; the others are of texts.
ASKED = ("self-quiz", "agreement")
# What a self-edit is worth by, each also a reward on labelled questions, whose pick is the one to be matched.
OUTCOMES = ("accuracy", "likelihood")
# The looks that take an exam's questions; the others are the same whoever asks.
ASKING = ("gradient", "in-context")
# A run as it may be planned, for which the share of the cost is foretold: so many self-edits each of so many passages.
PLANNED_EDITS, PLANNED_PASSAGES = 15, 50


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


# [half][edit][seed]: the half that reports, the other one may choose.
Figures = list[list[list[float]]]


@dataclass(frozen=True)
class Measured:
    """A passage's figures, of the self-edits that could be tried.

    Attributes:
        worth: by outcome, the accuracy, or the reward by likelihood, on the half that reports.
        rewards: reward -> its value, taken on the half that may choose, or on what needs no labels; none of a reward that has no
            decision here.
        ties: the same for what parts equal rewards.
        whole: reward -> [edit][seed], taken on all questions.
        features: by whose questions -> [half][edit] looks.
        overlap: by exam, the share of its own questions that ask what a labelled one asks, by their word trigrams or by the answer.
        making: what each exam cost to make.
        sitting: what each costs to be sat by one that is trained.
        looking: by whose questions -> what each look costs a self-edit, one that asks as if both halves were asked apart.
        writing: of all self-edits.
        training: of one, mean.
        tokens: labelled ones that a training goes through, mean.
    """

    worth: dict[str, Figures]
    rewards: dict[str, Figures]
    ties: dict[str, Figures]
    whole: dict[str, list[list[float]]]
    features: dict[str, list[list[dict[str, float]]]]
    overlap: dict[str, float]
    making: dict[str, Cost]
    sitting: dict[str, Cost]
    looking: dict[str, dict[str, Cost]]
    writing: Cost
    training: Cost
    tokens: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> Measured:
        """From a row of the run."""
        by_edit: dict[int, list[dict[str, Any]]] = {}
        for trial in row["trials"]:
            by_edit.setdefault(trial["edit"], []).append(trial)
        usable = [at for at, trials in by_edit.items() if all(trial["status"] == "ok" for trial in trials)]
        questions = {name: tuple(map(_question, listed)) for name, listed in row["exams"].items()}
        asked = {name: KnowledgeTask().asked(Passage(row["title"], "", of)) for name, of in questions.items()}
        first, second = HALVES
        asked["labelled"] = KnowledgeTask().asked(Passage(row["title"], "", questions[first] + questions[second]))
        count = len(asked[first])
        places = {first: slice(0, count), second: slice(count, None)}

        def marks(exam: str, sittings: dict[str, Any]) -> Marks:
            """Of a half too all questions are marked together: one answer to everything is none."""
            if exam not in (*HALVES, "labelled"):
                return mark_sitting(RecallGrader(), asked[exam], _sitting(sittings[exam]))
            joined = _sitting({name: sittings[first][name] + sittings[second][name] for name in ("answers", "log_probabilities")})
            whole = mark_sitting(RecallGrader(), asked["labelled"], joined)
            if exam == "labelled":
                return whole
            given = Given(whole.verdicts[places[exam]])
            return mark_sitting(given, asked[exam], _sitting(sittings[exam]))

        runs = {exam: [[marks(exam, trial["sittings"]) for trial in by_edit[at]] for at in usable] for exam in asked}
        before = {exam: marks(exam, row["baseline"]) for exam in asked}
        weights = {name: make_reward(name, 0.5) for name, exam in REWARD_EXAMS.items() if exam in runs}

        def scored(reward: Reward, exam: str) -> list[list[float]]:
            return [[reward.score(one, before[exam]) for one in of] for of in runs[exam]]

        def both(reward: Reward, exam: str) -> Figures:
            return [scored(reward, half if exam == "labelled" else exam) for half in (second, first)]

        def looks(source: str) -> list[list[dict[str, float]]]:
            sides = (second, first) if source == "labelled" else (source, source)
            return [[row["looks"][side]["features"][at] for at in usable] for side in sides]

        def looking(source: str) -> dict[str, Cost]:
            sides = HALVES if source == "labelled" else (source,)
            share = 1 / max(1, len(row["edits"]))
            return {
                kind: _total(Cost(**row["looks"][side]["costs"][kind]) for side in sides)
                * (share if kind in ASKING else share / len(sides))
                for kind in FEATURES
            }

        trained = [trial for at in usable for trial in by_edit[at]]
        each = 1 / max(1, len(row["trials"]))
        # In one order, whether the row comes from its file or not: sums of floats.
        sat = {name: Cost(**cost) * each for name, cost in sorted(row["sittings"].items())}
        training = Cost(**row["costs"]["trials"]) * each - _total(sat.values())
        sat["labelled"] = sat.pop(first) + sat.pop(second)
        making = {name: Cost(**row["costs"][name]) for name in EXAMS} | {"labelled": Cost()}
        labelled = questions[first] + questions[second]
        same = {
            exam: [any(_asks_alike(one, other) for other in labelled) for one in own]
            for exam, own in questions.items()
            if exam in ASKED
        }
        sources = [source for source in SOURCES if source == "labelled" or source in row["looks"]]
        return cls(
            worth={
                "accuracy": [[[one.accuracy for one in of] for of in runs[half]] for half in HALVES],
                "likelihood": [scored(LikelihoodReward(), half) for half in HALVES],
            },
            rewards={name: both(reward, REWARD_EXAMS[name]) for name, reward in weights.items()},
            ties={name: both(LikelihoodReward(), REWARD_EXAMS[name]) for name in weights},
            whole={name: scored(reward, REWARD_EXAMS[name]) for name, reward in weights.items()},
            features={source: looks(source) for source in sources},
            overlap={exam: fmean(of) for exam, of in same.items() if of},
            making=making,
            sitting=sat,
            looking={source: looking(source) for source in sources},
            writing=Cost(**row["costs"]["writing"]),
            training=training,
            tokens=fmean(trial["tokens"] for trial in trained) if trained else 0.0,
        )


@dataclass(frozen=True)
class Given:
    """A grader that has marked already."""

    verdicts: Sequence[Verdict]

    def mark(self, exam: list[ExamItem]) -> list[Verdict]:
        """Those verdicts."""
        return list(self.verdicts)


def _sitting(row: dict[str, Any]) -> Sitting:
    return Sitting(tuple(row["answers"]), tuple(row["log_probabilities"]))


def _question(row: dict[str, Any]) -> Question:
    return Question(row["question"], row["answer"], tuple(row["aliases"]), tuple(row["paraphrases"]))


def _total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


def _asks_alike(one: Question, other: Question) -> bool:
    if any(copied(one.question, wording, 0.6) for wording in (other.question, *other.paraphrases)):
        return True
    return any(recall_score(one.answer, gold) >= RECALL_THRESHOLD for gold in other.golds)


def summarise(measured: Sequence[Measured], config: RewardBenchConfig) -> dict[str, Any]:
    """The table: a row for each reward and screen, and two-stage trials against training all."""
    several = [one for one in measured if _edits(one) > 1]
    controls = {
        outcome: {id(one): of for one, (_, of) in zip(several, _picked(several, _by_reward(outcome), outcome), strict=True)}
        for outcome in OUTCOMES
    }
    rows = []
    for name, exam in REWARD_EXAMS.items():
        own = [one for one in several if name in one.rewards]
        found = reliability([one.whole[name] for one in own]) if own else None
        # Where no exam could be made the making was for nothing, and is the others' cost.
        wasted = _total(one.making[exam] for one in several if name not in one.rewards) * (1 / max(1, len(own)))
        edits = [_edits(one) for one in own]
        # The exam is sat once before anything is learnt, too.
        sat = [one.sitting[exam] * (count + 1) for one, count in zip(own, edits, strict=True)]
        spent = [one.making[exam] + one.training * count for one, count in zip(own, edits, strict=True)]
        costs = [wasted + made + sitting for made, sitting in zip(spent, sat, strict=True)]
        tokens = [_edits(one) * one.tokens for one in own]
        row = _row(name, own, _by_reward(name), controls, costs, tokens)
        rows.append(row | {"reliability": asdict(found) if found else None, "halves": None, "named": name in config.named})
    for source in SOURCES:
        every = [one for one in several if source in one.features]
        wasted = _total(one.making[source] for one in several if source not in one.features) * (1 / max(1, len(every)))
        # Looks that ask nothing are the same by any questions.
        for screen in SCREENS if source == "labelled" else (*ASKING, "ridge"):
            judged = _judged(every, screen)
            looked = [_looking(one, screen, source) * _edits(one) for one in judged]
            costs = [wasted + one.making[source] + looking for one, looking in zip(judged, looked, strict=True)]
            row = _row(f"{screen} ({source})", judged, _by_screen(every, screen, source), controls, costs, [0.0] * len(judged))
            agreeing = [
                rank_correlation(*([look[screen] for look in half] for half in one.features[source]))
                for one in judged
                if screen in ASKING and source == "labelled"
            ]
            asked = asdict(mean_and_error(agreeing)) if agreeing else None
            rows.append(row | {"reliability": None, "halves": asked, "named": screen in config.named and source == "labelled"})
    return {
        "passages": len(measured),
        "with_quiz": sum("self-quiz" in one.rewards for one in measured),
        "edits": config.edits,
        "repeats": config.repeats,
        "screened": config.screened,
        "planned": {"edits": PLANNED_EDITS, "passages": PLANNED_PASSAGES},
        "rows": rows,
        "average": asdict(mean_and_error([_average(one, "accuracy") for one in several])),
        "best": asdict(mean_and_error([fmean(max(map(fmean, of)) for of in one.worth["accuracy"]) for one in several])),
        "two_stage": [
            _two_stage(several, screen, count, reward) | {"named": screen in config.named}
            for reward in ("accuracy", "likelihood")
            for count in range(1, config.screened + 1)
            for screen in ("random", *SCREENS)
        ],
        "writing": asdict(_total(one.writing for one in measured) * (1 / max(1, len(measured)))),
        "overlap": {
            exam: asdict(mean_and_error([one.overlap[exam] for one in measured if exam in one.overlap]))
            for exam in sorted({exam for one in measured for exam in one.overlap})
        },
        "writing_seconds": asdict(mean_and_error([one.writing.seconds for one in measured])),
        "training_seconds": asdict(mean_and_error([one.training.seconds for one in measured])),
        "training_tokens": asdict(mean_and_error([one.tokens for one in measured])),
    }


# From a passage, the half that reports and the seed that chooses to what each self-edit is ranked by: its score, what parts equals.
Scores = Callable[[Measured, int, int], list[tuple[float, float]]]


def _by_reward(name: str) -> Scores:
    return lambda one, half, seed: [
        (runs[seed], tie[seed]) for runs, tie in zip(one.rewards[name][half], one.ties[name][half], strict=True)
    ]


def _by_screen(measured: Sequence[Measured], screen: str, source: str) -> Scores:
    """Of the self-edits' looks; ridge is fitted on the rewards, by the same source, of the passages that a run tries whole."""
    reward = "accuracy" if source == "labelled" else "self-quiz"
    tried = [
        [
            Tried(tuple(one.features[source][half]), tuple(map(fmean, one.rewards[reward][half])))
            for one in measured[: _tried_whole(measured)]
        ]
        for half in range(len(HALVES))
    ]

    def scores(one: Measured, half: int, seed: int) -> list[tuple[float, float]]:
        return [(value, 0.0) for value in scores_of(screen, one.features[source][half], tried[half])]

    return scores


def _tried_whole(measured: Sequence[Measured]) -> int:
    return min(NOISE_CONTEXTS, len(measured) // 2)


def _judged(measured: Sequence[Measured], screen: str) -> Sequence[Measured]:
    """The passages that a screen is judged on: ridge's are none that it was fitted on."""
    return measured[_tried_whole(measured) :] if screen == "ridge" else measured


def _edits(one: Measured) -> int:
    return len(one.worth["accuracy"][0])


def _average(one: Measured, outcome: str) -> float:
    """What a self-edit of the passage is worth in the mean."""
    return fmean(value for of in one.worth[outcome] for runs in of for value in runs)


def _row(
    name: str,
    measured: Sequence[Measured],
    scores: Scores,
    controls: dict[str, dict[int, float]],
    costs: list[Cost],
    tokens: list[float],
) -> dict[str, Any]:
    """What the self-edit with the best score is worth by seeds that did not score it, by each outcome, and what that costs."""
    return {
        "name": name,
        "n": len(measured),
        **{outcome: _worth(measured, scores, controls[outcome], outcome) for outcome in OUTCOMES},
        "seconds_a_passage": asdict(mean_and_error([cost.seconds for cost in costs])),
        "read_tokens_a_passage": asdict(mean_and_error([cost.read for cost in costs])),
        "written_tokens_a_passage": asdict(mean_and_error([cost.written for cost in costs])),
        "trained_tokens_a_passage": asdict(mean_and_error(tokens)),
    }


def _worth(measured: Sequence[Measured], scores: Scores, control: dict[int, float], outcome: str) -> dict[str, Any]:
    """The pick's worth by one outcome, against a random self-edit's and the pick of the labelled reward of that name.

    ``share``: of what that one gains over a random self-edit, on the same passages, if that gain's interval is above zero.
    """
    found = _picked(measured, scores, outcome)
    picked, random = [value for _, value in found], [_average(one, outcome) for one in measured]
    labelled = [control[id(one)] for one in measured]
    several = len(measured) > 1
    gain = paired_difference(labelled, random)
    triples = list(zip(picked, random, labelled, strict=True))
    return {
        "rank_correlation": asdict(mean_and_error([rank for rank, _ in found if not math.isnan(rank)])),
        "picked": asdict(mean_and_error(picked)),
        "minus_random": asdict(paired_difference(picked, random)) if several else None,
        "minus_labelled": asdict(paired_difference(picked, labelled)) if several else None,
        "share": asdict(jackknife(triples, _share_of_gain)) if several and gain.low > 0 else None,
    }


def _share_of_gain(triples: Sequence[tuple[float, float, float]]) -> float:
    gained = sum(labelled - random for _, random, labelled in triples)
    return sum(picked - random for picked, random, _ in triples) / gained if gained else math.nan


def _picked(measured: Sequence[Measured], scores: Scores, outcome: str) -> list[tuple[float, float]]:
    """For each passage the rank correlation of the scores with the worth by other seeds, and the worth of the best by them.

    Where all self-edits are worth the same there is nothing to be ranked: nan.
    """
    found = []
    for one in measured:
        ranks, picks = [], []
        for half, seed in _turns(one):
            of, worth = scores(one, half, seed), _others(one, half, seed, outcome)
            ranks.append(rank_correlation([score for score, _ in of], worth) if len(set(worth)) > 1 else math.nan)
            picks.append(worth[_first_best(of)])
        found.append((mean_of_known(ranks), fmean(picks)))
    return found


def _turns(one: Measured) -> list[tuple[int, int]]:
    """(half that reports, seed that chooses)."""
    worth = one.worth["accuracy"]
    return [(half, seed) for half in range(len(worth)) for seed in range(len(worth[half][0]))]


def _others(one: Measured, half: int, seed: int, outcome: str) -> list[float]:
    """What each self-edit is worth by the other seeds."""
    return [fmean(value for at, value in enumerate(runs) if at != seed) for runs in one.worth[outcome][half]]


def _first_best(scores: Sequence[tuple[float, float]]) -> int:
    return max(range(len(scores)), key=lambda at: (scores[at], -at))


def _two_stage(every: Sequence[Measured], screen: str, count: int, reward: RewardName) -> dict[str, Any]:
    """Only the few that look best are trained and the best of them by a reward is taken, against training all.

    ``random`` is the mean over all choices of so many; ``minus_random`` a screen against it; ``all_minus_one`` what training all
    gains over one self-edit at random. ``cost_share``: the few trainings and exams and all looks, of all trainings and exams;
    ``cost_share_written``: with what writing took on both sides; ``cost_share_run``: of a run over so many passages, which tries
    the first ``NOISE_CONTEXTS`` whole and twice in either way; in two stages it looks at all of them, and trains those of the
    others once more that tie for the best, above nothing; ``cost_share_planned``: the same of a run over ``PLANNED_PASSAGES`` with
    ``PLANNED_EDITS`` each, as many of which tie.
    """
    measured = _judged(every, screen)
    looks, rewards = _by_screen(every, screen, "labelled"), _by_reward(reward)
    costs = [_cost_shares(one, screen, count, len(every), looks, rewards) for one in measured]
    worth = {outcome: _stages_worth(measured, screen, count, looks, rewards, outcome) for outcome in OUTCOMES}
    return {
        "screen": screen,
        "count": count,
        "by": reward,
        "n": len(measured),
        **worth,
        **{name: mean_of_known([of[name] for of in costs]) for name in COST_SHARES},
    }


COST_SHARES = ("cost_share", "cost_share_written", "cost_share_run", "cost_share_planned")


def _through(one: Measured, looks: Scores, count: int, half: int, seed: int) -> set[int]:
    """The self-edits that look best."""
    seen = looks(one, half, seed)
    return set(sorted(range(_edits(one)), key=lambda at: (-seen[at][0], at))[:count])


def _stages_worth(
    measured: Sequence[Measured], screen: str, count: int, looks: Scores, rewards: Scores, outcome: str
) -> dict[str, Any]:
    """What is taken in two stages is worth by one outcome, and its differences."""
    worths: dict[str, list[float]] = {"few": [], "random": [], "whole": []}
    for one in measured:
        values: dict[str, list[float]] = {name: [] for name in worths}
        edits = _edits(one)
        # Of the choices of so many, in how many the first, the second, ... by the reward is the best.
        ways = [math.comb(edits - 1 - place, min(count, edits) - 1) for place in range(edits)]
        for half, seed in _turns(one):
            scores, worth = rewards(one, half, seed), _others(one, half, seed, outcome)
            ranked = sorted(range(edits), key=lambda at: (scores[at], -at), reverse=True)
            values["random"].append(sum(worth[at] * way for at, way in zip(ranked, ways, strict=True)) / sum(ways))
            values["whole"].append(worth[ranked[0]])
            if screen != "random":
                through = _through(one, looks, count, half, seed)
                values["few"].append(next(worth[at] for at in ranked if at in through))
        values["few"] = values["few"] or values["random"]
        for name, of in worths.items():
            of.append(fmean(values[name]))
    several = len(measured) > 1
    single = [_average(one, outcome) for one in measured]
    return {
        "picked": asdict(mean_and_error(worths["few"])),
        "minus_training_all": asdict(paired_difference(worths["few"], worths["whole"])) if several else None,
        "minus_random": asdict(paired_difference(worths["few"], worths["random"])) if several and screen != "random" else None,
        "all_minus_one": asdict(paired_difference(worths["whole"], single)) if several else None,
    }


def _cost_shares(one: Measured, screen: str, count: int, passages: int, looks: Scores, rewards: Scores) -> dict[str, float]:
    """Of one passage; nan where nothing could be trained."""
    each, edits = (one.training + one.sitting["labelled"]).seconds, _edits(one)
    if not each:
        return dict.fromkeys(COST_SHARES, math.nan)
    look = 0.0 if screen == "random" else _looking(one, screen, "labelled").seconds
    tied = []
    for half, seed in _turns(one):
        scores = [score for score, _ in rewards(one, half, seed)]
        through = None if screen == "random" else _through(one, looks, count, half, seed)
        tied.append(_tied(scores, min(count, edits)) if through is None else _tied([scores[at] for at in through], len(through)))
    spent, all_of_it, again = min(edits, count) * each + edits * look, edits * each, fmean(tied) * each

    def of_a_run(edits: int, passages: int) -> float:
        noisy, whole = min(1.0, NOISE_CONTEXTS / passages), edits * each
        in_stages = noisy * (2 * whole + edits * look) + (1 - noisy) * (min(edits, count) * each + edits * look + again)
        return in_stages / ((1 + noisy) * whole)

    return {
        "cost_share": spent / all_of_it,
        "cost_share_written": (one.writing.seconds + spent) / (one.writing.seconds + all_of_it),
        "cost_share_run": of_a_run(edits, passages),
        "cost_share_planned": of_a_run(PLANNED_EDITS, PLANNED_PASSAGES),
    }


def _tied(rewards: Sequence[float], count: int) -> float:
    """How many of so many self-edits, drawn at random, tie for the best in the mean: those with the same reward above nothing."""
    found = 0
    for value, alike in Counter(rewards).items():
        below = sum(other < value for other in rewards)
        ties = range(2, min(alike, count) + 1) if value > 0 else ()
        found += sum(tied * math.comb(alike, tied) * math.comb(below, count - tied) for tied in ties)
    return found / math.comb(len(rewards), count)


def _looking(one: Measured, screen: str, source: str) -> Cost:
    """What a screen costs for a self-edit; ridge needs every look."""
    return _total(one.looking[source][kind] for kind in FEATURES) if screen == "ridge" else one.looking[source][screen]
