"""Who marks an exam. A grader sees a whole exam at a time, since one answer given to every question is no answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from selfedit.contexts import Question


@dataclass(frozen=True, slots=True)
class Verdict:
    """A mark for one answer: whether it counts as correct, and a score in [0, 1]."""

    correct: bool
    score: float


@dataclass(frozen=True, slots=True)
class ExamItem:
    """One answered question. ``group`` is shared by a question and its paraphrases."""

    question: Question
    answer: str
    group: int


class Grader(Protocol):
    """Marks a whole exam; raises GraderError when it can't, never a silent "wrong"."""

    def mark(self, exam: list[ExamItem]) -> list[Verdict]:
        """One verdict for each item, in order."""
        ...
