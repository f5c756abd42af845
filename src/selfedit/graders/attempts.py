"""ARC's rule: a test is solved if its grid is among the attempts."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from selfedit.graders import ExamItem, Verdict


class AttemptsGrader:
    """Answers are JSON lists of attempts, golds JSON grids; the score is the share of cells of the best attempt."""

    def mark(self, exam: list[ExamItem]) -> list[Verdict]:
        """One verdict for each test."""
        found = []
        for item in exam:
            attempts, wanted = json.loads(item.answer), json.loads(item.question.answer)
            found.append(Verdict(wanted in attempts, max((cells_right(tried, wanted) for tried in attempts), default=0.0)))
        return found


def cells_right(tried: list[list[Any]], wanted: list[list[Any]]) -> float:
    """Share of cells that are as wanted; 0 for another shape."""
    if [len(row) for row in tried] != [len(row) for row in wanted]:
        return 0.0
    return fmean(float(a == b) for one, other in zip(tried, wanted, strict=True) for a, b in zip(one, other, strict=True))
