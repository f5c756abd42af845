"""Retention in the reward: of several self-edits the one is taken that teaches most and costs the earlier passages least (SCoL).

Departures from SCoL: (1) gains and losses are of the golds' log-probability, not of accuracy, over the half of each quiz that is
not counted; (2) no policy is trained on the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from selfedit import seeds
from selfedit.config import Settings
from selfedit.errors import DivergedError
from selfedit.keepers.base import Cost, Held, Keeper, Lesson, Method
from selfedit.keepers.gate import active
from selfedit.lm.adapter import standing
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.lm.train import Trained
from selfedit.tasks.knowledge.prompts import exam_prompt


@dataclass(frozen=True)
class Retention(Keeper):
    """Reward: the gain on the passage's own quiz less ``weight`` times what ``remembered`` earlier lessons have lost in the mean.

    A lesson has lost what it is below its own commit's log-probability, never less than 0 (``seal.md`` A2); so a candidate also
    gains by bringing back what an earlier commit took. A passage without a quiz to look at counts nothing.
    """

    weight: float
    remembered: int
    asks: ClassVar[bool] = True

    def choose(
        self, lm: LanguageModel, held: Held, lesson: Lesson, method: Method, settings: Settings, seed: int, cost: Cost
    ) -> tuple[Lesson, Trained | None]:
        """Every self-edit is trained once; the best one's adapter is committed. None if all diverge."""
        known = [old for old in held.lessons if old.quiz and old.likelihood is not None]
        known.sort(key=lambda old: seeds.derive(seed, "remembered", old.passage.id))
        asked = [lesson, *known[: self.remembered]]
        best: tuple[float, int, Trained] | None = None
        with standing(lm, held.adapters):
            for index, edit in enumerate(lesson.edits):
                try:
                    trained = method.trained(lm, held, replace(lesson, edits=(edit,)), settings, seed)
                except DivergedError:
                    cost.happened.add("a choice diverged")
                    continue
                cost.tokens += trained.tokens
                with active(lm, trained.adapter):
                    own, *after = likelihoods(lm, asked)
                lost = [max(0.0, (old.likelihood or 0.0) - now) for old, now in zip(asked[1:], after, strict=True)]
                # What the lesson's own questions were before is the same for all.
                reward = own - self.weight * (fmean(lost) if lost else 0.0)
                if best is None or reward > best[0]:
                    best = reward, index, trained
        if best is None:
            return lesson, None
        return replace(lesson, edits=(lesson.edits[best[1]],)), best[2]

    def settle(self, lm: LanguageModel, held: Held, method: Method, settings: Settings, seed: int, cost: Cost) -> Held:
        """Notes how likely the new lesson's golds are now."""
        *earlier, new = held.lessons
        with standing(lm, held.adapters):
            (value,) = likelihoods(lm, [new])
        return replace(held, lessons=(*earlier, replace(new, likelihood=value)))


def likelihoods(lm: LanguageModel, lessons: Sequence[Lesson]) -> list[float]:
    """Each lesson's mean log-probability of its quiz's golds; 0 without a quiz."""
    rows = [
        encode_answer(lm, exam_prompt(one.question, lesson.passage.title, lm.chat), one.answer)
        for lesson in lessons
        for one in lesson.quiz
    ]
    values = iter(log_probabilities(lm, rows))
    return [fmean(next(values) for _ in lesson.quiz) if lesson.quiz else 0.0 for lesson in lessons]
