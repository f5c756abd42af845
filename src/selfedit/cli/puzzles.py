"""``selfedit eval arc`` and ``selfedit solve``: puzzles."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    SlotsOption,
    WorkBar,
    WorkersOption,
    build_config,
    check_writable,
    err,
    estimates,
    open_run,
    out,
    print_config,
    run_config,
)
from selfedit.cli.evaluate import interval_cells, mean_cell, method_table, print_cost
from selfedit.config import ArcEvalConfig, ArcTrainConfig
from selfedit.contexts import Rows
from selfedit.errors import DataError
from selfedit.runs import first_difference, keep_data, write_json


def eval_arc_command(
    data: Annotated[str | None, typer.Option(help="arc-1, arc-2, a task's JSON file, a folder, a file of many.")] = None,
    split: Annotated[str | None, typer.Option(help="paper-eval-run, paper-eval, evaluation, ... of arc-1 and arc-2.")] = None,
    methods: Annotated[str | None, typer.Option(help="By commas; they stand below.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--n", min=0, help="The first so many puzzles; 0: all.")] = None,
    edits: Annotated[int | None, typer.Option(help="Recipes a puzzle of each method; averaged, never selected.")] = None,
    writer: Annotated[str | None, typer.Option(help="Run of selfedit train arc, or a policy's folder: for seal.")] = None,
    fixed_of: Annotated[str | None, typer.Option(help="Run that best-fixed takes its recipe from; default: the writer's.")] = None,
    unconstrained: Annotated[
        bool | None, typer.Option("--unconstrained", help="Recipes are written freely and asked for again, as in the paper.")
    ] = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/eval-arc-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: edit.orders=2, settings.rank=64.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Ways to come by a recipe for a puzzle, side by side.

    - icl: in context, nothing trained
    - random: a uniform valid recipe
    - ttt: recipes of the untrained model
    - best-fixed: the one recipe that solved most puzzles of a training run, no model in it
    - seal: the trained writer (--writer) writes, and is trained on the items
    - seal-writer: the trained writer writes, the base is trained on the items
    - oracle: a hand-made one; --set oracle=JSON another, or by a puzzle's id

    Example: selfedit eval arc --methods icl,random,ttt,best-fixed,seal,oracle --writer runs/arc
    """
    flags: dict[str, Any] = {
        "data": data,
        "split": split,
        "methods": tuple(part.strip() for part in methods.split(",")) if methods else None,
        "limit": limit,
        "edits": edits,
        "writer": writer,
        "fixed_of": fixed_of,
        "edit.constrained": False if unconstrained else None,
        "model": model,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
    }
    config = run_config(run, resume, config)
    resolved = build_config(ArcEvalConfig, config, flags, sets or [])
    if {"seal", "seal-writer"} & set(resolved.methods) and not resolved.writer:
        raise DataError("seal and seal-writer need a trained writer: give --writer RUN")
    if "best-fixed" in resolved.methods and not (resolved.fixed_of or resolved.writer):
        raise DataError("the method best-fixed needs a run of selfedit train arc: give --fixed-of RUN")
    for name in dict.fromkeys((resolved.writer, resolved.fixed_of)):
        warn_of_others(resolved, name)
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_puzzles
        from selfedit.tasks.arc.data import load_puzzles

        found = len(load_puzzles(resolved.data, resolved.split))
        count = min(found, resolved.limit or found)
        estimates(resolved.model, lambda known: estimate_puzzles(resolved, known, count))
        return
    from selfedit.puzzles.evaluate import evaluate, fixed_recipes
    from selfedit.tasks.arc.data import as_json, check_solved, load_puzzles

    puzzles = load_puzzles(resolved.data, resolved.split)
    puzzles = puzzles[: resolved.limit] if resolved.limit else puzzles
    check_solved(puzzles)
    fixed_recipes(resolved)
    folder = run or Path("runs") / time.strftime("eval-arc-%Y%m%d-%H%M%S")
    check_writable(json_file)
    opened, resolved = open_run(folder, resolved, resume)
    keep_data(folder, as_json(puzzles))
    with WorkBar("puzzles, then trials") as bar:
        task = bar.add_task("", total=len(puzzles))
        result = evaluate(resolved, puzzles, opened, workers, lambda done, of: bar.update(task, completed=done, total=of))
    write_json(folder / "table.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(result)


def warn_of_others(resolved: ArcEvalConfig, name: str) -> None:
    """Says where a run earned its recipes' rewards by other settings than those that they are tried by here."""
    file = next((of / "run.json" for of in (Path(name), *Path(name).resolve().parents[:2]) if (of / "run.json").is_file()), None)
    if not name or file is None:
        return
    try:
        theirs = build_config(ArcTrainConfig, file, {}, [])
    except DataError as error:
        raise DataError(f"{file.parent}: no run of selfedit train arc; give such a run's folder") from error
    for section in ("edit", "settings"):
        if other := first_difference(getattr(theirs, section), getattr(resolved, section), ("sampling.temperature",)):
            key, before, now = other
            err.print(
                f"{name}: its recipes were tried with {section}.{key}={before!r}, here it is {now!r}; give the run's settings, if "
                "that isn't meant",
                highlight=False,
            )


def show(result: dict[str, Any]) -> None:
    """Prints what was solved, what it cost, and the paired differences."""
    from selfedit.tasks.arc.data import title

    config = result["config"]
    out.print(
        f"[bold]{escape(title(config['data'], config['split']))}[/]: {result['n']} puzzles, {result['questions']} tests, seed "
        f"{config['seed']}. solved: all tests of a puzzle, two attempts each, mean ± standard error over puzzles; 95 % intervals: "
        "Wilson's (as if trainings were independent) and by drawing whole puzzles; cells: right ones in the better attempt.",
        highlight=False,
    )
    figures = method_table("solved", "trained", "%", "Wilson", "by puzzle", "cells %")
    costs = method_table("valid %", "read %", "bits", "tokens", "seconds")
    for method, of in result["methods"].items():
        spread = result["intervals"][method]
        wilson, bootstrap = (
            f"{100 * interval[0]:.0f}-{100 * interval[1]:.0f}" if interval else "-"
            for interval in (spread["wilson"], spread["bootstrap"])
        )
        bits = result["entropy"][method]
        figures.add_row(
            method,
            f"{spread['solved']}/{spread['runs']}",
            str(spread["trained"]),
            mean_cell(of["accuracy"], 100, 0),
            wilson,
            bootstrap,
            f"{100 * of['cells']['mean']:.0f}",
        )
        costs.add_row(
            method,
            f"{100 * of['valid']['mean']:.0f}",
            f"{100 * of['readable']['mean']:.0f}",
            "-" if bits is None else f"{bits:.1f}",
            f"{of['read']['mean']:.0f}",
            f"{of['seconds']['mean']:.0f}",
        )
    out.print(figures)
    out.print(
        "Recipes that could be trained by, that could be read as first written, their entropy; a trial's tokens of the items (all "
        "epochs) and seconds with the exam:"
    )
    out.print(costs)
    if result["seen"]:
        out.print(f"[bold red]Trained on these too:[/] {', '.join(result['seen'])}: no evidence for what comes from that run")
    if result["fixed"]:
        out.print(f"best-fixed: {escape(result['fixed'])}", highlight=False)
    print_cost(result["cost"])
    if not result["differences"]:
        return
    out.print("Paired differences over puzzles in points, 95 % interval, two-sided sign-flip p:")
    differences = method_table("solved", "p")
    for row in result["differences"]:
        differences.add_row(f"{row['method']} - {row['control']}", *interval_cells(row))
    out.print(differences)


def solve_command(
    file: Annotated[str, typer.Argument(metavar="TASK.json", help="A task in the official form, or the id of one of arc-1.")],
    recipe: Annotated[str | None, typer.Option(help="hand-made, or a file with a recipe; default: the model writes some.")] = None,
    edits: Annotated[int | None, typer.Option(help="Recipes that the model writes; their answers are voted. Default: 5.")] = None,
    writer: Annotated[str | None, typer.Option(help="Run of selfedit train arc, or a policy's folder: it writes.")] = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings of eval arc.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting of eval arc: edit.most_tokens=10000.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write recipes and answers there.")] = None,
) -> None:
    """Solves one puzzle: answers in context, then trains on copies of its own examples by a recipe, and answers again.

    Shows the grids before and after. Where the tests' outputs are known, it says whether they were found.

    Example: selfedit solve 6150a2bd --recipe hand-made --set edit.permutations=5
    """
    flags = {"model": model, "seed": seed, "device": device, "dtype": dtype, "edits": edits, "writer": writer, "data": file}
    resolved = build_config(ArcEvalConfig, config, flags, sets or [])
    check_writable(json_file)
    from selfedit.puzzles.solve import read_recipe, solve
    from selfedit.tasks.arc.data import load_puzzles, one_puzzle

    if Path(file).exists() or file.endswith(".json"):
        puzzle, *others = load_puzzles(file, "")
        if others:
            raise DataError(f"{file}: has {len(others) + 1} tasks; give a file with one, or eval arc --data for all")
    else:
        puzzle = one_puzzle(file)
    given = read_recipe(recipe, resolved.edit) if recipe else None
    with WorkBar("{task.description}") as bar:
        task = bar.add_task("loading the model", total=None)
        result = solve(
            resolved,
            puzzle,
            given,
            workers,
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
        )
    out.print(f"[bold]{escape(puzzle.id)}[/]: {len(puzzle.train)} examples, {len(puzzle.test)} tests", highlight=False)
    for number, (shown, answer) in enumerate(puzzle.train, start=1):
        out.print(_side_by_side([(f"example {number}", shown), ("", answer)]))
    for number, (shown, wanted) in enumerate(puzzle.test):
        grids: list[tuple[str, Rows | None]] = [(f"test {number + 1}", shown)]
        grids += [(f"in context, {index}", tried) for index, tried in enumerate(result["before"][number], start=1)]
        grids += [(f"after training, {index}", tried) for index, tried in enumerate(result["after"][number], start=1)]
        out.print(_side_by_side([*grids, *([("right", wanted)] if wanted is not None else [])]))
    for row in result["recipes"]:
        out.print(f"{row['status']}: {escape(row['recipe'])} {escape(row['reason'])}", highlight=False, soft_wrap=True)
    verdict = {True: "[green]solved[/]", False: "[red]not solved[/]", None: "no outputs to compare with"}
    out.print(f"in context: {verdict[result['solved_before']]}; after training: {verdict[result['solved']]}", highlight=False)
    if json_file is not None:
        write_json(json_file, result)


def _side_by_side(grids: Sequence[tuple[str, Rows | None]]) -> Columns:
    """Grids in a row, each under its name."""
    return Columns([Group(Text(name), _coloured(rows)) for name, rows in grids], padding=(0, 3))


def _coloured(rows: Rows | None) -> Text:
    """A grid in ARC's colours, two columns of the terminal a cell."""
    from selfedit.tasks.arc.grids import PALETTE

    text = Text()
    for row in rows or ():
        for colour in row:
            text.append(f"{colour} ", style=f"{'black' if colour in (4, 5, 7, 8) else 'white'} on {PALETTE[colour]}")
        text.append("\n")
    return text
