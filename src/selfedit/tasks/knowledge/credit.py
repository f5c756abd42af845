"""Credit below the self-edit: which of its lines taught what, and rows put together of the lines that taught best.

A passage's exam says little about a whole self-edit (docs/lab-book.md), but each question says a lot about the lines that hold its
gold answer. So for each question the self-edit counts that made its gold likeliest, and of it only those lines. A prompt's row is
what several self-edits wrote to it, line by line; lines that no question asks after fill it up, so that a writer trained on it
goes on listing a sentence's details and not one of them alone.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from selfedit.contexts import Passage
from selfedit.graders.text import place_in
from selfedit.lm.load import Identity
from selfedit.tasks.base import Asked, Candidate, answered
from selfedit.tasks.knowledge.documents import LONGEST_DETAIL, content_words, lines_of
from selfedit.tasks.knowledge.task import KnowledgeTask

# A gold that became likelier by less was not taught.
LEAST_GAIN = 0.1
# Lines of a row; more are only taken where more were credited.
MOST_LINES = 5


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    taught: str
    candidate: int

    def holds(self, gold: str) -> bool:
        """Whether a gold answer stands in what the line teaches, after the graders' normalisation."""
        return place_in(self.taught, gold) >= 0

    def like(self, other: _Line) -> bool:
        """Whether one teaches no word that the other doesn't."""
        own, others = content_words(self.taught), content_words(other.taught)
        return own <= others or others <= own


@dataclass(slots=True)
class _Prompt:
    """What several self-edits wrote to one prompt; ``row`` is the first one's."""

    row: dict[str, Any]
    lines: list[_Line]


@dataclass(frozen=True)
class LineCredit:
    """``Credit`` for passages; only lines that would be trained on count.

    Attributes:
        task: how self-edits are asked for and compiled.
    """

    task: KnowledgeTask

    def rows(self, lm: Identity, context: Passage, asked: Sequence[Asked], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """Of each question's gold the lines of the self-edit that made it likeliest, prompt by prompt, filled up.

        Beside what ``answered`` gives: ``lines``, their number, and ``candidates``, who wrote them.
        """
        prompts = self._by_prompt(lm, context, candidates)
        gains = {(one.number, group): gain for one in candidates for group, gain in _by_question(asked, one.gains).items()}
        credited: dict[str, list[_Line]] = defaultdict(list)
        for group, gold in {one.group: one.question.answer for one in asked}.items():
            holding = [(key, line) for key, prompt in prompts.items() for line in prompt.lines if line.holds(gold)]
            best = max((line.candidate for _, line in holding), key=lambda number: (gains[number, group], -number), default=None)
            if best is not None and gains[best, group] >= LEAST_GAIN:
                for key, line in holding:
                    if line.candidate == best:
                        credited[key].append(line)
        return [_row(prompt, _filled(context, credited[key], prompt.lines)) for key, prompt in prompts.items() if key in credited]

    def random_rows(
        self, lm: Identity, context: Passage, candidates: Sequence[Candidate], wanted: Sequence[dict[str, Any]], seed: int
    ) -> list[dict[str, Any]]:
        """As many lines as each row wanted has, put together as ``rows`` fills up, in a random order of what was written.

        So the two differ in what questions and gains say of lines, and in nothing else: lines that say something else than those
        chosen already and stand in the passage come first, in the order of the passage. To a prompt without lines of its own a row
        of another prompt is taken.
        """
        prompts = self._by_prompt(lm, context, candidates)
        drawing, rows = random.Random(seed), []
        with_lines = [key for key, prompt in prompts.items() if prompt.lines]
        spare = [key for key in with_lines if key not in {json.dumps(row["messages"]) for row in wanted}] or with_lines
        for row in wanted:
            key = json.dumps(row["messages"])
            if key not in with_lines:
                if not spare:
                    continue
                key = drawing.choice(spare)
            lines = list({line.text: line for line in prompts[key].lines}.values())
            drawing.shuffle(lines)
            chosen = _filled(context, (), lines, row["lines"])
            chosen += [line for line in lines if line not in chosen][: row["lines"] - len(chosen)]
            rows.append(_row(prompts[key], _in_order(context, chosen)))
        return rows

    def _by_prompt(self, lm: Identity, passage: Passage, candidates: Sequence[Candidate]) -> dict[str, _Prompt]:
        prompts: dict[str, _Prompt] = {}
        for one in candidates:
            for row in answered(self.task, lm, passage, one.number, one.texts):
                prompt = prompts.setdefault(json.dumps(row["messages"]), _Prompt(row, []))
                known = {line.text for line in prompt.lines if line.candidate == one.number}
                lines = lines_of(row["completion"], passage, self.task.edit.grounding)
                prompt.lines += [_Line(text, taught, one.number) for text, taught in lines if text not in known]
        return prompts


def _by_question(asked: Sequence[Asked], gains: Sequence[float]) -> dict[int, float]:
    """The mean over each question's wordings."""
    found: dict[int, list[float]] = defaultdict(list)
    for one, gain in zip(asked, gains, strict=True):
        found[one.group].append(gain)
    return {group: fmean(of) for group, of in found.items()}


def _filled(passage: Passage, credited: Sequence[_Line], lines: Sequence[_Line], most: int = MOST_LINES) -> list[_Line]:
    """The credited lines and others that say something else, in the order in which the passage says it."""
    chosen = list({line.text: line for line in credited}.values())
    for line in lines:
        short = len(line.taught.split()) <= LONGEST_DETAIL and _place(passage, line) >= 0
        if len(chosen) < most and short and not any(line.like(other) for other in chosen):
            chosen.append(line)
    return _in_order(passage, chosen)


def _in_order(passage: Passage, lines: Sequence[_Line]) -> list[_Line]:
    return sorted(lines, key=lambda line: (_place(passage, line) < 0, _place(passage, line)))


def _place(passage: Passage, line: _Line) -> int:
    return place_in(passage.text, line.taught)


def _row(prompt: _Prompt, lines: Sequence[_Line]) -> dict[str, Any]:
    return prompt.row | {
        "completion": "\n".join(line.text for line in lines),
        "lines": len(lines),
        "candidates": sorted({line.candidate for line in lines}),
    }
