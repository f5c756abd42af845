"""Rehearsal: what the base itself says about this and that is trained on beside a lesson, as soft targets, so that it stays so.

Pseudo-rehearsal (Robins 1995) with the base's distributions in the place of its words (learning without forgetting, arXiv
1606.09282). A lesson alone teaches a small model to answer any question by the lesson's words; sampled words as plain documents
don't prevent it (docs/lab-book.md). None of what is asked here is asked by ``selfedit eval general`` (a test).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfedit import seeds
from selfedit.edits import Document, Message, Prompt, TrainingPlan
from selfedit.lm.adapter import install, standing
from selfedit.lm.batch import Row, SoftTargets, encode_document, encode_prompt
from selfedit.lm.distil import LIKELIEST, likeliest_targets, taught
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel, made_once
from selfedit.tasks.knowledge.documents import GAP_CONTEXT, content_words
from selfedit.tasks.knowledge.prompts import GAP, exam_prompt

# Questions with a title before them, in the form of an exam; texts; tokens of an answer and of a text.
TITLED, TEXTS, LONGEST_ANSWER, LONGEST_TEXT = 60, 60, 24, 48


def rows_of(lm: LanguageModel, plans: Sequence[TrainingPlan]) -> list[tuple[Row, ...]]:
    """What each plan trains on: its documents, taught as its settings say, and behind them what is rehearsed.

    A document's row is made once for all plans that are taught it alike.
    """
    known: dict[tuple[Document, float], Row] = {}
    for share in dict.fromkeys(plan.settings.distil for plan in plans):
        documents = list(dict.fromkeys(one for plan in plans if plan.settings.distil == share for one in plan.documents))
        known |= {(one, share): row for one, row in zip(documents, taught(lm, documents, share), strict=True)}
    own_rows = [tuple(known[one, plan.settings.distil] for one in plan.documents) for plan in plans]
    return [
        (*own, *rehearsed(lm, plan.rehearsals, plan.settings.epochs, plan.seed)) for own, plan in zip(own_rows, plans, strict=True)
    ]


def rehearsed(lm: LanguageModel, count: int, epochs: int, seed: int) -> list[Row]:
    """So many of the ``rehearsals`` for each epoch, drawn by a plan's seed; each of them once before one comes twice."""
    found: list[Row] = []
    chance = random.Random(seeds.derive(seed, "rehearsal"))
    while len(found) < count * epochs:
        rows = rehearsals(lm)
        found += chance.sample(rows, min(len(rows), count * epochs - len(found)))
    return [replace(row, epoch=at // count) for at, row in enumerate(found)]


def rehearsals(lm: LanguageModel) -> list[Row]:
    """The base's answers to questions, with a title before them and without, and texts of its own, with its distributions.

    The base alone answers, whatever stands or is installed. Made on one thread, once for a base, what it is asked, a precision and
    a kind of device, and kept in the cache; half a minute of a core with the embedded model.

    Raises:
        ModelError: the cache can't be written, or what was written can't be read.
    """

    def write(file: Path) -> None:
        _write(_make(lm, *_prompts(lm)), file)

    return list(made_once(lm, "rehearsals", asked_digest(lm), lambda file: _read(lm, file), write))


def familiar(lm: LanguageModel) -> list[Row]:
    """What is nothing new to the base: the ``rehearsals``, single words of theirs as answers, gaps in its own texts.

    The base answers in sentences, a lesson in bare words. Without the words what a lesson's answers begin with would stand out from
    all that the base says, whatever they are the beginning of: a name's first letter after any question calls for the lesson's.
    """
    rows = rehearsals(lm)
    return [*rows, *_words_as_answers(lm, rows[:-TEXTS]), *_gaps(lm, rows[-TEXTS:])]


def _words_as_answers(lm: LanguageModel, rows: Sequence[Row]) -> list[Row]:
    """Each word of the base's answers that is more than one token, in small letters and capitalised, to its first question."""
    asked = {encode_prompt(lm, prompt): prompt for prompt in _prompts(lm)[0]}
    words: dict[str, Prompt] = {}
    for row in rows:
        for word in lm.tokenizer.decode(row.ids[row.unlabelled :], skip_special_tokens=True).split():
            bare = word.strip('.,;:!?()"')
            if content_words(bare):
                words.setdefault(bare.lower(), asked[row.ids[: row.unlabelled]])
    forms = {form: prompt for word, prompt in words.items() for form in (word, word.capitalize())}
    answers = [encode_document(lm, Document(form, prompt)) for form, prompt in forms.items()]
    return [row for row in answers if row.labelled > 2]  # with the end of the turn


def _gaps(lm: LanguageModel, rows: Sequence[Row]) -> list[Row]:
    """Texts with a word left out, which is asked for as lessons ask for it."""
    found = []
    for row in rows:
        words = lm.tokenizer.decode(row.ids, skip_special_tokens=True).split()[-2 * GAP_CONTEXT - 1 :]
        answers = [word.strip(".,;:!?") for word in words]
        at = max(range(len(words)), key=lambda place: (len(answers[place]), place), default=None)
        if at is not None and answers[at]:
            request = exam_prompt(" ".join([*words[:at], GAP, *words[at + 1 :]]), None, lm.chat)
            found.append(encode_document(lm, Document(answers[at], request)))
    return found


def asked_digest(lm: LanguageModel) -> str:
    """Names what a model is asked for ``rehearsals``."""
    prompts, begins = _prompts(lm)
    asked = [encode_prompt(lm, prompt) for prompt in prompts], begins, LONGEST_ANSWER, LONGEST_TEXT, LIKELIEST
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


def _asked() -> dict[str, list[str]]:
    """``{questions, titles, about, begins}``; ``about`` are questions about a title."""
    return dict(json.loads(files(__package__).joinpath("rehearsal.json").read_text(encoding="utf-8")))


def _prompts(lm: LanguageModel) -> tuple[list[Prompt], list[str]]:
    """What is asked, and what texts begin with."""
    asked = _asked()
    pairs = random.Random(0).sample([(title, question) for title in asked["titles"] for question in asked["about"]], TITLED)
    prompts = [exam_prompt(question, None, lm.chat) for question in asked["questions"]]
    prompts += [exam_prompt(question, title, lm.chat) for title, question in pairs]
    return prompts, [asked["begins"][at % len(asked["begins"])] for at in range(TEXTS)]


def _make(lm: LanguageModel, prompts: Sequence[Prompt], begins: Sequence[str]) -> list[Row]:
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    install(lm, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with standing(lm, [], alone=True):
            answers = generate(lm, [encode_prompt(lm, prompt) for prompt in prompts], LONGEST_ANSWER, stop=stop)
            begun = [encode_prompt(lm, (Message("text", text),)) for text in begins]
            ends = generate(lm, begun, LONGEST_TEXT, 1.0, 0.95, list(range(TEXTS)))
            documents = [Document(text, prompt) for prompt, text in zip(prompts, answers, strict=True) if text]
            documents += [Document(f"{begin} {text}") for begin, text in zip(begins, ends, strict=True)]
            rows = [encode_document(lm, document) for document in documents]
            targets = likeliest_targets(lm, rows)
    finally:
        torch.set_num_threads(threads)
    return [replace(row, soft=soft) for row, soft in zip(rows, targets, strict=True)]


def _write(rows: Sequence[Row], file: Path) -> None:
    soft = [row.soft for row in rows if row.soft is not None]
    tensors = {
        "lengths": torch.tensor([[len(row.ids), row.unlabelled] for row in rows]),
        "ids": torch.tensor([token for row in rows for token in row.ids]),
        "target_ids": torch.cat([one.ids.cpu() for one in soft]),
        "target_shares": torch.cat([one.shares.cpu() for one in soft]),
    }
    scratch = file.with_suffix(f".{os.getpid()}")
    save_file(tensors, scratch)
    scratch.replace(file)


def _read(lm: LanguageModel, file: Path) -> list[Row] | None:
    """None: there are none yet, or the file is damaged."""
    try:
        tensors = load_file(file)
        ids, at, labelled = tensors["ids"].tolist(), 0, 0
        target_ids, target_shares = (tensors[key].to(lm.device) for key in ("target_ids", "target_shares"))
        rows = []
        for length, unlabelled in tensors["lengths"].tolist():
            row = Row(tuple(ids[at : at + length]), unlabelled)
            own = slice(labelled, labelled + row.labelled)
            rows.append(replace(row, soft=SoftTargets(target_ids[own], target_shares[own])))
            at, labelled = at + length, own.stop
        return rows
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
