"""``selfedit continual``: one passage after the other into the same model; what is still known after each commit (paper section 5).

A run has sequences of passages. Each method goes through each sequence; after a commit all passages so far are examined again.
The unit of work is one commit: a sequence goes on where it stopped, from the adapters in its folder.

Departures from the paper: (1) retention counts only questions that the model got wrong before the first edit; (2) the self-edits
are written once, by the base or by a policy, and are the same for all methods; (3) a sequence may have passages of one article.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit import seeds
from selfedit.config import ContinualConfig
from selfedit.contexts import Passage
from selfedit.edits import Document, Message, Prompt
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders import Grader
from selfedit.keepers import keeper
from selfedit.keepers.base import Held, Keeper, Lesson, Method
from selfedit.lm.adapter import Adapter, load_adapter, policy_standing, save_adapter, standing
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.marks import mark_sitting
from selfedit.runs import Log, Run, policy_of
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.base import Sitting
from selfedit.tasks.general import sit_general
from selfedit.tasks.knowledge.exam import exam_questions
from selfedit.tasks.knowledge.task import KnowledgeTask


def continual(
    config: ContinualConfig,
    passages: Sequence[Passage],
    grader: Grader,
    run: Run,
    workers: int | None,
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """Runs what is missing of a run and returns its table.

    Args:
        config: methods, sequences, settings.
        passages: with their questions; sequences are drawn from them.
        grader: marks in this process.
        run: the run's folder; finished commits are not done again.
        workers: processes; a commit is one job, sequences go side by side.
        told: called with the number of commits done, and of all.

    Raises:
        DataError: too few passages, an unknown method, a self-edit that can't be compiled.
    """
    known = identify(config.model)
    for method in config.methods:
        keeper(method, config.keep)
    drawn = sequences(config, passages)
    policy = policy_of(config.writer, known.fingerprint)
    written = Log(run.folder / "edits.jsonl")
    edits = {row["passage"]: row["edits"] for row in written.rows}
    done = {(row["method"], row["sequence"], row["step"]) for row in run.rows}
    total = len(config.methods) * config.sequences * (config.passages + 1)
    told(len(run.rows), total)
    choice = ModelChoice(config.model, config.device, config.dtype)
    with LocalExecutor(choice, workers) as executor:
        flat = {passage.id: passage for sequence in drawn for passage in sequence}
        jobs = {
            executor.submit(write, passage, config, policy.folder): passage for passage in flat.values() if passage.id not in edits
        }
        for job in executor.ended(list(jobs)):
            passage = jobs[job]
            edits[passage.id] = result(job)
            written.append({"passage": passage.id, "policy": policy.digest, "edits": edits[passage.id]})
        waiting: dict[Future[Any], tuple[str, int, int]] = {}

        def submit(method: str, at: int, step: int) -> None:
            state = run.folder / "states" / f"{method}-{at + 1:02d}"
            own = {passage.id: edits[passage.id] for passage in drawn[at]}
            lease = Commit(config, method, at, step, tuple(drawn[at]), str(state), own)
            waiting[executor.submit(commit, lease)] = (method, at, step)

        def next_step(method: str, at: int) -> None:
            step = next((s for s in range(config.passages + 1) if (method, at, s) not in done), None)
            if step is not None:
                submit(method, at, step)
            else:
                shutil.rmtree(run.folder / "states" / f"{method}-{at + 1:02d}", ignore_errors=True)

        for at in range(config.sequences):
            for method in config.methods:
                next_step(method, at)
        while waiting:
            ended = wait(waiting, return_when=FIRST_COMPLETED).done if workers != 0 else {next(iter(waiting))}
            for job in ended:
                method, at, step = waiting.pop(job)
                run.append(result(job))
                done.add((method, at, step))
                told(len(run.rows), total)
                next_step(method, at)
    return table(config, drawn, run.rows, grader)


def sequences(config: ContinualConfig, passages: Sequence[Passage]) -> list[list[Passage]]:
    """Disjoint sequences; in the first ``related`` share of them two passages have one title, where the data have such.

    Raises:
        DataError: too few passages.
    """
    needed = config.sequences * config.passages
    usable = [passage for passage in passages if passage.questions]
    if len(usable) < needed:
        raise DataError(
            f"{config.sequences} sequences of {config.passages} need {needed} passages with questions, and "
            f"{', '.join(config.data)} has {len(usable)}; give fewer, or more data"
        )
    rest = sorted(usable, key=lambda passage: seeds.derive(config.seed, "draw", passage.id))
    found: list[list[Passage]] = [[] for _ in range(config.sequences)]
    for own in found[: round(config.related * config.sequences)]:
        pair = (
            next(([a, b] for i, a in enumerate(rest) for b in rest[i + 1 :] if a.title == b.title), [])
            if config.passages > 1
            else []
        )
        own += pair
        rest = [passage for passage in rest if passage not in pair]
    for own in found:
        while len(own) < config.passages:
            own.append(rest.pop(0))
        own.sort(key=lambda passage: seeds.derive(config.seed, "order", passage.id))
    return found


def write(lm: LanguageModel, passage: Passage, config: ContinualConfig, policy: str | None) -> list[str]:
    """A job: a passage's self-edits, by the base or a policy."""
    with policy_standing(lm, policy):
        written = write_edits(lm, KnowledgeTask(config.edit), passage, config.edits, config.edit.sampling, config.seed)
    return [one.edit.text for one in written]


@dataclass(frozen=True)
class Commit:
    """A job's lease: step 0 examines the base on the whole sequence, step r commits the r-th passage and examines all up to it.

    Attributes:
        state: folder of the sequence's states, one a step.
        edits: passage id -> self-edits.
    """

    config: ContinualConfig
    method: str
    sequence: int
    step: int
    passages: tuple[Passage, ...]
    state: str
    edits: dict[str, list[str]]


def commit(lm: LanguageModel, lease: Commit) -> dict[str, Any]:
    """A job: one commit of one sequence, with the exam after it; leaves its state in a folder of its own."""
    config, step = lease.config, lease.step
    method = keeper(lease.method, config.keep)
    states = Path(lease.state)
    held, origins = load_held(states / f"{step - 1:03d}", lm, lease) if step > 1 else (Held(), {})
    accepted, tokens, notes = True, 0, {}
    start = time.perf_counter()
    if step:
        passage = lease.passages[step - 1]
        seed = seeds.derive(config.seed, lease.sequence, passage.id, "train")
        held, cost, accepted = method.commit(lm, held, lesson_of(lm, passage, lease), config.settings, seed)
        tokens, notes = cost.tokens, cost.notes
        save_held(states / f"{step:03d}", held, origins, lm.name)
        shutil.rmtree(states / f"{step - 2:03d}", ignore_errors=True)
    row: dict[str, Any] = {
        "method": lease.method,
        "sequence": lease.sequence,
        "step": step,
        "accepted": accepted,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - start, 2),
        "bytes": sum(tensor.numel() * 4 for adapter in held.adapters for tensor in adapter.parameters),
        "sittings": {},
    }
    last = step == len(lease.passages)
    if not step or last or step % config.exam_every == 0:
        # Before the first commit every passage of the sequence, by the base alone; then those that were learnt.
        asked = lease.passages[:step] if step else lease.passages
        sat, asking = (method if step else Method("merge", (Keeper(),))).examine(lm, held, asked)
        row["sittings"] = {passage.id: asdict(one) for passage, one in zip(asked, sat, strict=True)}
        notes = notes | asking.notes
    if last or not step:
        with standing(lm, held.adapters):
            row["general"] = sit_general(lm).log_probabilities
    return row | {"notes": notes}


def lesson_of(lm: Identity, passage: Passage, lease: Commit) -> Lesson:
    """A passage with its compiled self-edits; those that can't be compiled are left out.

    Raises:
        DataError: none of them can.
    """
    task, found, reasons = KnowledgeTask(lease.config.edit), [], []
    for text in lease.edits[passage.id]:
        try:
            found.append(task.compile(lm, passage, text, lease.config.settings, 0).documents)
        except InvalidEditError as error:
            reasons.append(str(error))
    if not found:
        raise DataError(
            f"{passage.title}: no self-edit of it can be trained on ({'; '.join(reasons)}); give --edits 2 or another --seed"
        )
    return Lesson(passage, tuple(found))


def save_held(folder: Path, held: Held, origins: dict[int, Path], model: str) -> None:
    """Writes a state, whole or not at all; adapters that are on the disk already are linked."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for at, adapter in enumerate(held.adapters):
        own = scratch / f"{at:03d}"
        if id(adapter) in origins:
            shutil.copytree(origins[id(adapter)], own, copy_function=os.link)
        elif adapter.weights:
            save_adapter(adapter, own, model)
        else:
            own.mkdir()
    lessons = [
        {"passage": lesson.passage.id, "documents": [[d.text, d.request, d.whole] for d in lesson.edits[0]]}
        for lesson in held.lessons
    ]
    (scratch / "held.json").write_text(json.dumps({"lessons": lessons, "pending": held.pending}) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def load_held(folder: Path, lm: LanguageModel, lease: Commit) -> tuple[Held, dict[int, Path]]:
    """A state, and where each of its adapters lies.

    Raises:
        DataError: it isn't there any more.
    """
    if not (folder / "held.json").is_file():
        raise DataError(f"{folder}: the state before step {lease.step} is gone; start a new run")
    known = json.loads((folder / "held.json").read_text(encoding="utf-8"))
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    adapters = [load_adapter(path) if any(path.iterdir()) else Adapter({}, 1.0) for path in places]
    by_id = {passage.id: passage for passage in lease.passages}
    lessons = tuple(
        Lesson(
            by_id[row["passage"]],
            (tuple(Document(text, _prompt(request), whole) for text, request, whole in row["documents"]),),
        )
        for row in known["lessons"]
    )
    return Held(tuple(adapters), lessons, known["pending"]), {id(a): path for a, path in zip(adapters, places, strict=True)}


def _prompt(request: list[Any] | None) -> Prompt | None:
    return None if request is None else tuple(Message(*turn) for turn in request)


def table(
    config: ContinualConfig, drawn: Sequence[Sequence[Passage]], rows: Sequence[dict[str, Any]], grader: Grader
) -> dict[str, Any]:
    """By method: the matrix and what it comes to, means and standard errors over sequences, paired differences to ``merge``.

    ``immediate``: share right just after a passage's own commit; ``retained``: after the last one; both over the questions that
    the base got wrong, as is ``retention``, their ratio. ``forgetting`` is Avalanche's: the mean fall from just after the own
    commit to the end, over all passages but the last. ``general``: change of the gold log-probability of general questions.
    """
    figures: dict[str, list[dict[str, float]]] = {}
    matrices: dict[str, list[list[list[float]]]] = {}
    for method in config.methods:
        figures[method], matrices[method] = [], []
        for at, sequence in enumerate(drawn):
            own = {row["step"]: row for row in rows if row["method"] == method and row["sequence"] == at}
            if len(own) <= len(sequence):
                continue
            found, matrix = _sequence(own, sequence, grader)
            figures[method].append(found)
            matrices[method].append(matrix)
    names = list(dict.fromkeys(name for of in figures.values() for one in of for name in one))
    means = {
        method: {
            name: asdict(mean_and_error(values))
            for name in names
            if (values := [one[name] for one in of if not math.isnan(one.get(name, math.nan))])
        }
        for method, of in figures.items()
    }
    differences = [
        {
            "method": method,
            "control": config.methods[0],
            "measure": name,
            **asdict(paired_difference([one[name] for one in of], [one[name] for one in figures[config.methods[0]]])),
        }
        for method, of in figures.items()
        for name in ("immediate", "retained", "general")
        if method != config.methods[0] and of and len(of) == len(figures[config.methods[0]])
    ]
    return {
        "config": config.model_dump(mode="json"),
        "n": config.sequences,
        "questions": sum(len(exam_questions(passage.questions)) for sequence in drawn for passage in sequence),
        "methods": means,
        "matrix": {method: _over_sequences(of) for method, of in matrices.items()},
        "differences": differences,
    }


def _sequence(
    own: dict[int, dict[str, Any]], sequence: Sequence[Passage], grader: Grader
) -> tuple[dict[str, float], list[list[float]]]:
    """A sequence's figures, and its matrix: a row a step, a column a passage; nan where there was no exam."""
    count = len(sequence)
    verdicts: dict[tuple[int, int], list[bool]] = {}
    for step, row in own.items():
        for column, passage in enumerate(sequence):
            if passage.id in row["sittings"]:
                sat = Sitting(**{name: tuple(row["sittings"][passage.id][name]) for name in ("answers", "log_probabilities")})
                marks = mark_sitting(grader, exam_questions(passage.questions), sat)
                verdicts[step, column] = [verdict.correct for verdict in marks.verdicts]
    wrong = {column: [not right for right in verdicts[0, column]] for column in range(count)}

    def share(step: int, column: int, counted: Sequence[bool]) -> float:
        hits = [float(right) for right, counts in zip(verdicts[step, column], counted, strict=True) if counts]
        return fmean(hits) if hits else math.nan

    every = {column: [True] * len(wrong[column]) for column in wrong}
    # Where not every step is examined, the first exam after the own commit stands for it.
    first = {column: min(step for step, c in verdicts if c == column and step > column) for column in range(count)}
    immediate = [share(first[column], column, wrong[column]) for column in range(count)]
    retained = [share(count, column, wrong[column]) for column in range(count)]
    falls = [share(first[c], c, every[c]) - share(count, c, every[c]) for c in range(count - 1)]
    notes: dict[str, list[float]] = defaultdict(list)
    for row in own.values():
        for name, value in row["notes"].items():
            notes[name].append(value)
    steps = [row for step, row in own.items() if step]
    general = [after - before for after, before in zip(own[count]["general"], own[0]["general"], strict=True)]
    figures = {
        "before": _mean([share(0, column, every[column]) for column in range(count)]),
        "immediate": _mean(immediate),
        "retained": _mean(retained),
        "retention": _mean(retained) / _mean(immediate) if _mean(immediate) else math.nan,
        "forgetting": _mean(falls),
        "all_after": _mean([share(count, column, every[column]) for column in range(count)]),
        "general": fmean(general),
        "accepted": fmean(float(row["accepted"]) for row in steps),
        "tokens": fmean(row["tokens"] for row in steps),
        "seconds": fmean(row["seconds"] for row in steps),
        "bytes": fmean(row["bytes"] for row in steps),
    }
    figures |= {name: fmean(values) for name, values in notes.items()}
    matrix = [
        [share(step, column, every[column]) if (step, column) in verdicts else math.nan for column in range(count)]
        for step in range(count + 1)
    ]
    return figures, matrix


def _over_sequences(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[dict[str, Any] | None]]:
    """Each cell's mean over sequences; None where there was no exam."""
    found: list[list[dict[str, Any] | None]] = []
    for step in range(len(matrices[0]) if matrices else 0):
        columns = [[m[step][column] for m in matrices if not math.isnan(m[step][column])] for column in range(len(matrices[0][0]))]
        found.append([asdict(mean_and_error(values)) if values else None for values in columns])
    return found


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return fmean(there) if there else math.nan
