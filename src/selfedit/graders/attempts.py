"""ARC's rule: a test is solved if its grid is among the attempts, and a puzzle if all of its tests are."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from selfedit.graders import ExamItem, Verdict


class AttemptsGrader:
    """Answers are JSON lists of attempts, golds JSON grids; an exam is one puzzle. A reward of it is 0 or 1, as in the paper."""

    def mark(self, exam: list[ExamItem]) -> list[Verdict]:
        """One verdict for each test: right only if all are; the score is the share of cells of the best attempt."""
        tests = [(json.loads(item.answer), json.loads(item.question.answer)) for item in exam]
        whole = all(wanted in attempts for attempts, wanted in tests)
        return [Verdict(whole, max((cells_right(t, wanted) for t in attempts), default=0.0)) for attempts, wanted in tests]


def cells_right(tried: list[list[Any]], wanted: list[list[Any]]) -> float:
    """Share of cells that are as wanted; 0 for another shape."""
    if [len(row) for row in tried] != [len(row) for row in wanted]:
        return 0.0
    return fmean(float(a == b) for one, other in zip(tried, wanted, strict=True) for a, b in zip(one, other, strict=True))
