"""What a domain is to the rest of the house: how it asks for self-edits, what they compile to, and how it examines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from selfedit.config import Settings
from selfedit.contexts import Question
from selfedit.edits import Prompt, TrainingPlan
from selfedit.lm.batch import encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import Identity, LanguageModel
from selfedit.lm.score import log_probabilities


@dataclass(frozen=True, slots=True)
class Asked:
    """One wording of a question; ``group`` is shared by a question and its paraphrases, ``paraphrase`` marks the latter."""

    question: Question
    group: int
    paraphrase: bool


@dataclass(frozen=True, slots=True)
class Sitting:
    """What an exam brought, one entry for each wording asked.

    Attributes:
        answers: what the model said.
        log_probabilities: the mean natural log-probability of the gold answer's tokens and the end of the turn.
        margins: the same minus its mean over the other questions' gold answers in the gold's place; empty if not asked for. A
            model that learnt to answer at all makes every gold likelier; the margin says whether it tells them apart. Of the
            forms tried on dev it ranks self-edits most as the exam does (docs/lab-book.md).
    """

    answers: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    margins: tuple[float, ...] = ()


class Request(NamedTuple):
    """A prompt for a self-edit or a piece of one.

    Attributes:
        longest: how many tokens the answer may have where the sampling names no length.
        schema: the JSON schema that the answer is held to, as JSON; None: free text.
    """

    prompt: Prompt
    longest: int
    schema: str | None = None


class Task(Protocol):
    """A domain. Contexts are whatever it likes, with an ``id``; everything must be picklable, since workers get copies.

    What a trial is worth is decided elsewhere: graders mark its sitting, a reward weighs the marks.
    """

    def style(self, candidate: int) -> str:
        """In which way the candidate's self-edit is asked for; kept with it."""
        ...

    def requests(self, lm: Identity, context: Any, candidate: int) -> list[Request]:
        """What asks for the candidate's self-edit: one request, or several whose answers ``joined`` puts together."""
        ...

    def joined(self, candidate: int, texts: Sequence[str]) -> str:
        """The self-edit made of the answers to ``requests``."""
        ...

    def compile(self, lm: Identity, context: Any, text: str, settings: Settings, seed: int) -> TrainingPlan:
        """The plan of a self-edit; it may overrule the settings. Raises InvalidEditError with the reason."""
        ...

    def asked(self, context: Any) -> tuple[Asked, ...]:
        """The exam's questions, in the order of a sitting's entries."""
        ...

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Any]], first: int) -> list[Sitting]:
        """Sits the exam of each (slot, context), without the context in view.

        Args:
            seats: in rising order of slots; without slots installed what is installed answers.
            first: the lowest layer at which slots differ.
        """
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A self-edit that was tried.

    Attributes:
        number: which of its context's.
        texts: the answers to its requests.
        gains: of each exam entry how much likelier its gold became, as a probability; empty where nobody asks.
    """

    number: int
    texts: Sequence[str]
    gains: Sequence[float] = ()


class Credit(Protocol):
    """Rows for training a writer, put together of what taught, below the self-edit; rows as ``answered`` makes them."""

    def rows(self, lm: Identity, context: Any, asked: Sequence[Asked], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """One row for each prompt to which something was written that taught; ``asked`` are the entries to which gains belong."""
        ...

    def random_rows(
        self, lm: Identity, context: Any, candidates: Sequence[Candidate], wanted: Sequence[dict[str, Any]], seed: int
    ) -> list[dict[str, Any]]:
        """The control: for each row wanted one of the same prompt and size, of what was written to it, whatever it taught."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One exam question as the model gets it: the prompt, the gold answer, others to weigh it against, and who answers."""

    prompt: Prompt
    gold: str
    others: tuple[str, ...] = ()
    slot: int = 0


def answered(task: Task, lm: Identity, context: Any, candidate: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    """A self-edit's prompts with what was written to each, as JSON; no empty answers, and no pair that stands there twice."""
    found: dict[tuple[Prompt, str], dict[str, Any]] = {}
    for piece, (request, text) in enumerate(zip(task.requests(lm, context, candidate), texts, strict=True)):
        if text.strip():
            turns = [message._asdict() for message in request.prompt]
            row = {"context": context.id, "candidate": candidate, "piece": piece, "messages": turns, "completion": text}
            found.setdefault((request.prompt, text), row)
    return list(found.values())


def sit_items(
    lm: LanguageModel, items: Sequence[Item], first: int, longest: int, stop: Callable[[str], bool] | None = None
) -> list[tuple[str, float, float]]:
    """Greedy answer, gold's log-probability and its margin over the others (itself where there are none), all in one batch.

    Args:
        items: in rising order of slots.
        first: the lowest layer at which slots differ.
        longest: tokens of an answer.
        stop: ends an answer early.
    """
    slots = [item.slot for item in items]
    answers = generate(lm, [encode_prompt(lm, item.prompt) for item in items], longest, stop=stop, slots=slots, first=first)
    rows = [encode_answer(lm, item.prompt, gold) for item in items for gold in (item.gold, *item.others)]
    owners = [item.slot for item in items for _ in (item.gold, *item.others)]
    likelihoods = iter(log_probabilities(lm, rows, owners, first))
    found = []
    for item, answer in zip(items, answers, strict=True):
        own, *others = [next(likelihoods) for _ in (item.gold, *item.others)]
        found.append((answer, own, own - fmean(others) if others else own))
    return found
