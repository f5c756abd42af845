"""The outer loop: ReST-EM (paper section 3.1, algorithm 1). One round, then rounds.

A round writes self-edits with the current policy, tries each (the inner loop), weighs it (the reward), selects, and trains the
policy on what was selected. On-policy by construction: every row carries the digest of the policy that wrote it, and one of another
policy is refused.

Departures from the paper: (1) the default rule takes the best self-edit of a passage only if it beats the baseline, where the
paper's takes it in any case; (2) ties go by the golds' margin, then by lower index, where the reference code takes the first;
(3) the reward's noise is estimated in each round; (4) the control ``random`` trains on self-edits drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import Sampling, SelectionRule, Settings, TrainConfig
from selfedit.edits import Prompt
from selfedit.errors import DataError, DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers, result
from selfedit.graders import Grader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import load_adapter, new_adapter, save_adapter, standing, summed
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.lm.train_many import Job, train_many
from selfedit.marks import Marks, mark_sitting
from selfedit.rewards import make_reward
from selfedit.runs import Log, Run
from selfedit.samplers.local import write_edits
from selfedit.stats import best_of_retested, mean_and_error, reliability
from selfedit.tasks.base import Sitting, Task

Told = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """The weights that write: a PEFT adapter on the base, or (None) the base itself."""

    folder: str | None
    digest: str


BASE = Policy(None, "base")


@dataclass(frozen=True, slots=True)
class Scored:
    """One self-edit with its reward: the mean over its runs, 0 if it could not be tried."""

    context: str
    candidate: int
    reward: float
    tie: float
    usable: bool


def train(
    config: TrainConfig, task: Task, contexts: Sequence[Any], grader: Grader, run: Run, workers: int | None, told: Told
) -> dict[str, Any]:
    """All rounds; what is there already is not done again.

    Args:
        config: numbers, rule, reward, settings.
        task: the domain.
        contexts: what may be drawn; each has an ``id``.
        grader: marks in this process.
        run: the run's folder.
        workers: processes; default by a short timing.
        told: called with (event, details): ``round, wrote, tried, reinforcing, steps, reinforced``.

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
    choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
    with LocalExecutor(choice, workers, lambda steps: told("steps", {"done": steps})) as executor:
        for number, chosen in enumerate(drawn, start=1):
            folder = run.folder / f"round-{number:02d}"
            after = folder / "policy"
            if after.is_dir():
                policy = Policy(str(after), digest_of(after))
                continue
            folder.mkdir(exist_ok=True)
            told("round", {"number": number, "contexts": len(chosen), "policy": policy.digest})
            one = Round(config, task, known, executor, grader, run, folder, number, policy, slots, told)
            policy, row = one.play(chosen)
            metrics.append(row)
    return {"rounds": metrics.rows, "policy": policy.folder}


def draw(config: TrainConfig, contexts: Sequence[Any]) -> list[list[Any]]:
    """The contexts of each round, all different; of a control, those that the other run took rows of."""
    if config.control_of:
        by_id = {context.id: context for context in contexts}
        return [[by_id[row["context"]] for row in rows] for rows in taken(Path(config.control_of), config.rounds)]
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

    def play(self, contexts: Sequence[Any]) -> tuple[Policy, dict[str, Any]]:
        """The policy after the round, and the round's metrics."""
        start = time.perf_counter()
        written = self.write(contexts)
        tried = {} if self.config.rule == "random" else self.try_all(contexts, written)
        scored, by_run = self.weigh(contexts, written, tried)
        chosen = select(self.config.rule, scored, self.config.fraction, seeds.derive(self.config.seed, "select", self.number))
        pairs = self.pairs(contexts, written, chosen)
        after, losses = self.reinforce(pairs)
        noise = reliability(by_run)
        of_selected = [one.reward for one in scored if (one.context, one.candidate) in set(chosen)]
        row = {
            "round": self.number,
            "policy_before": self.policy.digest,
            "policy_after": after.digest,
            "contexts": len(contexts),
            "edits": len(scored),
            "usable": sum(one.usable for one in scored),
            "selected": len(chosen),
            "rows": len(pairs),
            "reward": asdict(mean_and_error(means_by_context(scored))),
            "reward_selected": asdict(mean_and_error(of_selected)),
            "reliability": asdict(noise) if noise else None,
            "best_retested": {name: asdict(mean) for name, mean in best_of_retested(by_run).items()},
            "outer_losses": losses,
            "tokens": sum(row["tokens"] for row in tried.values()),
            "seconds": round(time.perf_counter() - start, 1),
        }
        self.told("reinforced", row)
        return after, row

    def write(self, contexts: Sequence[Any]) -> dict[str, dict[str, Any]]:
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
        for job in as_completed(jobs):
            log.append(result(job) | {"policy": self.policy.digest})
            self.told("wrote", {"done": len(log.rows), "of": len(contexts)})
        return {row["context"]: row for row in log.rows}

    def try_all(self, contexts: Sequence[Any], written: dict[str, dict[str, Any]]) -> dict[tuple[str, int, int], dict[str, Any]]:
        """Every trial of the round, by (context, candidate, repeat).

        The unit of work is a group of ``slots`` trials of one context; of a group that was cut off rows that are there stay.
        """
        rows = {(row["context"], row["candidate"], row["repeat"]): row for row in self.run.rows if row["round"] == self.number}
        self.check_policy(self.run.log, [row for row in self.run.rows if row["round"] == self.number])
        groups: list[list[tuple[tuple[str, int, int], Trial]]] = []
        for at, context in enumerate(contexts):
            repeats = max(self.config.repeats, 2) if at < self.config.noise_passages else self.config.repeats
            trials = []
            for candidate, edit in enumerate(written[context.id]["edits"]):
                for repeat in range(repeats):
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
        for job in as_completed(jobs):
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
        return rows

    def weigh(
        self, contexts: Sequence[Any], written: dict[str, dict[str, Any]], tried: dict[tuple[str, int, int], dict[str, Any]]
    ) -> tuple[list[Scored], list[list[list[float]]]]:
        """Each self-edit's reward, and the rewards by context, edit and run."""
        reward = make_reward(self.config.reward, self.config.reward_weight)
        scored, by_run = [], []
        for context in contexts:
            baseline = self.marks(context, written[context.id]["baseline"])
            of_context = []
            for candidate, edit in enumerate(written[context.id]["edits"]):
                runs = [row for (c, k, _), row in sorted(tried.items()) if c == context.id and k == candidate]
                marks = [self.marks(context, row["sitting"]) for row in runs if row["sitting"] is not None]
                rewards = [reward.score(one, baseline) for one in marks]
                usable = bool(rewards) and len(rewards) == len(runs)
                if self.config.rule == "random":
                    usable = self.compiles(context, edit["text"])
                tie = fmean(one.margin - baseline.margin for one in marks) if usable and marks else 0.0
                scored.append(Scored(context.id, candidate, fmean(rewards) if usable and rewards else 0.0, tie, usable))
                of_context.append(rewards)
            by_run.append(of_context)
        return scored, by_run

    def pairs(
        self, contexts: Sequence[Any], written: dict[str, dict[str, Any]], chosen: Sequence[tuple[str, int]]
    ) -> list[tuple[Prompt, str]]:
        """What the policy is trained on: each selected self-edit's prompts and what was written to them; kept as rows.jsonl."""
        by_id = {context.id: context for context in contexts}
        pairs, rows = [], []
        for context_id, candidate in chosen:
            prompts = [request.prompt for request in self.task.requests(self.known, by_id[context_id], candidate)]
            for prompt, text in zip(prompts, written[context_id]["edits"][candidate]["texts"], strict=True):
                if text:
                    pairs.append((prompt, text))
                    rows.append(
                        {
                            "context": context_id,
                            "candidate": candidate,
                            "messages": [m._asdict() for m in prompt],
                            "completion": text,
                        }
                    )
        scratch = self.folder / ".rows.jsonl.new"
        scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        scratch.replace(self.folder / "rows.jsonl")
        listed = [{"context": context_id, "candidate": candidate} for context_id, candidate in chosen]
        (self.folder / "selected.json").write_text(json.dumps(listed, indent=1) + "\n")
        return pairs

    def reinforce(self, pairs: Sequence[tuple[Prompt, str]]) -> tuple[Policy, list[float]]:
        """SFT on the pairs, loss on what was written; the policy's folder appears whole or not at all."""
        after, scratch = self.folder / "policy", self.folder / ".policy.new"
        shutil.rmtree(scratch, ignore_errors=True)
        self.told("reinforcing", {"rows": len(pairs)})
        job = self.executor.submit(sft, list(pairs), self.config.outer, self.seed("outer"), self.policy.folder, str(scratch))
        losses: list[float] = result(job)
        scratch.rename(after)
        return Policy(str(after), digest_of(after)), losses

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


def select(rule: SelectionRule, scored: Sequence[Scored], fraction: float, seed: int) -> list[tuple[str, int]]:
    """(context, candidate) of the self-edits that the policy is trained on, in the order of contexts.

    ``best``: of each context the one with the highest reward (the paper's); ``positive``: all above the baseline (its equation 2);
    ``best-positive``: the best, if it is above the baseline; ``top-fraction``: so large a share of all, over contexts;
    ``random``: of each context one, uniformly. Only self-edits that could be tried; ties by margin, then by lower index.
    """
    by_context: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_context[one.context] += [one] if one.usable else []

    def rank(one: Scored) -> tuple[float, float, int]:
        return one.reward, one.tie, -one.candidate

    if rule == "positive":
        return [(one.context, one.candidate) for one in scored if one.usable and one.reward > 0]
    if rule == "top-fraction":
        ranked = sorted((one for one in scored if one.usable), key=rank, reverse=True)
        top = {(one.context, one.candidate) for one in ranked[: max(1, round(fraction * len(scored)))]}
        return [(one.context, one.candidate) for one in scored if (one.context, one.candidate) in top]
    chosen = []
    for context, ones in by_context.items():
        if not ones:
            continue
        best = random.Random(seeds.derive(seed, context)).choice(ones) if rule == "random" else max(ones, key=rank)
        if rule != "best-positive" or best.reward > 0:
            chosen.append((context, best.candidate))
    return chosen


def means_by_context(scored: Sequence[Scored]) -> list[float]:
    """Each context's mean reward over its self-edits."""
    by_context: dict[str, list[float]] = defaultdict(list)
    for one in scored:
        by_context[one.context].append(one.reward)
    return [fmean(values) for values in by_context.values()]


def digest_of(folder: Path) -> str:
    """16 hex digits of a policy's weights."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


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
