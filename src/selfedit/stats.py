"""Means, standard errors, paired differences, and how likely a gain is to be noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import special

Unit = TypeVar("Unit")
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


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate over units with its standard error and a 95 % t-interval."""

    n: int
    mean: float
    se: float
    low: float
    high: float


def mean_and_error(values: Sequence[float]) -> Mean:
    """Mean and standard error over independent units (passages, not questions)."""
    if not values:
        return Mean(0, math.nan, math.nan)
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(len(values), float(np.mean(values)), se)


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of those figures that exist; nan if none does."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def known_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for a table's rows: 6 digits, None for one that doesn't exist."""
    return {name: None if math.isnan(value) else round(value, 6) for name, value in figures.items()}


def paired_difference(values: Sequence[float], control: Sequence[float]) -> Difference:
    """``values - control``, unit by unit.

    Raises:
        ValueError: the two have different lengths.
    """
    differences = [a - b for a, b in zip(values, control, strict=True)]
    m = mean_and_error(differences)
    if m.n < 2:
        return Difference(m.n, m.mean, math.nan, math.nan, math.nan, math.nan)
    half = float(special.stdtrit(m.n - 1, 0.975)) * m.se
    above = sign_flip_chance(differences)
    below = sign_flip_chance([-d for d in differences])
    return Difference(m.n, m.mean, m.se, m.mean - half, m.mean + half, min(1.0, 2 * min(above, below)))


def jackknife(units: Sequence[Unit], statistic: Callable[[Sequence[Unit]], float]) -> Interval:
    """A statistic of all units; its error by leaving out each in turn, nan for fewer than two. For ratios of means."""
    n = len(units)
    value = statistic(units) if n else math.nan
    if n < 2:
        return Interval(n, value, math.nan, math.nan, math.nan)
    without = np.array([statistic([*units[:at], *units[at + 1 :]]) for at in range(n)])
    se = float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))
    half = float(special.stdtrit(n - 1, 0.975)) * se
    return Interval(n, value, se, value - half, value + half)


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


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, for independent trials; (nan, nan) of none."""
    if not trials:
        return math.nan, math.nan
    z = float(special.ndtri(0.975))
    rate, scale = successes / trials, 1 + z * z / trials
    middle = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % percentile interval of the mean over all values, whole clusters drawn with replacement (a fixed seed)."""
    if not clusters:
        return math.nan, math.nan
    sums, sizes = (np.array([f(cluster) for cluster in clusters], dtype=float) for f in (sum, len))
    drawn = np.random.default_rng(0).integers(len(clusters), size=(RANDOM_SIGNS, len(clusters)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)


def tail_chance(gain: float, trials: int, rate: float) -> float:
    """The chance of at least ``gain`` (rounded up) successes in independent trials of a rate; 1 for no gain."""
    needed = math.ceil(gain - 1e-9)
    return 1.0 if needed <= 0 else float(special.bdtrc(needed - 1, trials, rate))


def best_of(chance: float, tries: int) -> float:
    """The chance that the best of independent tries looks as good as one try does with ``chance``."""
    return 1.0 - (1.0 - chance) ** max(1, tries)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How much of a reward's spread within a context is the edits' and how much the seeds' (one-way random effects).

    Attributes:
        contexts, trials: what it rests on; contexts with two edits or more that were each tried twice or more.
        seed_variance: mean variance between seeds of one edit.
        edit_variance: variance between edits of one context, the seeds' share taken off; at least 0.
        single: reliability of one run, edit_variance / (edit_variance + seed_variance).
        mean: reliability of the mean over ``repeats`` runs.
        repeats: mean number of runs of an edit.
        single_se, mean_se: their standard errors, by leaving out each context in turn; nan for a single context.
    """

    contexts: int
    trials: int
    seed_variance: float
    edit_variance: float
    single: float
    mean: float
    repeats: float
    single_se: float = math.nan
    mean_se: float = math.nan


def reliability(rewards: Sequence[Sequence[Sequence[float]]]) -> Reliability | None:
    """Variance components of rewards[context][edit][run]; None without a context of two edits with two runs each.

    Balanced estimator within a context: the variance of the edits' means less the seeds' share of it. Contexts count by their
    degrees of freedom.
    """
    units = [context for context in rewards if sum(len(edit) >= 2 for edit in context) >= 2]
    found = _components(units)
    if found is None:
        return None
    single, mean = (
        jackknife(units, lambda chosen, name=name: getattr(_components(chosen), name, math.nan)).se  # type: ignore[misc]
        for name in ("single", "mean")
    )
    return replace(found, single_se=single, mean_se=mean)


def _components(rewards: Sequence[Sequence[Sequence[float]]]) -> Reliability | None:
    within, within_freedom, between, between_freedom, runs, edits = 0.0, 0, 0.0, 0, 0, 0
    contexts = 0
    for context in rewards:
        repeated = [list(edit) for edit in context if len(edit) >= 2]
        if len(repeated) < 2:
            continue
        contexts += 1
        edits += len(repeated)
        runs += sum(len(edit) for edit in repeated)
        means = [float(np.mean(edit)) for edit in repeated]
        within += sum(float(np.sum((np.array(edit) - mean) ** 2)) for edit, mean in zip(repeated, means, strict=True))
        within_freedom += sum(len(edit) - 1 for edit in repeated)
        between += float(np.sum((np.array(means) - np.mean(means)) ** 2))
        between_freedom += len(means) - 1
    if not contexts:
        return None
    repeats = runs / edits
    seed = within / within_freedom
    edit = max(0.0, between / between_freedom - seed / repeats)

    def share(count: float) -> float:
        return edit / (edit + seed / count) if edit + seed > 0 else math.nan

    return Reliability(contexts, runs, seed, edit, share(1.0), share(repeats), repeats)


def best_of_retested(rewards: Sequence[Sequence[Sequence[float]]]) -> dict[str, Mean]:
    """What the best edit of a context is worth on a run that did not choose it.

    For each context of rewards[context][edit][run] and each of its runs: ``seen`` is the reward of the best edit by that run
    (ties: the first), ``retested`` that edit's mean reward over its other runs, ``average`` the mean over all edits; units are
    contexts.
    """
    seen, retested, average = [], [], []
    for context in rewards:
        repeated = [edit for edit in context if len(edit) >= 2]
        if len(repeated) < 2:
            continue
        count = min(len(edit) for edit in repeated)
        picks = [max(range(len(repeated)), key=lambda e, r=run: (repeated[e][r], -e)) for run in range(count)]  # type: ignore[misc]
        seen.append(float(np.mean([repeated[pick][run] for run, pick in enumerate(picks)])))
        others = [np.mean([value for at, value in enumerate(repeated[pick]) if at != run]) for run, pick in enumerate(picks)]
        retested.append(float(np.mean(others)))
        average.append(float(np.mean([np.mean(edit) for edit in repeated])))
    return {"seen": mean_and_error(seen), "retested": mean_and_error(retested), "average": mean_and_error(average)}


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's rho; 0 where either side is all alike and so ranks nothing."""
    from scipy.stats import spearmanr

    if len(set(values)) < 2 or len(set(others)) < 2:
        return 0.0
    return float(spearmanr(values, others).statistic)
