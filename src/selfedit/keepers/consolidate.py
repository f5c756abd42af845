"""Consolidation ("sleep"): now and then one fresh adapter from the base on all stored self-edits takes the place of all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from selfedit.config import Settings
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError
from selfedit.keepers.base import Cost, Held, Keeper, Method
from selfedit.lm.load import LanguageModel
from selfedit.lm.train_many import train_many
from selfedit.tasks.general.jobs import jobs_of


@dataclass(frozen=True)
class Consolidate(Keeper):
    """After every ``every`` commits.

    Attributes:
        epochs: passes over everything.
        rate: learning rate.
        share: of the base's own answers among what is trained on (rehearsal).

    What is 0 is as in a lesson.
    """

    every: int
    epochs: int
    rate: float
    share: float
    replacing: ClassVar[bool] = True

    def settle(self, lm: LanguageModel, held: Held, method: Method, settings: Settings, seed: int, cost: Cost) -> Held:
        """One adapter for all lessons; if it diverges, or a gate refuses it, everything stays for another ``every`` commits."""
        if held.pending < self.every:
            return held
        documents = tuple(document for lesson in held.lessons for document in lesson.edits[0])
        own = {"epochs": self.epochs, "learning_rate": self.rate, "rehearsal": self.share}
        chosen = settings.model_copy(update={name: value for name, value in own.items() if value})
        (trained,) = train_many(lm, jobs_of(lm, [TrainingPlan(documents, chosen, seed)]), 1)
        if isinstance(trained, DivergedError):
            cost.happened.add("consolidation diverged")
            return replace(held, pending=0)
        cost.tokens += trained.tokens
        if not all(part.replaces(lm, held, trained.adapter, seed) for part in method.parts):
            cost.happened.add("consolidation refused")
            return replace(held, pending=0)
        cost.happened.add("consolidated")
        return Held((trained.adapter,), held.lessons, 0)
