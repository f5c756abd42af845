"""What a way of keeping is: hooks around one commit. Without any of them it is the paper's: train, merge, go on (section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import DivergedError
from selfedit.lm.adapter import Adapter, standing
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained
from selfedit.lm.train_many import Job, train_many
from selfedit.tasks.base import Sitting
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams


@dataclass(frozen=True)
class Lesson:
    """A passage with its compiled self-edits, of which the first is trained on unless a method chooses."""

    passage: Passage
    edits: tuple[tuple[Document, ...], ...]


@dataclass(frozen=True)
class Held:
    """What has been learnt so far.

    Attributes:
        adapters: they answer together, oldest first.
        lessons: in the order in which they were learnt, rejected ones left out; ``edits`` has the one self-edit taken.
        pending: adapters since the last consolidation.
    """

    adapters: tuple[Adapter, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    pending: int = 0


@dataclass
class Cost:
    """What a commit took: labelled tokens trained on, and what was noted on the way."""

    tokens: int = 0
    notes: dict[str, float] = field(default_factory=dict)


class Keeper:
    """The paper's way, and the default of every hook."""

    def settings(self, settings: Settings) -> Settings:
        """How a lesson is trained."""
        return settings

    def choose(self, lm: LanguageModel, held: Held, lesson: Lesson, method: Method, settings: Settings, seed: int) -> Lesson:
        """The lesson with the one self-edit that is trained on."""
        return replace(lesson, edits=lesson.edits[:1])

    def documents(self, lm: LanguageModel, held: Held, lesson: Lesson, seed: int) -> list[Document]:
        """What is trained on beside the lesson's own documents."""
        return []

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """An adapter on top of what is held, which stands.

        Raises:
            DivergedError: the loss stopped being finite.
        """
        rows = tuple(encode_document(lm, document) for document in documents)
        (trained,) = train_many(lm, [Job(rows, settings, seed)], 1)
        if isinstance(trained, DivergedError):
            raise trained
        return trained

    def admit(self, lm: LanguageModel, held: Held, adapter: Adapter, cost: Cost) -> Adapter | None:
        """The adapter as it is committed, what is held standing; None: it is rejected."""
        return adapter

    def settle(self, lm: LanguageModel, held: Held, settings: Settings, seed: int, cost: Cost) -> Held:
        """What is held after the commit; nothing stands."""
        return held

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting]:
        """The exam of each passage; nothing stands."""
        with standing(lm, held.adapters):
            return sit_exams(lm, [Paper(passage, tuple(exam_questions(passage.questions)), "titled") for passage in passages])


@dataclass(frozen=True)
class Method:
    """Ways of keeping that act in turn."""

    name: str
    parts: tuple[Keeper, ...]

    def commit(self, lm: LanguageModel, held: Held, lesson: Lesson, settings: Settings, seed: int) -> tuple[Held, Cost, bool]:
        """Learns a lesson; what is held then, what it took, and whether it was accepted (one that diverges is not)."""
        for part in self.parts:
            settings = part.settings(settings)
        cost = Cost()
        for part in self.parts:
            lesson = part.choose(lm, held, lesson, self, settings, seed) if len(lesson.edits) > 1 else lesson
        with standing(lm, held.adapters):
            try:
                trained = self.trained(lm, held, lesson, settings, seed)
            except DivergedError:
                return held, cost, False
            cost.tokens += trained.tokens
            adapter: Adapter | None = trained.adapter
            for part in self.parts:
                adapter = part.admit(lm, held, adapter, cost) if adapter is not None else None
        if adapter is None:
            return held, cost, False
        held = Held((*held.adapters, adapter), (*held.lessons, lesson), held.pending + 1)
        for part in self.parts:
            held = part.settle(lm, held, settings, seeds.derive(seed, "settle"), cost)
        return held, cost, True

    def trained(self, lm: LanguageModel, held: Held, lesson: Lesson, settings: Settings, seed: int) -> Trained:
        """The lesson's adapter, with what the parts mix in, by whichever part trains in a way of its own."""
        documents = list(lesson.edits[0])
        for part in self.parts:
            documents += part.documents(lm, held, lesson, seeds.derive(seed, type(part).__name__))
        trainer = next((part for part in self.parts if type(part).train is not Keeper.train), self.parts[0])
        return trainer.train(lm, held, documents, settings, seed)

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage]) -> tuple[list[Sitting], Cost]:
        """The exam of each passage, by whichever part answers in a way of its own."""
        cost = Cost()
        answers = next((part for part in self.parts if type(part).examine is not Keeper.examine), self.parts[0])
        return answers.examine(lm, held, passages, cost), cost
