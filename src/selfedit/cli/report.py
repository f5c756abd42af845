"""``selfedit report``, ``convert`` and ``select``: what runs say, ours and the reference code's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from selfedit.cli.common import check_writable, err, narrow_table, out
from selfedit.config import CreditName, SelectionRule
from selfedit.runs import write_json


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs: train, eval, or converted.")],
    file: Annotated[Path | None, typer.Option("--out", help="The page; default: report.html in the first run.")] = None,
) -> None:
    """Makes one self-contained HTML page of runs, with PNG and CSV in the folder NAME-files beside it.

    Reward by round with intervals, lengths, coverage and faithfulness of the self-edits, how far the reward can be trusted, the
    best and the worst self-edits with their marks, cost. Later runs are compared with the first one, passage by passage.

    Example: selfedit report runs/train-1 runs/control-1 --out report.html
    """
    from selfedit.report.page import write_report

    page = file or runs[0] / "report.html"
    written = write_report(runs, page)
    out.print(f"{written[0]}", highlight=False, markup=False, soft_wrap=True)
    err.print(f"{len(written) - 1} pictures and tables in {written[-1].parent}", highlight=False, markup=False, soft_wrap=True)


def convert_command(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT.json", help="A result of the reference code: of trials, or of many passages.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder to make.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the aggregates there.")] = None,
) -> None:
    """Makes a run folder of a result file of the reference code, for report and (trials) select.

    Every aggregate is computed again from the verdicts on single questions; where the file's own differs, it says so.

    Example: selfedit convert iter0.json runs/iter0
    """
    from selfedit.convert import convert

    check_writable(json_file)
    found = convert(result, run)
    if json_file is not None:
        write_json(json_file, found)
    table = narrow_table()
    for name in ("", "computed", "in the file"):
        table.add_column(name, justify="left" if not name else "right")
    for name, value in found["overall"].items():
        stored = found["stored"].get(name)
        mark = " differs" if name in found["differs"] else ""
        table.add_row(name, "-" if value is None else f"{value:.4f}", "-" if stored is None else f"{stored}{mark}")
    out.print(table)
    for line in found["below"]:
        out.print(f"differs: {escape(line)}", highlight=False, soft_wrap=True)
    out.print(f"run: {escape(str(run))}", highlight=False, soft_wrap=True)


def select_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of selfedit train, or a converted one.")],
    file: Annotated[Path, typer.Option("--out", help="Write the rows there, one JSON object {prompt, completion} a line.")],
    rule: Annotated[
        SelectionRule | None,
        typer.Option(help="best, positive, best-positive, top-fraction, or random; default: the run's, or best-positive."),
    ] = None,
    number: Annotated[int, typer.Option("--round", min=0, help="Which round; 0: all.")] = 0,
    fraction: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of all self-edits that top-fraction takes; default: the run's, or .2."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For random; default: the run's, or 0.")] = None,
    credit: Annotated[
        CreditName | None,
        typer.Option(help="edit: self-edits as they are; lines: rows put together of their lines that taught; default: the run's."),
    ] = None,
) -> None:
    """Writes the rows that a writer would be trained on, selected from a run by a rule.

    Without a rule, those that the run's own policy is trained on; of a control they stand in its round-NN/rows.jsonl.
    best takes each passage's best, of equals the first (ours: the one whose golds are likelier); best-positive only those above
    the baseline.

    Example: selfedit select runs/iter0 --rule best --out rows.jsonl
    """
    from selfedit.rows import selected_rows
    from selfedit.runs import keep_rows

    check_writable(file)
    rows = selected_rows(run, rule, number, fraction, seed, credit)
    keep_rows(file, rows)
    out.print(f"{len(rows)} rows: {escape(str(file))}", highlight=False, soft_wrap=True)
