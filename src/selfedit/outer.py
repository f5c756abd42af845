"""The outer loop: ReST-EM (paper section 3.1, algorithm 1). One round, then rounds.

A round writes self-edits with the current policy, tries each (the inner loop), weighs it (the reward), selects, and trains the
policy on what was selected. On-policy by construction: every row carries the digest of the policy that wrote it, and one of another
policy is refused.

Departures from the paper: (1) the default rule takes the best self-edit of a passage only if it beats the baseline, where the
paper's takes it in any case; (2) ties go by the golds' margin, then by lower index, where the reference code takes the first;
(3) the reward's noise is estimated in each round; (4) the control ``random`` trains on self-edits drawn at random;
(5) ``credit="pieces"`` trains only on those answers of a selected self-edit that a question won can be traced to.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import RewardName, Sampling, Settings, TrainConfig
from selfedit.edits import Prompt
from selfedit.errors import DataError, DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, most_workers, result
from selfedit.graders import Grader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import load_adapter, new_adapter, save_adapter, save_merged, standing, summed
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.lm.preferences import train_preferences
from selfedit.lm.stack import slots_that_fit
from selfedit.lm.train_many import Job, train_many
from selfedit.marks import Marks, mark_sitting
from selfedit.rewards import Reward, make_reward
from selfedit.runs import BASE, Log, Policy, Run, keep_rows, policy_at, read_rows
from selfedit.samplers.local import write_edits
from selfedit.selection import Scored, preferences, round_summary, select
from selfedit.tasks.base import Sitting, Task

Told = Callable[[str, dict[str, Any]], None]
# From (context, answers of a self-edit, exam entries won) to the indices of the answers that won them.
Credit = Callable[[Any, Sequence[str], Sequence[int]], list[int]]
# A round's rows: what was written, by context; what was tried, by (context, candidate, repeat).
Lessons = dict[str, dict[str, Any]]
Trials = dict[tuple[str, int, int], dict[str, Any]]


def train(
    config: TrainConfig,
    task: Task,
    contexts: Sequence[Any],
    grader: Grader,
    run: Run,
    executor: LocalExecutor,
    told: Told,
    credit: Credit | None = None,
) -> dict[str, Any]:
    """All rounds; what is there already is not done again.

    Args:
        config: numbers, rule, reward, settings.
        task: the domain.
        contexts: what may be drawn; each has an ``id``.
        grader: marks in this process.
        run: the run's folder.
        executor: where the jobs run; its model is the base.
        told: called with (event, details): ``round, wrote, tried, reinforcing, reinforced``.
        credit: for ``credit="pieces"``: from a context, the answers of a self-edit and the exam's entries that it won to those
            answers that they can be traced to.

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
        folder.mkdir(exist_ok=True)
        told("round", {"number": number, "contexts": len(chosen), "policy": policy.digest})
        one = Round(config, task, known, executor, grader, run, folder, number, policy, slots, told, credit)
        policy, row = one.play(chosen)
        metrics.append(row)
    merged = run.folder / "merged"
    if config.merge and policy.folder and not merged.is_dir():
        scratch = run.folder / ".merged.new"
        shutil.rmtree(scratch, ignore_errors=True)
        save_merged(known, [load_adapter(Path(policy.folder))], scratch)
        scratch.rename(merged)
    return {"rounds": metrics.rows, "policy": policy.folder}


def draw(config: TrainConfig, contexts: Sequence[Any]) -> list[list[Any]]:
    """The contexts of each round, all different; of a control, those that the other run took rows of."""
    if config.control_of:
        by_id = {context.id: context for context in contexts}
        rounds = taken(Path(config.control_of), config.rounds)
        return [[by_id[context] for context in dict.fromkeys(row["context"] for row in rows)] for rows in rounds]
    needed = config.rounds * config.passages
    if len(contexts) < needed:
        raise DataError(
            f"{config.rounds} rounds of {config.passages} need {needed} passages and {', '.join(config.data)} has {len(contexts)}; "
            "give fewer rounds or passages, or more data"
        )
    order = sorted(contexts, key=lambda context: seeds.derive(config.seed, "draw", context.id))
    return [order[at : at + config.passages] for at in range(0, needed, config.passages)]


def taken(run: Path, rounds: int) -> list[list[dict[str, Any]]]:
    """What a finished run selected in each of its first rounds, one row a self-edit."""
    found = []
    for number in range(1, rounds + 1):
        file = run / f"round-{number:02d}" / "selected.json"
        if not file.is_file():
            raise DataError(f"{run}: has no finished round {number}; let that run end first, or give fewer rounds")
        found.append(json.loads(file.read_text()))
    return found


@dataclass
class Round:
    """One round: write, try, weigh, select, reinforce."""

    config: TrainConfig
    task: Task
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

    def play(self, contexts: Sequence[Any]) -> tuple[Policy, dict[str, Any]]:
        """The policy after the round, and the round's metrics."""
        start = time.perf_counter()
        written = self.write(contexts)
        tried = {} if self.config.rule == "random" else self.try_all(contexts, written)
        scored = self.weigh(contexts, written, tried)
        chosen = self.select(scored)
        preferred = preferences(scored) if self.config.algorithm == "dpo" else []
        if preferred:
            chosen = [(context, best) for context, best, _ in preferred]
        keep_rows(self.folder / "scored.jsonl", [asdict(one) for one in scored])
        pairs = self.pairs(contexts, written, chosen, scored)
        after, losses = self.prefer(contexts, written, preferred) if self.config.algorithm == "dpo" else self.reinforce(pairs)
        row = {
            "round": self.number,
            "policy_before": self.policy.digest,
            "policy_after": after.digest,
            **round_summary(scored, chosen, self.config.reward),
            "rows": len(pairs),
            "outer_losses": losses,
            "tokens": sum(row["tokens"] for row in tried.values()),
            "seconds": round(time.perf_counter() - start, 1),
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
            found += select("random", by_context[row["context"]], self.config.fraction, seeds.derive(seed, index))
        return found

    def write(self, contexts: Sequence[Any]) -> Lessons:
        """Each context's self-edits and baseline exam; what is there already is not written again."""
        log = Log(self.folder / "edits.jsonl")
        self.check_policy(log)
        done = {row["context"] for row in log.rows}
        config = self.config
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
            )
            for context in contexts
            if context.id not in done
        ]
        for job in self.executor.ended(jobs):
            log.append(result(job) | {"policy": self.policy.digest})
            self.told("wrote", {"done": len(log.rows), "of": len(contexts)})
        return {row["context"]: row for row in log.rows}

    def try_all(self, contexts: Sequence[Any], written: Lessons) -> Trials:
        """Every trial of the round, by (context, candidate, repeat).

        The unit of work is a group of ``slots`` trials of one context; of a group that was cut off rows that are there stay.
        """
        rows = {(row["context"], row["candidate"], row["repeat"]): row for row in self.run.rows if row["round"] == self.number}
        self.check_policy(self.run.log, [row for row in self.run.rows if row["round"] == self.number])
        for stage in [[repeat] for repeat in range(self.repeats(0))] if self.config.halving else [list(range(self.repeats(0)))]:
            self.try_stage(contexts, written, rows, stage)
        return rows

    def repeats(self, at: int) -> int:
        """Runs of each self-edit of the context at that place of the round: the first few have two at least, to show the noise."""
        return max(self.config.repeats, 2) if at < self.config.noise_passages else self.config.repeats

    def survivors(
        self,
        at: int,
        context: Any,
        written: Lessons,
        rows: Trials,
        repeat: int,
    ) -> list[int]:
        """The candidates that get a further run: all, or by successive halving the better half of those of the run before."""
        everyone = list(range(len(written[context.id]["edits"])))
        if repeat >= self.repeats(at):
            return []
        if not repeat or not self.config.halving or at < self.config.noise_passages:
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
        for at, context in enumerate(contexts):
            trials = []
            chosen = {repeat: self.survivors(at, context, written, rows, repeat) for repeat in stage}
            for candidate, edit in enumerate(written[context.id]["edits"]):
                for repeat in (repeat for repeat in stage if candidate in chosen[repeat]):
                    key = (context.id, candidate, repeat)
                    seed = self.seed("train", context.id, candidate, repeat)
                    try:
                        plan = self.task.compile(self.known, context, edit["text"], self.config.settings, seed)
                    except InvalidEditError as error:
                        if key not in rows:
                            rows[key] = self.row(key, seed, "invalid", str(error))
                            self.run.append(rows[key])
                        continue
                    trials.append((key, Trial(context, plan)))
            groups += [trials[at : at + self.slots] for at in range(0, len(trials), self.slots)]
        waiting = [group for group in groups if any(key not in rows for key, _ in group)]
        folder = self.policy.folder if self.config.student == "policy" else None
        jobs = {self.executor.submit(try_group, self.task, [t for _, t in group], self.slots, folder): group for group in waiting}
        total = sum(len(group) for group in groups)
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
            self.told("tried", {"done": len(rows), "of": total + sum(row["status"] == "invalid" for row in rows.values())})

    def weigh(self, contexts: Sequence[Any], written: Lessons, tried: Trials) -> list[Scored]:
        """Each self-edit's reward, with every kind of reward beside it on the same trials."""
        names: tuple[RewardName, ...] = ("accuracy", "likelihood", "mixed")
        kinds: dict[str, Reward] = {name: make_reward(name, self.config.reward_weight) for name in names}
        scored: list[Scored] = []
        by_edit: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for (context_id, candidate, _), row in sorted(tried.items()):
            by_edit[context_id, candidate].append(row)
        for context in contexts:
            baseline = self.marks(context, written[context.id]["baseline"])
            for candidate, edit in enumerate(written[context.id]["edits"]):
                if self.config.rule == "random":
                    scored.append(Scored(context.id, candidate, 0.0, 0.0, 0.0, self.compiles(context, edit["text"])))
                    continue
                rows = by_edit[context.id, candidate]
                marks = [self.marks(context, row["sitting"]) for row in rows if row["sitting"] is not None]
                runs = tuple({name: kind.score(one, baseline) for name, kind in kinds.items()} for one in marks)
                if not marks or len(marks) < len(rows):
                    scored.append(Scored(context.id, candidate, 0.0, 0.0, 0.0, usable=False))
                    continue
                reward = fmean(run[self.config.reward] for run in runs)
                scored.append(
                    Scored(
                        context.id,
                        candidate,
                        reward=reward,
                        value=reward,
                        tie=fmean(one.margin - baseline.margin for one in marks),
                        usable=True,
                        accuracy=fmean(one.accuracy for one in marks),
                        baseline=baseline.accuracy,
                        runs=runs,
                        verdicts=tuple(tuple(v.correct for v in one.verdicts) for one in marks),
                        baseline_verdicts=tuple(v.correct for v in baseline.verdicts),
                    )
                )
        return scored

    def pairs(
        self, contexts: Sequence[Any], written: Lessons, chosen: Sequence[tuple[str, int]], scored: Sequence[Scored]
    ) -> list[tuple[Prompt, str]]:
        """What the policy is trained on: each selected self-edit's prompts and what was written to them; kept as rows.jsonl."""
        by_id = {context.id: context for context in contexts}
        by_edit = {(one.context, one.candidate): one for one in scored}
        if self.config.control_of and self.config.credit == "pieces":
            wanted = self.random_pieces(scored, written)
        else:
            wanted = [(key, piece) for key in chosen for piece in self.pieces(by_id[key[0]], by_edit[key], written)]
        pairs: list[tuple[Prompt, str]] = []
        rows = []
        for (context_id, candidate), piece in wanted:
            prompt = self.task.requests(self.known, by_id[context_id], candidate)[piece].prompt
            text = written[context_id]["edits"][candidate]["texts"][piece]
            if text and (self.config.control_of or (prompt, text) not in pairs):
                pairs.append((prompt, text))
                turns = [message._asdict() for message in prompt]
                rows.append({"context": context_id, "candidate": candidate, "piece": piece, "messages": turns, "completion": text})
        if self.config.control_of:
            # As many rows, so as many steps, as the run that this one is held against.
            count = len(read_rows(Path(self.config.control_of) / self.folder.name / "rows.jsonl"))
            at = [index % len(rows) for index in range(count)] if rows else []
            pairs, rows = [pairs[index] for index in at], [rows[index] for index in at]
        keep_rows(self.folder / "rows.jsonl", rows)
        listed = [{"context": context_id, "candidate": candidate} for context_id, candidate in chosen]
        (self.folder / "selected.json").write_text(json.dumps(listed, indent=1) + "\n")
        return pairs

    def pieces(self, context: Any, one: Scored, written: Lessons) -> list[int]:
        """Which answers of a selected self-edit the policy is trained on: all, or those that a question won can be traced to.

        A question is won that was wrong before and right in most of the self-edit's runs.
        """
        texts = written[one.context]["edits"][one.candidate]["texts"]
        if self.config.credit == "edit" or self.credit is None:
            return list(range(len(texts)))
        won = [
            index
            for index, before in enumerate(one.baseline_verdicts)
            if not before and 2 * sum(run[index] for run in one.verdicts) > len(one.verdicts)
        ]
        return self.credit(context, texts, won)

    def random_pieces(self, scored: Sequence[Scored], written: Lessons) -> list[tuple[tuple[str, int], int]]:
        """The control of pieces: the prompts of the other run, each with what a self-edit wrote to it that was drawn at random."""
        found = []
        for index, row in enumerate(read_rows(Path(self.config.control_of) / self.folder.name / "rows.jsonl")):
            context_id, piece = row["context"], row["piece"]
            usable = [
                one.candidate
                for one in scored
                if one.context == context_id and one.usable and written[context_id]["edits"][one.candidate]["texts"][piece]
            ]
            if usable:
                drawn = random.Random(self.seed("control", index)).choice(usable)
                found.append(((context_id, drawn), piece))
        return found

    def reinforce(self, pairs: Sequence[tuple[Prompt, str]]) -> tuple[Policy, list[float]]:
        """SFT on the pairs, loss on what was written; the policy's folder appears whole or not at all."""
        return self.train_policy(sft, list(pairs), len(pairs))

    def prefer(
        self, contexts: Sequence[Any], written: Lessons, chosen: Sequence[tuple[str, int, int]]
    ) -> tuple[Policy, list[float]]:
        """DPO on the answers of each context's best self-edit over those of its worst, where both answer the same prompt."""
        by_id = {context.id: context for context in contexts}
        triples = []
        for context_id, best, worst in chosen:
            asked = [[r.prompt for r in self.task.requests(self.known, by_id[context_id], one)] for one in (best, worst)]
            texts = [written[context_id]["edits"][one]["texts"] for one in (best, worst)]
            for prompt, better in zip(asked[0], texts[0], strict=True):
                worse = texts[1][asked[1].index(prompt)] if prompt in asked[1] else ""
                if better and worse and better != worse:
                    triples.append((prompt, better, worse))
        return self.train_policy(dpo, triples, len(triples), self.config.dpo_beta)

    def train_policy(self, job: Callable[..., list[float]], rows: list[Any], count: int, *more: Any) -> tuple[Policy, list[float]]:
        """The policy after a training job, and its losses; a policy that is there already is not trained again."""
        after, scratch = self.folder / "policy", self.folder / ".policy.new"
        if not after.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
            self.told("reinforcing", {"rows": count})
            seed = self.seed("outer")
            losses = result(self.executor.submit(job, rows, self.config.outer, seed, self.policy.folder, str(scratch), *more))
            (scratch / "training.json").write_text(json.dumps({"rows": count, "losses": losses}) + "\n")
            scratch.rename(after)
        return policy_at(after), json.loads((after / "training.json").read_text())["losses"]

    def marks(self, context: Any, sitting: dict[str, Any]) -> Marks:
        """A stored sitting, graded."""
        values = {name: tuple(sitting[name]) for name in ("answers", "log_probabilities", "margins")}
        return mark_sitting(self.grader, self.task.asked(context), Sitting(**values))

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
                    "its rewards don't hold for this one. Take the file away, or start a new run"
                )


def write_and_sit(
    lm: LanguageModel, task: Task, context: Any, count: int, sampling: Sampling, seed: int, policy: str | None, student: str
) -> dict[str, Any]:
    """A job: a context's self-edits by the policy, and the student's exam before any of them."""
    start = time.perf_counter()
    adapters = [load_adapter(Path(policy))] if policy else []
    with standing(lm, adapters):
        written = write_edits(lm, task, context, count, sampling, seed)
        baseline = sit(lm, [(task, context)])[0] if student == "policy" else None
    baseline = baseline or sit(lm, [(task, context)])[0]
    return {
        "context": context.id,
        "edits": [{"text": one.edit.text, "style": one.edit.style, "texts": list(one.texts)} for one in written],
        "baseline": asdict(baseline),
        "seconds": round(time.perf_counter() - start, 2),
    }


def try_group(lm: LanguageModel, task: Task, trials: Sequence[Trial], slots: int, policy: str | None) -> list[Any]:
    """A job: trials side by side, on the policy or (None) on the base."""
    with standing(lm, [load_adapter(Path(policy))] if policy else []):
        return run_trials(lm, [task], trials, slots)


def sft(
    lm: LanguageModel, pairs: Sequence[tuple[Prompt, str]], settings: Settings, seed: int, policy: str | None, folder: str
) -> list[float]:
    """A job: one adapter trained on top of the policy, saved together with it as one adapter on the base; the losses."""
    before = [load_adapter(Path(policy))] if policy else []
    rows = tuple(encode_answer(lm, prompt, text) for prompt, text in pairs)
    if not rows:
        save_adapter(before[0] if before else new_adapter(lm, settings, seed), Path(folder), lm.name)
        return []
    with standing(lm, before):
        (trained,) = train_many(lm, [Job(rows, settings, seed)], 1)
    if isinstance(trained, DivergedError):
        raise trained
    save_adapter(summed([*before, trained.adapter]), Path(folder), lm.name)
    return trained.losses


def dpo(
    lm: LanguageModel,
    triples: Sequence[tuple[Prompt, str, str]],
    settings: Settings,
    seed: int,
    policy: str | None,
    folder: str,
    beta: float,
) -> list[float]:
    """A job: as ``sft``, but direct preference optimisation over (prompt, preferred, refused); the reference is the policy."""
    before = [load_adapter(Path(policy))] if policy else []
    pairs = [(encode_answer(lm, prompt, better), encode_answer(lm, prompt, worse)) for prompt, better, worse in triples]
    if not pairs:
        save_adapter(before[0] if before else new_adapter(lm, settings, seed), Path(folder), lm.name)
        return []
    with standing(lm, before):
        trained = train_preferences(lm, pairs, settings, beta, seed)
    save_adapter(summed([*before, trained.adapter]), Path(folder), lm.name)
    return trained.losses
