"""Ways that don't put everything into one set of weights: a bank of adapters with a router, and two that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import torch

from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.keepers.base import Cost, Held, Keeper
from selfedit.lm.adapter import Adapter, install
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained
from selfedit.tasks.base import Sitting
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams


@dataclass(frozen=True)
class Bank(Keeper):
    """Every adapter is trained on the base and kept apart; a question goes to the one whose passage is most like it.

    Likeness is the cosine of mean hidden states of the base's last layer, less the mean over passages held; below ``threshold``
    the base answers.
    """

    threshold: float

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """On the base: what stands is put aside."""
        from selfedit.lm.adapter import standing

        with standing(lm, [], alone=True):
            return super().train(lm, held, documents, settings, seed)

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting]:
        """Every question by itself to its adapter."""
        asked = [(passage, one) for passage in passages for one in exam_questions(passage.questions)]
        keys = embedded(lm, [f"{lesson.passage.title}\n{lesson.passage.text}" for lesson in held.lessons])
        queries = embedded(lm, [f"{passage.title} {one.question.question}" for passage, one in asked])
        routes = self.routes(keys, queries)
        owners = [lesson.passage.id for lesson in held.lessons]
        known = [
            (route, owners.index(passage.id)) for route, (passage, _) in zip(routes, asked, strict=True) if passage.id in owners
        ]
        cost.notes["routed"] = sum(a == b for a, b in known) / max(1, len(known))
        found: dict[int, tuple[str, float]] = {}
        for route in sorted(set(routes)):
            mine = [at for at, one in enumerate(routes) if one == route]
            adapter = held.adapters[route] if route >= 0 else None
            for at, (answer, value) in zip(mine, _answered(lm, [asked[at] for at in mine], adapter), strict=True):
                found[at] = (answer, value)
        sittings, at = [], 0
        for passage in passages:
            count = len(exam_questions(passage.questions))
            own = [found[index] for index in range(at, at + count)]
            sittings.append(Sitting(tuple(answer for answer, _ in own), tuple(value for _, value in own)))
            at += count
        return sittings

    def routes(self, keys_Pd: torch.Tensor, queries_Qd: torch.Tensor) -> list[int]:
        """For each query the place of its passage; -1: none is like it."""
        if not len(keys_Pd):
            return [-1] * len(queries_Qd)
        middle_d = keys_Pd.mean(0) if len(keys_Pd) > 1 else torch.zeros_like(keys_Pd[0])
        keys, queries = (torch.nn.functional.normalize(rows - middle_d, dim=-1) for rows in (keys_Pd, queries_Qd))
        likeness, places = (queries @ keys.T).max(-1)
        return [int(place) if value >= self.threshold else -1 for value, place in zip(likeness, places, strict=True)]


class Retrieve(Keeper):
    """Nothing is trained: BM25 finds the passage among those seen so far, and it goes into the prompt."""

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """An adapter of nothing."""
        return Trained(Adapter({}, 1.0), [], 0)

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting]:
        """Each question with the passage that was found for it; before the first lesson without any."""
        if not held.lessons:
            return super().examine(lm, held, passages, cost)
        known = [lesson.passage for lesson in held.lessons]
        index = bm25s.BM25()
        index.index(bm25s.tokenize([f"{one.title}\n{one.text}" for one in known], show_progress=False), show_progress=False)
        papers, hits = [], []
        for passage in passages:
            for one in exam_questions(passage.questions):
                query = bm25s.tokenize(f"{passage.title} {one.question.question}", show_progress=False)
                places, _ = index.retrieve(query, k=1, show_progress=False)
                best = known[int(places[0, 0])]
                hits.append(float(best.id == passage.id))
                papers.append(Paper(best, (one,), "context"))
        cost.notes["found"] = sum(hits) / max(1, len(hits))
        return _gathered(passages, sit_exams(lm, papers))


class Context(Keeper):
    """Nothing is trained: the right passage stands in the prompt."""

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """An adapter of nothing."""
        return Trained(Adapter({}, 1.0), [], 0)

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting]:
        """Each exam with its passage in view."""
        return sit_exams(lm, [Paper(passage, tuple(exam_questions(passage.questions)), "context") for passage in passages])


@torch.inference_mode()
def embedded(lm: LanguageModel, texts: Sequence[str]) -> torch.Tensor:
    """(len(texts), d): mean last hidden states of the base under what stands; the window's first tokens of a long text."""
    install(lm, None)
    found = []
    for text in texts:
        ids_1T = torch.tensor([lm.tokenizer(text)["input_ids"][: lm.window]], device=lm.device)
        found.append(lm.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0].float().mean(0))
    return torch.stack(found) if found else torch.zeros(0, 1)


def _answered(lm: LanguageModel, asked: Sequence[tuple[Passage, object]], adapter: Adapter | None) -> list[tuple[str, float]]:
    papers = [Paper(passage, (one,), "titled") for passage, one in asked]  # type: ignore[arg-type]
    install(lm, adapter)
    try:
        sat = sit_exams(lm, papers)
    finally:
        install(lm, None)
    return [(sitting.answers[0], sitting.log_probabilities[0]) for sitting in sat]


def _gathered(passages: Sequence[Passage], single: Sequence[Sitting]) -> list[Sitting]:
    """Sittings of one question each, as one a passage."""
    rest = iter(single)
    found = []
    for passage in passages:
        own = [next(rest) for _ in exam_questions(passage.questions)]
        found.append(Sitting(tuple(s.answers[0] for s in own), tuple(s.log_probabilities[0] for s in own)))
    return found
