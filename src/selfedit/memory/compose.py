"""From a state to the model that answers: the one place that decides how adapters are composed.

Two ways. ``bank``: each adapter by itself on the base; a question goes to the one whose passage is most like it, or to the base
(``keepers/routes.py``), so that entries can't disturb each other or what the base knew. ``stack``: the frozen sum of the adapters,
oldest first, merged into dense weights above rank 256, as in the paper; each entry is trained on top of those before it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from selfedit.config import THRESHOLD
from selfedit.contexts import Passage, Question
from selfedit.errors import MemoryStoreError
from selfedit.inner import sit
from selfedit.keepers.routes import by_route, general_by_route, query_of, recall_states, routes_to
from selfedit.lm.adapter import Adapter, install, install_saved_stack, load_adapter, save_adapter, save_merged, summed
from selfedit.lm.load import LanguageModel, identify, load_model
from selfedit.memory.ledger import Base, Memory, Slot, State
from selfedit.tasks.base import Sitting
from selfedit.tasks.general import General, general_items, general_questions, load_general, sample, sampled, sit_general, spoken
from selfedit.tasks.knowledge.exam import asked_in
from selfedit.tasks.knowledge.task import KnowledgeTask


@dataclass(frozen=True)
class Kept:
    """What a state answers with, as jobs get it.

    Attributes:
        keep: ``bank`` or ``stack``.
        adapters: the folder of each, oldest first, with the passages that it was learnt from.
        on_top: of a stack, the folder of an adapter that is not yet one of them.
    """

    keep: str
    adapters: tuple[tuple[str, tuple[Passage, ...]], ...] = ()
    on_top: str | None = None

    @property
    def stack(self) -> tuple[str, ...]:
        """The folders that stand in a worker beneath whatever it does; none of a bank."""
        return tuple(folder for folder, _ in self.adapters) if self.keep == "stack" else ()

    def beside(self, folder: str, passage: Passage) -> Kept:
        """With one more adapter."""
        if self.keep == "stack":
            return replace(self, on_top=folder)
        return replace(self, adapters=(*self.adapters, (folder, (passage,))))

    def routed(self, lm: LanguageModel, queries: Sequence[str]) -> list[int]:
        """Of a bank, the place of each query's adapter; -1: the base's."""
        for folder, passages in self.adapters:
            recall_states(lm, passages, Path(folder))
        owners = [at for at, (_, passages) in enumerate(self.adapters) for _ in passages]
        found = routes_to(lm, [one for _, passages in self.adapters for one in passages], queries, THRESHOLD)
        return [owners[place] if place >= 0 else -1 for place in found]

    def loaded(self, routes: Sequence[int]) -> dict[int, Adapter]:
        """The adapters of those routes."""
        return {route: load_adapter(Path(self.adapters[route][0])) for route in set(routes) if route >= 0}


def kept_by(memory: Memory, state: State | None = None) -> Kept:
    """What a memory's state (the current one) answers with."""
    state = state or memory.state
    places = [memory.folder / "adapters" / slot.folder for slot in state.slots]
    return kept_in(memory.keep, state.slots, places, {entry.id: entry.record for entry in memory.entries()})


def kept_in(keep: str, slots: Sequence[Slot], places: Sequence[Path], records: Mapping[int, dict[str, Any]]) -> Kept:
    """The same of slots whose adapters lie at ``places``."""
    adapters = [
        (str(place), tuple(passage_of(records[entry]) for entry in slot.entries)) for slot, place in zip(slots, places, strict=True)
    ]
    return Kept(keep, tuple(adapters))


def passage_of(record: dict[str, Any]) -> Passage:
    """The passage that an entry's record stores, with its quiz."""
    questions = tuple(
        Question(row["question"], row["answer"], tuple(row["aliases"]), tuple(row["paraphrases"])) for row in record["quiz"]
    )
    return Passage(record["title"], record["text"], questions)


def sit_kept(lm: LanguageModel, exams: Sequence[tuple[KnowledgeTask, Passage]], kept: Kept) -> list[Sitting]:
    """A job: exams as the memory answers them; of a bank each question goes its own way."""
    if kept.keep == "stack":
        return sit(lm, exams, kept.on_top)
    asked = [[query_of(passage, one, task.form) for one in asked_in(task.form, task.asked(passage))] for task, passage in exams]
    routes = iter(kept.routed(lm, [query for own in asked for query in own]))
    found = []
    for (task, passage), own in zip(exams, asked, strict=True):
        ways = [next(routes) for _ in own]

        def answer(places: Sequence[int], task: KnowledgeTask = task, passage: Passage = passage) -> list[tuple[str, float, float]]:
            (sat,) = task.examine(lm, [(0, passage)], 0)
            margins = sat.margins or (0.0,) * len(sat.answers)
            return [(sat.answers[at], sat.log_probabilities[at], margins[at]) for at in places]

        answers, values, margins = zip(*by_route(lm, kept.loaded(ways), ways, answer), strict=True)
        found.append(Sitting(answers, values, margins if task.margins else ()))
    return found


def newest_answers(lm: LanguageModel, task: KnowledgeTask, passage: Passage, kept: Kept) -> list[bool]:
    """A job: whether each question of an exam goes to the newest adapter; in a stack all do."""
    queries = [query_of(passage, one, task.form) for one in asked_in(task.form, task.asked(passage))]
    if kept.keep == "stack":
        return [True] * len(queries)
    return [route == len(kept.adapters) - 1 for route in kept.routed(lm, queries)]


def sample_kept(lm: LanguageModel, kept: Kept) -> dict[str, float]:
    """A job: some general questions and all plain texts, as the memory answers and reads them (``tasks/general``)."""
    if kept.keep == "stack":
        try:
            install(lm, load_adapter(Path(kept.on_top)) if kept.on_top is not None else None)
            return sample(general_items(lm, sampled()), spoken(lm, range(len(load_general()["texts"]))))
        finally:
            install(lm, None)
    return sample(*_routed_general(lm, kept, sampled()))


def general_kept(lm: LanguageModel, kept: Kept) -> General:
    """All of them; a stack must stand."""
    if kept.keep == "stack":
        return sit_general(lm)
    items, text = _routed_general(lm, kept, range(len(general_questions())))
    return General(tuple(answer for answer, _ in items), tuple(value for _, value in items), tuple(text))


def _routed_general(
    lm: LanguageModel, kept: Kept, places: Sequence[int]
) -> tuple[list[tuple[str, float]], list[tuple[float, ...]]]:
    questions, texts = [general_questions()[at] for at in places], load_general()["texts"]
    routes = kept.routed(lm, [*questions, *texts])
    return general_by_route(lm, kept.loaded(routes), routes, places)


@dataclass(frozen=True)
class Answering:
    """A memory that answers.

    Attributes:
        lm: the base, a stack's adapters on it.
        kept: what the state answers with.
    """

    lm: LanguageModel
    kept: Kept

    @contextmanager
    def to(self, query: str) -> Iterator[str]:
        """Installs what answers a question, for a while; yields who that is, in words (empty: the whole memory)."""
        routes = self.kept.routed(self.lm, [query]) if self.kept.keep == "bank" else [-1]
        titles = " and ".join(one.title for one in self.kept.adapters[routes[0]][1]) if routes[0] >= 0 else ""
        base = "the base: nothing that was learnt is like it" if self.kept.keep == "bank" else ""
        try:
            install(self.lm, self.kept.loaded(routes).get(routes[0]))
            yield f"what was learnt about {titles}" if titles else base
        finally:
            install(self.lm, None)


def answering(memory: Memory, device: str = "auto", dtype: str = "auto", model: str | None = None) -> Answering:
    """The base with the memory's current state.

    Args:
        memory: an open memory.
        device, dtype: as in ``load_model``.
        model: load this model instead of the one named in the ledger (the same base under another name).

    Raises:
        MemoryStoreError: the model is not the memory's base.
    """
    lm = load_model(model or memory.base.name, device, dtype)
    memory.check_base(Base(lm.name, lm.fingerprint))
    kept = kept_by(memory)
    install_saved_stack(lm, kept.stack)
    return Answering(lm, kept)


def export(memory: Memory, folder: Path, merged: bool, model: str | None = None) -> None:
    """Writes the current state as one merged model folder, or as one PEFT adapter of summed rank; whole or not at all.

    Args:
        memory: an open memory.
        folder: where to write; must not exist.
        merged: a whole model in the precision of the base's own files, or an adapter.
        model: the memory's base under another name.

    Raises:
        MemoryStoreError: the target exists, the memory is empty, or a bank of several adapters, one has floors, the model isn't the
            memory's base, or the disk is full.
    """
    if folder.exists():
        raise MemoryStoreError(f"{folder}: exists; give a folder that doesn't")
    adapters = [load_adapter(path) for path in memory.adapter_folders()]
    if not adapters:
        raise MemoryStoreError(f"{memory.folder}: nothing learnt yet, so there is nothing to export")
    floors = any(adapter.floors for adapter in adapters)
    together = f"selfedit memory consolidate --memory {memory.folder}{' --set dead_zone=0' if floors else ''}"
    if memory.keep == "bank" and len(adapters) > 1:
        raise MemoryStoreError(
            f"{memory.folder}: its {len(adapters)} adapters are kept apart and make no single model; put them together first: "
            f"{together}"
        )
    if floors:
        raise MemoryStoreError(
            f"{memory.folder}: it was trained with a dead zone, which no sum of weights expresses; ask it by selfedit, or train it "
            f"without one first: {together}"
        )
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
            made = Path(scratch) / "model"
            if merged:
                save_merged(known, adapters, made)
            else:
                save_adapter(summed(adapters), made, known.name)
            shutil.move(made, folder)
    except (OSError, SafetensorError) as error:
        raise MemoryStoreError(f"{folder}: could not be written ({error}); free space and try again") from error
