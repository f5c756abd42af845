"""The outer loop: ReST-EM (paper section 3.1, algorithm 1). One round, then rounds.

A round writes self-edits with the current policy, tries each (the inner loop), weighs it (the reward), selects, and trains the
policy on what was selected. On-policy by construction: every row carries the digest of the policy that wrote it, and one of another
policy is refused.

Departures from the paper: (1) the default rule takes the best self-edit of a passage only if it beats the baseline, where the
paper's takes it in any case; (2) ties go by the golds' likelihood, then by lower index, where the reference code takes the first;
(3) the reward's noise is estimated in each round; (4) the control ``random`` trains on self-edits drawn at random; (5) SFT is the
engine's own, in one slot, where the reference code takes TRL; (6) ``credit="lines"`` trains on rows put together of those lines
of the selected self-edits that taught a question's gold best; (7) a reward without labels takes its own exam in the place of the
context's questions, and a context of which none can be made is not decided on; (8) with ``screen`` only what looks best is tried.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import REWARD_EXAMS, TEXT_REWARDS, OuterConfig, TrainConfig
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, most_workers, result
from selfedit.graders import Grader
from selfedit.inner import Trial
from selfedit.lm.adapter import (
    load_adapter,
    save_merged,
)
from selfedit.lm.load import Identity, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.marks import Marks, mark_sitting
from selfedit.outer_jobs import dpo, look_at, prepare_exam, sft, try_group, write_and_sit
from selfedit.rewards import LikelihoodReward, Reward, make_reward, rewards_beside
from selfedit.rewards.exams import Exam, Labelled
from selfedit.rewards.screens import Tried, correlations, scores_of
from selfedit.runs import BASE, Log, Policy, Run, keep_rows, policy_at, read_rows
from selfedit.selection import Scored, finalists, preferences, round_summary, select
from selfedit.stats import mean_and_error
from selfedit.tasks.base import Candidate, Credit, Sitting, Task, answered

Told = Callable[[str, dict[str, Any]], None]
# Of a round in two stages: how each self-edit that was tried had looked, and its reward.
WORTH = "worth.jsonl"
# A round's rows: what was written, by context; what was tried, by (context, candidate, repeat).
Lessons = dict[str, dict[str, Any]]
Trials = dict[tuple[str, int, int], dict[str, Any]]


def train(
    config: OuterConfig,
    task: Task,
    contexts: Sequence[Sequence[Any]],
    grader: Grader,
    run: Run,
    executor: LocalExecutor,
    told: Told,
    credit: Credit | None = None,
    exam: Exam | None = None,
) -> dict[str, Any]:
    """All rounds; what is there already is not done again.

    Args:
        config: numbers, rule, reward, settings.
        task: the domain.
        contexts: what may be drawn, of each data set; each has an ``id``.
        grader: marks in this process.
        run: the run's folder.
        executor: where the jobs run; its model is the base.
        told: called with (event, details): ``round, examined, wrote, undecided, looked, screened, tried, reinforcing, reinforced``.
        credit: for ``credit="lines"``: puts the rows together.
        exam: what the reward is taken on; by default the contexts' own questions.

    Returns:
        ``{rounds: [metrics of each], policy: folder of the last policy}``.

    Raises:
        DataError: too few contexts for all rounds; rows of another policy; a control without the run it is to be held against.
    """
    known = identify(config.model)
    slots = config.slots or slots_that_fit(known, config.settings, config.device, most_workers(config.device))
    drawn = draw(config, contexts)
    metrics = Log(run.folder / "metrics.jsonl")
    policy = BASE
    for number, chosen in enumerate(drawn, start=1):
        folder = run.folder / f"round-{number:02d}"
        after = folder / "policy"
        if after.is_dir() and len(metrics.rows) >= number:
            policy = policy_at(after)
            continue
        # A round whose policy was taken away is played again; so is the first of more rounds than the run had.
        shutil.rmtree(run.folder / "merged", ignore_errors=True)
        metrics.keep(number - 1)
        folder.mkdir(exist_ok=True)
        told("round", {"number": number, "contexts": len(chosen), "policy": policy.digest})
        # A control at random weighs nothing, so it needs no exam of its own.
        sat = Labelled(task) if exam is None or config.rule == "random" else exam
        one = Round(config, task, sat, known, executor, grader, run, folder, number, policy, slots, told, credit)
        policy, row = one.play(chosen)
        metrics.append(row)
    merged = run.folder / "merged"
    if config.merge and policy.folder and not merged.is_dir():
        scratch = run.folder / ".merged.new"
        shutil.rmtree(scratch, ignore_errors=True)
        save_merged(known, [load_adapter(Path(policy.folder))], scratch)
        scratch.rename(merged)
    return {"rounds": metrics.rows, "policy": policy.folder}


def draw(config: OuterConfig, contexts: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The contexts of each round, all different; of a control, those that the other run took rows of.

    Args:
        config: numbers and seed.
        contexts: those of each data set, which are drawn from in turn while they last: a small one isn't lost in a large one.
    """
    if config.control_of:
        by_id = {context.id: context for part in contexts for context in part}
        rounds = taken(Path(config.control_of), config.rounds)
        missing = {row["context"] for rows in rounds for row in rows} - set(by_id)
        if missing:
            raise DataError(f"{config.control_of}: took passages that {', '.join(config.data)} doesn't have; give the same --data")
        return [[by_id[context] for context in dict.fromkeys(row["context"] for row in rows)] for rows in rounds]
    shuffled = [sorted(part, key=lambda context: seeds.derive(config.seed, "draw", context.id)) for part in contexts]
    in_turn = {context.id: context for row in itertools.zip_longest(*shuffled) for context in row if context is not None}
    order, needed = list(in_turn.values()), config.rounds * config.contexts
    if len(order) < needed:
        raise DataError(
            f"{config.rounds} rounds of {config.contexts} need {needed} passages and {', '.join(config.data)} has {len(order)}; "
            "give fewer rounds or passages, or more data"
        )
    return [order[at : at + config.contexts] for at in range(0, needed, config.contexts)]


def check_begun(folder: Path, drawn: Sequence[Sequence[Any]]) -> None:
    """That a run's rounds so far are about the contexts that are drawn for them now.

    Raises:
        DataError: the data have changed.
    """
    for number, contexts in enumerate(drawn, start=1):
        file = folder / f"round-{number:02d}" / "edits.jsonl"
        if strangers := {row["context"] for row in read_rows(file)} - {context.id for context in contexts}:
            raise DataError(
                f"{file}: round {number} has {len(strangers)} contexts that would not be drawn for it now; give --data as it was: "
                "a run that has begun takes no more or other data"
            )


def taken(run: Path, rounds: int) -> list[list[dict[str, Any]]]:
    """What a finished run selected in each of its first rounds, one row a self-edit."""
    found = []
    for number in range(1, rounds + 1):
        file = run / f"round-{number:02d}" / "selected.json"
        if not file.is_file():
            raise DataError(f"{run}: has no finished round {number}; let that run end first, or give fewer rounds")
        found.append(json.loads(file.read_text()))
    return found


def earlier_worth(folder: Path, number: int) -> list[Tried]:
    """What a run's rounds before this one tried, beside how it had looked."""
    rows = [row for earlier in range(1, number) for row in read_rows(folder / f"round-{earlier:02d}" / WORTH)]
    return [Tried(tuple(row["features"]), tuple(row["rewards"])) for row in rows]


@dataclass
class Round:
    """One round: write, try, weigh, select, reinforce."""

    config: OuterConfig
    task: Task
    exam: Exam
    known: Identity
    executor: LocalExecutor
    grader: Grader
    run: Run
    folder: Path
    number: int
    policy: Policy
    slots: int
    told: Told
    credit: Credit | None = None
    # Of a control: the other run's self-edits that its own stand for, by their places there.
    places_of: list[int] = field(default_factory=list)
    # By context: it with the exam's questions that count, which entries of a sitting those are, and why there is no decision on it.
    examined: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, list[int]] = field(default_factory=dict)
    undecided: dict[str, str] = field(default_factory=dict)
    # Of two stages: what a screen lets through, ties that are tried again, and what the screen was worth.
    let_through: dict[str, list[int]] = field(default_factory=dict)
    tied: dict[str, list[int]] = field(default_factory=dict)
    screening: dict[str, Any] = field(default_factory=dict)
    looks: Lessons = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def play(self, contexts: Sequence[Any]) -> tuple[Policy, dict[str, Any]]:
        """The policy after the round, and the round's metrics."""
        materials = self.prepare(contexts)
        contexts = self.askable(contexts, materials)
        written = self.write(contexts, materials)
        self.settle(contexts, materials, written)
        # Those with a decision first: the first few show the noise, and what a screen is worth.
        contexts = sorted(contexts, key=lambda context: context.id in self.undecided)
        self.places = {context.id: at for at, context in enumerate(contexts)}
        tried = {} if self.config.rule == "random" else self.try_all(contexts, written)
        scored = self.weigh(contexts, written, tried)
        keep_rows(self.folder / "scored.jsonl", [asdict(one) for one in scored])
        if self.config.algorithm == "dpo":
            preferred = preferences(scored, finalists(scored))
            chosen = [(context, best) for context, best, _ in preferred]
            rows, job = self.preferred_rows(contexts, written, preferred), dpo
        else:
            chosen = self.select(scored)
            rows, job = self.rows(contexts, written, chosen, scored), sft
        keep_rows(self.folder / "rows.jsonl", rows)
        listed = [{"context": context, "candidate": candidate} for context, candidate in chosen]
        (self.folder / "selected.json").write_text(json.dumps(listed, indent=1) + "\n")
        after, training = self.train_policy(job, rows)
        parts: dict[str, Lessons | Trials] = {"exams": materials, "writing": written, "screening": self.looks, "trying": tried}
        cost = {name: round(sum(row["seconds"] for row in part.values()), 1) for name, part in parts.items()}
        cost["policy"] = training["seconds"]
        row = {
            "round": self.number,
            "policy_before": self.policy.digest,
            "policy_after": after.digest,
            "code": self.run.commit,
            **round_summary(scored, chosen, self.config.reward),
            "undecided": len(self.undecided),
            **({"screen": self.screening} if self.screening else {}),
            "rows": len(rows),
            **({"rows_of_the_other": len(self.theirs)} if self.config.control_of else {}),
            "outer_losses": training["losses"],
            "tokens": sum(row["tokens"] for row in tried.values()),
            # Of all workers together, whatever was interrupted in between.
            "cost": cost,
            "seconds": round(sum(cost.values()), 1),
        }
        self.told("reinforced", row)
        return after, row

    def select(self, scored: Sequence[Scored]) -> list[tuple[str, int]]:
        """By the rule; of a control as many of each context as the other run took, each drawn on its own."""
        seed = self.seed("select")
        if not self.config.control_of:
            return select(self.config.rule, finalists(scored), self.config.fraction, seed)
        by_context: dict[str, list[Scored]] = defaultdict(list)
        for one in scored:
            by_context[one.context].append(one)
        found = []
        for index, row in enumerate(taken(Path(self.config.control_of), self.config.rounds)[self.number - 1]):
            drawn = select("random", by_context[row["context"]], self.config.fraction, seeds.derive(seed, index))
            self.places_of += [index] * len(drawn)
            found += drawn
        return found

    def prepare(self, contexts: Sequence[Any]) -> Lessons:
        """What each context's exam takes, made before anything is written; what is there already is not made again."""
        if isinstance(self.exam, Labelled):
            return {context.id: {"material": {}, "seconds": 0.0} for context in contexts}
        log = Log(self.folder / "exams.jsonl")
        self.check_policy(log)
        done = {row["context"] for row in log.rows}
        jobs = {
            self.executor.submit(prepare_exam, self.exam, context, self.seed("exam"), self.student): context
            for context in contexts
            if context.id not in done
        }
        for job in self.executor.ended(jobs):
            log.append({"context": jobs[job].id, "policy": self.policy.digest} | result(job))
            self.told("examined", {"done": len(log.rows), "of": len(contexts)})
        return {row["context"]: row for row in log.rows}

    def askable(self, contexts: Sequence[Any], materials: Lessons) -> list[Any]:
        """Those with an exam; about the others nothing need be written."""
        found = []
        for context in contexts:
            kept = self.exam.kept(context, materials[context.id]["material"], [])
            if isinstance(kept, str):
                self.undecided[context.id] = kept
            else:
                found.append(context)
        return found

    def settle(self, contexts: Sequence[Any], materials: Lessons, written: Lessons) -> None:
        """Which of each exam's entries count, now that all self-edits are there."""
        for context in contexts:
            material = materials[context.id]["material"]
            whole = self.whole[context.id] = self.exam.examined(context, material)
            kept = self.exam.kept(context, material, [edit["text"] for edit in written[context.id]["edits"]])
            if isinstance(kept, str):
                self.undecided[context.id], kept = kept, []
            self.entries[context.id] = kept
            everything = len(kept) == len(self.exam.task.asked(whole))
            self.examined[context.id] = whole if everything else only(whole, kept)
        if self.undecided:
            self.told("undecided", self.undecided)

    def write(self, contexts: Sequence[Any], materials: Lessons) -> Lessons:
        """Each context's self-edits and baseline exam; what is there already is not written again."""
        log = Log(self.folder / "edits.jsonl")
        self.check_policy(log)
        done = {row["context"] for row in log.rows}
        config = self.config
        exam = "labelled" if isinstance(self.exam, Labelled) else REWARD_EXAMS[config.reward]
        # A control weighs nothing, so it takes any.
        for row in log.rows if config.rule != "random" else ():
            if (theirs := row.get("exam", "labelled")) != exam:
                raise DataError(f"{log.file}: its baselines are of the exam {theirs}, not of {exam}; start a new run")
        jobs = [
            self.executor.submit(
                write_and_sit,
                self.task,
                context,
                config.edits,
                config.edit.sampling,
                self.seed("write"),
                self.policy.folder,
                config.student,
                self.exam.task,
                self.exam.examined(context, materials[context.id]["material"]),
            )
            for context in contexts
            if context.id not in done
        ]
        for job in self.executor.ended(jobs):
            log.append(result(job) | {"policy": self.policy.digest, "exam": exam})
            self.told("wrote", {"done": len(log.rows), "of": len(contexts)})
        return {row["context"]: row for row in log.rows}

    def try_all(self, contexts: Sequence[Any], written: Lessons) -> Trials:
        """Every trial of the round, by (context, candidate, repeat).

        The unit of work is a group of ``slots`` trials of one context; of a group that was cut off rows that are there stay. Equal
        self-edits of a context are tried once and counted often.
        """
        rows = {(row["context"], row["candidate"], row["repeat"]): row for row in self.run.rows if row["round"] == self.number}
        self.check_policy(self.run.log, [row for row in self.run.rows if row["round"] == self.number])
        if self.config.screen:
            self.try_screened(contexts, written, rows)
            return rows
        for stage in [[repeat] for repeat in range(self.repeats(0))] if self.config.halving else [list(range(self.repeats(0)))]:
            self.try_stage(contexts, written, rows, stage)
        return rows

    def try_screened(self, contexts: Sequence[Any], written: Lessons, rows: Trials) -> None:
        """In two stages: the round's first contexts whole, which says what the screen is worth; of the others what looks best.

        Of those that tie for the best in the end each is trained once more, with another seed.
        """
        looks = self.looks = self.look(contexts, written)
        first = contexts[: self.config.noise_contexts]
        self.try_stage(first, written, rows, list(range(self.repeats(0))))
        history = earlier_worth(self.run.folder, self.number)
        known = self.worth(first, written, rows, looks)
        found = correlations(known, history)
        own = found[self.config.screen]
        self.screening = {
            "correlation": {name: asdict(mean_and_error(values)) for name, values in found.items()},
            "trusted": bool(own) and fmean(own) >= self.config.least_correlation,
        }
        if self.screening["trusted"]:
            for context in contexts[self.config.noise_contexts :]:
                features, texts = looks[context.id]["features"], [edit["text"] for edit in written[context.id]["edits"]]
                usable = [at for at, of in enumerate(features) if of is not None and texts[at] not in texts[:at]]
                scores = scores_of(self.config.screen, [features[at] for at in usable], [*history, *known]) if usable else []
                best = sorted(zip(scores, usable, strict=True), key=lambda pair: (-pair[0], pair[1]))[: self.config.screened]
                # What can't be compiled costs nothing, and has its row.
                invalid = [at for at, of in enumerate(features) if of is None]
                self.let_through[context.id] = sorted([*(at for _, at in best), *invalid])
        self.told("screened", self.screening)
        self.try_stage(contexts, written, rows, list(range(self.repeats(len(first)))))
        if self.screening["trusted"]:
            for context in contexts[self.config.noise_contexts :]:
                scored = [one for one in self.weigh([context], written, rows) if one.usable]
                top = max((one.value for one in scored), default=0.0)
                tied = [one.candidate for one in scored if one.value == top]
                if len(tied) > 1 and top > 0:
                    self.tied[context.id] = tied
            self.try_stage(contexts, written, rows, [self.config.repeats])
        keep_rows(self.folder / WORTH, [asdict(one) for one in self.worth(contexts, written, rows, looks)])

    def look(self, contexts: Sequence[Any], written: Lessons) -> Lessons:
        """What each self-edit looks like; what is there already is not looked at again."""
        assert isinstance(self.config, TrainConfig)
        log = Log(self.folder / "looks.jsonl")
        self.check_policy(log)
        done = {row["context"] for row in log.rows}
        jobs = {
            self.executor.submit(
                look_at,
                self.task,
                self.examined[context.id],
                [edit["text"] for edit in written[context.id]["edits"]],
                self.config,
                self.seed("look", context.id),
                self.student,
            ): context
            for context in contexts
            if context.id not in done and context.id not in self.undecided
        }
        for job in self.executor.ended(jobs):
            log.append({"context": jobs[job].id, "policy": self.policy.digest} | result(job))
            self.told("looked", {"done": len(log.rows), "of": sum(one.id not in self.undecided for one in contexts)})
        nothing = {one.id: {"features": [None] * len(written[one.id]["edits"]), "seconds": 0.0} for one in contexts}
        return nothing | {row["context"]: row for row in log.rows}

    def worth(self, contexts: Sequence[Any], written: Lessons, rows: Trials, looks: Lessons) -> list[Tried]:
        """Each context's looks beside its true rewards, of the self-edits that have both."""
        found = []
        for context in contexts:
            features = looks[context.id]["features"]
            scored = [one for one in self.weigh([context], written, rows) if one.usable and one.same_as is None]
            both = [(features[one.candidate], one.reward) for one in scored if features[one.candidate] is not None]
            if len(both) > 1:
                found.append(Tried(tuple(of for of, _ in both), tuple(reward for _, reward in both)))
        return found

    def runs_of(self, context: Any) -> int:
        """Runs of each of a context's self-edits, but for those that part what tied."""
        return self.repeats(self.places.get(context.id, 0))

    def repeats(self, at: int) -> int:
        """Runs of each self-edit of the context at that place of the round: the first few have two at least, to show the noise."""
        return max(self.config.repeats, 2) if at < self.config.noise_contexts else self.config.repeats

    def survivors(
        self,
        at: int,
        context: Any,
        written: Lessons,
        rows: Trials,
        repeat: int,
    ) -> list[int]:
        """The candidates that get a further run: all, or by successive halving the better half of those of the run before."""
        everyone = self.let_through.get(context.id, list(range(len(written[context.id]["edits"]))))
        if context.id in self.tied and repeat == self.config.repeats:
            return self.tied[context.id]
        if repeat >= self.repeats(at):
            return []
        if not repeat or not self.config.halving or at < self.config.noise_contexts:
            return everyone
        before = {key: row for key, row in rows.items() if key[0] == context.id and key[2] < repeat}
        ranked = [
            one
            for one in self.weigh([context], written, before)
            if one.usable and (context.id, one.candidate, repeat - 1) in before
        ]
        ranked.sort(key=lambda one: one.rank, reverse=True)
        return sorted(one.candidate for one in ranked[: math.ceil(len(everyone) / 2**repeat)])

    def try_stage(
        self,
        contexts: Sequence[Any],
        written: Lessons,
        rows: Trials,
        stage: Sequence[int],
    ) -> None:
        """The trials of some repeats; fills ``rows``."""
        groups: list[list[tuple[tuple[str, int, int], Trial]]] = []
        twins: dict[tuple[str, int, int], tuple[str, int, int]] = {}
        for at, context in enumerate(contexts):
            trials = []
            if context.id in self.undecided:
                continue
            chosen = {repeat: self.survivors(at, context, written, rows, repeat) for repeat in stage}
            edits = written[context.id]["edits"]
            for candidate, edit in enumerate(edits):
                for repeat in (repeat for repeat in stage if candidate in chosen[repeat]):
                    key = (context.id, candidate, repeat)
                    alike = (other for other in chosen[repeat] if other < candidate and edits[other]["text"] == edit["text"])
                    if (first := next(alike, None)) is not None:
                        twins[key] = (context.id, first, repeat)
                        continue
                    seed = self.seed("train", context.id, candidate, repeat)
                    try:
                        plan = self.task.compile(self.known, context, edit["text"], self.config.settings, seed)
                    except InvalidEditError as error:
                        if key not in rows:
                            rows[key] = self.row(key, seed, "invalid", str(error))
                            self.run.append(rows[key])
                        continue
                    trials.append((key, Trial(self.whole[context.id], plan)))
            groups += [trials[at : at + self.slots] for at in range(0, len(trials), self.slots)]
        waiting = [group for group in groups if any(key not in rows for key, _ in group)]
        examiner = self.exam.task
        jobs = {
            self.executor.submit(try_group, examiner, [trial for _, trial in group], self.slots, self.student): group
            for group in waiting
        }
        total = len(rows) + sum(key not in rows for group in waiting for key, _ in group)
        for job in self.executor.ended(jobs):
            fresh = []
            for (key, trial), outcome in zip(jobs[job], result(job), strict=True):
                if key not in rows:
                    rows[key] = self.row(key, trial.plan.seed, outcome.status, outcome.reason) | {
                        "sitting": asdict(outcome.sittings[0]) if outcome.sittings else None,
                        "documents": len(trial.plan.documents),
                        "steps": len(outcome.losses),
                        "last_loss": outcome.losses[-1] if outcome.losses else None,
                        "tokens": outcome.tokens,
                        "seconds": round(outcome.seconds, 2),
                    }
                    fresh.append(rows[key])
            self.run.append(*fresh)
            self.told("tried", {"done": len(rows), "of": total})
        for key, leader in twins.items():
            if key not in rows:
                rows[key] = rows[leader] | {"candidate": key[1], "same_as": leader[1], "tokens": 0, "seconds": 0.0}
                self.run.append(rows[key])

    def weigh(self, contexts: Sequence[Any], written: Lessons, tried: Trials) -> list[Scored]:
        """Each self-edit's reward, with every kind of reward beside it on the same trials."""
        kinds: dict[str, Reward] = {
            name: make_reward(name, self.config.reward_weight) for name in rewards_beside(self.config.reward)
        }
        scored: list[Scored] = []
        by_edit: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for (context_id, candidate, _), row in sorted(tried.items()):
            by_edit[context_id, candidate].append(row)
        for context in contexts:
            edits = written[context.id]["edits"]
            if self.config.rule == "random":
                compiled = [self.compiles(context, edit["text"]) for edit in edits]
                scored += [Scored(context.id, at, 0.0, 0.0, 0.0, usable, tried=False) for at, usable in enumerate(compiled)]
                continue
            if context.id in self.undecided:
                scored += [Scored(context.id, at, 0.0, 0.0, 0.0, usable=False, tried=False) for at in range(len(edits))]
                continue
            baseline = self.marks(context, written[context.id]["baseline"])
            answered = self.config.reward not in TEXT_REWARDS
            for candidate in range(len(edits)):
                # Runs after those that everyone had are only there to part what tied.
                everyones = [row for row in by_edit[context.id, candidate] if row["repeat"] < self.runs_of(context)]
                extra = [row for row in by_edit[context.id, candidate] if row["repeat"] >= self.runs_of(context)]
                rows = [*everyones, *extra]
                marks = [self.marks(context, row["sitting"]) for row in everyones if row["sitting"] is not None]
                again = [self.marks(context, row["sitting"]) for row in extra if row["sitting"] is not None]
                runs = tuple({name: kind.score(one, baseline) for name, kind in kinds.items()} for one in marks)
                if not marks or len(marks) + len(again) < len(rows):
                    scored.append(Scored(context.id, candidate, 0.0, 0.0, 0.0, usable=False, tried=bool(rows)))
                    continue
                weight = kinds[self.config.reward]
                likelier = [LikelihoodReward().score(one, baseline) for one in marks]
                parting = [weight.score(one, baseline) for one in again] or likelier
                # Without float noise: a mean gain of nothing is none, and equals are equal.
                reward = round(fmean(run[self.config.reward] for run in runs), 9)
                scored.append(
                    Scored(
                        context.id,
                        candidate,
                        reward=reward,
                        value=reward,
                        tie=round(fmean(parting), 9),
                        usable=True,
                        accuracy=fmean(one.accuracy for one in marks) if answered else None,
                        baseline=baseline.accuracy if answered else None,
                        runs=runs,
                        verdicts=tuple(tuple(v.correct for v in one.verdicts) for one in marks),
                        baseline_verdicts=tuple(v.correct for v in baseline.verdicts),
                        gains=tuple(
                            round(fmean(gains), 9) for gains in zip(*(one.likelier(baseline) for one in marks), strict=True)
                        ),
                        same_as=rows[0].get("same_as"),
                    )
                )
        return scored

    def rows(
        self, contexts: Sequence[Any], written: Lessons, chosen: Sequence[tuple[str, int]], scored: Sequence[Scored]
    ) -> list[dict[str, Any]]:
        """What the policy is trained on: the prompts of each selected self-edit and what was written to them.

        ``item`` is the self-edit's place among the selected; with ``credit="lines"`` the context's. Of a control each item has as
        many rows as in the run that it is held against, so there are as many steps of SFT.
        """
        by_id = {context.id: context for context in contexts}
        theirs = self.theirs
        if self.config.credit == "lines" and self.credit is not None:
            return self.rows_of_lines(self.credit, by_id, written, chosen, scored, theirs)
        rows: list[dict[str, Any]] = []
        for item, (context_id, candidate) in enumerate(chosen):
            own = self.answers(by_id[context_id], candidate, written)
            if self.config.control_of:
                count = sum(row["item"] == self.places_of[item] for row in theirs)
                own = [own[at % len(own)] for at in range(count)] if own else []
            rows += [row | {"item": item} for row in own]
        return rows

    @property
    def theirs(self) -> list[dict[str, Any]]:
        """Of a control, the rows of the run that it is held against."""
        return read_rows(Path(self.config.control_of) / self.folder.name / "rows.jsonl") if self.config.control_of else []

    def rows_of_lines(
        self,
        credit: Credit,
        by_id: dict[str, Any],
        written: Lessons,
        chosen: Sequence[tuple[str, int]],
        scored: Sequence[Scored],
        theirs: Sequence[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Of each context: lines of the selected that taught; of a control as many of any, to the other run's prompts."""
        picked: dict[str, list[Candidate]] = defaultdict(list)
        sources = {(one.context, one.candidate) for one in scored if one.usable} if self.config.control_of else set(chosen)
        for one in scored:
            if (one.context, one.candidate) in sources:
                texts = written[one.context]["edits"][one.candidate]["texts"]
                picked[one.context].append(Candidate(one.candidate, texts, one.gains))
        rows: list[dict[str, Any]] = []
        for item, (context_id, candidates) in enumerate(picked.items()):
            context = by_id[context_id]
            if self.config.control_of:
                wanted = [row for row in theirs if row["context"] == context_id]
                own = credit.random_rows(self.known, context, candidates, wanted, self.seed("control", context_id))
            else:
                own = credit.rows(self.known, context, self.exam.task.asked(self.examined[context_id]), candidates)
            rows += [row | {"item": item} for row in own]
        return rows

    def answers(self, context: Any, candidate: int, written: Lessons) -> list[dict[str, Any]]:
        """A self-edit's prompts with what was written to each."""
        return answered(self.task, self.known, context, candidate, written[context.id]["edits"][candidate]["texts"])

    def preferred_rows(
        self, contexts: Sequence[Any], written: Lessons, chosen: Sequence[tuple[str, int, int]]
    ) -> list[dict[str, Any]]:
        """For DPO: the answers of each context's best self-edit over those of its worst, where both answer the same prompt."""
        by_id = {context.id: context for context in contexts}
        rows = []
        for item, (context_id, best, worst) in enumerate(chosen):
            refused = {json.dumps(row["messages"]): row["completion"] for row in self.answers(by_id[context_id], worst, written)}
            for row in self.answers(by_id[context_id], best, written):
                worse = refused.get(json.dumps(row["messages"]))
                if worse is not None and worse != row["completion"]:
                    rows.append(row | {"item": item, "refused": worse, "refused_candidate": worst})
        return rows

    def train_policy(self, job: Callable[..., list[float]], rows: Sequence[dict[str, Any]]) -> tuple[Policy, dict[str, Any]]:
        """The policy after SFT or DPO, and how that went; its folder appears whole or not at all, and isn't made twice."""
        after, scratch = self.folder / "policy", self.folder / ".policy.new"
        if not after.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
            outer = self.config.outer
            steps = outer.epochs * math.ceil(len(rows) / (outer.batch_size * outer.accumulation))
            self.told("reinforcing", {"rows": len(rows), "steps": steps})
            start = time.perf_counter()
            losses = result(self.executor.submit(job, rows, self.config, self.seed("outer"), self.policy.folder, str(scratch)))
            known = {"rows": len(rows), "losses": losses, "base": self.known.fingerprint}
            known["seconds"] = round(time.perf_counter() - start, 2)
            (scratch / "training.json").write_text(json.dumps(known) + "\n")
            scratch.rename(after)
        return policy_at(after), json.loads((after / "training.json").read_text())

    def marks(self, context: Any, sitting: dict[str, Any]) -> Marks:
        """A stored sitting's entries that count, graded."""
        kept, names = self.entries[context.id], ("answers", "log_probabilities")
        values = {name: tuple(sitting[name][at] for at in kept) if sitting[name] else () for name in names}
        return mark_sitting(self.grader, self.exam.task.asked(self.examined[context.id]), Sitting(**values))

    @property
    def student(self) -> str | None:
        """The adapter of whoever is trained on a self-edit; None: the base."""
        return self.policy.folder if self.config.student == "policy" else None

    def compiles(self, context: Any, text: str) -> bool:
        """Whether anything can be trained on."""
        try:
            self.task.compile(self.known, context, text, self.config.settings, 0)
        except InvalidEditError:
            return False
        return True

    def row(self, key: tuple[str, int, int], seed: int, status: str, reason: str) -> dict[str, Any]:
        """A trial's row without what only a trained one has."""
        context, candidate, repeat = key
        return {
            "round": self.number,
            "context": context,
            "candidate": candidate,
            "repeat": repeat,
            "seed": seed,
            "policy": self.policy.digest,
            "status": status,
            "reason": reason,
            "sitting": None,
            "tokens": 0,
            "seconds": 0.0,
        }

    def seed(self, *parts: Any) -> int:
        """A seed of this round."""
        return seeds.derive(self.config.seed, self.number, *parts)

    def check_policy(self, log: Log, rows: Sequence[dict[str, Any]] | None = None) -> None:
        """Raises DataError for rows that another policy wrote."""
        for row in log.rows if rows is None else rows:
            if row["policy"] != self.policy.digest:
                raise DataError(
                    f"{log.file}: has a row of policy {row['policy']}, but round {self.number} begins with {self.policy.digest}; "
                    "its rewards don't hold for this one. Start a new run"
                )


def only(context: Any, kept: Sequence[int]) -> Any:
    """A context with some of its questions."""
    return replace(context, questions=tuple(context.questions[index] for index in kept))
