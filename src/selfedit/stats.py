"""Means, standard errors, paired differences, and how likely a gain is to be noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

# Up to this many pairs every sign pattern is counted; above, this many random ones (with a fixed seed).
EXACT_SIGNS = 14
RANDOM_SIGNS = 20_000


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its standard error; ``se`` is nan for fewer than two values."""

    n: int
    mean: float
    se: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired mean difference with its standard error, a 95 % t-interval and a two-sided sign-flip p-value."""

    n: int
    mean: float
    se: float
    low: float
    high: float
    p: float


def mean_and_error(values: Sequence[float]) -> Mean:
    """Mean and standard error over independent units (passages, not questions)."""
    if not values:
        return Mean(0, math.nan, math.nan)
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(len(values), float(np.mean(values)), se)


def paired_difference(values: Sequence[float], control: Sequence[float]) -> Difference:
    """``values - control``, unit by unit.

    Raises:
        ValueError: the two have different lengths.
    """
    differences = [a - b for a, b in zip(values, control, strict=True)]
    m = mean_and_error(differences)
    if m.n < 2:
        return Difference(m.n, m.mean, math.nan, math.nan, math.nan, math.nan)
    half = float(scipy_stats.t.ppf(0.975, m.n - 1)) * m.se
    above = sign_flip_chance(differences)
    below = sign_flip_chance([-d for d in differences])
    return Difference(m.n, m.mean, m.se, m.mean - half, m.mean + half, min(1.0, 2 * min(above, below)))


def sign_flip_chance(differences: Sequence[float]) -> float:
    """One-sided p-value of the exact sign-flip test: how often random signs give a sum as large as the one seen."""
    changed = np.array([d for d in differences if d != 0], dtype=float)
    if not len(changed):
        return 1.0
    seen = changed.sum() - 1e-9
    if len(changed) <= EXACT_SIGNS:
        signs = np.array(list(itertools.product((1, -1), repeat=len(changed))))
        return float(((signs * np.abs(changed)).sum(1) >= seen).mean())
    signs = np.random.default_rng(0).choice((1, -1), size=(RANDOM_SIGNS, len(changed)))
    return float((((signs * np.abs(changed)).sum(1) >= seen).sum() + 1) / (RANDOM_SIGNS + 1))


def tail_chance(gain: float, trials: int, rate: float) -> float:
    """The chance of at least ``gain`` (rounded up) successes in independent trials of a rate; 1 for no gain."""
    needed = math.ceil(gain - 1e-9)
    return 1.0 if needed <= 0 else float(scipy_stats.binom.sf(needed - 1, trials, rate))


def best_of(chance: float, tries: int) -> float:
    """The chance that the best of independent tries looks as good as one try does with ``chance``."""
    return 1.0 - (1.0 - chance) ** max(1, tries)
