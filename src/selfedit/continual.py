"""``selfedit continual``: one passage after the other into the same model; what is still known after each commit (paper section 5).

A run has sequences of passages. Each method goes through each sequence; after a commit all passages so far are examined again.
The unit of work is one commit: a sequence goes on where it stopped, from the adapters in its folder.

Departures from the paper, and (4) from what was planned: (1) retention counts only questions that the model got wrong before the
first edit, and where a method decides by questions only those that it doesn't see, and leaves out each sequence's last passage
(``matrix.py``); (2) the self-edits are written once, by the base or by a policy, and are the same for all methods; (3) a sequence
may have passages of one article; (4) sequences run side by side in worker processes, not as slots of one pass: slots share what
stands beneath them, and there each sequence has adapters of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfedit import seeds
from selfedit.config import ContinualConfig
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import DataError, InvalidEditError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders import Grader
from selfedit.keepers import keeper
from selfedit.keepers.base import Cost, Held, Keeper, Lesson, Method
from selfedit.lm.adapter import Adapter, load_adapter, policy_standing, save_adapter
from selfedit.lm.load import Identity, LanguageModel, identify
from selfedit.matrix import BASE_METHOD, FORMS, shown, table
from selfedit.runs import Log, Policy, Run, policy_of, write_json
from selfedit.samplers.local import write_edits
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.general.jobs import prepare
from selfedit.tasks.knowledge.prompts import STYLES, parts_of
from selfedit.tasks.knowledge.task import KnowledgeTask


def continual(
    config: ContinualConfig,
    passages: Sequence[Passage],
    grader: Grader,
    run: Run,
    workers: int | None,
    told: Callable[[int, int], None],
    so_far: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Runs what is missing of a run and returns its table.

    Args:
        config: methods, sequences, settings.
        passages: with their questions; sequences are drawn from them.
        grader: marks in this process.
        run: the run's folder; finished commits are not done again.
        workers: processes; a commit is one job, sequences go side by side.
        told: called with the number of commits and baselines done, and of all.
        so_far: called with the table of what is whole each time that a method has gone through a sequence.

    Raises:
        DataError: too few passages, an unknown method, a run of other passages or of another writer.
    """
    check(config)
    drawn = sequences(config, passages)
    policy = policy_of(config.writer, identify(config.model).fingerprint)
    others = elsewhere(config, drawn, passages)
    edits_log = check_run(run, drawn, others, policy)
    total = config.sequences * (1 + len(config.methods) * config.passages)
    told(len(run.rows), total)
    choice = ModelChoice(config.model, config.device, config.dtype)
    with LocalExecutor(choice, workers) as executor:
        if len(run.rows) < total:
            # Made once, so that no commit's time has it.
            ways = [keeper(method, config.keep) for method in config.methods]
            trained = [way.settings(config.settings) for way in ways if way.trains]
            result(executor.submit(prepare, trained, bool(config.keep.sleep_share)))
        edits = _written(executor, config, [passage for sequence in drawn for passage in sequence], edits_log, policy)
        done = {(row["method"], row["sequence"], row["step"]) for row in run.rows}
        waiting: dict[Future[Any], tuple[str, int]] = {}

        def next_step(method: str, at: int) -> None:
            steps = [0] if method == BASE_METHOD else range(1, config.passages + 1)
            step = next((step for step in steps if (method, at, step) not in done), None)
            if step is None:
                shutil.rmtree(_states(run, method, at), ignore_errors=True)
                return
            own = {passage.id: edits[passage.id] for passage in drawn[at]}
            lease = Commit(config, method, at, step, tuple(drawn[at]), others, str(_states(run, method, at)), own)
            waiting[executor.submit(commit if step else examine_base, lease)] = (method, at)

        # A few sequences at a time, one after the other through all methods: what a stopped run has is whole.
        chains = iter([(method, at) for at in range(config.sequences) for method in (BASE_METHOD, *config.methods)])

        def more() -> None:
            while len(waiting) < max(1, executor.workers) and (chain := next(chains, None)):
                next_step(*chain)

        more()
        while waiting:
            ended = wait(waiting, return_when=FIRST_COMPLETED).done if workers != 0 else {next(iter(waiting))}
            for job in ended:
                method, at = waiting.pop(job)
                row = result(job)
                run.append(row | {"policy": policy.digest})
                done.add((method, at, row["step"]))
                told(len(run.rows), total)
                if row["step"] == config.passages:
                    so_far(table(config, drawn, asked_elsewhere(others), run.rows, grader))
                next_step(method, at)
            more()
    return table(config, drawn, asked_elsewhere(others), run.rows, grader)


def check(config: ContinualConfig) -> None:
    """Raises DataError for a method that makes no sense, and for a style whose self-edits name settings."""
    for method in config.methods:
        keeper(method, config.keep)
    for style in config.edit.styles:
        if any(STYLES[part].settings in ("own", "random") for part in parts_of(style) if part in STYLES):
            raise DataError(
                f"style {style}: its self-edits name settings of their own, and ways of keeping train all lessons alike; give "
                "--style notes+fixed-settings or another one"
            )


def check_run(run: Run, drawn: Sequence[Sequence[Passage]], others: Sequence[Passage], policy: Policy) -> Log:
    """The self-edits that a run has already; sequences whose state is gone lose their rows, so that they are done again.

    Raises:
        DataError: the run's rows are of other passages, or of another writer.
    """
    file = run.folder / "sequences.json"
    ids = {
        "sequences": [[passage.id for passage in sequence] for sequence in drawn],
        "elsewhere": [[passage.id, passage.questions[0].question] for passage in others],
        # An exam that has been sat is marked by these.
        "questions": {
            passage.id: [[*one.golds, one.question, *one.paraphrases] for one in passage.questions]
            for passage in (*(one for sequence in drawn for one in sequence), *others)
        },
    }
    if not file.is_file():
        write_json(file, ids)
    elif _read(file) != ids:
        raise DataError(
            f"{run.folder}: was made with other passages or other questions; bring the data back, or give another --run"
        )
    written = Log(run.folder / "edits.jsonl")
    for log in (written, run.log):
        log.check_policy(policy.digest)
    last: dict[tuple[str, int], int] = {}
    for row in run.rows:
        key = row["method"], row["sequence"]
        last[key] = max(last.get(key, 0), row["step"])
    lost = {
        (method, at)
        for (method, at), step in last.items()
        if 0 < step < len(drawn[at]) and not (_states(run, method, at) / f"{step:03d}" / "held.json").is_file()
    }
    run.log.only(lambda row: (row["method"], row["sequence"]) not in lost)
    return written


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read ({error}); bring it back, or give another --run") from error


def _states(run: Run, method: str, at: int) -> Path:
    return run.folder / "states" / f"{method}-{at + 1:02d}"


def _written(
    executor: LocalExecutor, config: ContinualConfig, passages: Sequence[Passage], log: Log, policy: Policy
) -> dict[str, list[str]]:
    """Passage id -> self-edits; those that are missing are written now."""
    edits = {row["passage"]: row["edits"] for row in log.rows}
    jobs = {executor.submit(write, one, config, policy.folder): one for one in passages if one.id not in edits}
    for job in executor.ended(list(jobs)):
        passage = jobs[job]
        edits[passage.id] = result(job)
        log.append({"passage": passage.id, "policy": policy.digest, "edits": edits[passage.id]})
    return edits


def sequences(config: ContinualConfig, passages: Sequence[Passage]) -> list[list[Passage]]:
    """Disjoint sequences; in the first ``related`` share of them two passages have one title, in the others none if that can be.

    Raises:
        DataError: too few passages; no such run as ``config.without`` names.
    """
    needed = config.sequences * config.passages
    left_out = passages_of_run(Path(config.without)) if config.without else set()
    usable = [passage for passage in passages if passage.questions and passage.id not in left_out]
    if len(usable) < needed:
        raise DataError(
            f"{config.sequences} sequences of {config.passages} need {needed} passages with questions, and "
            f"{', '.join(config.data)} has {len(usable)}{' without those of ' + config.without if left_out else ''}; "
            "give fewer, or more data"
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
    # In turn, so that no sequence has the rare titles for itself.
    while short := [own for own in found if len(own) < config.passages]:
        for own in short:
            titles = {passage.title for passage in own}
            own.append(rest.pop(next((at for at, passage in enumerate(rest) if passage.title not in titles), 0)))
    for own in found:
        own.sort(key=lambda passage: seeds.derive(config.seed, "order", passage.id))
    return found


def passages_of_run(run: Path) -> set[str]:
    """The ids of what a run's sequences hold.

    Raises:
        DataError: no such run.
    """
    try:
        listed = json.loads((run / "sequences.json").read_text(encoding="utf-8"))["sequences"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{run}: no run of selfedit continual ({error}); give --set without= the folder of one") from error
    return {passage for sequence in listed for passage in sequence}


def elsewhere(config: ContinualConfig, drawn: Sequence[Sequence[Passage]], passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """``config.locality`` questions about passages with titles of no sequence, each with its passage; the same in the whole run."""
    taken = {passage.title for sequence in drawn for passage in sequence}
    pairs = [(passage, one) for passage in passages if passage.title not in taken for one in passage.questions]
    pairs.sort(key=lambda pair: seeds.derive(config.seed, "elsewhere", pair[0].id, pair[1].question))
    return tuple(replace(passage, questions=(replace(one, paraphrases=()),)) for passage, one in pairs[: config.locality])


def asked_elsewhere(others: Sequence[Passage]) -> list[Asked]:
    """Their questions as one exam."""
    return [Asked(passage.questions[0], group, paraphrase=False) for group, passage in enumerate(others)]


def write(lm: LanguageModel, passage: Passage, config: ContinualConfig, policy: str | None) -> list[str]:
    """A job: a passage's self-edits, by the base or a policy."""
    with policy_standing(lm, policy):
        written = write_edits(lm, KnowledgeTask(config.edit), passage, config.edits, config.edit.sampling, config.seed)
    return [one.edit.text for one in written]


@dataclass(frozen=True)
class Commit:
    """A job's lease: step 0 examines the base on the whole sequence, step r commits the r-th passage and examines all up to it.

    Attributes:
        others: what is asked about passages of no sequence.
        state: folder of the sequence's states, one a step.
        edits: passage id -> self-edits.
    """

    config: ContinualConfig
    method: str
    sequence: int
    step: int
    passages: tuple[Passage, ...]
    others: tuple[Passage, ...]
    state: str
    edits: dict[str, list[str]]


def examine_base(lm: LanguageModel, lease: Commit) -> dict[str, Any]:
    """A job: a sequence's exams before the first commit, with title and without; once a run also what lies beyond the sequences."""
    base = Method(BASE_METHOD, (Keeper(),))
    row: dict[str, Any] = {"method": BASE_METHOD, "sequence": lease.sequence, "step": 0}
    for name, form in FORMS.items():
        row[name] = _sat(lease.passages, base.examine(lm, Held(), lease.passages, form)[0])
    return row | (_beyond(lm, base, Held(), lease) if not lease.sequence else {})


def commit(lm: LanguageModel, lease: Commit) -> dict[str, Any]:
    """A job: one commit of one sequence, with the exam after it; leaves its state in a folder of its own.

    The newest passage is examined after each commit, with its title and without; all so far after every ``exam_every``-th and,
    also without titles, after the last, which asks what lies beyond the sequence too. Where the commit sets off a consolidation
    the row's ``own`` has the newest passage's exams before it. A passage none of whose self-edits compiles is not accepted, but by
    a method that trains nothing.
    """
    config, step = lease.config, lease.step
    method = keeper(lease.method, config.keep)
    states = Path(lease.state)
    before, origins = load_held(states / f"{step - 1:03d}", lm, lease) if step > 1 else (Held(), {})
    passage = lease.passages[step - 1]
    lesson, reason = lesson_of(lm, passage, lease)
    start = time.perf_counter()
    learnt, cost, accepted = before, Cost(reason=reason), False
    held = learnt
    if lesson is not None:
        seed = seeds.derive(config.seed, lease.sequence, passage.id, "train")
        learnt, cost, accepted = method.learn(lm, before, lesson, config.settings, seed)
        held = method.settle(lm, learnt, config.settings, seed, cost) if accepted else learnt
    try:
        save_held(states / f"{step:03d}", held, origins, lm.name)
    except (OSError, shutil.Error) as error:
        raise DataError(f"{states}: the commit can't be kept ({error}); free space, and go on with --resume") from error
    shutil.rmtree(states / f"{step - 2:03d}", ignore_errors=True)
    old = {id(adapter) for adapter in before.adapters}
    row: dict[str, Any] = {
        "method": lease.method,
        "sequence": lease.sequence,
        "step": step,
        "accepted": accepted,
        "reason": cost.reason,
        "tokens": cost.tokens,
        "seconds": round(time.perf_counter() - start, 2),
        "commit_bytes": sum(_bytes(adapter) for adapter in held.adapters if id(adapter) not in old),
        "state_bytes": sum(_bytes(adapter) for adapter in held.adapters),
        "notes": cost.notes,
        "happened": sorted(cost.happened),
    }
    if held.adapters is not learnt.adapters:
        row["own"] = {name: _sat((passage,), method.examine(lm, learnt, (passage,), form)[0]) for name, form in FORMS.items()}
    last = step == len(lease.passages)
    asked = lease.passages[:step] if last or step % config.exam_every == 0 else (passage,)
    sat, asking = method.examine(lm, held, asked)
    row |= {"sittings": _sat(asked, sat), "answering": asking.notes}
    untitled = asked if last else (passage,)
    sat, asking = method.examine(lm, held, untitled, "bare")
    row |= {"bare": _sat(untitled, sat), "answering_bare": asking.notes}
    return row | _beyond(lm, method, held, lease) if last else row


def _beyond(lm: LanguageModel, method: Method, held: Held, lease: Commit) -> dict[str, Any]:
    """General knowledge, and the questions about passages of no sequence as one sitting; None: it can't be measured."""
    sat_general, asking = method.general(lm, held)
    found: dict[str, Any] = {"general": sat_general and asdict(sat_general), "answering_general": asking.notes}
    if lease.others:
        sat = method.elsewhere(lm, held, lease.others)
        found["elsewhere"] = sat and {name: [getattr(one, name)[0] for one in sat] for name in ("answers", "log_probabilities")}
    return found


def _sat(passages: Sequence[Passage], sittings: Sequence[Sitting]) -> dict[str, Any]:
    """By passage; of log-probabilities so many digits as anything is told by."""
    return {
        passage.id: {
            "answers": list(one.answers),
            "log_probabilities": [round(value, 5) for value in one.log_probabilities],
            "margins": [round(value, 5) for value in one.margins],
        }
        for passage, one in zip(passages, sittings, strict=True)
    }


def _bytes(adapter: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.parameters)


def lesson_of(lm: Identity, passage: Passage, lease: Commit) -> tuple[Lesson | None, str]:
    """A passage with its compiled self-edits; those that can't be compiled are left out.

    None, and why, if none of them can; a method that trains nothing needs none, and has the passage all the same.
    """
    config, found, reasons = lease.config, [], []
    task = KnowledgeTask(config.edit)
    for text in lease.edits[passage.id]:
        try:
            found.append(task.compile(lm, passage, text, config.settings, 0).documents)
        except InvalidEditError as error:
            reasons.append(str(error))
    if not found and keeper(lease.method, config.keep).trains:
        return None, f"no self-edit can be trained on ({'; '.join(reasons)}); --set edits=2 writes two"
    return Lesson(passage, tuple(found) or ((),), shown(config, passage)), ""


def save_held(folder: Path, held: Held, origins: dict[int, Path], model: str) -> None:
    """Writes a state, whole or not at all; adapters that are on the disk already are linked."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for at, adapter in enumerate(held.adapters):
        own = scratch / f"{at:03d}"
        if id(adapter) in origins:
            shutil.copytree(origins[id(adapter)], own, copy_function=_linked)
        elif adapter.weights:
            save_adapter(adapter, own, model)
        else:
            own.mkdir()
    lessons = [
        {
            "passage": lesson.passage.id,
            "documents": [document.stored() for document in lesson.edits[0]],
            "likelihood": lesson.likelihood,
        }
        for lesson in held.lessons
    ]
    (scratch / "held.json").write_text(json.dumps({"lessons": lessons, "pending": held.pending}) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _linked(source: str, target: str) -> None:
    """A hard link; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load_held(folder: Path, lm: LanguageModel, lease: Commit) -> tuple[Held, dict[int, Path]]:
    """A state, and where each of its adapters lies.

    Raises:
        DataError: it can't be read.
    """
    try:
        known = json.loads((folder / "held.json").read_text(encoding="utf-8"))
        places = sorted(path for path in folder.iterdir() if path.is_dir())
        adapters = [load_adapter(path) if any(path.iterdir()) else Adapter({}, 1.0) for path in places]
    except (OSError, ValueError, MemoryStoreError) as error:
        raise DataError(
            f"{folder}: can't be read ({error}); delete {folder.parent}, and --resume begins that sequence again"
        ) from error
    by_id = {passage.id: passage for passage in lease.passages}
    lessons = tuple(
        Lesson(
            by_id[row["passage"]],
            (tuple(Document.restored(document) for document in row["documents"]),),
            shown(lease.config, by_id[row["passage"]]),
            row["likelihood"],
        )
        for row in known["lessons"]
    )
    return Held(tuple(adapters), lessons, known["pending"]), {id(a): path for a, path in zip(adapters, places, strict=True)}
