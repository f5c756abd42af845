"""Training what is stored again: to take an earlier entry back, or to put one fresh adapter in the place of many."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.edits import Document, TrainingPlan, in_view
from selfedit.errors import DivergedError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders import Grader
from selfedit.keepers.routes import keep_states
from selfedit.lm.adapter import save_adapter
from selfedit.lm.load import LanguageModel, identify
from selfedit.lm.train_many import train_many
from selfedit.marks import mark_sitting
from selfedit.memory.compose import Kept, kept_by, kept_in, passage_of, sit_kept
from selfedit.memory.ledger import Base, Memory, Slot
from selfedit.tasks.base import Sitting
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.knowledge.exam import exam_questions
from selfedit.tasks.knowledge.task import KnowledgeTask

# Who marks an entry's stored exam, by its record.
Graders = Callable[[dict[str, Any]], Grader]


def undo_earlier(
    memory: Memory, entry: int, graders: Graders, progress: Callable[[str], None], model: str | None = None
) -> list[dict[str, Any]]:
    """Builds a state without ``entry`` while the old one goes on answering, then moves the pointer. Call inside ``writing``.

    In a stack all later adapters are trained again on what remains; in a bank at most the entry's own, if it holds others too.

    Args:
        memory: an open memory.
        entry: what is taken back.
        graders: who marks the exams, before and after.
        progress: called with a line for each entry that is trained again.
        model: the memory's base under another name.

    Returns:
        All entries with their stored exams under the old state and under the new one, the one taken back among them, of which
        the new one should know no more than the base: ``[{entry, title, n, before, after, undone}]``; None where an adapter of
        the state can't be read.

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
    examined = {number: records[number] for number in state.entries}
    still = {number: record for number, record in examined.items() if number != entry}

    def sat(kept: Callable[[], Kept]) -> Mapping[int, float | None]:
        # To take a damaged adapter out is the remedy, so it must need neither that adapter nor another damaged one.
        try:
            return exams(kept(), known.name, examined, graders)
        except MemoryStoreError as error:
            progress(f"what is right can't be told: {error}")
            return dict.fromkeys(examined)

    before = sat(lambda: kept_by(memory, state))
    scratch = memory.scratch()
    try:
        bank = memory.keep == "bank"
        kept = list(state.slots[:at])
        places = [memory.folder / "adapters" / slot.folder for slot in kept]
        built = []
        for slot in state.slots[at:]:
            remaining = [one for one in slot.entries if one != entry]
            if not remaining:
                continue
            if bank and len(remaining) == len(slot.entries):
                places.append(memory.folder / "adapters" / slot.folder)
                kept.append(slot)
                continue
            for one in remaining:
                progress(f"training entry {one} again: {records[one]['title']}")
            folder = scratch / f"{remaining[-1]:04d}-after-{state.id}"
            below = [] if bank else places
            build([records[one] for one in remaining], still, known.name, below, folder, memory.keep, slot.changed)
            places.append(folder)
            built.append((folder, folder.name))
            kept.append(Slot(tuple(remaining), folder.name, slot.changed))
        after = sat(lambda: kept_in(memory.keep, kept, places, still))
        memory.replace(f"undo entry {entry}", kept, built)
        return [row | {"undone": row["entry"] == entry} for row in _beside(examined, before, after)]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def consolidate(
    memory: Memory,
    graders: Graders,
    progress: Callable[[str], None],
    budget: float,
    model: str | None = None,
    changed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One fresh adapter from the base on all stored self-edits takes the place of all others, if little is lost by it.

    It does if the mean share right over all entries' exams falls by no more than ``budget``, and no single entry loses more than
    one question, or all that it had. The old state answers until the new one is whole. Call inside ``writing``.

    Args:
        memory: an open memory.
        graders: who marks the stored exams before and after.
        progress: called with a line for each stage.
        budget: by how much the mean share right may fall, in [0, 1]; 1 asks nothing of the single entries either.
        model: the memory's base under another name.
        changed: settings of the training that are to be other than the newest entry's.

    Returns:
        ``{before, after, accepted, entries: [{entry, title, n, before, after}]}``: shares right.

    Raises:
        MemoryStoreError: fewer than two adapters answer (one with ``changed``), or the model is not the memory's base.
        DivergedError: the training diverged; the memory is as it was.
    """
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    state = memory.state
    if len(state.slots) < (1 if changed else 2):
        raise MemoryStoreError(
            f"{memory.folder}: {len(state.slots)} adapters answer; there is nothing to put together"
            f"{', nor is another setting given' if state.slots else ''}"
        )
    records = {entry.id: entry.record for entry in memory.entries() if entry.id in state.entries}
    progress(f"sitting the exams of {len(records)} entries")
    before = exams(kept_by(memory, state), known.name, records, graders)
    scratch = memory.scratch()
    try:
        folder = scratch / f"consolidated-{state.id}"
        progress(f"training one adapter on {sum(len(record['documents']) for record in records.values())} lessons")
        build(list(records.values()), {}, known.name, [], folder, memory.keep, changed or {})
        progress("sitting them again")
        slot = Slot(state.entries, folder.name, dict(changed or {}))
        after = exams(kept_in(memory.keep, [slot], [folder], records), known.name, records, graders)
        rows = _beside(records, before, after)
        means = [fmean(values.values()) for values in (before, after)]
        spared = budget >= 1 or not any(is_lost(row["before"], row["after"], row["n"]) for row in rows)
        accepted = spared and means[1] >= means[0] - budget - 1e-9
        if accepted:
            memory.replace("consolidate", [slot], [(folder, folder.name)])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"before": means[0], "after": means[1], "accepted": accepted, "entries": rows}


def is_lost(before: float, after: float, questions: int) -> bool:
    """Whether the share right of so many questions has fallen by more than one question's worth, or to nothing."""
    return before > 0 and (not after or (before - after) * questions > 1 + 1e-9)


def _beside(
    records: Mapping[int, dict[str, Any]], before: Mapping[int, float | None], after: Mapping[int, float | None]
) -> list[dict[str, Any]]:
    return [
        {"entry": number, "title": of["title"], "n": len(of["quiz"]), "before": before[number], "after": after[number]}
        for number, of in records.items()
    ]


def check(memory: Memory, graders: Graders, model: str | None = None) -> list[dict[str, Any]]:
    """Every active entry's stored exam, sat again: ``{entry, title, n, learnt, now, lost}``, shares right.

    ``learnt``: right at its commit; ``lost``: whether more than one question's worth is gone since, or nothing is left.
    """
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    state = memory.state
    records = {entry.id: entry.record for entry in memory.entries() if entry.id in state.entries}
    now = exams(kept_by(memory, state), known.name, records, graders)
    rows = []
    for number, record in records.items():
        learnt = at_commit(record)
        rows.append(
            {
                "entry": number,
                "title": record["title"],
                "n": len(record["quiz"]),
                "learnt": learnt,
                "now": now[number],
                "lost": is_lost(learnt, now[number], len(record["quiz"])),
            }
        )
    return rows


def at_commit(record: dict[str, Any]) -> float:
    """Share of all wordings of an entry's quiz that what was committed got right: choosing and reporting ones together."""
    marks, passage = record["marks"], passage_of(record)
    chose = [row["chose"] for row in record["quiz"]]
    wordings = [len(question.paraphrases) + 1 for question in passage.questions]
    choosing = sum(count for count, chosen in zip(wordings, chose, strict=True) if chosen)
    reporting = sum(wordings) - choosing
    return float((choosing * marks["choosing"]["committed"] + reporting * marks["reporting"]["after"]) / (choosing + reporting))


def exams(kept: Kept, model: str, records: Mapping[int, dict[str, Any]], graders: Graders) -> dict[int, float]:
    """Entry -> share right of its stored exam's wordings, as a state answers them."""
    if not records:
        return {}
    passages = [passage_of(record) for record in records.values()]
    dtype = next(iter(records.values()))["config"]["dtype"]
    with LocalExecutor(ModelChoice(model, dtype=dtype, stack=kept.stack), 1) as executor:
        sat = result(executor.submit(sit_kept, [(KnowledgeTask(), passage) for passage in passages], kept))
    return {
        number: _share_right(graders(record), record, passage, sitting)
        for (number, record), passage, sitting in zip(records.items(), passages, sat, strict=True)
    }


def _share_right(grader: Grader, record: dict[str, Any], passage: Passage, sitting: Sitting) -> float:
    """Marked as at the commit: choosing and reporting questions each by themselves."""
    asked = exam_questions(passage.questions)
    right = 0.0
    for chosen in (True, False):
        own = [at for at, one in enumerate(asked) if record["quiz"][one.group]["chose"] == chosen]
        if own:
            part = Sitting(tuple(sitting.answers[at] for at in own), tuple(sitting.log_probabilities[at] for at in own))
            right += len(own) * mark_sitting(grader, [asked[at] for at in own], part).accuracy
    return right / len(asked)


def build(
    records: Sequence[dict[str, Any]],
    known: Mapping[int, dict[str, Any]],
    model: str,
    stack: Sequence[Path],
    folder: Path,
    keep: str,
    changed: Mapping[str, Any],
) -> None:
    """Trains one adapter on the stored plans of some entries, on top of a stack, into a folder.

    Args:
        known: entries whose lessons may be replayed, by number.
        keep: the kind of memory.
        changed: settings of a consolidation that are other than the newest entry's.
    """
    choice = ModelChoice(model, dtype=records[0]["config"]["dtype"], stack=tuple(str(path) for path in stack))
    plans = [plan_of(record, known if len(records) == 1 else {}) for record in records]
    with LocalExecutor(choice, 1) as executor:
        result(executor.submit(train_again, together(plans, changed), str(folder)))
        if keep == "bank":
            result(executor.submit(keep_states, [passage_of(record) for record in records], str(folder)))


def together(plans: Sequence[TrainingPlan], changed: Mapping[str, Any]) -> TrainingPlan:
    """One plan of several: all documents, each with its own passage in view; the newest one's settings, but for those changed."""
    if len(plans) == 1 and not changed:
        return plans[0]
    settings = Settings.model_validate(plans[-1].settings.model_dump() | dict(changed))
    documents = tuple(document for plan in plans for document in plan.documents)
    return TrainingPlan(documents, settings, seeds.derive(plans[-1].seed, "consolidate"))


def train_again(lm: LanguageModel, plan: TrainingPlan, folder: str) -> None:
    """A job: trains a stored plan and saves the adapter."""
    (trained,) = train_many(lm, jobs_of(lm, [plan]), 1)
    if isinstance(trained, DivergedError):
        raise trained
    save_adapter(trained.adapter, Path(folder), lm.name)


def documents_of(record: dict[str, Any]) -> tuple[Document, ...]:
    """An entry's own lessons, without a view: replayed beside those of another passage they are plain SFT."""
    return tuple(Document.restored(row) for row in record["documents"])


def plan_of(record: dict[str, Any], known: Mapping[int, dict[str, Any]]) -> TrainingPlan:
    """The training plan that an entry's record stores: its own lessons, and the replayed ones of entries that are still known.

    As when it was learnt, its passage is in view of its own lessons only.
    """
    replayed = [documents_of(known[entry])[at] for entry, at in record.get("replayed", ()) if entry in known]
    own = in_view(documents_of(record), Passage(record["title"], record["text"]).view)
    return TrainingPlan((*own, *replayed), Settings.model_validate(record["settings"]), int(record["seed"]))
