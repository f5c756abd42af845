"""What the bench's table is made of: a passage's figures, from its row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from selfedit.config import REWARD_EXAMS
from selfedit.contexts import Passage, Question
from selfedit.graders import ExamItem, Verdict
from selfedit.graders.text import RECALL_THRESHOLD, RecallGrader, recall_score
from selfedit.lm.work import Cost
from selfedit.marks import Marks, mark_sitting
from selfedit.rewards import LikelihoodReward, Reward, make_reward
from selfedit.rewards.screens import FEATURES
from selfedit.rewards.self_quiz import copied
from selfedit.tasks.base import Sitting
from selfedit.tasks.knowledge.task import KnowledgeTask

# Each exam by one of the rewards that are taken on it.
EXAMS = {exam: reward for reward, exam in REWARD_EXAMS.items() if exam != "labelled"}
HALVES = ("first half", "second half")
SOURCES = ("labelled", "self-quiz")
# Exams of the model's own that ask questions; the others are of texts.
ASKED = ("self-quiz", "agreement")
# The looks that take an exam's questions; the others are the same whoever asks.
ASKING = ("gradient", "in-context")
# [half][edit][seed]: the half that reports, the other one may choose.
Figures = list[list[list[float]]]


@dataclass(frozen=True)
class Measured:
    """A passage's figures, of the self-edits that could be tried.

    Attributes:
        title: the passage's.
        worth: by outcome, the accuracy, or the reward by likelihood, on the half that reports.
        rewards: reward -> its value, taken on the half that may choose, or on what needs no labels; none of a reward that has no
            decision here.
        ties: the same for what parts equal rewards.
        whole: reward -> [edit][seed], taken on all questions.
        features: by whose questions -> [half][edit] looks.
        overlap: by exam, the share of its own questions that ask what a labelled one asks, by their word trigrams or by the answer.
        making: what each exam cost to make.
        sitting: what each costs to be sat by one that is trained.
        looking: by whose questions -> what each look costs a self-edit, all questions asked.
        writing: of all self-edits.
        training: of one, mean.
        tokens: labelled ones that a training goes through, mean.
    """

    title: str
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

    def turned(self) -> Measured:
        """The same, but that the half that chooses is the one that reports too."""
        return replace(self, worth={outcome: of[::-1] for outcome, of in self.worth.items()})

    @classmethod
    def of(cls, row: dict[str, Any]) -> Measured:
        """From a row of the run."""
        by_edit: dict[int, list[dict[str, Any]]] = {}
        for trial in row["trials"]:
            by_edit.setdefault(trial["edit"], []).append(trial)
        usable = [at for at, trials in by_edit.items() if all(trial["status"] == "ok" for trial in trials)]
        # Which entries of each exam count; of a half all do.
        kept = {name: row["kept"].get(name, range(len(listed))) for name, listed in row["exams"].items()}
        kept = {name: places for name, places in kept.items() if len(places)}
        questions = {name: tuple(_question(row["exams"][name][at]) for at in places) for name, places in kept.items()}
        asked = {name: KnowledgeTask().asked(Passage(row["title"], "", of)) for name, of in questions.items()}
        first, second = HALVES
        asked["labelled"] = KnowledgeTask().asked(Passage(row["title"], "", questions[first] + questions[second]))
        count = len(asked[first])
        places = {first: slice(0, count), second: slice(count, None)}

        def marks(exam: str, sittings: dict[str, Any]) -> Marks:
            """Of a half too all questions are marked together: one answer to everything is none."""
            if exam not in (*HALVES, "labelled"):
                return mark_sitting(RecallGrader(), asked[exam], _sitting(sittings[exam], kept[exam]))
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
            """By the half that reports: of a labelled look the other one is asked. What asks nothing is looked at once."""
            text, own = row["looks"]["labelled"]["features"], row["looks"][source]["features"]
            asked = (1, 0) if source == "labelled" else (0, 0)
            return [[text[side][at] | own[side][at] for at in usable] for side in asked]

        def looking(source: str) -> dict[str, Cost]:
            costs = row["looks"]["labelled"]["costs"] | row["looks"][source]["costs"]
            return {kind: Cost(**costs[kind]) * (1 / max(1, len(row["edits"]))) for kind in FEATURES}

        trained = [trial for at in usable for trial in by_edit[at]]
        each = 1 / max(1, len(row["trials"]))
        # In one order, whether the row comes from its file or not: sums of floats.
        sat = {name: Cost(**cost) * each for name, cost in sorted(row["sittings"].items())}
        training = Cost(**row["costs"]["trials"]) * each - total(sat.values())
        # A run asks what counts alone.
        sat = {name: cost * (len(kept[name]) / len(row["exams"][name])) for name, cost in sat.items() if name in kept}
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
            title=row["title"],
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


def _sitting(row: dict[str, Any], kept: Sequence[int] | None = None) -> Sitting:
    places = range(len(row["answers"])) if kept is None else kept
    return Sitting(*(tuple(row[name][at] for at in places) for name in ("answers", "log_probabilities")))


def _question(row: dict[str, Any]) -> Question:
    return Question(row["question"], row["answer"], tuple(row["aliases"]), tuple(row["paraphrases"]))


def total(costs: Iterable[Cost]) -> Cost:
    """Their sum."""
    return sum(costs, Cost())


def _asks_alike(one: Question, other: Question) -> bool:
    if any(copied(one.question, wording, 0.6) for wording in (other.question, *other.paraphrases)):
        return True
    return any(recall_score(one.answer, gold) >= RECALL_THRESHOLD for gold in other.golds)
