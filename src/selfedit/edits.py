"""Self-edits and what they compile to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from selfedit.config import Settings


class Message(NamedTuple):
    """One turn of a prompt; the role ``text`` is no turn but bare text to be continued."""

    role: Literal["system", "user", "assistant", "text"]
    content: str


Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class SelfEdit:
    """What a model wrote about one context.

    Attributes:
        context_id: the context's id.
        style: the prompt style that asked for it.
        text: the raw text, as written.
    """

    context_id: str
    style: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One training document.

    Attributes:
        text: what carries the loss.
        request: the turns that ``text`` answers, without loss; None for a plain document, which is ``text`` alone.
        whole: whether the request carries loss too.
        view: what a teacher has before it if the settings ask for distillation, such as the passage; empty: there is no teacher.
    """

    text: str
    request: Prompt | None = None
    whole: bool = False
    view: str = ""

    def stored(self) -> dict[str, Any]:
        """For JSON, without its view: what is in view is the passage, which is kept elsewhere."""
        return {"text": self.text, "request": self.request} | ({"whole": True} if self.whole else {})

    @classmethod
    def restored(cls, row: dict[str, Any]) -> Document:
        """What ``stored`` gave, read back from JSON."""
        request = None if row["request"] is None else tuple(Message(*turn) for turn in row["request"])
        return cls(row["text"], request, row.get("whole", False))


def in_view(documents: Sequence[Document], view: str) -> tuple[Document, ...]:
    """The documents as a teacher is to read them, with one passage in view."""
    return tuple(replace(document, view=view) for document in documents)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a self-edit compiles to: documents and the settings to train on them; ``seed`` draws initial weights and order."""

    documents: tuple[Document, ...]
    settings: Settings
    seed: int

    @property
    def rehearsals(self) -> int:
        """How many of the base's own answers are trained on beside the documents."""
        return round(len(self.documents) * self.settings.rehearsal / (1 - self.settings.rehearsal))

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        rows = len(self.documents) + self.rehearsals
        return self.settings.epochs * math.ceil(rows / (self.settings.batch_size * self.settings.accumulation))
