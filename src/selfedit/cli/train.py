"""``selfedit train``: the outer loop, in which the model learns to write better self-edits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GraderOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    SlotsOption,
    StyleOption,
    WorkBar,
    WorkersOption,
    build_config,
    check_writable,
    err,
    estimates,
    make_grader,
    narrow_table,
    open_run,
    out,
    print_config,
    print_table,
    run_config,
    styles_from,
)
from selfedit.config import LABEL_FREE, ArcTrainConfig, OuterConfig, TrainConfig
from selfedit.errors import DataError
from selfedit.runs import DATA, check_data, first_difference, write_json

if TYPE_CHECKING:
    from selfedit.graders import Grader
    from selfedit.rewards.exams import Exam
    from selfedit.tasks.base import Credit, Task

app = typer.Typer(help="Train the model to write better self-edits.", no_args_is_help=True)


@app.callback()
def _train() -> None:
    """Train the model to write better self-edits."""


@app.command("knowledge")
def knowledge_command(
    data: Annotated[str | None, typer.Option(help="Data sets by commas: almanac, squad, JSON files.")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test, for almanac and squad (or almanac:dev).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds, each with new passages.")] = None,
    passages: Annotated[int | None, typer.Option(help="Passages a round.")] = None,
    edits: Annotated[int | None, typer.Option(help="Self-edits a passage.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Training runs of each self-edit, each with its own seed.")] = None,
    rule: Annotated[str | None, typer.Option(help="best-positive, best, positive, top-fraction, or random.")] = None,
    credit: Annotated[
        str | None, typer.Option(help="Train on selected self-edits (edit), or on rows of their lines that taught (lines).")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="rest-em (SFT on the selected), or dpo (best over worst).")] = None,
    halving: Annotated[bool | None, typer.Option("--halving", help="Further repeats for the better half only.")] = None,
    merge: Annotated[bool | None, typer.Option("--merge", help="Write the last policy as a merged model, RUN/merged, too.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="accuracy, likelihood, mixed; without labels: self-quiz, self-quiz-likelihood, sentences, paraphrases, agreement."
        ),
    ] = None,
    screen: Annotated[
        str | None,
        typer.Option(
            help="Train only what looks best: ridge, gradient, in-context, rubric, length, diversity, coverage, faithfulness."
        ),
    ] = None,
    screened: Annotated[int | None, typer.Option(help="How many self-edits of a passage a screen lets through.")] = None,
    student: Annotated[str | None, typer.Option(help="Whose weights are trained on a self-edit: policy or base.")] = None,
    control_of: Annotated[
        str | None, typer.Option(help="A finished run: its passages and number of rows, drawn at random.")
    ] = None,
    model: ModelOption = None,
    style: StyleOption = None,
    grader: GraderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/train-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: outer.epochs=3, settings.rank=8.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics of all rounds there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Rounds of ReST-EM: write self-edits with the current policy, train on each, sit the exam, keep what helped, train the policy.

    The policy of each round is a PEFT adapter on the base, RUN/round-NN/policy. A stopped run goes on with --run RUN --resume, a
    finished one with more --rounds.

    Example:
        selfedit train knowledge --data almanac --rounds 2 --passages 12 --run runs/first

        selfedit train knowledge --rule random --control-of runs/first --run runs/control

        selfedit train knowledge --reward self-quiz --edits 15 --screen ridge --screened 3
    """
    from selfedit.tasks.knowledge.prompts import check_styles

    flags: dict[str, Any] = {
        "data": tuple(part.strip() for part in data.split(",")) if data else None,
        "split": split,
        "rounds": rounds,
        "contexts": passages,
        "edits": edits,
        "repeats": repeats,
        "rule": rule,
        "reward": reward,
        "screen": screen,
        "screened": screened,
        "credit": credit,
        "algorithm": algorithm,
        "halving": halving,
        "merge": merge,
        "student": student,
        "control_of": control_of,
        "model": model,
        "grader": grader,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
        "edit.styles": styles_from(style),
    }
    resolved = _resolved(TrainConfig, flags, config, sets, run, resume)
    check_styles(list(resolved.edit.styles))
    if screened is not None and not resolved.screen:
        raise DataError(
            "--screened is given, but no --screen looks at what is written; give one of ridge, in-context, gradient, ..."
        )
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_training

        estimates(resolved.model, lambda known: estimate_training(resolved, known))
        return
    from selfedit.rewards.question_free import make_exam
    from selfedit.tasks.knowledge.credit import LineCredit
    from selfedit.tasks.knowledge.data import flat_dataset, load_dataset
    from selfedit.tasks.knowledge.task import KnowledgeTask

    unlabelled = resolved.reward in LABEL_FREE
    loaded = [load_dataset(name, resolved.split) for name in resolved.data]
    contexts = [[passage for passage in passages if passage.questions or unlabelled] for passages in loaded]
    domain = KnowledgeTask(resolved.edit)
    grading = make_grader(resolved.grader, resolved.judge)
    exam = make_exam(resolved.reward, domain, resolved.quiz, resolved.edit)
    _train_on(resolved, domain, contexts, grading, run, resume, workers, json_file, flat_dataset, LineCredit(domain), exam)


@app.command("arc")
def arc_command(
    data: Annotated[str | None, typer.Option(help="By commas: arc-1, arc-2, a task's JSON file, a folder, a file of many.")] = None,
    split: Annotated[str | None, typer.Option(help="paper-train-run, paper-train, train, ... of arc-1 and arc-2.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds, each with new puzzles.")] = None,
    puzzles: Annotated[int | None, typer.Option(help="Puzzles a round.")] = None,
    edits: Annotated[int | None, typer.Option(help="Recipes a puzzle.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Training runs of each recipe, each with its own seed.")] = None,
    rule: Annotated[str | None, typer.Option(help="positive, best-positive, best, top-fraction, or random.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="rest-em (SFT on the selected), or dpo (best over worst).")] = None,
    reward: Annotated[str | None, typer.Option(help="accuracy (1 if all tests are solved), likelihood, or mixed.")] = None,
    student: Annotated[str | None, typer.Option(help="Whose weights are trained on a recipe's items: base or policy.")] = None,
    control_of: Annotated[str | None, typer.Option(help="A finished run: its puzzles and number of rows, drawn at random.")] = None,
    unconstrained: Annotated[
        bool | None, typer.Option("--unconstrained", help="Recipes are written freely and asked for again, as in the paper.")
    ] = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/train-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: edit.most_tokens=10000.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics of all rounds there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Rounds of ReST-EM on puzzles: write recipes, train on each one's items, answer the tests, keep the recipes that solved.

    A recipe says which augmentations are made of a puzzle's examples, which tokens carry loss, how fast and how long is trained.

    Example:
        selfedit train arc --puzzles 8 --edits 8 --run runs/arc
    """
    flags: dict[str, Any] = {
        "data": tuple(part.strip() for part in data.split(",")) if data else None,
        "split": split,
        "rounds": rounds,
        "contexts": puzzles,
        "edits": edits,
        "repeats": repeats,
        "rule": rule,
        "reward": reward,
        "algorithm": algorithm,
        "student": student,
        "control_of": control_of,
        "edit.constrained": False if unconstrained else None,
        "model": model,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
    }
    resolved = _resolved(ArcTrainConfig, flags, config, sets, run, resume)
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_puzzles

        estimates(resolved.model, lambda known: estimate_puzzles(resolved, known, resolved.rounds * resolved.contexts))
        return
    from selfedit.graders.attempts import AttemptsGrader
    from selfedit.lm.load import identify
    from selfedit.tasks.arc.data import as_json, check_solved, load_puzzles
    from selfedit.tasks.arc.task import ArcTask

    loaded = [load_puzzles(name, resolved.split) for name in resolved.data]
    check_solved([puzzle for puzzles in loaded for puzzle in puzzles])
    known, task = identify(resolved.model), ArcTask(resolved.edit, resolved.seed)
    shown = [[puzzle for puzzle in puzzles if task.too_long(known, puzzle) is None] for puzzles in loaded]
    before, after = (sum(map(len, parts)) for parts in (loaded, shown))
    if after < before:
        err.print(f"{before - after} of {before} puzzles are too long for the model and left out", highlight=False)
    _train_on(resolved, task, shown, AttemptsGrader(), run, resume, workers, json_file, as_json)


C = TypeVar("C", bound=OuterConfig)
# What a control may have otherwise than its run: what it is, and what no figure depends on.
OF_A_CONTROL = ("rule", "control_of", "rounds", "merge", "device", "dtype", "slots")


def _resolved(
    kind: type[C], flags: dict[str, Any], config: Path | None, sets: list[str] | None, run: Path | None, resume: bool
) -> C:
    """The settings: of a run that goes on its own, of a control those of the run that it is held against."""
    file = run_config(run, resume, config)
    if flags["control_of"] and not resume:
        if config is not None:
            raise DataError(f"--control-of takes the settings of {flags['control_of']}, all but the rule; leave out --config")
        file = Path(flags["control_of"]) / "run.json"
        flags["rule"] = flags["rule"] or "random"
    resolved = build_config(kind, file, flags, sets or [])
    if resolved.control_of:
        if resolved.rule != "random":
            raise DataError(f"--control-of goes with --rule random, not with {resolved.rule}")
        theirs = build_config(kind, Path(resolved.control_of) / "run.json", {}, [])
        if theirs.algorithm == "dpo":
            raise DataError(
                f"{resolved.control_of}: trained by preferences, which a control at random has none of; name a run of rest-em"
            )
        if other := first_difference(theirs, resolved, OF_A_CONTROL):
            name, before, now = other
            raise DataError(f"{resolved.control_of}: has {name}={before!r}, the control {now!r}; only the rule may differ")
    return resolved


def _train_on(
    resolved: OuterConfig,
    domain: Task,
    contexts: Sequence[Sequence[Any]],
    grading: Grader,
    run: Path | None,
    resume: bool,
    workers: int | None,
    json_file: Path | None,
    stored: Callable[[Sequence[Any]], Any],
    credit: Credit | None = None,
    exam: Exam | None = None,
) -> None:
    """The run itself, whatever the domain; ``stored`` makes what its ``data.json`` keeps of the contexts drawn."""
    from selfedit.executors.local import LocalExecutor, ModelChoice
    from selfedit.outer.draw import check_begun, draw
    from selfedit.outer.loop import train

    folder = run or Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    check_writable(json_file)
    drawn_by_round = draw(resolved, contexts)
    drawn = stored([context for part in drawn_by_round for context in part])

    def check() -> None:
        check_begun(folder, drawn_by_round)
        check_data(folder, drawn, growing=True)

    opened, resolved = open_run(folder, resolved, resume, check)
    write_json(folder / DATA, drawn)
    with WorkBar("{task.description}") as bar:
        task = bar.add_task("loading the model", total=None)
        head, made = "", 0
        steps_before: int | None = None

        def stepped(steps: int) -> None:
            nonlocal made
            made = steps
            if steps_before is not None:
                bar.update(task, completed=made - steps_before)

        def told(event: str, details: dict[str, Any]) -> None:
            nonlocal head, steps_before
            if event == "round":
                head = f"round {details['number']} of {resolved.rounds}"
                bar.reset(task, description=f"{head}: writing", total=details["contexts"])
            elif event == "examined":
                bar.update(task, description=f"{head}: making exams", completed=details["done"], total=details["of"])
            elif event == "undecided":
                for context, reason in details.items():
                    err.print(f"{head}: no decision on {context}: {reason}", highlight=False)
            elif event == "looked":
                bar.update(task, description=f"{head}: screening", completed=details["done"], total=details["of"])
            elif event == "screened":
                err.print(f"{head}: {_screening(resolved, details)}", highlight=False)
            elif event == "wrote":
                bar.update(task, description=f"{head}: writing", completed=details["done"], total=details["of"])
            elif event == "tried":
                bar.update(task, description=f"{head}: trying", completed=details["done"], total=details["of"])
            elif event == "reinforcing":
                steps_before = made
                bar.reset(task, description=f"{head}: training the policy on {details['rows']} rows", total=details["steps"])
            elif event == "reinforced":
                steps_before = None
                err.print(f"{head}: {_line(details)}", highlight=False)

        choice = ModelChoice(resolved.model, resolved.device, resolved.dtype, compiled=resolved.compiled)
        with LocalExecutor(choice, workers, stepped) as executor:
            result = train(resolved, domain, contexts, grading, opened, executor, told, credit, exam)
    if json_file is not None:
        write_json(json_file, result)
    _show(result, folder)


def _screening(config: OuterConfig, found: dict[str, Any]) -> str:
    """What a screen was worth, and what follows."""
    own = found["correlation"][config.screen]
    worth = f"{own['mean']:+.2f} over {own['n']} passages" if own["n"] else "unknown yet"
    rest = f"of the others {config.screened} each are trained" if found["trusted"] else "so all are trained"
    others = ", ".join(
        f"{name} {one['mean']:+.2f}" for name, one in found["correlation"].items() if one["n"] and name != config.screen
    )
    return f"rank correlation with the reward: {config.screen} {worth}; {rest}" + (f" ({others})" if others else "")


def _line(row: dict[str, Any]) -> str:
    chosen = f"{row['selected']} of {row['edits']} self-edits selected"
    reward = row["reward"]
    return f"mean reward {reward['mean']:+.3f} ± {reward['se'] or 0:.3f}, {chosen}" if reward["n"] else chosen


def _show(result: dict[str, Any], folder: Path) -> None:
    """One row a round, how far the reward can be trusted, and what it cost."""
    from selfedit.report.read import Round, RunData
    from selfedit.report.tables import noise_table, retested_table

    rounds = [Round(row["round"], row, []) for row in result["rounds"]]
    run = RunData(folder.name, folder, "train", {}, rounds)
    table = narrow_table()
    for name in ("round", "passages", "usable", "reward", "selected", "their reward", "rows", "tokens", "seconds"):
        table.add_column(name, justify="right")
    for row in result["rounds"]:
        table.add_row(
            str(row["round"]),
            str(row["contexts"]),
            f"{row['usable']}/{row['edits']}",
            _mean(row["reward"]),
            str(row["selected"]),
            _mean(row["reward_selected"]),
            str(row["rows"]),
            f"{row['tokens']:,}",
            f"{row['seconds']:,.0f}",
        )
    out.print(table)
    out.print(
        "reward: gain over the baseline, mean over passages; rows: what the policy was trained on; tokens: labelled, of all "
        "trials; seconds: of all workers together.",
        highlight=False,
    )
    print_table(noise_table(run))
    print_table(retested_table(run))
    total = {name: sum(row[name] for row in result["rounds"]) for name in ("tokens", "seconds")}
    out.print(f"in total: {total['tokens']:,} labelled tokens, {total['seconds']:,.0f} worker-seconds", highlight=False)
    if result["policy"]:
        out.print(f"policy: {result['policy']}", highlight=False, soft_wrap=True)
    else:
        out.print(f"{folder}: no round yet", highlight=False, markup=False)


def _mean(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.3f}" if value["n"] and value["mean"] is not None else "-"
