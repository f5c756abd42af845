"""Consolidation ("sleep"): now and then one fresh adapter from the base on all stored self-edits takes the place of all others."""

from __future__ import annotations

from dataclasses import dataclass

from selfedit.config import Settings
from selfedit.errors import DivergedError
from selfedit.keepers.base import Cost, Held, Keeper
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel
from selfedit.lm.train_many import Job, train_many


@dataclass(frozen=True)
class Consolidate(Keeper):
    """After every ``every`` commits; ``epochs`` passes over everything, 0: as many as a lesson has."""

    every: int
    epochs: int

    def settle(self, lm: LanguageModel, held: Held, settings: Settings, seed: int, cost: Cost) -> Held:
        """One adapter for all lessons; if it diverges everything stays as it was."""
        if held.pending < self.every:
            return held
        documents = [document for lesson in held.lessons for document in lesson.edits[0]]
        rows = tuple(encode_document(lm, document) for document in documents)
        chosen = settings.model_copy(update={"epochs": self.epochs or settings.epochs})
        (trained,) = train_many(lm, [Job(rows, chosen, seed)], 1)
        if isinstance(trained, DivergedError):
            cost.notes["diverged"] = 1.0
            return held
        cost.tokens += trained.tokens
        cost.notes["consolidated"] = float(len(held.lessons))
        return Held((trained.adapter,), held.lessons, 0)
