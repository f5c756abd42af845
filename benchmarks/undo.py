"""Undo of the i-th of n entries: does its passage go back to what the base knew, and do the others stay where they were?

    .venv/bin/python benchmarks/undo.py --run runs/undo
    .venv/bin/python benchmarks/undo.py --run runs/undo-stack --keep stack --undo 4

Passages of almanac dev are learnt one after the other by ``selfedit learn`` until n of them are kept; then the i-th is taken out by
``selfedit memory undo``. Before and after, the memory sits every passage's exam of all wordings, as the base does: share right, and
the golds' log-probability a question.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit.contexts import Passage
from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders.text import RecallGrader
from selfedit.marks import mark_sitting
from selfedit.memory.compose import Kept, kept_by, sit_kept
from selfedit.memory.ledger import Memory
from selfedit.runs import write_json
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.task import KnowledgeTask


def command(*words: Any) -> None:
    """One of the package's commands."""
    subprocess.run([sys.executable, "-m", "selfedit", *map(str, words)], check=True)


def known(base: str, kept: Kept, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """What a state answers to each passage's exam."""
    task = KnowledgeTask()
    with LocalExecutor(ModelChoice(base, dtype="float32", stack=kept.stack), 0) as executor:
        sat = result(executor.submit(sit_kept, [(task, passage) for passage in passages], kept))
    rows = []
    for passage, sitting in zip(passages, sat, strict=True):
        marks = mark_sitting(RecallGrader(), task.asked(passage), sitting)
        rows.append({"right": marks.accuracy, "log_probability": marks.log_probability, "answers": sitting.answers})
    return rows


def main() -> None:
    """Learns what is missing, undoes, writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = "folder of the memory and the table; goes on with what is there, until something was taken back"
    parser.add_argument("--run", type=Path, required=True, help=about)
    parser.add_argument("--keep", default="bank", choices=["bank", "stack"])
    parser.add_argument("--entries", type=int, default=8)
    parser.add_argument("--edits", type=int, default=4, help="self-edits of each passage; with few of them little is kept")
    parser.add_argument("--undo", type=int, default=4, help="which entry")
    parser.add_argument("--set", nargs="*", default=[], help="settings for learn")
    arguments = parser.parse_args()
    folder = arguments.run / "memory"
    if folder.exists() and len(Memory.open(folder).entries()) > len(Memory.open(folder).state.entries):
        sys.exit(f"{folder}: something was taken back there already; use a new --run")
    more = [word for pair in arguments.set for word in ("--set", pair)]
    tried = arguments.run / "tried"
    arguments.run.mkdir(parents=True, exist_ok=True)
    dev = load_dataset("almanac", "dev")
    for number in range(int(tried.read_text()) + 1 if tried.exists() else 1, len(dev) + 1):
        if folder.exists() and len(Memory.open(folder).state.entries) >= arguments.entries:
            break
        command("learn", f"almanac:dev:{number}", "--memory", folder, "--keep", arguments.keep, "--edits", arguments.edits, *more)
        tried.write_text(str(number))
    memory = Memory.open(folder)
    entries = memory.state.entries
    if len(entries) < arguments.entries:
        sys.exit(f"{folder}: has {len(entries)} entries, not {arguments.entries}; use a new --run")
    titles = {entry.id: entry.record["title"] for entry in memory.entries()}
    passages = [next(passage for passage in dev if passage.title == titles[entry]) for entry in entries]
    states = {"base": known(memory.base.name, Kept("stack"), passages)}
    states["before"] = known(memory.base.name, kept_by(memory), passages)
    command("memory", "undo", arguments.undo, "--memory", folder)
    states["after"] = known(memory.base.name, kept_by(Memory.open(folder)), passages)
    rows = [
        {"entry": entry, "title": titles[entry], "undone": entry == arguments.undo, **{name: of[at] for name, of in states.items()}}
        for at, entry in enumerate(entries)
    ]
    others = [row for row in rows if not row["undone"]]
    moved = [abs(row["after"]["log_probability"] - row["before"]["log_probability"]) for row in others]
    same = sum(row["after"]["answers"] == row["before"]["answers"] for row in others)
    summary = {"others": len(others), "answers_equal": same, "moved_nats": {"mean": fmean(moved), "largest": max(moved)}}
    write_json(arguments.run / "table.json", {"keep": arguments.keep, "set": arguments.set, "rows": rows, "summary": summary})
    for row in rows:
        figures = "  ".join(f"{name} {row[name]['right']:.2f} ({row[name]['log_probability']:.2f})" for name in states)
        print(f"{row['entry']} {row['title']}{' (undone)' if row['undone'] else ''}: {figures}")
    print(summary)


if __name__ == "__main__":
    main()
