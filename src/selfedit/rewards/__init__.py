"""Rewards: one number for a trial, from its marks and those of the context's baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from selfedit.config import RewardName
from selfedit.marks import Marks


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
    """Gain of the gold answers' mean token log-probability over the other questions' golds (``Sitting.margins``), in nats."""

    def score(self, marks: Marks, baseline: Marks) -> float:
        """Unbounded; no decoding and no grader behind it."""
        return marks.margin - baseline.margin


@dataclass(frozen=True)
class MixedReward:
    """``(1 - weight)`` of accuracy's gain and ``weight`` of likelihood's."""

    weight: float

    def score(self, marks: Marks, baseline: Marks) -> float:
        """The weighted sum."""
        return (1 - self.weight) * AccuracyReward().score(marks, baseline) + self.weight * LikelihoodReward().score(marks, baseline)


def make_reward(name: RewardName, weight: float) -> Reward:
    """The reward of a name; ``weight`` is for ``mixed``."""
    rewards: dict[RewardName, Reward] = {
        "accuracy": AccuracyReward(),
        "likelihood": LikelihoodReward(),
        "mixed": MixedReward(weight),
    }
    return rewards[name]
