"""A domain of your own, its task in 35 lines: entries of a glossary, which the model learns to explain.

python examples/own_task.py runs/glossary
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfedit.config import DEFAULT_MODEL, Settings, TrainConfig
from selfedit.contexts import Question
from selfedit.edits import Document, Message, TrainingPlan
from selfedit.errors import InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.lm.load import Identity, LanguageModel
from selfedit.outer.loop import train
from selfedit.runs import Run
from selfedit.tasks.base import Asked, Item, Request, Sitting, sit_items


@dataclass(frozen=True)
class Entry:
    """A context: whatever you like, with an id."""

    id: str
    meaning: str


@dataclass(frozen=True)
class Glossary:
    """How a self-edit is asked for, what it compiles to, and the exam."""

    def style(self, candidate: int) -> str:
        return "explanation"

    def requests(self, lm: Identity, context: Entry, candidate: int) -> list[Request]:
        text = f"{context.id} means: {context.meaning}. Write one sentence that explains {context.id}."
        return [Request((Message("user", text),), longest=40)]

    def joined(self, candidate: int, texts: Sequence[str]) -> str:
        return texts[0]

    def compile(self, lm: Identity, context: Entry, text: str, settings: Settings, seed: int) -> TrainingPlan:
        if not text:
            raise InvalidEditError("nothing was written")
        return TrainingPlan((Document(text, (Message("user", f"Explain {context.id}."),)),), settings, seed)

    def asked(self, context: Entry) -> tuple[Asked, ...]:
        return (Asked(Question(f"What does {context.id} mean?", context.meaning), group=0, paraphrase=False),)

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Entry]], first: int) -> list[Sitting]:
        items = [Item((Message("user", f"What does {e.id} mean?"),), e.meaning, slot=slot) for slot, e in seats]
        return [Sitting((answer,), (logprob,), (margin,)) for answer, logprob, margin in sit_items(lm, items, first, longest=24)]


WORDS = [
    Entry("a brindlow", "a lamp that burns fish oil"), Entry("to skarn", "to mend a net with wax"),
    Entry("a quelm", "the youngest of five sisters"), Entry("vessery", "tax that is paid in salt"),
]  # fmt: skip


def main(folder: str, model: str = DEFAULT_MODEL) -> None:
    """One round of the outer loop on the glossary."""
    config = TrainConfig(model=model, rounds=1, contexts=4, edits=3, rule="best", reward="likelihood", noise_contexts=0)
    with LocalExecutor(ModelChoice(model), 0) as executor:
        result = train(config, Glossary(), [WORDS], RecallGrader(), Run(Path(folder), config, False), executor, print)
    print(result["policy"])


if __name__ == "__main__":
    main(*sys.argv[1:])
