"""The bench's table: what the pick of each reward and screen is worth and costs, and two stages against training all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from selfedit.bench_rewards.figures import ASKING, HALVES, SOURCES, Measured, total
from selfedit.config import REWARD_EXAMS, RewardBenchConfig, RewardName
from selfedit.lm.work import Cost
from selfedit.rewards.screens import FEATURES, Ridge, Tried, scores_of
from selfedit.stats import jackknife, mean_and_error, mean_of_known, paired_difference, rank_correlation, reliability

SCREENS = (*FEATURES, "ridge")
# Contexts that a run of two stages tries whole, each self-edit twice, to learn what its screen is worth.
NOISE_CONTEXTS = 4
# What a self-edit is worth by; by the rewards of these names the best of the few that were trained is taken.
OUTCOMES: tuple[RewardName, ...] = ("accuracy", "likelihood")
# The labelled reward whose pick is the one to be matched: the less noisy one, by which the outer loop is run.
CONTROL: RewardName = "likelihood"
# What ridge is fitted on, by whose questions are asked.
FITTED: dict[str, RewardName] = {"labelled": CONTROL, "self-quiz": "self-quiz-likelihood"}
# A run as it may be planned, for which the share of the cost is foretold: so many self-edits each of so many passages.
PLANNED_EDITS, PLANNED_PASSAGES = 15, 50


def summarise(measured: Sequence[Measured], config: RewardBenchConfig) -> dict[str, Any]:
    """The table: a row for each reward and screen, and two-stage trials against training all."""
    several = [one for one in measured if _edits(one) > 1]
    controls: dict[str, dict[int, float]] = {
        outcome: {id(one): of for one, (_, of) in zip(several, _picked(several, _by_reward(CONTROL), outcome), strict=True)}
        for outcome in OUTCOMES
    }
    rows = []
    for name, exam in REWARD_EXAMS.items():
        own = [one for one in several if name in one.rewards]
        found = reliability([one.whole[name] for one in own]) if own else None
        # Where no exam could be made the making was for nothing, and is the others' cost.
        wasted = total(one.making[exam] for one in several if name not in one.rewards) * (1 / max(1, len(own)))
        edits = [_edits(one) for one in own]
        # The exam is sat once before anything is learnt, too.
        sat = [one.sitting[exam] * (count + 1) for one, count in zip(own, edits, strict=True)]
        spent = [one.making[exam] + one.training * count for one, count in zip(own, edits, strict=True)]
        costs = [wasted + made + sitting for made, sitting in zip(spent, sat, strict=True)]
        tokens = [_edits(one) * one.tokens for one in own]
        row = _row(name, own, _by_reward(name), controls, costs, tokens, asks=exam == "labelled")
        rows.append(
            row | {"reliability": asdict(found) if found else None, "halves": None, "named": name == config.named.label_free}
        )
    for source in SOURCES:
        every = [one for one in several if source in one.features]
        wasted = total(one.making[source] for one in several if source not in one.features) * (1 / max(1, len(every)))
        # Looks that ask nothing are the same by any questions.
        for screen in SCREENS if source == "labelled" else (*ASKING, "ridge"):
            judged = _judged(every, screen, source, FITTED[source])
            looked = [_looking(one, screen, source) * _edits(one) for one in judged]
            costs = [wasted + one.making[source] + looking for one, looking in zip(judged, looked, strict=True)]
            row = _row(
                f"{screen} ({source})",
                judged,
                _by_screen(every, screen, source, FITTED[source]),
                controls,
                costs,
                [0.0] * len(judged),
                asks=screen in ASKING and source == "labelled",
            )
            agreeing = [
                rank_correlation(*([look[screen] for look in half] for half in one.features[source]))
                for one in judged
                if screen in ASKING and source == "labelled"
            ]
            asked = asdict(mean_and_error(agreeing)) if agreeing else None
            rows.append(row | {"reliability": None, "halves": asked, "named": False})
    return {
        "passages": len(measured),
        "titles": len({one.title for one in measured}),
        "with_quiz": sum("self-quiz" in one.rewards for one in measured),
        "edits": config.edits,
        "repeats": config.repeats,
        "screened": config.screened,
        "planned": {"edits": PLANNED_EDITS, "passages": PLANNED_PASSAGES},
        "rows": rows,
        "average": asdict(mean_and_error([_average(one, "accuracy") for one in several])),
        "best": asdict(mean_and_error([fmean(max(map(fmean, of)) for of in one.worth["accuracy"]) for one in several])),
        "two_stage": [
            _two_stage(several, screen, count, reward)
            | {"named": (screen, count, reward) == (config.named.screen, config.named.screened or config.screened, config.named.by)}
            for reward in OUTCOMES
            for count in range(1, config.screened + 1)
            for screen in ("random", *SCREENS)
        ],
        "writing": asdict(total(one.writing for one in measured) * (1 / max(1, len(measured)))),
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


def _fitting(measured: Sequence[Measured], source: str, reward: RewardName) -> list[list[Tried]]:
    """By the half that reports, what ridge is fitted on: a reward, by the source's questions, in the passages tried whole."""
    return [
        [
            Tried(tuple(one.features[source][half]), tuple(map(fmean, one.rewards[reward][half])))
            for one in measured[: _tried_whole(measured)]
        ]
        for half in range(len(HALVES))
    ]


def _by_screen(measured: Sequence[Measured], screen: str, source: str, reward: RewardName) -> Scores:
    """Of the self-edits' looks; ridge is fitted on the reward."""
    tried = _fitting(measured, source, reward)

    def scores(one: Measured, half: int, seed: int) -> list[tuple[float, float]]:
        return [(value, 0.0) for value in scores_of(screen, one.features[source][half], tried[half])]

    return scores


def _tried_whole(measured: Sequence[Measured]) -> int:
    return min(NOISE_CONTEXTS, len(measured) // 2)


def _judged(measured: Sequence[Measured], screen: str, source: str, reward: RewardName) -> Sequence[Measured]:
    """The passages that a screen is judged on: ridge's are none that it was fitted on, and none at all where it can't be."""
    if screen != "ridge":
        return measured
    fitted = all(Ridge.fitted(tried) is not None for tried in _fitting(measured, source, reward))
    return measured[_tried_whole(measured) :] if fitted else []


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
    asks: bool,
) -> dict[str, Any]:
    """What the self-edit with the best score is worth by seeds that did not score it, by each outcome, and what that costs.

    Where labelled questions choose (``asks``), ``same_questions`` says by how much it is better than a random one on those.
    """
    return {
        "name": name,
        "n": len(measured),
        **{outcome: _worth(measured, scores, controls[outcome], outcome) for outcome in OUTCOMES},
        "same_questions": {outcome: _on_same(measured, scores, outcome) for outcome in OUTCOMES} if asks else None,
        "seconds_a_passage": asdict(mean_and_error([cost.seconds for cost in costs])),
        "read_tokens_a_passage": asdict(mean_and_error([cost.read for cost in costs])),
        "written_tokens_a_passage": asdict(mean_and_error([cost.written for cost in costs])),
        "trained_tokens_a_passage": asdict(mean_and_error(tokens)),
    }


def _worth(measured: Sequence[Measured], scores: Scores, control: dict[int, float], outcome: str) -> dict[str, Any]:
    """The pick's worth by one outcome, against a random self-edit's and the pick of the labelled reward ``CONTROL``.

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


def _on_same(measured: Sequence[Measured], scores: Scores, outcome: str) -> dict[str, Any] | None:
    """The pick's worth on the questions that chose it, by other seeds, against a random self-edit's."""
    if len(measured) < 2:
        return None
    picked = [value for _, value in _picked([one.turned() for one in measured], scores, outcome)]
    return asdict(paired_difference(picked, [_average(one, outcome) for one in measured]))


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
    ``PLANNED_EDITS`` each, as many of which tie. Shares are of sums over passages, their errors the jackknife's. A training is
    taken to cost the same whether it shares its pass with all others or with the few. ``same_questions``: where those that chose
    report, too.
    """
    measured = _judged(every, screen, "labelled", reward)
    looks, rewards = _by_screen(every, screen, "labelled", reward), _by_reward(reward)
    costs = [_costs(one, screen, count, len(every), looks, rewards) for one in measured]
    turned = [one.turned() for one in measured]
    worth: dict[str, Any] = {outcome: _stages_worth(measured, screen, count, looks, rewards, outcome) for outcome in OUTCOMES}
    worth["same_questions"] = {outcome: _stages_worth(turned, screen, count, looks, rewards, outcome) for outcome in OUTCOMES}
    return {
        "screen": screen,
        "count": count,
        "by": reward,
        "n": len(measured),
        **worth,
        **{name: asdict(jackknife([of[name] for of in costs if of], _ratio)) for name in COST_SHARES},
    }


COST_SHARES = ("cost_share", "cost_share_written", "cost_share_run", "cost_share_planned")


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Of sums; nan of none."""
    whole = sum(all_of_it for _, all_of_it in pairs)
    return sum(spent for spent, _ in pairs) / whole if whole else math.nan


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


def _costs(one: Measured, screen: str, count: int, passages: int, looks: Scores, rewards: Scores) -> dict[str, tuple[float, float]]:
    """Of one passage (seconds in two stages, of training all); empty where nothing could be trained."""
    each, edits = (one.training + one.sitting["labelled"]).seconds, _edits(one)
    if not each:
        return {}
    look = 0.0 if screen == "random" else _looking(one, screen, "labelled").seconds
    tied = []
    for half, seed in _turns(one):
        scores = [score for score, _ in rewards(one, half, seed)]
        through = None if screen == "random" else _through(one, looks, count, half, seed)
        tied.append(_tied(scores, min(count, edits)) if through is None else _tied([scores[at] for at in through], len(through)))
    spent, all_of_it, again = min(edits, count) * each + edits * look, edits * each, fmean(tied) * each

    def of_a_run(edits: int, passages: int) -> tuple[float, float]:
        noisy, whole = min(1.0, NOISE_CONTEXTS / passages), edits * each
        in_stages = noisy * (2 * whole + edits * look) + (1 - noisy) * (min(edits, count) * each + edits * look + again)
        return in_stages, (1 + noisy) * whole

    return {
        "cost_share": (spent, all_of_it),
        "cost_share_written": (one.writing.seconds + spent, one.writing.seconds + all_of_it),
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
    return total(one.looking[source][kind] for kind in FEATURES) if screen == "ridge" else one.looking[source][screen]
