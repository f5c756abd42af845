"""``selfedit continual``: one passage after the other into the same model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GraderOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    StyleOption,
    WorkersOption,
    build_config,
    check_writable,
    err,
    estimates,
    make_grader,
    narrow_table,
    out,
    print_config,
    run_config,
    styles_from,
    work_bar,
    write_json,
)
from selfedit.cli.evaluate import interval_cells, mean_cell
from selfedit.config import ContinualConfig


def continual_command(
    data: Annotated[str | None, typer.Option(help="Data sets by commas: almanac, squad, JSON files.")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test, for almanac and squad.")] = None,
    methods: Annotated[str | None, typer.Option(help="Ways of keeping (below), by commas; several at once joined by +.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Sequences, each of other passages.")] = None,
    passages: Annotated[int | None, typer.Option(help="Passages a sequence.")] = None,
    writer: Annotated[str | None, typer.Option(help="Run of selfedit train, or a policy's folder; default: the base.")] = None,
    model: ModelOption = None,
    style: StyleOption = None,
    grader: GraderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/continual-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: keep.replay_share=0.3.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Learns passages one after the other and examines all of them after each: what stays, and what it costs.

    - merge: each lesson's adapter on top of the ones before (the paper's)
    - all-layers, last-layers: which layers a lesson changes
    - replay: earlier lessons and the base's own words mixed in
    - consolidate: now and then one fresh adapter for everything so far
    - gate: an update must stay inside budgets, is scaled down, or rejected
    - orthogonal, distil, retention: what a lesson may change, is held to, is chosen by
    - bank: adapters kept apart, a router before them
    - retrieve, context: nothing is trained; the passage found, or the right one, in the prompt

    Example: selfedit continual --methods merge,replay,replay+consolidate,retrieve --sequences 6 --passages 8
    """
    from selfedit.tasks.knowledge.prompts import check_styles

    flags: dict[str, Any] = {
        "data": tuple(part.strip() for part in data.split(",")) if data else None,
        "split": split,
        "methods": tuple(part.strip() for part in methods.split(",")) if methods else None,
        "sequences": sequences,
        "passages": passages,
        "writer": writer,
        "model": model,
        "grader": grader,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "edit.styles": styles_from(style),
    }
    resolved = build_config(ContinualConfig, run_config(run, resume, config), flags, sets or [])
    check_styles(list(resolved.edit.styles))
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_continual

        estimates(resolved.model, lambda known: estimate_continual(resolved, known))
        return
    from selfedit.continual import continual
    from selfedit.continual import sequences as drawn
    from selfedit.keepers import keeper
    from selfedit.lm.load import identify
    from selfedit.runs import Run
    from selfedit.tasks.knowledge.data import load_dataset

    for method in resolved.methods:
        keeper(method, resolved.keep)
    found = {passage.id: passage for name in resolved.data for passage in load_dataset(name, resolved.split)}
    folder = run or Path("runs") / time.strftime("continual-%Y%m%d-%H%M%S")
    check_writable(json_file)
    identify(resolved.model)
    drawn(resolved, list(found.values()))
    opened = Run(folder, resolved, resume)
    err.print(f"run folder: {folder}", highlight=False)
    with work_bar("commits") as bar:
        task = bar.add_task("", total=None)

        def told(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        result = continual(resolved, list(found.values()), make_grader(resolved.grader, resolved.judge), opened, workers, told)
    write_json(folder / "table.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(result)


def show(result: dict[str, Any]) -> None:
    """What was kept by each method, what it cost, and each one's matrix."""
    out.print(
        f"{result['n']} sequences of {result['config']['passages']} passages; means and standard errors over sequences. immediate: "
        "right just after the own commit; retained: after the last one; both of what the base didn't know; general: change of the "
        "gold log-probability of general questions; tokens and seconds: of a commit.",
        highlight=False,
    )
    table = narrow_table()
    for name in ("", "immediate %", "retained %", "retention %", "forgetting", "general", "tokens", "seconds", "MB"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for method, of in result["methods"].items():
        if "retained" not in of:
            continue
        table.add_row(
            escape(method),
            *(mean_cell(of.get(name), 100, 1) for name in ("immediate", "retained", "retention", "forgetting")),
            mean_cell(of["general"], 1, 2),
            f"{of['tokens']['mean']:.0f}",
            f"{of['seconds']['mean']:.0f}",
            f"{of['bytes']['mean'] / 1e6:.0f}",
        )
    out.print(table)
    if result["differences"]:
        out.print(f"Paired differences to {result['config']['methods'][0]}, 95 % interval, two-sided sign-flip p:")
        differences = narrow_table()
        for name in ("", "points", "p"):
            differences.add_column(name, justify="right" if name else "left", no_wrap=True)
        for row in result["differences"]:
            differences.add_row(f"{row['method']}: {row['measure']}", *interval_cells(row))
        out.print(differences)
    for method, matrix in result["matrix"].items():
        if matrix and len(matrix[0]) <= 12:
            out.print(f"{escape(method)}: right % of each passage (columns) after so many commits (rows)")
            for step, row in enumerate(matrix):
                line = Text(f"{step:>3} ")
                for cell in row:
                    share = None if cell is None else cell["mean"]
                    line.append("    " if share is None else f"{100 * share:>4.0f}", style="" if share is None else _heat(share))
                out.print(line)


def _heat(share: float) -> str:
    level = round(255 * (1 - 0.75 * share))
    return f"black on rgb({level},255,{level})"
