"""``selfedit memory``: look at, take back and export what was learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from selfedit.cli.common import build_config, check_writable, err, make_grader, narrow_table, out
from selfedit.config import GraderName, JudgeConfig, LearnConfig, Settings
from selfedit.errors import DataError, MemoryStoreError
from selfedit.runs import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from selfedit.graders import Grader
    from selfedit.memory.ledger import Memory

app = typer.Typer(help="Look at, undo and export what a memory has learnt.", no_args_is_help=True)
Model = Annotated[str | None, typer.Option(help="The memory's base model under another name or path.")]
GraderChoice = Annotated[str | None, typer.Option("--grader", help="recall, em, or f1; default: each entry's own.")]
Folder = Annotated[Path, typer.Option("--memory", help="Folder of the memory.")]


@app.command("list")
def list_command(memory: Folder = Path("memory"), as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Entries, oldest first, with their marks on the questions that chose nothing."""
    from selfedit.memory.ledger import Memory

    opened = Memory.open(memory)
    live = set(opened.state.entries)
    entries = opened.entries()
    state = digest_of(opened)
    if as_json:
        rows = [
            {
                "entry": e.id,
                "title": e.record["title"],
                "active": e.id in live,
                "marks": e.record["marks"],
                "created": e.record["created"],
            }
            for e in entries
        ]
        typer.echo(json.dumps({"base": opened.base.name, "keep": opened.keep, "state": state, "entries": rows}, indent=1))
        return
    table = Table(title=escape(f"{memory}: {opened.base.name}, {opened.keep}, state {state or '?'}"))
    for name in ("entry", "title", "style", "before", "after", "learnt", ""):
        table.add_column(name)
    for entry in entries:
        marks = entry.record["marks"]["reporting"]
        table.add_row(
            str(entry.id),
            escape(entry.record["title"]),
            escape(entry.record["style"][:30]),
            f"{marks['before']:.0%}",
            f"{marks['after']:.0%}",
            entry.record["created"],
            "" if entry.id in live else "undone",
        )
    out.print(table)


@app.command("show")
def show_command(
    entry: Annotated[int, typer.Argument(help="The entry's number, see: selfedit memory list.")], memory: Folder = Path("memory")
) -> None:
    """One entry whole, as JSON: passage, self-edit, lessons, quiz, settings, seed, marks."""
    from selfedit.memory.ledger import Memory

    found = [e for e in Memory.open(memory).entries() if e.id == entry]
    if not found:
        raise MemoryStoreError(f"{memory}: no entry {entry}; see: selfedit memory list --memory {memory}")
    typer.echo(json.dumps(found[0].record, indent=1, ensure_ascii=False))


@app.command("undo")
def undo_command(
    entry: Annotated[int | None, typer.Argument(help="The entry to take back; default: the last one.")] = None,
    memory: Folder = Path("memory"),
    grader: GraderChoice = None,
    model: Model = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the entries with their exams there.")] = None,
) -> None:
    """Takes an entry back. The last: the pointer moves, same bytes. An earlier one of a bank: the others stay as they are.

    An earlier one of a stack: later entries are trained again; so are those that share a consolidated adapter with it. Then the
    exams of all are sat before and after, since training again is never quite the same; the one taken back is among them.
    """
    from selfedit.memory.ledger import Memory

    check_writable(json_file)
    graders = graders_of(grader)
    exams: list[dict[str, Any]] = []
    opened = Memory.open(memory)
    with opened.writing(told=lambda: err.print(f"{memory} is in use by another process; waiting", markup=False)):
        slots = opened.state.slots
        chosen = slots[-1].entries[-1] if entry is None and slots else entry
        if chosen is None or (slots and slots[-1].entries == (chosen,)):
            undone = opened.undo_last()
        else:
            from selfedit.memory.rebuild import undo_earlier

            exams = undo_earlier(opened, chosen, graders, lambda text: err.print(text, highlight=False, markup=False), model)
            undone = chosen
        if exams:
            out.print(before_and_after(exams))
        state = digest_of(opened)
        out.print(f"Took back entry {undone}; state {state or '?'}", highlight=False)
        if json_file is not None:
            write_json(json_file, {"entry": undone, "state": state, "entries": exams})


@app.command("consolidate")
def consolidate_command(
    memory: Folder = Path("memory"),
    budget: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="By how much the share right over all entries may fall; else nothing changes.")
    ] = 0.05,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of this training, such as epochs=4, learning_rate=4e-3, rank=64; else the last lesson's."
        ),
    ] = None,
    grader: GraderChoice = None,
    model: Model = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Puts one fresh adapter, trained on all stored lessons from the base on, in the place of all adapters, if it knows as much.

    No single entry may lose more than one question, or all of it, either (unless --budget is 1). The old state answers until the
    new one is whole; undo takes single entries out as before. With --set a single adapter is trained anew too.
    """
    from selfedit.memory.ledger import Memory
    from selfedit.memory.rebuild import consolidate

    check_writable(json_file)
    opened = Memory.open(memory)
    lessons = [entry.record["settings"] for entry in opened.entries() if entry.id in opened.state.entries]
    changed = settings_from(sets or [], lessons[-1] if lessons else {})
    with opened.writing(told=lambda: err.print(f"{memory} is in use by another process; waiting", markup=False)):
        found = consolidate(
            opened, graders_of(grader), lambda text: err.print(text, highlight=False, markup=False), budget, model, changed
        )
    out.print(before_and_after(found["entries"]))
    verdict = "Consolidated" if found["accepted"] else "Nothing changed: too much would be lost (--budget 1 takes it all the same)"
    out.print(f"{verdict}; right over all entries: {found['before']:.0%} before, {found['after']:.0%} after", highlight=False)
    if json_file is not None:
        write_json(json_file, found)


@app.command("check")
def check_command(
    memory: Folder = Path("memory"),
    grader: GraderChoice = None,
    model: Model = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Sits every entry's stored exam again and says what is no longer known."""
    from selfedit.memory.ledger import Memory
    from selfedit.memory.rebuild import check

    check_writable(json_file)
    opened = Memory.open(memory)
    with err.status("sitting the exams"):
        rows = check(opened, graders_of(grader), model)
    table = narrow_table()
    for name in ("entry", "title", "questions", "at its commit", "now", ""):
        table.add_column(name, justify="left" if name in ("title", "") else "right")
    for row in rows:
        mark = "[red]lost[/]" if row["lost"] else ""
        figures = (str(row["n"]), f"{row['learnt']:.0%}", f"{row['now']:.0%}")
        table.add_row(str(row["entry"]), escape(row["title"]), *figures, mark)
    out.print(table)
    if len(opened.state.slots) > 1 and any(row["lost"] for row in rows):
        out.print(f"selfedit memory consolidate --memory {memory} trains all of it together", highlight=False, markup=False)
    if json_file is not None:
        write_json(json_file, rows)


def settings_from(sets: Sequence[str], others: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training that are named, and no others; ``others``: those that hold where none is named.

    Raises:
        DataError: an unknown one, a value out of bounds, or one that doesn't go with the others; names it.
    """
    named = [text.partition("=")[0] for text in sets]
    return build_config(Settings, None, others, list(sets)).model_dump(include=set(named))


def digest_of(memory: Memory) -> str | None:
    """The state's digest; None, and why, where an adapter can't be read, so that it can still be found and taken out."""
    try:
        return memory.digest()
    except MemoryStoreError as error:
        err.print(str(error), highlight=False, markup=False)
        return None


def before_and_after(rows: list[dict[str, Any]]) -> Table:
    """Entries with the shares right of their exams."""
    table = narrow_table()
    for name in ("entry", "title", "questions", "before", "after"):
        table.add_column(name, justify="left" if name == "title" else "right")
    for row in rows:
        title = escape(row["title"]) + (" [dim](taken back)[/]" if row.get("undone") else "")
        before = "?" if row["before"] is None else f"{row['before']:.0%}"
        after = "?" if row["after"] is None else f"{row['after']:.0%}"
        table.add_row(str(row["entry"]), title, str(row["n"]), before, after)
    return table


def graders_of(name: str | None) -> Callable[[dict[str, Any]], Grader]:
    """Who marks an entry's exam: the grader named, which needs no server, or the one that the entry was learnt with."""
    if name is None:
        return _own_grader
    if name not in ("recall", "em", "f1"):
        raise DataError(f"--grader {name}: give recall, em or f1")
    chosen = make_grader(cast("GraderName", name), JudgeConfig())
    return lambda record: chosen


def _own_grader(record: dict[str, Any]) -> Grader:
    config = LearnConfig.model_validate(record["config"])
    return make_grader(config.grader, config.judge)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist.")],
    memory: Folder = Path("memory"),
    form: Annotated[str, typer.Option("--as", help="merged: a whole model folder; peft: one adapter on the base.")] = "merged",
    model: Model = None,
) -> None:
    """Writes the model with everything it learnt, for use elsewhere.

    Adapters that are kept apart have to be put together first, by memory consolidate.
    """
    if form not in ("merged", "peft"):
        raise MemoryStoreError(f"--as {form}: give merged or peft")
    from selfedit.memory.compose import export
    from selfedit.memory.ledger import Memory

    opened = Memory.open(memory)
    export(opened, folder, form == "merged", model)
    out.print(f"Wrote {folder}", highlight=False, markup=False)
    if opened.keep == "bank":
        err.print("In the memory a question that is not about its passages goes to the base; there all go to what was learnt.")
