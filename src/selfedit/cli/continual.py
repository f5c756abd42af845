"""``selfedit continual``: one passage after the other into the same model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
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
    run_config,
    styles_from,
)
from selfedit.cli.evaluate import interval_cells, mean_cell
from selfedit.config import ContinualConfig
from selfedit.runs import write_json


def continual_command(
    data: Annotated[str | None, typer.Option(help="Data sets by commas: almanac, squad, JSON files.")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test, for almanac and squad (or almanac:dev).")] = None,
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

    - merge: each lesson's adapter on top of the ones before, in the layers of settings.layers (default: the last 15)
    - all-layers, last-layers: the same in all layers (as in the paper), or in the last keep.last_layers
    - replay: earlier lessons mixed in (for the base's own words beside: replay+distil)
    - consolidate: now and then one fresh adapter for everything so far
    - gate: an update must stay inside budgets, is scaled down, or rejected
    - null-space: a lesson reads what it has and neither general text nor earlier lessons have
    - orthogonal, distil: what a lesson may change, is held to
    - retention: of several self-edits (--set edits=3) the one that teaches most and costs least
    - bank: adapters kept apart, a router before them
    - retrieve, context: nothing is trained; the passage found, or the right one, in the prompt

    Example: selfedit continual --methods merge,replay+consolidate,bank,retrieve --sequences 4 --passages 8
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
    from selfedit.continual import check, continual
    from selfedit.continual import sequences as drawn

    check(resolved)
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_continual

        estimates(resolved.model, lambda known: estimate_continual(resolved, known))
        return
    from selfedit.matrix import related
    from selfedit.tasks.knowledge.data import load_dataset

    found = {passage.id: passage for name in resolved.data for passage in load_dataset(name, resolved.split)}
    folder = run or Path("runs") / time.strftime("continual-%Y%m%d-%H%M%S")
    check_writable(json_file)
    pairs, wanted = related(drawn(resolved, list(found.values()))), round(resolved.related * resolved.sequences)
    if pairs < wanted:
        few = f"{pairs} of {wanted} sequences with two passages of one title"
        err.print(f"{few}: {', '.join(resolved.data)} has no more; --set related=0 asks for none", highlight=False)
    grading = make_grader(resolved.grader, resolved.judge)
    opened, resolved = open_run(folder, resolved, resume)
    with WorkBar("commits") as bar:
        task = bar.add_task("", total=None)

        def told(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        result = continual(
            resolved, list(found.values()), grading, opened, workers, told, lambda table: write_json(folder / "table.json", table)
        )
    write_json(folder / "table.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(result)


def show(result: dict[str, Any]) -> None:
    """What was kept by each method, what it cost, and each one's matrix."""
    from selfedit.matrix import RETENTIONS
    from selfedit.report.tables import with_interval

    known, config = [of for of in result["methods"].items() if "retained" in of[1]], result["config"]
    counted = "" if result["counted"] == result["questions"] else " (the others were shown to the methods that decide by questions)"
    out.print(
        f"{result['n']} sequences of {config['passages']} passages, {result['related']} with two of one title; "
        f"{result['counted']} of {result['questions']} questions count{counted}. Means and standard errors over n sequences. "
        "immediate: right just after the own commit; retained: after the last one; along: after later ones in the mean; no title: "
        "retained, asked without it; all four of what the base didn't know; forgetting: points of all questions.",
        highlight=False,
    )
    kept = _columns("n", "immediate %", "retained %", "along %", "no title %", "forgetting")
    ratios = _columns("retention %", "by probability %", "by margin %", "tokens x merge", "seconds x merge")
    beyond = _columns("general", "right", "text %", "locality")
    commits = _columns("accepted %", "own passage %", "tokens", "seconds", "MB", "MB in all")
    for method, of in known:
        shares = (mean_cell(of.get(name), 100, 1) for name in ("immediate", "retained", "along", "bare", "forgetting"))
        kept.add_row(escape(method), str(of["retained"]["n"]), *shares)
        ratios.add_row(
            escape(method),
            *(with_interval(of.get(name), 100, 1) or "-" for name in RETENTIONS),
            *(with_interval(of.get(f"{name}_to_merge"), 1, 2) or "-" for name in ("tokens", "seconds")),
        )
        beyond.add_row(
            escape(method),
            mean_cell(of.get("general"), 1, 2),
            mean_cell(of.get("general_right"), 100, 1),
            mean_cell(of.get("text_share"), 100, 1),
            mean_cell(of.get("locality"), 100, 1),
        )
        commits.add_row(
            escape(method),
            f"{100 * of['accepted']['mean']:.0f}",
            mean_cell(of.get("routed", of.get("found")), 100, 0),
            f"{of['tokens']['mean']:.0f}",
            f"{of['seconds']['mean']:.0f}",
            f"{of['commit_bytes']['mean'] / 1e6:.0f}",
            f"{of['state_bytes']['mean'] / 1e6:.0f}",
        )
    out.print(kept)
    out.print(
        "retention: retained over immediate, of all passages of a sequence but the last; by probability: of how much more "
        "probable than to the base the golds are, the same; by margin: of how much likelier than the exam's other golds in their "
        "place; x merge: a commit's cost over one of "
        "merge; means over means, 95 % intervals by the jackknife over sequences.",
        highlight=False,
    )
    out.print(ratios)
    out.print(
        "general: change of general questions' gold log-probability in nats; right: of what is right of them, in points; text: of "
        "plain texts' log-probability, in % of the base's; locality: points about passages of no sequence:",
        highlight=False,
    )
    out.print(beyond)
    out.print("own passage: questions routed to it, or that found it; tokens, seconds, MB: a commit's:", highlight=False)
    out.print(commits)
    if result["differences"]:
        out.print(
            f"Paired differences to {result['control']}, or to the base, 95 % interval, two-sided sign-flip p (retention: "
            "jackknife):"
        )
        differences = _columns("n", "difference", "p")
        for row in result["differences"]:
            to_base = " to the base" if row["control"] != result["control"] else ""
            label = f"{row['method']}: {row['measure']}{to_base}, {row['unit']}"
            scale, digits = (1, 3) if row["unit"] == "nats" else (100, 1)
            differences.add_row(escape(label), str(row["n"]), *interval_cells(row, scale, digits))
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


def _columns(*names: str) -> Table:
    table = narrow_table()
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table
