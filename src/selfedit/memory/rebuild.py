"""Taking back an earlier entry: the later ones are trained again, in order, on what remains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfedit.config import Settings
from selfedit.edits import Document, Message, TrainingPlan
from selfedit.errors import DivergedError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.lm.adapter import save_adapter
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.train_many import Job, train_many
from selfedit.memory.ledger import Base, Memory, Slot


def undo_earlier(memory: Memory, entry: int, progress: Callable[[str], None], model: str | None = None) -> int:
    """Builds a state without ``entry`` while the old one goes on answering, then moves the pointer. Call inside ``writing``.

    Args:
        memory: an open memory.
        entry: what is taken back.
        progress: called with a line for each entry that is trained again.
        model: the memory's base under another name.

    Raises:
        MemoryStoreError: the entry doesn't answer now, or the model is not the memory's base.
        DivergedError: an entry can't be trained again on what remains; the memory is as it was.
    """
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    state = memory.state
    at = next((index for index, slot in enumerate(state.slots) if slot.entry == entry), None)
    if at is None:
        raise MemoryStoreError(f"{memory.folder}: entry {entry} is not active; see: selfedit memory list --memory {memory.folder}")
    records = {e.id: e.record for e in memory.entries()}
    scratch = memory.scratch()
    kept = list(state.slots[:at])
    stack = [memory.folder / "adapters" / slot.folder for slot in kept]
    built = []
    for slot in state.slots[at + 1 :]:
        progress(f"training entry {slot.entry} again: {records[slot.entry]['title']}")
        folder = scratch / f"{slot.entry:04d}-after-{state.id}"
        dtype = records[slot.entry]["config"]["dtype"]
        choice = ModelChoice(known.name, dtype=dtype, stack=tuple(str(path) for path in stack))
        with LocalExecutor(choice, 1) as executor:
            result(executor.submit(train_again, plan_of(records[slot.entry]), str(folder)))
        stack.append(folder)
        built.append((folder, folder.name))
        kept.append(Slot(slot.entry, folder.name))
    memory.replace(f"undo entry {entry}", kept, built)
    return entry


def train_again(lm: LanguageModel, plan: TrainingPlan, folder: str) -> None:
    """A job: trains a stored plan and saves the adapter."""
    rows = tuple(encode_document(lm, document) for document in plan.documents)
    (trained,) = train_many(lm, [Job(rows, plan.settings, plan.seed)], 1)
    if isinstance(trained, DivergedError):
        raise trained
    save_adapter(trained.adapter, Path(folder), lm.name)


def plan_of(record: dict[str, Any]) -> TrainingPlan:
    """The training plan that an entry's record stores."""
    documents = tuple(
        Document(row["text"], None if row["request"] is None else tuple(Message(*turn) for turn in row["request"]))
        for row in record["documents"]
    )
    return TrainingPlan(documents, Settings.model_validate(record["settings"]), int(record["seed"]))
