"""``selfedit eval arc``: ways to come by a recipe, side by side on the same puzzles (paper table 1).

``icl`` answers in context, nothing trained; ``random`` a uniform valid recipe; ``ttt`` recipes of the untrained writer;
``best-fixed`` the one recipe that solved most training puzzles of a run, no model in it; ``seal`` the trained policy writes and is
trained on the items, as in the paper; ``seal-writer`` it writes and the base is trained; ``oracle`` a hand-made recipe, one for
all puzzles or each puzzle's own.
Nothing is selected: a method is the mean of its recipes.

Departures from the paper: (1) equal recipes of a puzzle share one training run of the same student, whoever wrote them, and
intervals count such runs once; (2) a puzzle that the model can't be shown, being too long, counts as unsolved by every method.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from selfedit import seeds
from selfedit.config import ArcEvalConfig
from selfedit.contexts import Puzzle
from selfedit.errors import DataError, InvalidEditError
from selfedit.evaluate import cost_of
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers
from selfedit.graders.attempts import AttemptsGrader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import policy_standing
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.marks import mark_sitting
from selfedit.runs import BASE, Run, flat, policy_of, read_rows
from selfedit.samplers.local import write_edits
from selfedit.stats import bootstrap, known_figures, mean_and_error, mean_of_known, paired_difference, wilson
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.recipe import HAND_MADE, parse_recipe, random_recipe
from selfedit.tasks.arc.task import ArcTask
from selfedit.tasks.arc.vote import attempts_of, solved
from selfedit.tasks.base import Sitting

# What each method is held against, where both are there.
CONTROLS: dict[str, tuple[str, ...]] = {
    "icl": (),
    "random": ("icl",),
    "ttt": ("icl", "random"),
    "best-fixed": ("icl", "random", "ttt"),
    "seal-writer": ("icl", "random", "ttt", "best-fixed"),
    "seal": ("icl", "random", "ttt", "best-fixed", "seal-writer"),
    "oracle": ("icl", "seal-writer", "seal"),
}
MEASURES = ("accuracy", "tests", "cells", "logprob", "valid", "readable", "tokens", "read", "steps", "seconds")
ON_POLICY = ("seal",)
BY_POLICY = ("seal", "seal-writer")
# They have one recipe, whatever ``edits`` says.
FIXED = ("best-fixed", "oracle")
# How often a random recipe is drawn again that can't be compiled.
DRAWS = 50


@dataclass(frozen=True)
class Lease:
    """One puzzle and what a worker needs to come by recipes for it.

    Attributes:
        policy: folder of the trained writer; None where no method needs one.
        fixed: the recipe of each method that nobody writes.
    """

    config: ArcEvalConfig
    puzzle: Puzzle
    policy: str | None
    fixed: dict[str, str]


def evaluate(
    config: ArcEvalConfig, puzzles: Sequence[Puzzle], run: Run, workers: int | None, told: Callable[[int, int], None]
) -> dict[str, Any]:
    """Runs what is missing of a run and returns its table.

    Two stages: what each method would train by (a lease a puzzle), then the trials, each distinct recipe of a puzzle
    ``config.trainings`` times at most for each student, whoever wrote it; a group of trials side by side is a lease.

    Args:
        config: methods and settings.
        puzzles: with their solutions.
        run: the run's folder; what is finished is not done again.
        workers: processes, by default as many as a short timing says.
        told: called with the number of leases' rows done, and of how many as far as is known.

    Raises:
        DataError: no policy, no recipe for ``best-fixed`` or ``oracle``, or rows of another policy.
    """
    fixed, by_hand = fixed_recipes(config)
    known = identify(config.model)
    policy = policy_of(config.writer, known.fingerprint) if set(BY_POLICY) & set(config.methods) else BASE
    for row in run.rows:
        if row["fixed"] != fixed:
            raise DataError(f"{run.folder}: has rows of the fixed recipe {row['fixed']}, now it is {fixed}; give a new --run")
        if row["policy"] != policy.digest:
            raise DataError(f"{run.folder}: has rows of the policy {row['policy']}, now it is {policy.digest}; give a new --run")
    slots = config.slots or slots_that_fit(known, config.settings, config.device, most_workers(config.device))
    choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
    origin = {"policy": policy.digest, "fixed": fixed}
    with LocalExecutor(choice, workers) as executor:
        written = {row["puzzle"]: row for row in run.rows if row["kind"] == "recipes"}
        told(len(run.rows), len(puzzles))
        waiting = [
            Lease(config, puzzle, policy.folder, _given(puzzle, fixed, by_hand)) for puzzle in puzzles if puzzle.id not in written
        ]
        for row in executor.map(write_recipes, [(lease,) for lease in waiting]):
            run.append(row | origin)
            told(len(run.rows), len(puzzles))
        written = {row["puzzle"]: row for row in run.rows if row["kind"] == "recipes"}
        tried = {_key(row) for row in run.rows if row["kind"] == "trial"}
        groups = [group for puzzle in puzzles for group in _groups(config, puzzle, written[puzzle.id], slots, policy.folder)]
        of = len(puzzles) + sum(len(recipes) for _, _, recipes, _, _ in groups)
        told(len(run.rows), of)
        missing = [one for one in groups if any((one[1].id, one[4] is not None, *recipe) not in tried for recipe in one[2])]
        for rows in executor.map(try_recipes, missing):
            run.append(*(row | origin for row in rows if _key(row) not in tried))
            told(len(run.rows), of)
    cost = cost_of([row for row in run.rows if row["kind"] == "trial"], [row["seconds"] for row in run.rows])
    return table(config, puzzles, assembled(run.rows, config, puzzles), fixed) | {"seen": seen(config, puzzles), "cost": cost}


def _groups(
    config: ArcEvalConfig, puzzle: Puzzle, row: dict[str, Any], slots: int, policy: str | None
) -> list[tuple[ArcEvalConfig, Puzzle, tuple[Numbered, ...], int, str | None]]:
    """The arguments of ``try_recipes`` for a puzzle; the policy is the student's, None: the base."""
    found = []
    for student in (None, policy) if policy else (None,):
        # In the settings' order: rows read back have theirs sorted.
        methods = [
            method for method in config.methods if method in row["written"] and (method in ON_POLICY) == (student is not None)
        ]
        recipes = list(dict.fromkeys(one for method in methods for one in numbered(row["written"][method], config.trainings)))
        found += [(config, puzzle, tuple(recipes[at : at + slots]), slots, student) for at in range(0, len(recipes), slots)]
    return found


# A recipe and which of its training runs.
Numbered = tuple[str, int]


def numbered(written: Sequence[tuple[str, int]], most: int) -> list[Numbered]:
    """Each of a method's recipes with its training run: of equal ones the first, the second, ... and after ``most`` in turn."""
    seen: Counter[str] = Counter()
    found = []
    for text, _ in written:
        found.append((text, seen[text] % most))
        seen[text] += 1
    return found


def _key(row: dict[str, Any]) -> tuple[str, bool, str, int]:
    return row["puzzle"], row["on_policy"], row["recipe"], row["run"]


def assembled(rows: Sequence[dict[str, Any]], config: ArcEvalConfig, puzzles: Sequence[Puzzle]) -> list[dict[str, Any]]:
    """``{puzzle, trials}`` of each puzzle, a trial for each recipe of each method; equal recipes share their runs in turn."""
    tried = {_key(row): row for row in rows if row["kind"] == "trial"}
    written = {row["puzzle"]: row for row in rows if row["kind"] == "recipes"}
    found = []
    for puzzle in puzzles:
        row = written[puzzle.id]
        trials: list[dict[str, Any]] = []
        for method in config.methods:
            if row["reason"] is not None:
                count = 1 if method == "icl" else config.trainings if method in FIXED else config.edits
                trials += [_row(method, None, "too long", row["reason"])] * count
            elif method == "icl":
                trials.append(row["icl"])
            else:
                own = row["written"][method]
                for (_, attempts), recipe in zip(own, numbered(own, config.trainings), strict=True):
                    trials.append(tried[puzzle.id, method in ON_POLICY, *recipe] | {"method": method, "attempts": attempts})
        found.append({"puzzle": puzzle.id, "trials": trials})
    return found


def seen(config: ArcEvalConfig, puzzles: Sequence[Puzzle]) -> list[str]:
    """The puzzles that the writer, or the fixed recipe, comes from: what is solved there is no evidence."""
    known: set[str] = set()
    for name in (config.writer, config.fixed_of):
        # A policy's folder lies in its run's.
        for folder in (Path(name), *Path(name).resolve().parents[:2]) if name else ():
            if (folder / "data.json").is_file():
                known |= set(json.loads((folder / "data.json").read_text(encoding="utf-8")))
                break
    return [puzzle.id for puzzle in puzzles if puzzle.id in known]


# The oracle's recipe of the puzzles that it names none for.
OTHERS = "others"


def fixed_recipes(config: ArcEvalConfig) -> tuple[str | None, dict[str, str]]:
    """The recipe of ``best-fixed`` and those of ``oracle`` by puzzle, ``OTHERS`` for the rest, in their own form.

    Raises:
        DataError: no run for ``best-fixed``, or a recipe that can't be read as far as the settings let recipes go.
    """
    fixed, by_hand = None, {}
    if "best-fixed" in config.methods:
        run = config.fixed_of or config.writer
        remedy = f"give --unconstrained or --set edit.extended=true, if {run} had it, or another --fixed-of"
        fixed = _read(config, best_fixed(Path(run)), f"best-fixed, of {run}", remedy)
    if "oracle" in config.methods:
        remedy = f"give --set oracle=... a recipe such as {HAND_MADE.text()}, or leave it out for the hand-made one"
        given = config.oracle if isinstance(config.oracle, dict) else {OTHERS: config.oracle or HAND_MADE.text()}
        by_hand = {
            name: _read(config, text, "oracle" if name == OTHERS else f"oracle, of task {name}", remedy)
            for name, text in ({OTHERS: HAND_MADE.text()} | given).items()
        }
    return fixed, by_hand


def _given(puzzle: Puzzle, fixed: str | None, by_hand: dict[str, str]) -> dict[str, str]:
    """The recipes for a puzzle that nobody writes, by method."""
    found = {"best-fixed": fixed} if fixed is not None else {}
    return found | ({"oracle": by_hand.get(puzzle.id, by_hand[OTHERS])} if by_hand else {})


def _read(config: ArcEvalConfig, text: str, what: str, remedy: str) -> str:
    try:
        return ArcTask(config.edit).read(text).text()
    except InvalidEditError as error:
        raise DataError(f"{what}: the recipe can't be read here ({error}); {remedy}") from error


def best_fixed(run: Path) -> str:
    """The recipe that solved most puzzles of a run of ``selfedit train arc``; equals by the share of its trials, then by fields.

    Most recipes are tried on one puzzle only, so that many are equal: of them the one whose fields went best in all trials of the
    run, by the mean over its fields of the share solved of the trials with that value. Equal recipes of a puzzle that share one
    training are one trial.

    A trial that was invalid or diverged has solved nothing.

    Raises:
        DataError: no such run, or nothing was solved in it.
    """
    if not any(run.glob("round-*/edits.jsonl")):
        raise DataError(f"{run}: no run of selfedit train arc that has tried recipes; give --fixed-of such a run's folder")
    rows = read_rows(run / "trials.jsonl")
    written = {(one["context"], at): edit["text"] for path in sorted(run.glob("round-*/edits.jsonl")) for one in read_rows(path)
               for at, edit in enumerate(one["edits"])}  # fmt: skip
    file = run / "data.json"
    puzzles = {puzzle.id: puzzle for puzzle in load_puzzles(str(file), "")} if file.is_file() else {}
    by_recipe: dict[str, set[str]] = defaultdict(set)
    tried: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    fields: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        if row.get("same_as") is not None:
            continue
        recipe = written[row["context"], row["candidate"]]
        sat = row["sitting"]
        right = sat is not None and solved(puzzles[row["context"]], [attempts_of(answer) for answer in sat["answers"]])
        tried[recipe] += 1
        hits[recipe] += right
        if _is_recipe(recipe):
            for field in _fields_of(recipe):
                fields[field].append(right)
        if right:
            by_recipe[recipe].add(row["context"])
    if not by_recipe:
        raise DataError(f"{run}: no recipe there that solved a puzzle; give --fixed-of the folder of a run of selfedit train arc")

    def went(recipe: str) -> tuple[int, float, float, str]:
        by_field = fmean(fmean(fields[field]) for field in _fields_of(recipe))
        return -len(by_recipe[recipe]), -hits[recipe] / tried[recipe], -by_field, recipe

    return min(by_recipe, key=went)


def _fields_of(recipe: str) -> list[tuple[str, str]]:
    """Each field of a recipe with its value."""
    return [
        (name, json.dumps(value)) for name, value in sorted(flat(parse_recipe(recipe, free=True).model_dump(mode="json")).items())
    ]


def write_recipes(lm: LanguageModel, lease: Lease) -> dict[str, Any]:
    """A lease: the recipes of every method for one puzzle, and what is answered in context."""
    config, puzzle, task = lease.config, lease.puzzle, ArcTask(lease.config.edit, lease.config.seed)
    row: dict[str, Any] = {"kind": "recipes", "puzzle": puzzle.id, "reason": task.too_long(lm, puzzle), "icl": None, "written": {}}
    start = time.perf_counter()
    if row["reason"] is None:
        if "icl" in config.methods:
            row["icl"] = _row("icl", None, "ok", "", sit(lm, [(task, puzzle)])[0]) | {"seconds": time.perf_counter() - start}
        for method in config.methods:
            if method != "icl":
                # The policy writes once for all methods that are its own: only whom its recipes train differs.
                before = [row["written"][one] for one in BY_POLICY if method in BY_POLICY and one in row["written"]]
                row["written"][method] = before[0] if before else recipes_of(lm, lease, method)
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def try_recipes(
    lm: LanguageModel, config: ArcEvalConfig, puzzle: Puzzle, recipes: tuple[Numbered, ...], slots: int, policy: str | None
) -> list[dict[str, Any]]:
    """A lease: recipes for one puzzle tried side by side, on the policy or (None) on the base; answers only."""
    task = ArcTask(config.edit, config.seed)
    plans, rows = {}, {}
    for recipe in recipes:
        try:
            plans[recipe] = task.compile(lm, puzzle, recipe[0], config.settings, training_seed(config, puzzle, recipe))
        except InvalidEditError as error:
            rows[recipe] = _row("", recipe[0], "invalid", str(error))
    with policy_standing(lm, policy):
        outcomes = run_trials(lm, [task], [Trial(puzzle, plan) for plan in plans.values()], slots)
    for (recipe, plan), found in zip(plans.items(), outcomes, strict=True):
        rows[recipe] = _row("", recipe[0], found.status, found.reason, *found.sittings) | {
            "tokens": found.tokens,
            "read": plan.settings.epochs * sum(len(encode_document(lm, document).ids) for document in plan.documents),
            "steps": len(found.losses),
            "seconds": round(found.seconds, 2),
            "items": len(plan.documents),
        }
    common = {"kind": "trial", "puzzle": puzzle.id, "on_policy": policy is not None}
    return [rows[recipe] | common | {"run": recipe[1]} for recipe in recipes]


def training_seed(config: ArcEvalConfig, puzzle: Puzzle, recipe: Numbered) -> int:
    """Of one of a recipe's trainings: of its items and its adapter."""
    return seeds.derive(config.seed, puzzle.id, "train", *recipe)


def recipes_of(lm: LanguageModel, lease: Lease, method: str) -> list[tuple[str, int]]:
    """A method's recipes for a puzzle, each with how often it was sampled until it could be read."""
    config, puzzle, task = lease.config, lease.puzzle, ArcTask(lease.config.edit)
    if method == "random":
        return [(_drawn(lm, task, puzzle, config, index), 1) for index in range(config.edits)]
    if method in FIXED:
        return [(lease.fixed[method], 1)] * config.trainings
    with policy_standing(lm, lease.policy if method in BY_POLICY else None):
        written = write_edits(lm, task, puzzle, config.edits, config.edit.sampling, config.seed)
    return [(one.edit.text, one.attempts) for one in written]


def _drawn(lm: LanguageModel, task: ArcTask, puzzle: Puzzle, config: ArcEvalConfig, index: int) -> str:
    """A random recipe, drawn again while it can't be compiled: the control is to be uniform over the valid ones."""
    generator = np.random.default_rng(seeds.derive(config.seed, puzzle.id, "random", index))
    text = ""
    for _ in range(DRAWS):
        text = random_recipe(generator, config.edit.extended).text()
        try:
            task.compile(lm, puzzle, text, config.settings, training_seed(config, puzzle, (text, 0)))
        except InvalidEditError:
            continue
        return text
    return text


def _row(method: str, recipe: str | None, status: str, reason: str, sitting: Sitting | None = None) -> dict[str, Any]:
    return {
        "method": method,
        "recipe": recipe,
        "status": status,
        "reason": reason,
        "sitting": asdict(sitting) if sitting else None,
        "attempts": 1,
        "tokens": 0,
        "read": 0,
        "steps": 0,
        "seconds": 0.0,
    }


def table(config: ArcEvalConfig, puzzles: Sequence[Puzzle], rows: Sequence[dict[str, Any]], fixed: str | None) -> dict[str, Any]:
    """Means over puzzles with standard errors and intervals, paired differences, and the recipes that were written.

    ``accuracy`` is the share of a method's recipes that solved the whole puzzle, both attempts at each test allowed; ``tests`` the
    share of tests; ``cells`` the share of right cells in a test's better attempt; ``valid`` the share of recipes that were trained;
    ``readable`` the share that could be read when first sampled; ``tokens`` labelled ones, ``read`` all of the items, every epoch.
    """
    graded = [_graded(puzzle, row) for puzzle, row in zip(puzzles, rows, strict=True)]
    values = {
        method: [{m: mean_of_known([one[m] for one in of[method]]) for m in MEASURES} for of in graded] for method in config.methods
    }
    methods, intervals = {}, {}
    for method, by_puzzle in values.items():
        kept = {m: [row[m] for row in by_puzzle if not math.isnan(row[m])] for m in MEASURES}
        methods[method] = {m: asdict(mean_and_error(of)) for m, of in kept.items() if of}
        clusters = [[one["accuracy"] for one in of[method]] for of in graded]
        flat = [value for cluster in clusters for value in cluster]
        trained = sum(len({_independent(trial) for trial in row["trials"] if trial["method"] == method}) for row in rows)
        intervals[method] = {
            "solved": int(sum(flat)),
            "runs": len(flat),
            "trained": trained,
            "wilson": wilson(fmean(flat) * trained, trained),
            # Where all runs went alike, drawing puzzles again says nothing.
            "bootstrap": bootstrap(clusters) if 0 < sum(flat) < len(flat) else None,
        }
    differences = [
        {
            "method": method,
            "control": control,
            "measure": "accuracy",
            **asdict(paired_difference([r["accuracy"] for r in values[method]], [r["accuracy"] for r in values[control]])),
        }
        for method in config.methods
        for control in CONTROLS[method]
        if control in config.methods
    ]
    recipes = [
        {"puzzle": puzzle.id, "method": trial["method"], "recipe": trial["recipe"], "solved": bool(one["accuracy"])}
        for puzzle, row, of in zip(puzzles, rows, graded, strict=True)
        for trial, one in _beside(row, of)
        if trial["recipe"] is not None
    ]
    return {
        "config": config.model_dump(mode="json"),
        "n": len(puzzles),
        "questions": sum(len(puzzle.test) for puzzle in puzzles),
        "unit": f"puzzles, seed {config.seed}; means and standard errors over puzzles",
        "methods": methods,
        "intervals": intervals,
        "differences": differences,
        "entropy": {method: entropy([r["recipe"] for r in recipes if r["method"] == method]) for method in config.methods},
        "fixed": fixed,
        "recipes": sorted(recipes, key=lambda row: row["puzzle"]),
        "passages": [
            {"id": puzzle.id, "title": puzzle.id, "methods": {m: known_figures(values[m][at]) for m in config.methods}}
            for at, puzzle in enumerate(puzzles)
        ],
    }


def _independent(trial: dict[str, Any]) -> tuple[str | None, int | None]:
    """What tells a trial's outcome from others of its puzzle: its recipe and training; what is invalid is so at once."""
    return trial["recipe"], trial["run"] if trial["status"] != "invalid" and "run" in trial else None


def entropy(texts: Sequence[str]) -> float | None:
    """Bits of the distribution of those texts that are recipes, over all puzzles; at most the logarithm of how many."""
    recipes = [text for text in texts if _is_recipe(text)]
    if not recipes:
        return None
    shares = [count / len(recipes) for count in Counter(recipes).values()]
    return round(-sum(share * math.log2(share) for share in shares) + 0.0, 3)


def _is_recipe(text: str) -> bool:
    try:
        parse_recipe(text, free=True)
    except InvalidEditError:
        return False
    return True


def _graded(puzzle: Puzzle, row: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Method -> measures of each of its trials; one that failed has solved nothing."""
    asked = ArcTask().asked(puzzle)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for trial in row["trials"]:
        measures = dict.fromkeys(MEASURES, 0.0) | {"logprob": math.nan}
        if trial["sitting"] is not None:
            sat = {name: tuple(trial["sitting"][name]) for name in ("answers", "log_probabilities")}
            marks = mark_sitting(AttemptsGrader(), asked, Sitting(**sat))
            attempts = [attempts_of(answer) for answer in trial["sitting"]["answers"]]
            measures |= {
                "accuracy": marks.accuracy,
                "tests": fmean(float(wanted in tried) for (_, wanted), tried in zip(puzzle.test, attempts, strict=True)),
                "cells": fmean(verdict.score for verdict in marks.verdicts),
                "logprob": fmean(trial["sitting"]["log_probabilities"]),
                "valid": 1.0,
            }
        measures["readable"] = float(trial["recipe"] is not None and trial["attempts"] == 1 and _is_recipe(trial["recipe"]))
        measures |= {name: float(trial[name]) for name in ("tokens", "read", "steps", "seconds")}
        found[trial["method"]].append(measures)
    return found


def _beside(row: dict[str, Any], graded: dict[str, list[dict[str, float]]]) -> list[tuple[dict[str, Any], dict[str, float]]]:
    at: Counter[str] = Counter()
    found = []
    for trial in row["trials"]:
        found.append((trial, graded[trial["method"]][at[trial["method"]]]))
        at[trial["method"]] += 1
    return found
