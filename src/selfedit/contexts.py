"""What is to be learned from: plain data, no behaviour."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One exam question.

    Attributes:
        question: the question's text.
        answer: the gold answer.
        aliases: further gold answers (SQuAD has several annotators); a grader takes the best match.
        paraphrases: other wordings of the same question, with the same answer.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All accepted answers, the first one leading."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True, slots=True)
class Passage:
    """A context of the knowledge domain: a text with its title and its exam."""

    title: str
    text: str
    questions: tuple[Question, ...] = ()

    @property
    def view(self) -> str:
        """Title and text, as they stand in a prompt for one who has the passage before them."""
        return f"{self.title}\n{self.text}"

    @property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of title and text: the same passage has the same id everywhere."""
        return hashlib.sha256(f"{self.title}\n{self.text}".encode()).hexdigest()[:12]


Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A context of the puzzle domain: demonstration pairs, and tests to be answered.

    Attributes:
        id: the task's name.
        train: (input, output) grids, row by row, colours 0 to 9.
        test: the same; the output is None where it isn't known.
    """

    id: str
    train: tuple[tuple[Rows, Rows], ...]
    test: tuple[tuple[Rows, Rows | None], ...]
