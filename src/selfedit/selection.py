"""Which self-edits the policy is trained on, and what a round's rewards say about themselves."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import SelectionRule
from selfedit.stats import best_of_retested, mean_and_error, reliability


@dataclass(frozen=True, slots=True)
class Scored:
    """One self-edit with its reward.

    Attributes:
        reward: gain over the baseline, the mean over its runs; 0 if it could not be tried.
        value: what it is ranked by within its context.
        tie: ranks equals.
        usable: whether every run of it came through.
        accuracy, baseline: share of questions answered with it and before; None if it was not tried.
        runs: each run's reward by kind.
        verdicts, baseline_verdicts: each run's marks, question by question, and those before.
        gains: question by question how much likelier the gold became, as a probability, the mean over the runs.
        tried: whether it was tried at all: a screen may leave it out, or a context has no decision.
        same_as: the earlier candidate with the same text, whose runs these are; it counts in the loop, not in estimates of noise.
    """

    context: str
    candidate: int
    reward: float
    value: float
    tie: float
    usable: bool
    accuracy: float | None = None
    baseline: float | None = None
    runs: tuple[dict[str, float], ...] = ()
    verdicts: tuple[tuple[bool, ...], ...] = ()
    baseline_verdicts: tuple[bool, ...] = ()
    gains: tuple[float, ...] = ()
    same_as: int | None = None
    tried: bool = True

    @property
    def rank(self) -> tuple[float, float, int]:
        """By value, ties by ``tie``, then by lower index."""
        return self.value, self.tie, -self.candidate

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Scored:
        """From a row of ``scored.jsonl``."""
        verdicts = tuple(tuple(run) for run in row["verdicts"])
        listed = {name: tuple(row[name]) for name in ("runs", "baseline_verdicts", "gains")}
        return cls(**row | listed | {"verdicts": verdicts})


def finalists(scored: Sequence[Scored]) -> list[Scored]:
    """Without the self-edits that had fewer runs than another of their context: successive halving let them go."""
    most: dict[str, int] = defaultdict(int)
    for one in scored:
        most[one.context] = max(most[one.context], len(one.runs))
    return [one for one in scored if not one.usable or len(one.runs) == most[one.context]]


def select(rule: SelectionRule, scored: Sequence[Scored], fraction: float, seed: int) -> list[tuple[str, int]]:
    """(context, candidate) of the self-edits that the policy is trained on, in the order of contexts.

    ``best``: of each context the one with the highest reward (the paper's); ``positive``: all above the baseline (its equation 2);
    ``best-positive``: the best, if it is above the baseline; ``top-fraction``: so large a share of all, over contexts;
    ``random``: of each context one, uniformly. Only self-edits that could be tried and that halving didn't let go
    (``finalists``); ties by likelihood, then by lower index.
    """
    tried, scored = sum(one.tried for one in scored), finalists(scored)
    if rule == "positive":
        return [(one.context, one.candidate) for one in scored if one.usable and one.reward > 0]
    if rule == "top-fraction":
        ranked = sorted((one for one in scored if one.usable), key=lambda one: (one.reward, one.tie, -one.candidate), reverse=True)
        top = {(one.context, one.candidate) for one in ranked[: max(1, round(fraction * tried))]}
        return [(one.context, one.candidate) for one in scored if (one.context, one.candidate) in top]
    chosen = []
    for context, ones in _usable_by_context(scored).items():
        if not ones:
            continue
        drawn = random.Random(seeds.derive(seed, context)) if rule == "random" else None
        best = drawn.choice(ones) if drawn else max(ones, key=lambda one: one.rank)
        if rule != "best-positive" or best.reward > 0:
            chosen.append((context, best.candidate))
    return chosen


def preferences(scored: Sequence[Scored], finalists: Sequence[Scored]) -> list[tuple[str, int, int]]:
    """(context, best, worst) of every context whose best finalist has a higher reward than its worst self-edit."""
    found = []
    in_the_end = _usable_by_context(finalists)
    for context, ones in _usable_by_context(scored).items():
        best = max(in_the_end.get(context, []), key=lambda one: one.rank, default=None)
        worst = min(ones, key=lambda one: one.rank, default=None)
        if best is not None and worst is not None and best.value > worst.value:
            found.append((context, best.candidate, worst.candidate))
    return found


def round_summary(scored: Sequence[Scored], chosen: Sequence[tuple[str, int]], kind: str) -> dict[str, Any]:
    """A round's figures: rewards as means over contexts, how far one run can be trusted, and what the best are worth again.

    The noise is estimated on the contexts whose self-edits have equally many runs; after successive halving good ones have more.

    Args:
        kind: the reward that chose.
    """
    by_context: dict[str, list[Scored]] = defaultdict(list)
    apart: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_context[one.context].append(one)
        apart[one.context] += [one] if one.same_as is None else []
    even = [ones for ones in apart.values() if len({len(one.runs) for one in ones if one.usable}) == 1]
    kinds = dict.fromkeys(name for one in scored for run in one.runs for name in run)
    by_run = {name: [[[run[name] for run in one.runs] for one in ones] for ones in even] for name in kinds}
    noise = {name: reliability([of for of in rewards if not _missing(of)]) for name, rewards in by_run.items()}
    picked = set(chosen)
    # A control tries nothing, so it has no rewards.
    weighed = [one for one in scored if one.tried] if kinds else []
    return {
        "contexts": len(by_context),
        "edits": len(scored),
        "tried": len(weighed),
        "usable": sum(one.usable for one in scored),
        "selected": len(chosen),
        "reward": asdict(mean_and_error(_by_context(weighed))),
        "reward_selected": asdict(mean_and_error(_by_context([one for one in weighed if (one.context, one.candidate) in picked]))),
        "reliability": {name: asdict(found) if found else None for name, found in noise.items()},
        "best_retested": {name: asdict(mean) for name, mean in best_of_retested(by_run.get(kind, [])).items()},
    }


def _by_context(scored: Sequence[Scored]) -> list[float]:
    """The mean reward of each context's self-edits: those of one context share its questions and its luck."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in scored:
        found[one.context].append(one.reward)
    return [fmean(rewards) for rewards in found.values()]


def _missing(rewards: Sequence[Sequence[float]]) -> bool:
    return any(math.isnan(value) for edit in rewards for value in edit)


def _usable_by_context(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        found[one.context] += [one] if one.usable else []
    return found
