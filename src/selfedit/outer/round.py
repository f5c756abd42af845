"""One round of the outer loop: write, try, weigh, select, reinforce."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import REWARD_EXAMS, TEXT_REWARDS, OuterConfig, TrainConfig
from selfedit.errors import DataError, DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, result
from selfedit.graders import Grader
from selfedit.inner import Trial
from selfedit.lm.load import Identity
from selfedit.marks import Marks, mark_sitting
from selfedit.outer.draw import taken
from selfedit.outer.jobs import dpo, look_at, prepare_exam, sft, try_group, write_and_sit
from selfedit.outer.rows import Lessons, RowMaker, Trials
from selfedit.rewards import LikelihoodReward, Reward, make_reward, rewards_beside
from selfedit.rewards.exams import Exam, Labelled
from selfedit.rewards.screens import Tried, correlations, scores_of
from selfedit.runs import Log, Policy, Run, keep_rows, policy_at, read_rows, write_json
from selfedit.selection import Scored, finalists, preferences, round_summary, select
from selfedit.stats import mean_and_error
from selfedit.tasks.base import Credit, Sitting, Task

# What hears of a round's events: (event, details).
Told = Callable[[str, dict[str, Any]], None]
# Of a round in two stages: how each self-edit that was tried had looked, and its reward.
WORTH = "worth.jsonl"


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
            rows, job = self.row_maker(contexts, written).of_preferences(preferred), dpo
        else:
            chosen = self.select(scored)
            rows, job = self.rows(self.row_maker(contexts, written), chosen, scored), sft
        keep_rows(self.folder / "rows.jsonl", rows)
        listed = [{"context": context, "candidate": candidate} for context, candidate in chosen]
        write_json(self.folder / "selected.json", listed)
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
            **({"rows_of_the_other": len(self.theirs)} if self.theirs is not None else {}),
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
            return select(self.config.rule, scored, self.config.fraction, seed)
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

        def submit(context: Any) -> Future[Any]:
            return self.executor.submit(prepare_exam, self.exam, context, self.seed("exam"), self.student)

        return self.made("exams.jsonl", contexts, submit, "examined")

    def made(self, file: str, contexts: Sequence[Any], submit: Callable[[Any], Future[Any]], event: str, **known: str) -> Lessons:
        """A row of each context, by a job, in a file of the round; what is there already is not made again."""
        log = Log(self.folder / file)
        log.check_policy(self.policy.digest)
        done = {row["context"] for row in log.rows}
        jobs = {submit(context): context for context in contexts if context.id not in done}
        for job in self.executor.ended(list(jobs)):
            log.append({"context": jobs[job].id, "policy": self.policy.digest, **known} | result(job))
            self.told(event, {"done": len(log.rows), "of": len(contexts)})
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
        config, file = self.config, self.folder / "edits.jsonl"
        exam = "labelled" if isinstance(self.exam, Labelled) else REWARD_EXAMS[config.reward]
        # A control weighs nothing, so it takes any.
        for row in read_rows(file) if config.rule != "random" else ():
            if (theirs := row.get("exam", "labelled")) != exam:
                raise DataError(f"{file}: its baselines are of the exam {theirs}, not of {exam}; start a new run")

        def submit(context: Any) -> Future[Any]:
            return self.executor.submit(
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

        return self.made(file.name, contexts, submit, "wrote", exam=exam)

    def try_all(self, contexts: Sequence[Any], written: Lessons) -> Trials:
        """Every trial of the round, by (context, candidate, repeat).

        The unit of work is a group of ``slots`` trials of one context; of a group that was cut off rows that are there stay. Equal
        self-edits of a context are tried once and counted often.
        """
        rows = {(row["context"], row["candidate"], row["repeat"]): row for row in self.run.rows if row["round"] == self.number}
        self.run.log.check_policy(self.policy.digest, [row for row in self.run.rows if row["round"] == self.number])
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
        config = self.config
        assert isinstance(config, TrainConfig)

        def submit(context: Any) -> Future[Any]:
            texts = [edit["text"] for edit in written[context.id]["edits"]]
            examined, seed = self.examined[context.id], self.seed("look", context.id)
            return self.executor.submit(look_at, self.task, examined, texts, config, seed, self.student)

        nothing = {one.id: {"features": [None] * len(written[one.id]["edits"]), "seconds": 0.0} for one in contexts}
        decided = [context for context in contexts if context.id not in self.undecided]
        return nothing | self.made("looks.jsonl", decided, submit, "looked")

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

    def row_maker(self, contexts: Sequence[Any], written: Lessons) -> RowMaker:
        """What puts together the rows that the policy is trained on."""
        return RowMaker(self.task, self.known, {context.id: context for context in contexts}, written, self.theirs)

    def rows(self, maker: RowMaker, chosen: Sequence[tuple[str, int]], scored: Sequence[Scored]) -> list[dict[str, Any]]:
        """Rows for SFT: of the selected self-edits whole, or of their lines (``credit``)."""
        if self.config.credit == "lines" and self.credit is not None:
            asked = {context: self.exam.task.asked(examined) for context, examined in self.examined.items()}
            seeded = {context: self.seed("control", context) for context in asked}
            return maker.of_lines(chosen, scored, self.credit, asked, seeded)
        return maker.of_edits(chosen, self.places_of)

    @cached_property
    def theirs(self) -> list[dict[str, Any]] | None:
        """Of a control, the rows of the run that it is held against."""
        return read_rows(Path(self.config.control_of) / self.folder.name / "rows.jsonl") if self.config.control_of else None

    def train_policy(self, job: Callable[..., list[float]], rows: Sequence[dict[str, Any]]) -> tuple[Policy, dict[str, Any]]:
        """The policy after SFT or DPO, and how that went; its folder appears whole or not at all, and isn't made twice."""
        after, scratch = self.folder / "policy", self.folder / ".policy.new"
        if not after.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
            outer = self.config.outer
            steps = outer.epochs * math.ceil(len(rows) / (outer.batch_size * outer.accumulation))
            self.told("reinforcing", {"rows": len(rows), "steps": steps})
            start = time.perf_counter()
            try:
                losses = result(self.executor.submit(job, rows, self.config, self.seed("outer"), self.policy.folder, str(scratch)))
            except DivergedError as error:
                raise DivergedError(
                    f"round {self.number}: the policy's training on {len(rows)} rows diverged ({error}); give another --run with "
                    f"--set outer.learning_rate below {outer.learning_rate:g}"
                ) from error
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


def only(context: Any, kept: Sequence[int]) -> Any:
    """A context with some of its questions."""
    return replace(context, questions=tuple(context.questions[index] for index in kept))
