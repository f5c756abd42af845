"""Retention in the reward: of several self-edits the one is taken that teaches most and costs the earlier passages least (SCoL).

Departure from SCoL: gains and losses are of the golds' log-probability, not of accuracy, and no policy is trained on the choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.errors import DivergedError
from selfedit.keepers.base import Held, Keeper, Lesson, Method
from selfedit.keepers.gate import active
from selfedit.lm.adapter import standing
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.tasks.knowledge.prompts import exam_prompt


@dataclass(frozen=True)
class Retention(Keeper):
    """Reward: the gain on the passage's own questions less ``weight`` times the mean loss on ``remembered`` earlier passages'."""

    weight: float
    remembered: int

    def choose(self, lm: LanguageModel, held: Held, lesson: Lesson, method: Method, settings: Settings, seed: int) -> Lesson:
        """Every self-edit is trained once; the best is trained again for the commit, with the same seed."""
        earlier = [old.passage for old in held.lessons]
        earlier.sort(key=lambda passage: seeds.derive(seed, "remembered", passage.id))
        asked = [lesson.passage, *earlier[: self.remembered]]
        best: tuple[float, int] | None = None
        with standing(lm, held.adapters):
            before = golds(lm, asked)
            for index, edit in enumerate(lesson.edits):
                try:
                    trained = method.trained(lm, held, replace(lesson, edits=(edit,)), settings, seed)
                except DivergedError:
                    continue
                with active(lm, trained.adapter):
                    after = golds(lm, asked)
                lost = [max(0.0, b - a) for b, a in zip(before[1:], after[1:], strict=True)]
                reward = after[0] - before[0] - self.weight * (fmean(lost) if lost else 0.0)
                best = max(best or (reward, -index), (reward, -index))
        return replace(lesson, edits=(lesson.edits[-best[1] if best else 0],))


def golds(lm: LanguageModel, passages: list[Passage]) -> list[float]:
    """Each passage's mean log-probability of its gold answers."""
    rows = [
        encode_answer(lm, exam_prompt(one.question, passage.title, lm.chat), one.answer)
        for passage in passages
        for one in passage.questions
    ]
    values = iter(log_probabilities(lm, rows))
    return [fmean(next(values) for _ in passage.questions) for passage in passages]
