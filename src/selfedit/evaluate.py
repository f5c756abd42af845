"""``selfedit eval knowledge``: methods side by side on the same passages, with standard errors and paired differences.

What each method trains, and who writes it (paper table 2): ``self`` the base writes and learns; ``seal`` the policy does both;
``seal-writer`` the policy writes and the base learns; ``external`` another model wrote; ``policy-none`` and ``policy-passage`` show
what the outer loop's training alone did to the policy. Nothing is selected anywhere: a method is the mean of its self-edits.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import EvalConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import Document, SelfEdit, TrainingPlan, in_view
from selfedit.errors import DataError, InvalidEditError, ModelError
from selfedit.executors.local import LocalExecutor, ModelChoice, most_workers
from selfedit.graders import Grader
from selfedit.graders.text import ExactMatchGrader
from selfedit.inner import Trial, run_trials, sit
from selfedit.lm.adapter import policy_standing
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.lm.stack import slots_that_fit
from selfedit.marks import Marks, mark_sitting
from selfedit.runs import Log, Policy, Run, policy_of
from selfedit.samplers.base import write_with
from selfedit.samplers.local import write_all_edits
from selfedit.samplers.remote import RemoteSampler
from selfedit.stats import known_figures, mean_and_error, mean_of_known, paired_difference
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.knowledge.compile import passage_matched, passage_only, split_passage
from selfedit.tasks.knowledge.data import load_edits
from selfedit.tasks.knowledge.exam import ExamForm, Paper, asked_about, asked_in, exam_questions
from selfedit.tasks.knowledge.task import KnowledgeTask, Together

FORMS: tuple[ExamForm, ...] = ("titled", "bare")
# What a passage's row holds for each method; every entry is the mean over the method's trials on that passage.
MEASURES = (
    "accuracy",
    "paraphrased",
    "question_alone",
    "f1",
    "exact",
    "logprob",
    "locality",
    "locality_logprob",
    "failed",
    "tokens",
    "steps",
    "seconds",
)
TESTED = ("accuracy", "f1", "paraphrased", "question_alone", "exact", "logprob", "locality", "locality_logprob")
# What each method is held against, where both are there; a method's style is looked for in the control first.
CONTROLS: dict[str, tuple[str, ...]] = {
    "none": (),
    "passage": ("none",),
    "passage-matched": ("none", "passage"),
    "self": ("none", "passage", "passage-matched"),
    "external": ("none", "passage", "passage-matched", "self"),
    "seal-writer": ("none", "passage", "passage-matched", "self", "external"),
    "policy-none": ("none",),
    "policy-passage": ("policy-none", "passage"),
    "seal": ("passage-matched", "self", "external", "seal-writer", "policy-none", "policy-passage"),
    "context": ("none", "self"),
}
ON_POLICY = ("policy-none", "policy-passage", "seal")
# Nothing is trained.
UNTRAINED = ("none", "policy-none", "context")
WRITERS = {"self": "base", "external": "external", "seal-writer": "policy", "seal": "policy"}


# Passages of a lease, written about and examined in one batch: a step of decoding costs next to the same for few rows as for many.
PASSAGES_TOGETHER = 4


@dataclass(frozen=True)
class Lease:
    """A few passages and what a worker needs for them.

    Attributes:
        slots: adapters trained side by side.
        policy: folder of the policy's adapter; None where no method needs one.
        external: passage id -> style -> self-edits that another model wrote; "" for the style that a file has.
        elsewhere: passage id -> exams about others, for locality.
    """

    config: EvalConfig
    passages: tuple[Passage, ...]
    slots: int
    policy: str | None
    external: dict[str, dict[str, tuple[str, ...]]]
    elsewhere: dict[str, tuple[Paper, ...]]

    @property
    def exam(self) -> Together:
        """The exams of every trial: with title, the question alone, and about other passages."""
        return Together(self.config.edit, forms=FORMS, elsewhere=self.elsewhere)


@dataclass(frozen=True)
class Planned:
    """A method's self-edit, or what stands for one, compiled."""

    method: str
    plan: TrainingPlan
    edit: str | None = None


def evaluate(
    config: EvalConfig, passages: Sequence[Passage], grader: Grader, run: Run, workers: int | None, told: Callable[[int], None]
) -> dict[str, Any]:
    """Runs what is missing of a run and returns its table; each passage has an adapter of its own (the single-passage setting).

    Args:
        config: methods and settings.
        passages: with their questions.
        grader: marks in this process.
        run: the run's folder; finished passages are not done again.
        workers: processes, by default as many as a short timing says.
        told: called with the number of passages done.

    Raises:
        DataError: a passage without questions; no policy; no external self-edits for a passage; rows of another policy.
        SamplerError: an external writer failed.
    """
    policy = policy_of(config.writer, identify(config.model).fingerprint)
    run.log.check_policy(policy.digest)
    done = {row["passage"] for row in run.rows}
    waiting = [passage for passage in passages if passage.id not in done]
    told(len(passages) - len(waiting))
    if waiting:
        choice = ModelChoice(config.model, config.device, config.dtype, compiled=config.compiled)
        with LocalExecutor(choice, workers) as executor:
            for rows in executor.map(
                evaluate_together, [(lease,) for lease in leases(config, passages, waiting, run, policy, passages)]
            ):
                run.append(*(row | {"policy": policy.digest} for row in rows if row["passage"] not in done))
                told(len(run.rows))
    made = {row["passage"]: row for row in run.rows}
    papers = [elsewhere(config, passage, passages) for passage in passages]
    cost = cost_of([trial for row in made.values() for trial in row["trials"]], [row["seconds"] for row in made.values()])
    found = table(config, passages, [made[one.id] for one in passages], config.methods, grader, papers)
    return found | {"policy": policy.digest, "cost": cost}


def cost_of(trials: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, float]:
    """What a run has cost: trainings, their labelled tokens, and seconds of all workers with writing and exams."""
    tokens = [trial["tokens"] for trial in trials if trial.get("tokens")]
    return {"trainings": len(tokens), "tokens": sum(tokens), "seconds": round(sum(seconds), 1)}


def check_writers(config: EvalConfig) -> None:
    """Raises DataError for a method whose writer isn't named."""
    names = {method_name(method) for method in config.methods}
    if {"seal-writer", *ON_POLICY} & names and not config.writer:
        raise DataError("seal, seal-writer, policy-none and policy-passage need a trained policy: give --writer RUN")
    if "external" in names and not config.external:
        raise DataError("the method external needs --external FILE, or the URL of a server")


def leases(
    config: EvalConfig,
    passages: Sequence[Passage],
    waiting: Sequence[Passage],
    run: Run,
    policy: Policy,
    others: Sequence[Passage],
) -> list[Lease]:
    """Leases for the waiting passages: the same few together however often a run goes on, though some of them are done.

    What an external model has yet to write is written here.
    """
    for passage in passages:
        if not passage.questions:
            raise DataError(f"{config.data}: the passage {passage.title!r} has no questions, so nothing can be tested")
    known = identify(config.model)
    slots = config.slots or slots_that_fit(known, config.settings, config.device, most_workers(config.device))
    external = external_edits(config, passages, known, run)
    missing = {passage.id for passage in waiting}
    together = max(1, min(PASSAGES_TOGETHER, math.ceil(len(passages) / most_workers(config.device))))
    found = []
    for at in range(0, len(passages), together):
        own = tuple(passages[at : at + together])
        if any(passage.id in missing for passage in own):
            papers = {passage.id: elsewhere(config, passage, others) for passage in own}
            written = {passage.id: external[passage.id] for passage in own if passage.id in external}
            found.append(Lease(config, own, slots, policy.folder, written, papers))
    return found


def elsewhere(config: EvalConfig, passage: Passage, passages: Sequence[Passage]) -> tuple[Paper, ...]:
    """Exams of one question each about others of these passages, the same for all methods of a passage."""
    others = [(other, question) for other in passages if other.id != passage.id for question in other.questions]
    others.sort(key=lambda pair: seeds.derive(config.seed, passage.id, "elsewhere", pair[0].id, pair[1].question))
    return tuple(Paper(other, (Asked(question, 0, paraphrase=False),), "titled") for other, question in others[: config.locality])


def external_edits(
    config: EvalConfig, passages: Sequence[Passage], known: Identity, run: Run
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Passage id -> style -> self-edits that another model wrote: from a file, or by a server, kept in ``external.jsonl``.

    Raises:
        DataError: the file lacks a passage, or isn't what it was when the run began.
    """
    styles = [method.partition(":")[2] for method in config.methods if method.partition(":")[0] == "external"]
    if not styles:
        return {}
    log = Log(run.folder / "external.jsonl")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in log.rows:
        found.setdefault(row["passage"], {})[row["style"]] = tuple(row["edits"])
    if not config.external.startswith(("http://", "https://")):
        if styles != [""]:
            raise DataError(f"{config.external}: a file's self-edits have no style; give the method external without one")
        listed = {_named(passage): tuple(texts) for passage, texts in load_edits(Path(config.external))[0]}
        for passage in passages:
            if not listed.get(_named(passage)):
                raise DataError(f"{config.external}: has no self-edit for {passage.title!r}; its title and context must be equal")
        given = {passage.id: {"": listed[_named(passage)][: config.edits]} for passage in passages}
        if other := [passage for passage in passages if found.get(passage.id, given[passage.id]) != given[passage.id]]:
            raise DataError(
                f"{config.external}: its self-edits about {other[0].title!r} aren't what they were when the run began; bring the "
                "file back, or give another --run"
            )
        log.append(*({"passage": key, "style": "", "edits": list(of[""])} for key, of in given.items() if key not in found))
        return given
    sampler = RemoteSampler(config.external, config.external_model, known)
    for passage in passages:
        for style in styles:
            if style not in found.setdefault(passage.id, {}):
                task = KnowledgeTask(_in_style(config, style).edit)
                written = write_with(sampler, task, passage, config.edits, config.edit.sampling, config.seed)
                found[passage.id][style] = tuple(one.edit.text for one in written)
                log.append({"passage": passage.id, "style": style, "edits": list(found[passage.id][style])})
    return found


def _named(passage: Passage) -> tuple[str, str]:
    """A passage's title and text, as data sets are read: SQuAD's titles have underscores for spaces."""
    return passage.title.replace("_", " ").strip(), passage.text.strip()


def evaluate_together(lm: LanguageModel, lease: Lease) -> list[dict[str, Any]]:
    """A lease: every method on a few passages, their trials side by side; a row a passage, answers only, grading comes later.

    The passages share their seconds alike.
    """
    start = time.perf_counter()
    exam = lease.exam
    found = untrained(lm, lease)
    planned = plans_of(lm, lease)
    for passage_id, (_, failed) in planned.items():
        found[passage_id] += failed
    for on_policy in (False, True):
        chosen = [
            (passage, one)
            for passage in lease.passages
            for one in planned[passage.id][0]
            if (method_name(one.method) in ON_POLICY) == on_policy
        ]
        if not chosen:
            continue
        with policy_standing(lm, lease.policy if on_policy else None):
            outcomes = run_trials(lm, [exam], [Trial(passage, one.plan) for passage, one in chosen], lease.slots)
        for (passage, one), outcome in zip(chosen, outcomes, strict=True):
            found[passage.id].append(
                row_of(
                    one.method,
                    exam.apart(passage, outcome.sittings[0]) if outcome.sittings else (),
                    status=outcome.status,
                    reason=outcome.reason,
                    tokens=outcome.tokens,
                    steps=len(outcome.losses),
                    last_loss=outcome.losses[-1] if outcome.losses else None,
                    seconds=outcome.seconds,
                    documents=len(one.plan.documents),
                    edit=one.edit,
                )
            )
    seconds = round((time.perf_counter() - start) / len(lease.passages), 2)
    return [
        {"passage": passage.id, "title": passage.title, "trials": found[passage.id], "seconds": seconds}
        for passage in lease.passages
    ]


def untrained(lm: LanguageModel, lease: Lease) -> dict[str, list[dict[str, Any]]]:
    """Passage id -> rows of the methods that train nothing."""
    methods, exam = lease.config.methods, lease.exam
    found: dict[str, list[dict[str, Any]]] = {passage.id: [] for passage in lease.passages}
    for method, folder in (("none", None), ("policy-none", lease.policy)):
        if method in methods:
            with policy_standing(lm, folder):
                sat = exam.examine(lm, [(0, passage) for passage in lease.passages], 0)
            for passage, sitting in zip(lease.passages, sat, strict=True):
                found[passage.id].append(row_of(method, exam.apart(passage, sitting)))
    for passage in lease.passages if "context" in methods else ():
        try:
            row = row_of("context", sit(lm, [(KnowledgeTask(lease.config.edit, form="context"), passage)]))
        except ModelError as error:
            row = row_of("context", (), status="too long", reason=str(error))
        found[passage.id].append(row)
    return found


def written_by(lm: LanguageModel, lease: Lease, writer: str, style: str) -> dict[str, list[SelfEdit]]:
    """Passage id -> self-edits in a style ("" for the config's own), by ``base``, ``policy`` or ``external``."""
    config = lease.config
    if writer == "external":
        return {
            passage.id: [SelfEdit(passage.id, style or "external", text) for text in lease.external[passage.id][style]]
            for passage in lease.passages
        }
    task = KnowledgeTask(_in_style(config, style).edit)
    with policy_standing(lm, lease.policy if writer == "policy" else None):
        found = write_all_edits(lm, task, lease.passages, config.edits, config.edit.sampling, config.seed)
    return {passage.id: [one.edit for one in own] for passage, own in zip(lease.passages, found, strict=True)}


def plans_of(lm: LanguageModel, lease: Lease) -> dict[str, tuple[list[Planned], list[dict[str, Any]]]]:
    """Passage id -> what every method trains on, and rows of the self-edits that can't be compiled."""
    written: dict[tuple[str, str], dict[str, list[SelfEdit]]] = {}

    def edits_by(writer: str, style: str, passage: Passage) -> list[SelfEdit]:
        if (writer, style) not in written:
            written[writer, style] = written_by(lm, lease, writer, style)
        return written[writer, style][passage.id]

    return {passage.id: _plans_of(lm, lease.config, passage, edits_by) for passage in lease.passages}


def _plans_of(
    lm: LanguageModel, config: EvalConfig, passage: Passage, edits_by: Callable[[str, str, Passage], list[SelfEdit]]
) -> tuple[list[Planned], list[dict[str, Any]]]:
    plans: list[Planned] = []
    failed: list[dict[str, Any]] = []
    for method in config.methods:
        name, _, style = method.partition(":")
        own = _in_style(config, style)
        if name in ("passage", "policy-passage"):
            plans.append(Planned(method, passage_plan(lm, config, passage, method)))
        elif name == "passage-matched":
            # One for each way to train that the self-edits name; by default there is one. A corpus trains on all of them together.
            compiled: dict[Settings, list[tuple[Document, ...]]] = {}
            for index, edit in enumerate(edits_by("base", "", passage)):
                try:
                    plan = KnowledgeTask(config.edit).compile(lm, passage, edit.text, config.settings, index)
                    compiled.setdefault(plan.settings, []).append(plan.documents)
                except InvalidEditError:
                    continue
            if config.setting == "corpus":
                together = [document for documents_of in compiled.values() for own in documents_of for document in own]
                compiled = {config.settings: [tuple(dict.fromkeys(together))]}
            for index, (settings, documents_of) in enumerate((compiled or {config.settings: []}).items()):
                matched = in_view(passage_matched(lm, passage, config.edit, documents_of), passage.view)
                plans.append(Planned(method, TrainingPlan(matched, settings, _seed(config, passage, method, index))))
        elif name in WRITERS:
            how = own.edit if name != "external" else own.edit.model_copy(update={"grounding": 0.0})
            for index, edit in enumerate(edits_by(WRITERS[name], style, passage)):
                if name == "external" and not edit.text.strip():
                    # In the reference code's forms that means: the passage only.
                    alone = passage_plan(lm, config, passage, method)
                    plans.append(Planned(method, replace(alone, seed=_seed(config, passage, method, index)), edit.text))
                    continue
                try:
                    plan = KnowledgeTask(how).compile(
                        lm, passage, edit.text, config.settings, _seed(config, passage, method, index)
                    )
                    plans.append(Planned(method, plan, edit.text))
                except InvalidEditError as error:
                    failed.append(row_of(method, (), status="invalid", reason=str(error), edit=edit.text))
    return plans, failed


def passage_plan(lm: LanguageModel, config: EvalConfig, passage: Passage, method: str) -> TrainingPlan:
    """The passage alone."""
    documents = tuple(d for part in split_passage(lm, passage) for d in passage_only(part, config.edit, lm.chat))
    return TrainingPlan(in_view(documents, passage.view), config.settings, _seed(config, passage, method, 0))


def _seed(config: EvalConfig, passage: Passage, method: str, index: int) -> int:
    return seeds.derive(config.seed, passage.id, "train", method, index)


def _in_style(config: EvalConfig, style: str) -> EvalConfig:
    """The config with one style instead of its own; no style: as it is."""
    return config.model_copy(update={"edit": config.edit.model_copy(update={"styles": (style,)})}) if style else config


def method_name(method: str) -> str:
    """A method without its style and its settings: self of self:rewrite and of self learning_rate=0.001."""
    return re.split("[: ]", method)[0]


def table(
    config: EvalConfig,
    passages: Sequence[Passage],
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    grader: Grader,
    papers: Sequence[tuple[Paper, ...]],
) -> dict[str, Any]:
    """Means over passages with standard errors, and each method's paired differences to its controls."""
    graded = [_graded(passage, row, paper, grader) for passage, row, paper in zip(passages, rows, papers, strict=True)]
    means = {}
    for method in methods:
        values = {m: [row[method][m] for row in graded] for m in MEASURES}
        kept = {m: [x for x in v if not math.isnan(x)] for m, v in values.items()}
        means[method] = {m: asdict(mean_and_error(v)) for m, v in kept.items() if v}
    differences = []
    for method in methods:
        for control in _controls(method, methods):
            for measure in TESTED:
                pairs = [(row[method][measure], row[control][measure]) for row in graded]
                pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
                if pairs:
                    found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
                    differences.append({"method": method, "control": control, "measure": measure, **asdict(found)})
    return {
        "config": config.model_dump(mode="json"),
        "n": len(passages),
        "questions": sum(len(passage.questions) for passage in passages),
        "methods": means,
        "differences": differences,
        "passages": [
            {"id": passage.id, "title": passage.title, "methods": {m: known_figures(row[m]) for m in methods}}
            for passage, row in zip(passages, graded, strict=True)
        ],
    }


def _controls(method: str, methods: Sequence[str]) -> list[str]:
    """What a method is held against: of each control the one of its own style and settings, else the plain one.

    Of several rows of one method, styles or settings, the first one listed is a control of the others; where the model chooses how
    it trains, so are settings that are fixed, and settings drawn at random.
    """
    name = method_name(method)
    label = method[len(name) :]
    found = []
    for control in CONTROLS[name]:
        own = next((one for one in (f"{control}{label}", control) if one in methods and one != method), None)
        found += [own] if own else []
    alike = [one for one in methods if method_name(one) == name]
    if ":notes+settings" in method:
        found += [own for of in ("fixed", "random") if (own := method.replace("+settings", f"+{of}-settings")) in alike]
    return list(dict.fromkeys([*found, *(one for one in alike[:1] if one != method)]))


def row_of(method: str, sittings: Sequence[Sitting], **more: Any) -> dict[str, Any]:
    """A trial as the run keeps it."""
    return {"method": method, "status": "ok", "sittings": [asdict(sitting) for sitting in sittings], **more}


def _graded(passage: Passage, row: dict[str, Any], elsewhere: Sequence[Paper], grader: Grader) -> dict[str, dict[str, float]]:
    """Method -> measure -> mean over the method's trials; one that failed counts 0 right and has no log-probability."""
    asked = exam_questions(passage.questions)
    alone = asked_in("bare", asked)
    others = asked_about(elsewhere)
    first = [index for index, one in enumerate(asked) if not one.paraphrase]
    found: dict[str, list[dict[str, float]]] = {}
    for trial in row["trials"]:
        sittings = [Sitting(tuple(s["answers"]), tuple(s["log_probabilities"])) for s in trial["sittings"]]
        nowhere = dict.fromkeys(("logprob", "locality", "locality_logprob"), math.nan)
        measures = dict.fromkeys(MEASURES, 0.0) | nowhere | {"failed": trial.get("failed", float(trial["status"] != "ok"))}
        if len(first) == len(asked):
            measures["paraphrased"] = math.nan
        if trial["method"] == "context":
            measures["question_alone"] = math.nan
        if sittings:
            titled = mark_sitting(grader, asked, sittings[0])
            bare = mark_sitting(grader, alone, sittings[1]) if len(sittings) > 1 else None
            far = mark_sitting(grader, others, sittings[2]) if len(sittings) > 2 else None
            measures |= {
                "accuracy": _share(asked, titled, paraphrase=False),
                "paraphrased": _share(asked, titled, paraphrase=True),
                "question_alone": bare.accuracy if bare else math.nan,
                "f1": fmean(titled.f1s[i] for i in first),
                "exact": _share(asked, mark_sitting(ExactMatchGrader(), asked, sittings[0]), paraphrase=False),
                "logprob": fmean(sittings[0].log_probabilities[i] for i in first),
                "locality": far.accuracy if far else math.nan,
                "locality_logprob": far.log_probability if far else math.nan,
            }
        measures |= {name: float(trial.get(name) or 0) for name in ("tokens", "steps", "seconds")}
        found.setdefault(trial["method"], []).append(measures)
    return {method: {m: mean_of_known([trial[m] for trial in trials]) for m in MEASURES} for method, trials in found.items()}


def _share(asked: Sequence[Asked], marks: Marks, paraphrase: bool) -> float:
    hits = [float(v.correct) for one, v in zip(asked, marks.verdicts, strict=True) if one.paraphrase == paraphrase]
    return fmean(hits) if hits else math.nan
