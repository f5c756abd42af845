"""Rewards without questions: how likely the passage's own sentences, paraphrases of them, or answers given from it have become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from selfedit import seeds
from selfedit.config import REWARD_EXAMS, EditConfig, QuizConfig, RewardName, Sampling
from selfedit.contexts import Passage, Question
from selfedit.lm.adapter import standing
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.rewards.exams import Exam, Labelled
from selfedit.rewards.self_quiz import (
    SelfQuiz,
    answer_spans,
    asked_twice,
    copied,
    read_answers,
    sampler_of,
    sentences_of,
    spread,
    trivial,
    write_items,
)
from selfedit.tasks.base import Request, Sitting, Task
from selfedit.tasks.knowledge.compile import held_out, split_passage
from selfedit.tasks.knowledge.documents import content_words
from selfedit.tasks.knowledge.prompts import STANDING_REQUESTS, edit_prompts, exam_prompt
from selfedit.tasks.knowledge.task import KnowledgeTask

Kind = Literal["sentences", "paraphrases", "agreement"]
# A paraphrase has so large a share of its sentence's content words, and is not the sentence.
FAITHFUL = 0.6
PARAPHRASE_TOKENS = 80
# With so large a share of a sentence's word trigrams it is that sentence, not a paraphrase.
ALIKE = 0.8
NAMES = {"sentences": "sentences to be left out", "paraphrases": "paraphrases", "agreement": "answers from it"}


@dataclass(frozen=True)
class Likelihoods(KnowledgeTask):
    """An exam that is only scored: each entry is a text and what asks for it; nothing is answered."""

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Passage]], first: int) -> list[Sitting]:
        """Mean token log-probability of each entry's text; answers are empty."""
        title = self.form == "titled"
        rows = [
            encode_answer(lm, exam_prompt(one.question, passage.title if title else None, lm.chat), one.answer)
            for _, passage in seats
            for one in passage.questions
        ]
        slots = [slot for slot, passage in seats for _ in passage.questions]
        values = iter(log_probabilities(lm, rows, slots, first)) if rows else iter(())
        found = [tuple(next(values) for _ in passage.questions) for _, passage in seats]
        return [Sitting(tuple("" for _ in own), own) for own in found]


@dataclass(frozen=True)
class QuestionFree:
    """An exam of texts.

    ``sentences``: those of the passage that its own lesson leaves out (``edit.held_out``), after a standing request; SCoL takes the
    passage itself, on which every candidate was trained. ``paraphrases``: the base's, of each sentence. ``agreement``: answers that
    the base gives with the passage in view to questions of its own, by how likely they are without it.

    Departures: (1) a text that stands in a self-edit, by its word trigrams, counts for none of the passage's; (2) agreement's
    answers are sampled at the quiz's temperature and held to the passage's spans, and each counts by its mean token, so their
    likelihood goes with the KL divergence from the base with the passage, but is no estimate of it.
    """

    kind: Kind
    quiz: QuizConfig
    edit: EditConfig

    @property
    def task(self) -> Task:
        """Scores."""
        return Likelihoods(self.edit, form="titled" if self.kind == "agreement" else "bare")

    def prepare(self, lm: LanguageModel, context: Passage, seed: int) -> dict[str, Any]:
        """The texts, as (what asks for it, text)."""
        seed = seeds.derive(seed, context.id, self.kind)
        makers = {"sentences": self._sentences, "paraphrases": self._paraphrases, "agreement": self._answers}
        return {"texts": makers[self.kind](lm, context, seed)}

    def examined(self, context: Passage, material: dict[str, Any]) -> Passage:
        """The passage with those texts as its entries."""
        return Passage(context.title, context.text, tuple(Question(asked, text) for asked, text in material["texts"]))

    def kept(self, context: Passage, material: dict[str, Any], edits: Sequence[str]) -> list[int] | str:
        """Those that no self-edit has."""
        texts = [(asked if self.kind == "agreement" else text) for asked, text in material["texts"]]
        kept = [at for at, one in enumerate(texts) if not any(copied(one, edit, self.quiz.overlap) for edit in edits)]
        return kept or (f"its {len(texts)} {NAMES[self.kind]} stand in a self-edit" if texts else f"it has no {NAMES[self.kind]}")

    def _sentences(self, lm: LanguageModel, passage: Passage, seed: int) -> list[tuple[str, str]]:
        asked = STANDING_REQUESTS[0].format(title=passage.title)
        parts = split_passage(lm, passage)
        return [(asked, sentence) for part in parts for sentence in held_out(part.text, self.edit.held_out)]

    def _paraphrases(self, lm: LanguageModel, passage: Passage, seed: int) -> list[tuple[str, str]]:
        sampler, found = sampler_of(self.quiz, lm), []
        asked = STANDING_REQUESTS[0].format(title=passage.title)
        every = sentences_of(lm, passage, self.quiz.view)
        sentences = [every[at][1] for at in spread(range(len(every)), self.quiz.items)]
        prompts = edit_prompts("rewrite", passage.title, sentences, "", sampler.known.chat, 2, "sentence")
        with standing(lm, [], alone=True):
            texts = sampler.write(
                [Request(prompt, PARAPHRASE_TOKENS) for prompt in prompts],
                Sampling(temperature=self.quiz.temperature),
                [seeds.derive(seed, index) for index in range(len(prompts))],
            )
        for sentence, text in zip(sentences, texts, strict=True):
            words = content_words(sentence)
            for line in dict.fromkeys(line.strip() for line in text.split("\n")):
                faithful = bool(words) and len(content_words(line) & words) >= FAITHFUL * len(words)
                if faithful and not copied(line, sentence, ALIKE):
                    found.append((asked, line))
        return found

    def _answers(self, lm: LanguageModel, passage: Passage, seed: int) -> list[tuple[str, str]]:
        sampler = sampler_of(self.quiz, lm)
        sentences = sentences_of(lm, passage, self.quiz.view)
        spans = [answer_spans(passage.title, sentence) for _, sentence in sentences]
        places = spread([at for at, of in enumerate(spans) if of], self.quiz.items)
        once = self.quiz.model_copy(update={"passes": 1})
        asked: list[tuple[Passage, Question]] = []
        for at, one in write_items(lm, sampler, passage.title, sentences, spans, places, once, seed):
            if isinstance(one, Question) and not trivial(one, passage) and not asked_twice(one, [other for _, other in asked]):
                asked.append((sentences[at][0], one))
        answers = iter(read_answers(lm, sampler, asked, self.quiz, self.quiz.resamples, seeds.derive(seed, "answers")))
        return [(one.question, text) for _, one in asked for text in [next(answers) for _ in range(self.quiz.resamples)] if text]


def make_exam(reward: RewardName, task: KnowledgeTask, quiz: QuizConfig, edit: EditConfig) -> Exam:
    """What a reward is taken on."""
    kinds: dict[str, Exam] = {"labelled": Labelled(task), "self-quiz": SelfQuiz(quiz, edit)}
    kinds |= {kind: QuestionFree(kind, quiz, edit) for kind in get_args(Kind)}
    return kinds[REWARD_EXAMS[reward]]
