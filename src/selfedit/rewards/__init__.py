"""Rewards: one number for a trial, from its marks and those of the context's baseline."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from selfedit.config import REWARD_EXAMS, RewardName
from selfedit.marks import Marks

# A text that was certain already, in nats a token: its cost is no divisor.
LEAST_COST = 1e-3


class Reward(Protocol):
    """Higher is better; 0 is no change to the baseline."""

    def score(self, marks: Marks, baseline: Marks) -> float:
        """The trial's reward."""
        ...


@dataclass(frozen=True)
class AccuracyReward:
    """Gain in the share of questions answered (paper section 4.1).

    Departure from the paper: the baseline is taken off, which changes no ranking within a passage and makes 0 mean "no gain".
    """

    def score(self, marks: Marks, baseline: Marks) -> float:
        """In [-1, 1]."""
        return marks.accuracy - baseline.accuracy


@dataclass(frozen=True)
class LikelihoodReward:
    """Gain of the gold answers' probability, of each the geometric mean over its tokens: accuracy without its steps.

    It goes with the exam better than log-probabilities do, by which the golds that stay unlikely weigh most (docs/lab-book.md).
    """

    def score(self, marks: Marks, baseline: Marks) -> float:
        """In [-1, 1]; no decoding and no grader behind it."""
        return marks.probability - baseline.probability


@dataclass(frozen=True)
class MixedReward:
    """``(1 - weight)`` of accuracy's gain and ``weight`` of likelihood's."""

    weight: float

    def score(self, marks: Marks, baseline: Marks) -> float:
        """The weighted sum."""
        return (1 - self.weight) * AccuracyReward().score(marks, baseline) + self.weight * LikelihoodReward().score(marks, baseline)


@dataclass(frozen=True)
class RelativeReward:
    """By how much less a text costs: mean over the texts of the gain in log-probability, as a share of what it was (SCoL)."""

    def score(self, marks: Marks, baseline: Marks) -> float:
        """At most 1: every text has become certain."""
        pairs = zip(marks.log_probabilities, baseline.log_probabilities, strict=True)
        return fmean((after - before) / max(-before, LEAST_COST) for after, before in pairs)


@dataclass(frozen=True)
class GainReward:
    """Gain in the texts' mean token log-probability, in nats."""

    def score(self, marks: Marks, baseline: Marks) -> float:
        """Unbounded."""
        return marks.log_probability - baseline.log_probability


def make_reward(name: RewardName, weight: float) -> Reward:
    """The reward of a name; ``weight`` is for ``mixed``."""
    rewards: dict[RewardName, Reward] = {
        "accuracy": AccuracyReward(),
        "likelihood": LikelihoodReward(),
        "mixed": MixedReward(weight),
        "self-quiz": AccuracyReward(),
        "self-quiz-likelihood": LikelihoodReward(),
        "sentences": RelativeReward(),
        "paraphrases": RelativeReward(),
        "agreement": GainReward(),
    }
    return rewards[name]


def rewards_beside(name: RewardName) -> tuple[RewardName, ...]:
    """Those that the same exam yields, the one itself among them."""
    return tuple(other for other, exam in REWARD_EXAMS.items() if exam == REWARD_EXAMS[name])
