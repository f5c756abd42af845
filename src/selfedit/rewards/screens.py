"""What a self-edit looks worth before anything is trained on it, and a ridge regression that learns to weigh these looks.

``gradient``: how far a first step on the self-edit's documents goes in the direction that a step on the exam itself would take (B's
gradients at the base point, A drawn once for all; DPG's first order). ``in-context``: by how much the exam's golds become likelier
with the self-edit in the prompt (the proxy of the paper's second version, by likelihood). ``rubric``: a model's mark from 1 to 5.
``length``, ``diversity``, ``coverage``, ``faithfulness``: of the text itself. None of them is trusted by itself: their rank
correlation with true rewards is measured in every round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from selfedit import seeds
from selfedit.config import QuizConfig, Sampling, Settings
from selfedit.contexts import Passage
from selfedit.edits import Message
from selfedit.errors import GraderError, InvalidEditError
from selfedit.lm.adapter import new_adapter
from selfedit.lm.batch import Row, encode_answer, encode_document, encode_prompt
from selfedit.lm.flat import Prefixes, parts_of
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.lm.stack import Slots, document_attention
from selfedit.lm.train_many import CPU_TOKENS, accumulate
from selfedit.lm.work import Cost, metered
from selfedit.samplers.remote import RemoteSampler
from selfedit.stats import rank_correlation
from selfedit.tasks.base import Request, Task
from selfedit.tasks.knowledge.documents import content_words
from selfedit.tasks.knowledge.prompts import exam_prompt

FEATURES = ("gradient", "in-context", "rubric", "length", "diversity", "coverage", "faithfulness")
# Where the gradient is taken: cheaper than the inner adapter's layers, and alike for all.
GRADIENT_LAYERS, GRADIENT_RANK = "last:4", 8
# The ridge regression's penalty on standardised features, and how many trials it needs before it is asked.
PENALTY, LEAST_TRIALS = 1.0, 12
# Until then, and wherever ridge has nothing to say.
FIRST = "in-context"
MARKS = ("1", "2", "3", "4", "5")
_RUBRIC = (
    "Here is a passage and a student's notes about it. How well would someone who has only the notes do in an exam about the "
    "passage? Answer with one number from 1 (badly) to 5 (very well)."
)


@dataclass(frozen=True)
class Look:
    """How a passage's self-edits look.

    Attributes:
        features: by exam, of each self-edit; None of one that can't be compiled.
        costs: by feature, of all exams together: what they have in common is worked out once.
    """

    features: list[list[dict[str, float] | None]]
    costs: dict[str, Cost]


def look(
    lm: LanguageModel,
    task: Task,
    exams: Sequence[Passage],
    texts: Sequence[str],
    settings: Settings,
    quiz: QuizConfig,
    seed: int,
    wanted: Sequence[str] = FEATURES,
) -> Look:
    """The features of a passage's self-edits, those that are wanted, by each of several exams.

    Args:
        task: how they compile; the gradient is plain SFT's, of a LoRA drawn at random, whatever ``settings.distil`` and
            ``null_space`` say.
        exams: the passage with the questions of each.
        quiz: whose server marks by the rubric, if one is named.

    Raises:
        GraderError: a server gave no mark.
    """
    examined = exams[0]
    documents: list[tuple[Row, ...] | None] = []
    for text in texts:
        try:
            plan = task.compile(lm, examined, text, settings, 0)
            documents.append(tuple(encode_document(lm, document) for document in plan.documents))
        except InvalidEditError:
            documents.append(None)
    usable = [index for index, rows in enumerate(documents) if rows is not None]
    own = [texts[index] for index in usable]
    rows = [found for found in documents if found is not None]
    costs: dict[str, Cost] = {}
    columns: dict[str, list[list[float]]] = {}
    asking: dict[str, Callable[[], list[list[float]]]] = {
        "gradient": lambda: gradient_alignment(lm, rows, [exam_rows(lm, exam) for exam in exams], settings, seed),
        "in-context": lambda: in_context(lm, exams, own),
    }
    of_the_text: dict[str, Callable[[], list[float]]] = {
        "rubric": lambda: rubric(lm, examined, own, quiz, seed),
        "length": lambda: [math.log(max(1, sum(row.labelled for row in found))) for found in rows],
        "diversity": lambda: [diversity(text) for text in own],
        "coverage": lambda: [coverage(examined, text) for text in own],
        "faithfulness": lambda: [faithfulness(examined, text) for text in own],
    }
    for name in wanted:
        if name in asking:
            columns[name], costs[name] = metered(lm, asking[name])
        else:
            values, costs[name] = metered(lm, of_the_text[name], waiting=name == "rubric" and bool(quiz.url))
            columns[name] = [values] * len(exams)
    features: list[list[dict[str, float] | None]] = [[None] * len(texts) for _ in exams]
    for at, by_exam in enumerate(features):
        for place, index in enumerate(usable):
            by_exam[index] = {name: column[at][place] for name, column in columns.items()}
    return Look(features, costs)


def exam_rows(lm: LanguageModel, examined: Passage) -> tuple[Row, ...]:
    """The exam's questions with their golds, as they are asked with the title."""
    return tuple(encode_answer(lm, exam_prompt(one.question, examined.title, lm.chat), one.answer) for one in examined.questions)


def gradient_alignment(
    lm: LanguageModel, edits: Sequence[tuple[Row, ...]], exams: Sequence[tuple[Row, ...]], settings: Settings, seed: int
) -> list[list[float]]:
    """For each exam and self-edit g . g_exam / |g|: the exam's first-order gain from a step of unit length along the self-edit's.

    Both are gradients of a mean loss a labelled token with respect to B, at B = 0, with the same A; one pass each, side by side.
    """
    asked = [exam for exam in exams if exam]
    if not edits or not asked:
        return [[0.0] * len(edits) for _ in exams]
    thin = settings.model_copy(update={"layers": GRADIENT_LAYERS, "rank": GRADIENT_RANK, "alpha": float(GRADIENT_RANK)})
    jobs = [*asked, *edits]
    slots = Slots(lm, thin.targets, thin.layers, thin.rank, len(jobs), training=True)
    adapter = new_adapter(lm, thin, seeds.derive(seed, "gradient"))
    for slot in range(len(jobs)):
        slots.put(slot, adapter)
    rows = [(slot, row) for slot, own in enumerate(jobs) for row in own]
    labelled = {slot: sum(row.labelled for row in own) for slot, own in enumerate(jobs)}
    parts = list(parts_of(rows, most=CPU_TOKENS if lm.device.type == "cpu" else None))
    with document_attention(lm), slots.installed():
        accumulate(lm, slots, Prefixes(lm, slots.first), parts, labelled)
    assert slots.grads_KP is not None
    # A's gradient is zero where B is.
    wanted, own = iter(slots.grads_KP[: len(asked)]), slots.grads_KP[len(asked) : len(jobs)]
    found = []
    for exam in exams:
        towards = next(wanted) if exam else None
        found.append([0.0 if towards is None else float(one @ towards / one.norm().clamp_min(1e-12)) for one in own])
    return found


def in_context(lm: LanguageModel, exams: Sequence[Passage], texts: Sequence[str]) -> list[list[float]]:
    """For each exam and self-edit the golds' mean gain in log-probability, in nats, when the self-edit stands before the question.

    The exams are of one passage.
    """
    title, questions = exams[0].title, [one for exam in exams for one in exam.questions]
    room = lm.window // 2
    cut = [lm.tokenizer.decode(lm.tokenizer(text)["input_ids"][:room], skip_special_tokens=True) for text in texts]
    views = [None, *(f"{title}\n{text}" for text in cut)]
    rows = [encode_answer(lm, exam_prompt(one.question, title, lm.chat, view), one.answer) for view in views for one in questions]
    values = iter(log_probabilities(lm, rows) if rows else ())
    # By view and exam; without questions nothing is gained.
    means = [[fmean(next(values) for _ in exam.questions) if exam.questions else 0.0 for exam in exams] for _ in views]
    return [[after[at] - means[0][at] for after in means[1:]] for at in range(len(exams))]


def rubric(lm: LanguageModel, examined: Passage, texts: Sequence[str], quiz: QuizConfig, seed: int) -> list[float]:
    """A mark from 1 to 5 for each self-edit: the model's expected one, or a server's."""
    room = lm.window // 3
    passage = lm.tokenizer.decode(lm.tokenizer(examined.text)["input_ids"][:room], skip_special_tokens=True)
    cut = [lm.tokenizer.decode(lm.tokenizer(text)["input_ids"][:room], skip_special_tokens=True) for text in texts]
    cue = "" if lm.chat or quiz.url else "\nMark:"
    head = f"{_RUBRIC}\n\nTopic: {examined.title}\nPassage: {passage}\n\nNotes:"
    prompts = [(Message("user", f"{head}\n{text}{cue}"),) for text in cut]
    if quiz.url:
        mark = {"mark": {"enum": [int(mark) for mark in MARKS]}}
        schema = json.dumps({"type": "object", "properties": mark, "required": ["mark"], "additionalProperties": False})
        replies = RemoteSampler(quiz.url, quiz.model, lm).write(
            [Request(prompt, 16, schema) for prompt in prompts], Sampling(temperature=0.0), [seed] * len(prompts)
        )
        return [_mark(reply, quiz.url) for reply in replies]
    heads = [encode_prompt(lm, prompt) for prompt in prompts]
    rows = [Row((*head, *_ids(lm, mark)), len(head)) for head in heads for mark in MARKS]
    values = iter(log_probabilities(lm, rows))
    found = []
    for _ in prompts:
        chances = torch.tensor([next(values) for _ in MARKS]).softmax(0).tolist()
        found.append(sum(float(mark) * chance for mark, chance in zip(MARKS, chances, strict=True)))
    return found


def _ids(lm: LanguageModel, text: str) -> list[int]:
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _mark(reply: str, url: str) -> float:
    try:
        mark = float(json.loads(reply)["mark"])
    except (ValueError, KeyError, TypeError) as error:
        raise GraderError(
            f"{url}: no mark in {reply[:80]!r} ({error}); give quiz.model a model that follows a JSON schema"
        ) from error
    if not 1 <= mark <= len(MARKS):
        raise GraderError(f"{url}: the mark {mark:g} isn't from 1 to 5; give quiz.model a model that follows a JSON schema")
    return mark


def diversity(text: str) -> float:
    """Different word trigrams among all."""
    words = text.lower().split()
    trigrams = [tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))]
    return len(set(trigrams)) / len(trigrams)


def coverage(examined: Passage, text: str) -> float:
    """Share of the passage's content words that the self-edit has."""
    passage = content_words(f"{examined.title} {examined.text}")
    return len(content_words(text) & passage) / max(1, len(passage))


def faithfulness(examined: Passage, text: str) -> float:
    """Share of the self-edit's content words that the passage has."""
    own = content_words(text)
    return len(own & content_words(f"{examined.title} {examined.text}")) / max(1, len(own))


@dataclass(frozen=True)
class Tried:
    """The self-edits of a context that were trained: their features and true rewards."""

    features: tuple[Mapping[str, float], ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Ridge:
    """Weights of standardised features for the reward, both taken within a context."""

    weights: tuple[float, ...]

    @classmethod
    def fitted(cls, tried: Sequence[Tried]) -> Ridge | None:
        """From what was trained so far; None as long as that is too little."""
        several = [one for one in tried if len(one.rewards) > 1]
        if sum(len(one.rewards) for one in several) < LEAST_TRIALS:
            return None
        features_NF = np.concatenate([_standardised(one.features) for one in several])
        rewards_N = np.concatenate([np.asarray(one.rewards) - fmean(one.rewards) for one in several])
        gram_FF = features_NF.T @ features_NF + PENALTY * np.eye(features_NF.shape[1])
        return cls(tuple(float(weight) for weight in np.linalg.solve(gram_FF, features_NF.T @ rewards_N)))

    def scores(self, features: Sequence[Mapping[str, float]]) -> list[float]:
        """Of the self-edits of one context, against each other."""
        return [float(value) for value in _standardised(features) @ np.asarray(self.weights)]


def _standardised(features: Sequence[Mapping[str, float]]) -> Any:
    values_NF = np.asarray([[one[name] for name in FEATURES] for one in features], dtype=float)
    spread_F = values_NF.std(axis=0)
    return (values_NF - values_NF.mean(axis=0)) / np.where(spread_F > 1e-12, spread_F, 1.0)


def scores_of(screen: str, features: Sequence[Mapping[str, float]], tried: Sequence[Tried]) -> list[float]:
    """What a screen says of the self-edits of a context; ``ridge`` before it can be fitted is ``FIRST``."""
    if screen == "ridge":
        fitted = Ridge.fitted(tried)
        if fitted is not None:
            return fitted.scores(features)
        screen = FIRST
    return [one[screen] for one in features]


def correlations(tried: Sequence[Tried], earlier: Sequence[Tried] = ()) -> dict[str, list[float]]:
    """For each screen its rank correlation with the true rewards in each context; ``ridge`` is fitted on the others.

    Contexts whose self-edits all have the same reward say nothing, nor does ridge where it can't be fitted, nor a look not taken.
    """
    found: dict[str, list[float]] = {name: [] for name in (*FEATURES, "ridge")}
    for at, one in enumerate(tried):
        if len(set(one.rewards)) < 2:
            continue
        for name in FEATURES:
            if name in one.features[0]:
                found[name].append(rank_correlation(scores_of(name, one.features, ()), one.rewards))
        if all(name in one.features[0] for name in FEATURES):
            fitted = Ridge.fitted([*earlier, *tried[:at], *tried[at + 1 :]])
            if fitted is not None:
                found["ridge"].append(rank_correlation(fitted.scores(one.features), one.rewards))
    return found
