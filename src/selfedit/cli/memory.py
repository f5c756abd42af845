"""``selfedit memory``: look at, take back and export what was learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from selfedit.cli.common import err, out
from selfedit.errors import MemoryStoreError

app = typer.Typer(help="Look at, undo and export what a memory has learnt.", no_args_is_help=True)
Model = Annotated[str | None, typer.Option(help="The memory's base model under another name or path.")]
Folder = Annotated[Path, typer.Option("--memory", help="Folder of the memory.")]


@app.command("list")
def list_command(memory: Folder = Path("memory"), as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Entries, oldest first, with their marks on the questions that chose nothing."""
    from selfedit.memory.ledger import Memory

    opened = Memory.open(memory)
    live = {slot.entry for slot in opened.state.slots}
    entries = opened.entries()
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
        typer.echo(json.dumps({"base": opened.base.name, "state": opened.digest(), "entries": rows}, indent=1))
        return
    table = Table(title=escape(f"{memory}: {opened.base.name}, state {opened.digest()}"))
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
    model: Model = None,
) -> None:
    """Takes an entry back. The last: the pointer moves, same bytes. An earlier one: later entries are trained again."""
    from selfedit.memory.ledger import Memory

    opened = Memory.open(memory)
    with opened.writing(told=lambda: err.print(f"{memory} is in use by another process; waiting")):
        slots = opened.state.slots
        if entry is None or (slots and slots[-1].entry == entry):
            undone = opened.undo_last()
        else:
            from selfedit.memory.rebuild import undo_earlier

            undone = undo_earlier(opened, entry, lambda text: err.print(text, highlight=False, markup=False), model)
        out.print(f"Took back entry {undone}; state {opened.digest()}", highlight=False)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist.")],
    memory: Folder = Path("memory"),
    form: Annotated[str, typer.Option("--as", help="merged: a whole model folder; peft: one adapter on the base.")] = "merged",
    model: Model = None,
) -> None:
    """Writes the model with everything it learnt, for use elsewhere."""
    if form not in ("merged", "peft"):
        raise MemoryStoreError(f"--as {form}: give merged or peft")
    from selfedit.memory.compose import export
    from selfedit.memory.ledger import Memory

    export(Memory.open(memory), folder, form == "merged", model)
    out.print(f"Wrote {folder}", highlight=False, markup=False)
