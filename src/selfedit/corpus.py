"""Many passages at once: one adapter, or all weights, trained on all their self-edits together, then every passage's exam.

``selfedit eval knowledge --setting corpus``; paper section 4.1, continued pre-training.

Departure from the reference code: the adapter is trained with the same engine as a single passage's, by each document, not by
2048 padded tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfedit import progress, seeds
from selfedit.config import EvalConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import Document, TrainingPlan
from selfedit.errors import DivergedError
from selfedit.evaluate import (
    FORMS,
    ON_POLICY,
    UNTRAINED,
    Lease,
    Planned,
    cost_of,
    elsewhere,
    leases,
    method_name,
    passage_plan,
    plans_of,
    row_of,
    table,
    untrained,
)
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders import Grader
from selfedit.lm.adapter import install, policy_standing
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.train import fully_trained
from selfedit.lm.train_many import train_many
from selfedit.runs import Run, policy_of
from selfedit.tasks.base import Sitting
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.knowledge.exam import Paper
from selfedit.tasks.knowledge.task import Together

# Exams that are sat in one batch.
PASSAGES_AT_ONCE = 8


def evaluate_corpus(
    config: EvalConfig,
    passages: Sequence[Passage],
    grader: Grader,
    run: Run,
    workers: int | None,
    told: Callable[[int], None],
    others: Sequence[Passage] = (),
) -> dict[str, Any]:
    """Runs what is missing and returns the table, a row for each method and variant of the settings.

    Two stages: what is written about each passage (a lease each), then one training for each method and variant.

    Args:
        others: passages that are not trained on; questions about them show what was disturbed (locality).
        told: called with the number of passages written about and trainings done.
    """
    policy = policy_of(config.writer, identify(config.model).fingerprint)
    run.log.check_policy(policy.digest)
    papers = {passage.id: elsewhere(config, passage, others) for passage in passages}
    choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
    with LocalExecutor(choice, workers) as executor:
        done = {row["passage"] for row in run.rows if row["kind"] == "passage"}
        waiting = [passage for passage in passages if passage.id not in done]
        told(len(run.rows))
        for rows in executor.map(write_about, [(lease,) for lease in leases(config, passages, waiting, run, policy, others)]):
            run.append(*(row | {"policy": policy.digest} for row in rows if row["passage"] not in done))
            told(len(run.rows))
        written = {row["passage"]: row for row in run.rows if row["kind"] == "passage"}
        trained = {row["method"]: row for row in run.rows if row["kind"] == "corpus"}
        jobs = []
        for method in dict.fromkeys(plan["method"] for row in written.values() for plan in row["plans"]):
            documents = _documents(method, passages, written)
            for variant in config.corpus.variants or ({},):
                label = label_of(method, variant)
                if label not in trained:
                    folder = policy.folder if method_name(method) in ON_POLICY else None
                    settings = config.settings.model_copy(update=variant)
                    jobs.append((label, config, documents, settings, tuple(passages), folder, papers))
        for row in executor.map(train_on_all, jobs):
            run.append(row | {"policy": policy.digest})
            told(len(run.rows))
    done_rows = {row["method"]: row for row in run.rows if row["kind"] == "corpus"}
    order = [label for method in config.methods for label in done_rows if label.split(" ")[0] == method]
    trained = {label: done_rows[label] for label in sorted(order, key=labels_of(config).index)}
    table_rows = []
    for passage in passages:
        own = written[passage.id]
        rows = [row | {"sittings": row["sittings"].get(passage.id, []), "failed": _failed(row, own)} for row in trained.values()]
        table_rows.append({"trials": [trial for trial in own["trials"] if trial["status"] != "invalid"] + rows})
    labels = [method for method in config.methods if method in UNTRAINED]
    listed = [*trained.values(), *(trial for row in written.values() for trial in row["trials"])]
    cost = cost_of(listed, [row["seconds"] for row in (*trained.values(), *written.values())])
    found = table(config, passages, table_rows, [*labels, *trained], grader, [papers[one.id] for one in passages])
    return found | {"policy": policy.digest, "cost": cost}


def _failed(trained: dict[str, Any], written: dict[str, Any]) -> float:
    """The share of a passage's self-edits that a training had to do without; all where it diverged."""
    method = trained["method"].split(" ")[0]
    lost = sum(trial["status"] == "invalid" and trial["method"] == method for trial in written["trials"])
    kept = sum(plan["method"] == method and plan["edit"] is not None for plan in written["plans"])
    return 1.0 if trained["status"] != "ok" else lost / max(1, lost + kept)


def labels_of(config: EvalConfig) -> list[str]:
    """Every method with every variant, in the order of the settings."""
    variants = config.corpus.variants or ({},)
    return [label_of(method, variant) for method in config.methods for variant in variants]


def label_of(method: str, variant: Mapping[str, float | int | str]) -> str:
    """A table's row: the method, and the settings that differ."""
    return " ".join([method, *(f"{key}={value}" for key, value in variant.items())])


def trainings(config: EvalConfig) -> int:
    """How many trainings a run makes."""
    return len([method for method in config.methods if method not in UNTRAINED]) * max(1, len(config.corpus.variants))


def write_about(lm: LanguageModel, lease: Lease) -> list[dict[str, Any]]:
    """A lease: a row for each passage with its exams without training and the documents of each method's self-edits."""
    start = time.perf_counter()
    trials = untrained(lm, lease)
    planned = plans_of(lm, lease)
    seconds = round((time.perf_counter() - start) / len(lease.passages), 2)
    found = []
    for passage in lease.passages:
        plans, failed = planned[passage.id]
        # What no self-edit is left of is still there as a passage.
        bare = [method for method in dict.fromkeys(row["method"] for row in failed) if all(one.method != method for one in plans)]
        plans += [Planned(method, passage_plan(lm, lease.config, passage, method)) for method in bare]
        listed = [
            {"method": one.method, "edit": one.edit, "documents": [document.stored() for document in one.plan.documents]}
            for one in plans
        ]
        own = trials[passage.id] + failed
        found.append({"kind": "passage", "passage": passage.id, "trials": own, "plans": listed, "seconds": seconds})
    return found


def train_on_all(
    lm: LanguageModel,
    label: str,
    config: EvalConfig,
    documents: tuple[Document, ...],
    settings: Settings,
    passages: tuple[Passage, ...],
    policy: str | None,
    papers: Mapping[str, tuple[Paper, ...]],
) -> dict[str, Any]:
    """A job: one training on all documents, and every passage's exam after it, with questions about passages left out."""
    start = time.perf_counter()
    seed = seeds.derive(config.seed, "corpus", label)
    more: dict[str, Any] = {"kind": "corpus", "documents": len(documents)}
    try:
        with policy_standing(lm, policy):
            jobs = jobs_of(lm, [TrainingPlan(documents, settings, seed)])
            if config.corpus.full:
                with fully_trained(lm, jobs[0].rows, settings, seed) as (losses, tokens):
                    sittings = _sit_all(lm, config, passages, papers)
            else:
                (trained,) = train_many(lm, jobs, 1, progress.report)
                if isinstance(trained, DivergedError):
                    raise trained
                losses, tokens = trained.losses, trained.tokens
                install(lm, trained.adapter)
                try:
                    sittings = _sit_all(lm, config, passages, papers)
                finally:
                    install(lm, None)
    except DivergedError as error:
        more |= {"sittings": {}, "seconds": round(time.perf_counter() - start, 2)}
        return row_of(label, (), status="diverged", reason=str(error)) | more
    more |= {"steps": len(losses), "losses": losses, "tokens": tokens, "seconds": round(time.perf_counter() - start, 2)}
    return row_of(label, ()) | more | {"sittings": sittings}


def _sit_all(
    lm: LanguageModel, config: EvalConfig, passages: Sequence[Passage], papers: Mapping[str, tuple[Paper, ...]]
) -> dict[str, list[dict[str, Any]]]:
    """Passage id -> its sittings, with title, without, and elsewhere, under whatever is installed."""
    exam = Together(config.edit, forms=FORMS, elsewhere=papers)
    found: dict[str, list[Sitting]] = {}
    for at in range(0, len(passages), PASSAGES_AT_ONCE):
        part = passages[at : at + PASSAGES_AT_ONCE]
        sat = exam.examine(lm, [(0, passage) for passage in part], 0)
        found |= {passage.id: exam.apart(passage, sitting) for passage, sitting in zip(part, sat, strict=True)}
    return {
        key: [{"answers": sitting.answers, "log_probabilities": sitting.log_probabilities} for sitting in sat]
        for key, sat in found.items()
    }


def _documents(method: str, passages: Sequence[Passage], written: Mapping[str, dict[str, Any]]) -> tuple[Document, ...]:
    """What a method trains on, equal documents once, each with the (first) passage in view that it is about."""
    found: dict[Document, str] = {}
    for passage in passages:
        for plan in (plan for plan in written[passage.id]["plans"] if plan["method"] == method):
            for row in plan["documents"]:
                found.setdefault(Document.restored(row), passage.view)
    return tuple(replace(document, view=view) for document, view in found.items())
