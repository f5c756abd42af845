"""Training what is stored again: to take an earlier entry back, or to put one fresh adapter in the place of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage, Question
from selfedit.edits import Document, Message, TrainingPlan, in_view
from selfedit.errors import DivergedError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders import Grader
from selfedit.lm.adapter import save_adapter
from selfedit.lm.distil import taught
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.train_many import Job, train_many
from selfedit.marks import mark_sitting
from selfedit.memory.ledger import Base, Memory, Slot
from selfedit.tasks.base import Sitting
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams


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
    at = next((index for index, slot in enumerate(state.slots) if entry in slot.entries), None)
    if at is None:
        raise MemoryStoreError(f"{memory.folder}: entry {entry} is not active; see: selfedit memory list --memory {memory.folder}")
    records = {e.id: e.record for e in memory.entries()}
    scratch = memory.scratch()
    kept = list(state.slots[:at])
    stack = [memory.folder / "adapters" / slot.folder for slot in kept]
    built = []
    for slot in state.slots[at:]:
        remaining = [one for one in slot.entries if one != entry]
        if not remaining:
            continue
        for one in remaining:
            progress(f"training entry {one} again: {records[one]['title']}")
        folder = scratch / f"{remaining[-1]:04d}-after-{state.id}"
        still = {number: records[number] for number in state.entries if number != entry}
        build([records[one] for one in remaining], still, known.name, stack, folder)
        stack.append(folder)
        built.append((folder, folder.name))
        kept.append(Slot(tuple(remaining), folder.name))
    memory.replace(f"undo entry {entry}", kept, built)
    return entry


def consolidate(
    memory: Memory, grader: Grader, progress: Callable[[str], None], budget: float, model: str | None = None
) -> dict[str, Any]:
    """One fresh adapter from the base on all stored self-edits takes the place of all others, if nothing is lost by it.

    The old state answers until the new one is whole. Call inside ``writing``.

    Args:
        memory: an open memory.
        grader: marks the stored exams before and after.
        progress: called with a line for each stage.
        budget: by how much the mean share right over all entries' exams may fall; below that nothing changes.
        model: the memory's base under another name.

    Returns:
        ``{before, after, accepted, entries: [{entry, title, before, after}]}``: shares right.

    Raises:
        MemoryStoreError: fewer than two adapters answer, or the model is not the memory's base.
        DivergedError: the training diverged; the memory is as it was.
    """
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    state = memory.state
    if len(state.slots) < 2:
        raise MemoryStoreError(f"{memory.folder}: {len(state.slots)} adapters answer; there is nothing to put together")
    records = [(entry.id, entry.record) for entry in memory.entries() if entry.id in state.entries]
    progress(f"sitting the exams of {len(records)} entries")
    before = exams(memory.adapter_folders(), known.name, records, grader)
    folder = memory.scratch() / f"consolidated-{state.id}"
    progress(f"training one adapter on {sum(len(record['documents']) for _, record in records)} lessons")
    build([record for _, record in records], {}, known.name, [], folder)
    progress("sitting them again")
    after = exams([folder], known.name, records, grader)
    rows = [
        {"entry": number, "title": record["title"], "before": before[number], "after": after[number]} for number, record in records
    ]
    means = [fmean(values.values()) for values in (before, after)]
    accepted = means[1] >= means[0] - budget
    if accepted:
        memory.replace("consolidate", [Slot(state.entries, folder.name)], [(folder, folder.name)])
    return {"before": means[0], "after": means[1], "accepted": accepted, "entries": rows}


def check(memory: Memory, grader: Grader, model: str | None = None) -> list[dict[str, Any]]:
    """Every active entry's stored exam, sat again: ``{entry, title, n, learnt, now, lost}``, shares right.

    ``learnt``: right at its commit; ``lost``: whether more than one question's worth is gone since.
    """
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    records = [(entry.id, entry.record) for entry in memory.entries() if entry.id in memory.state.entries]
    if not records:
        return []
    now = exams(memory.adapter_folders(), known.name, records, grader)
    rows = []
    for number, record in records:
        learnt = at_commit(record)
        fall = (learnt - now[number]) * len(record["quiz"])
        rows.append(
            {
                "entry": number,
                "title": record["title"],
                "n": len(record["quiz"]),
                "learnt": learnt,
                "now": now[number],
                "lost": fall > 1 + 1e-9,
            }
        )
    return rows


def at_commit(record: dict[str, Any]) -> float:
    """Share of all wordings of an entry's quiz that were right when it was committed: choosing and reporting ones together."""
    marks, passage = record["marks"], passage_of(record)
    chose = [row["chose"] for row in record["quiz"]]
    wordings = [len(question.paraphrases) + 1 for question in passage.questions]
    choosing = sum(count for count, chosen in zip(wordings, chose, strict=True) if chosen)
    reporting = sum(wordings) - choosing
    return float((choosing * marks["choosing"]["after"] + reporting * marks["reporting"]["after"]) / (choosing + reporting))


def exams(stack: Sequence[Path], model: str, records: Sequence[tuple[int, dict[str, Any]]], grader: Grader) -> dict[int, float]:
    """Entry -> share right of its stored exam's wordings, under a stack of adapters."""
    passages = [passage_of(record) for _, record in records]
    choice = ModelChoice(model, dtype=records[0][1]["config"]["dtype"], stack=tuple(str(path) for path in stack))
    with LocalExecutor(choice, 1) as executor:
        sat = result(executor.submit(sit_passages, passages))
    return {
        number: mark_sitting(grader, exam_questions(passage.questions), sitting).accuracy
        for (number, _), passage, sitting in zip(records, passages, sat, strict=True)
    }


def sit_passages(lm: LanguageModel, passages: Sequence[Passage]) -> list[Sitting]:
    """A job: several exams in one batch."""
    return sit_exams(lm, [Paper(passage, tuple(exam_questions(passage.questions)), "titled") for passage in passages])


def build(
    records: Sequence[dict[str, Any]], known: Mapping[int, dict[str, Any]], model: str, stack: Sequence[Path], folder: Path
) -> None:
    """Trains one adapter on the stored plans of some entries, on top of a stack, into a folder.

    Args:
        known: entries whose lessons may be replayed, by number.
    """
    choice = ModelChoice(model, dtype=records[0]["config"]["dtype"], stack=tuple(str(path) for path in stack))
    plans = [plan_of(record, known if len(records) == 1 else {}) for record in records]
    with LocalExecutor(choice, 1) as executor:
        result(executor.submit(train_again, together(plans), str(folder)))


def together(plans: Sequence[TrainingPlan]) -> TrainingPlan:
    """One plan of several: all documents, each with its own passage in view, and the newest one's settings."""
    if len(plans) == 1:
        return plans[0]
    documents = tuple(document for plan in plans for document in plan.documents)
    return TrainingPlan(documents, plans[-1].settings, seeds.derive(plans[-1].seed, "consolidate"))


def train_again(lm: LanguageModel, plan: TrainingPlan, folder: str) -> None:
    """A job: trains a stored plan and saves the adapter."""
    rows = tuple(taught(lm, plan.documents, plan.settings.distil))
    (trained,) = train_many(lm, [Job(rows, plan.settings, plan.seed)], 1)
    if isinstance(trained, DivergedError):
        raise trained
    save_adapter(trained.adapter, Path(folder), lm.name)


def passage_of(record: dict[str, Any]) -> Passage:
    """The passage that an entry's record stores, with its quiz."""
    questions = tuple(
        Question(row["question"], row["answer"], tuple(row["aliases"]), tuple(row["paraphrases"])) for row in record["quiz"]
    )
    return Passage(record["title"], record["text"], questions)


def documents_of(record: dict[str, Any]) -> tuple[Document, ...]:
    """An entry's own lessons, without a view: replayed beside those of another passage they are plain SFT."""
    return tuple(
        Document(row["text"], None if row["request"] is None else tuple(Message(*turn) for turn in row["request"]))
        for row in record["documents"]
    )


def plan_of(record: dict[str, Any], known: Mapping[int, dict[str, Any]]) -> TrainingPlan:
    """The training plan that an entry's record stores: its own lessons, and the replayed ones of entries that are still known.

    As when it was learnt, its passage is in view of its own lessons only.
    """
    replayed = [documents_of(known[entry])[at] for entry, at in record.get("replayed", ()) if entry in known]
    own = in_view(documents_of(record), Passage(record["title"], record["text"]).view)
    return TrainingPlan((*own, *replayed), Settings.model_validate(record["settings"]), int(record["seed"]))
