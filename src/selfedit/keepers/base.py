"""What a way of keeping is: hooks around one commit. Without any of them it is the paper's: train, merge, go on (section 5)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage, Question
from selfedit.edits import Document, TrainingPlan
from selfedit.errors import DivergedError
from selfedit.lm.adapter import Adapter, standing
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained
from selfedit.lm.train_many import train_many
from selfedit.tasks.base import Sitting
from selfedit.tasks.general import General, sit_general
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.knowledge.exam import ExamForm, Paper, asked_in, exam_questions, sit_exams


@dataclass(frozen=True)
class Lesson:
    """A passage with its compiled self-edits, of which the first is trained on unless a method chooses.

    Attributes:
        quiz: the questions that a method may look at; those that are counted are not among them.
        likelihood: mean natural log-probability of the quiz's golds just after the lesson's own commit; None: nobody asked.
    """

    passage: Passage
    edits: tuple[tuple[Document, ...], ...]
    quiz: tuple[Question, ...] = ()
    likelihood: float | None = None


@dataclass(frozen=True)
class Held:
    """What has been learnt so far.

    Attributes:
        adapters: they answer together, oldest first.
        lessons: in the order in which they were learnt, rejected ones left out; ``edits`` has the one self-edit taken.
        pending: commits since the last consolidation, or the last try of one.
    """

    adapters: tuple[Adapter, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    pending: int = 0


@dataclass
class Cost:
    """What a commit took.

    Attributes:
        tokens: labelled tokens trained on; those of a training that diverged are not known.
        notes: figures noted on the way, by name.
        happened: what happened once or more, such as ``diverged``.
        reason: why the lesson was not accepted.
    """

    tokens: int = 0
    notes: dict[str, float] = field(default_factory=dict)
    happened: set[str] = field(default_factory=set)
    reason: str = ""


class Keeper:
    """The paper's way, and the default of every hook."""

    # Whether it decides by the quizzes' answers; such a method sees one half of each, and the other half is counted.
    asks: ClassVar[bool] = False
    # Whether it trains anything; if not, a passage can be had without a self-edit.
    trains: ClassVar[bool] = True
    # The setting that its hook ``settings`` sets, which no other part may set too; empty: none.
    sets: ClassVar[str] = ""
    # Whether its ``settle`` puts something else in the place of what was learnt; the other parts settle before it.
    replacing: ClassVar[bool] = False

    def settings(self, settings: Settings) -> Settings:
        """How a lesson is trained."""
        return settings

    def choose(
        self, lm: LanguageModel, held: Held, lesson: Lesson, method: Method, settings: Settings, seed: int, cost: Cost
    ) -> tuple[Lesson, Trained | None]:
        """The lesson, with the one self-edit that is trained on if this part chooses, and its adapter if that is trained then."""
        return lesson, None

    def documents(self, lm: LanguageModel, held: Held, lesson: Lesson, seed: int) -> list[Document]:
        """What is trained on beside the lesson's own documents."""
        return []

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """An adapter on top of what is held, which stands.

        Raises:
            DivergedError: the loss stopped being finite.
        """
        jobs = jobs_of(lm, [TrainingPlan(tuple(documents), settings, seed)], held.adapters)
        (trained,) = train_many(lm, jobs, 1)
        if isinstance(trained, DivergedError):
            raise trained
        return trained

    def admit(self, lm: LanguageModel, held: Held, adapter: Adapter, seed: int, cost: Cost) -> Adapter | None:
        """The adapter as it is committed, what is held standing; None: it is rejected, and ``cost.reason`` says why."""
        return adapter

    def replaces(self, lm: LanguageModel, held: Held, adapter: Adapter, seed: int) -> bool:
        """Whether one adapter on the base may take the place of all that are held; nothing stands."""
        return True

    def settle(self, lm: LanguageModel, held: Held, method: Method, settings: Settings, seed: int, cost: Cost) -> Held:
        """What is held after the commit; nothing stands."""
        return held

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], form: ExamForm, cost: Cost) -> list[Sitting]:
        """The exam of each passage, in a form; nothing stands."""
        with standing(lm, held.adapters):
            papers = [
                Paper(passage, tuple(exam_questions(passage.questions)), form, margins=form == "titled") for passage in passages
            ]
            return sit_exams(lm, papers)

    def elsewhere(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting] | None:
        """The exam of each passage that was no lesson; None: it can't be measured; nothing stands."""
        return self.examine(lm, held, passages, "titled", cost)

    def general(self, lm: LanguageModel, held: Held, cost: Cost) -> General | None:
        """What is said of general questions and texts (``tasks/general``); None: it can't be measured; nothing stands."""
        with standing(lm, held.adapters):
            return sit_general(lm)


@dataclass(frozen=True)
class Method:
    """Ways of keeping that act in turn."""

    name: str
    parts: tuple[Keeper, ...]

    @property
    def asks(self) -> bool:
        """Whether one of them decides by the quizzes' answers."""
        return any(part.asks for part in self.parts)

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return all(part.trains for part in self.parts)

    def commit(self, lm: LanguageModel, held: Held, lesson: Lesson, settings: Settings, seed: int) -> tuple[Held, Cost, bool]:
        """``learn``, and ``settle`` if the lesson was accepted."""
        learnt, cost, accepted = self.learn(lm, held, lesson, settings, seed)
        return self.settle(lm, learnt, settings, seed, cost) if accepted else learnt, cost, accepted

    def learn(self, lm: LanguageModel, held: Held, lesson: Lesson, settings: Settings, seed: int) -> tuple[Held, Cost, bool]:
        """Learns a lesson; what is held then, what it took, and whether it was accepted (one that diverges is not)."""
        settings = self.settings(settings)
        cost, trained = Cost(), None
        for part in self.parts if len(lesson.edits) > 1 else ():
            lesson, found = part.choose(lm, held, lesson, self, settings, seed, cost)
            trained = found or trained
        lesson = replace(lesson, edits=lesson.edits[:1])
        with standing(lm, held.adapters):
            if trained is None:
                try:
                    trained = self.trained(lm, held, lesson, settings, seed)
                except DivergedError as error:
                    cost.happened.add("diverged")
                    cost.reason = f"diverged: {error}"
                    return held, cost, False
                cost.tokens += trained.tokens
            adapter: Adapter | None = trained.adapter
            for part in self.parts:
                adapter = part.admit(lm, held, adapter, seeds.derive(seed, "admit"), cost) if adapter is not None else None
        if adapter is None:
            return held, cost, False
        return Held((*held.adapters, adapter), (*held.lessons, lesson), held.pending + 1), cost, True

    def settle(self, lm: LanguageModel, held: Held, settings: Settings, seed: int, cost: Cost) -> Held:
        """What is held after the commit, such as one adapter in the place of all; adds to its cost."""
        settings = self.settings(settings)
        for part in sorted(self.parts, key=lambda part: part.replacing):
            held = part.settle(lm, held, self, settings, seeds.derive(seed, "settle"), cost)
        return held

    def settings(self, settings: Settings) -> Settings:
        """How everything is trained."""
        for part in self.parts:
            settings = part.settings(settings)
        return settings

    def trained(self, lm: LanguageModel, held: Held, lesson: Lesson, settings: Settings, seed: int) -> Trained:
        """The lesson's adapter, with what the parts mix in, by whichever part trains in a way of its own."""
        documents = list(lesson.edits[0])
        for part in self.parts:
            documents += part.documents(lm, held, lesson, seeds.derive(seed, type(part).__name__))
        trainer = next((part for part in self.parts if type(part).train is not Keeper.train), self.parts[0])
        return trainer.train(lm, held, documents, settings, seed)

    def examine(
        self, lm: LanguageModel, held: Held, passages: Sequence[Passage], form: ExamForm = "titled"
    ) -> tuple[list[Sitting], Cost]:
        """The exam of each passage, by whichever part answers in a way of its own."""
        cost = Cost()
        return self.answering.examine(lm, held, passages, form, cost), cost

    def elsewhere(self, lm: LanguageModel, held: Held, passages: Sequence[Passage]) -> list[Sitting] | None:
        """The exam of each passage that was no lesson, by whichever part answers in a way of its own."""
        return self.answering.elsewhere(lm, held, passages, Cost())

    def general(self, lm: LanguageModel, held: Held) -> tuple[General | None, Cost]:
        """What is said of general questions and texts, by whichever part answers in a way of its own."""
        cost = Cost()
        return self.answering.general(lm, held, cost), cost

    @property
    def answering(self) -> Keeper:
        """Who answers."""
        return next((part for part in self.parts if type(part).examine is not Keeper.examine), self.parts[0])


def gathered(passages: Sequence[Passage], form: ExamForm, found: Sequence[Sitting]) -> list[Sitting]:
    """Sittings of single questions, in the order of the passages' questions, as one a passage."""
    rest, sittings = iter(found), []
    for passage in passages:
        own = [next(rest) for _ in asked_in(form, exam_questions(passage.questions))]
        parts = ((one.answers, one.log_probabilities, one.margins) for one in own)
        sittings.append(Sitting(*(tuple(itertools.chain(*part)) for part in zip(*parts, strict=True))))
    return sittings
