"""Documents that are no data set, learnt without a quiz: what do hand-written questions that nothing has seen say before and after?

    .venv/bin/python benchmarks/own_documents.py --out own-documents.json

Each document is learnt into a memory of its own by ``selfedit learn FILE`` without ``--quiz``. The hand-written quizzes in
``benchmarks/documents`` are sat before and, if something was kept, after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfedit.executors.local import LocalExecutor, ModelChoice, result
from selfedit.graders.text import RecallGrader
from selfedit.marks import mark_sitting
from selfedit.memory.compose import Kept, kept_by, sit_kept
from selfedit.memory.ledger import Memory
from selfedit.runs import write_json
from selfedit.stats import wilson
from selfedit.tasks.knowledge.data import load_passage, load_quiz
from selfedit.tasks.knowledge.task import KnowledgeTask

HERE = Path(__file__).parent
DOCUMENTS = {
    "allotments": HERE / "documents" / "allotments.md",
    "statistics": HERE.parent / "docs" / "statistics.md",
    "readme": HERE.parent / "README.md",
}


def learnt(name: str, file: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """One document: the command's decision, and the hand-written quiz before and after."""
    out = folder / f"{name}.json"
    start = time.perf_counter()
    command = [sys.executable, "-m", "selfedit", "learn", str(file), "--memory", str(folder / name), "--json", str(out), *options]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    found = json.loads(out.read_text())
    passage = replace(load_passage(file, None), questions=tuple(load_quiz(HERE / "documents" / f"{name}.json")))
    task = KnowledgeTask()
    marks = {}
    memory = Memory.open(folder / name)
    for when, kept in (("before", Kept(memory.keep)), ("after", kept_by(memory))):
        with LocalExecutor(ModelChoice(memory.base.name, stack=kept.stack), 0) as executor:
            (sitting,) = result(executor.submit(sit_kept, [(task, passage)], kept))
        marks[when] = mark_sitting(RecallGrader(), task.asked(passage), sitting)
    made = found["quiz"]["made"]
    return {
        "document": name,
        "seconds": round(seconds, 1),
        "decision": found["decision"],
        "reason": found.get("reason", ""),
        "made": len(made["questions"]),
        "asked": made["asked"],
        "refused": made["refused"],
        "kept": len(found["quiz"].get("kept") or []),
        "own_quiz": {when: found["report"][when] for when in ("n", "before", "after")} if "report" in found else None,
        "hand_written": {
            "n": len(passage.questions),
            **{when: {"right": of.accuracy, "f1": of.f1, "logprob": of.log_probability} for when, of in marks.items()},
            "interval_after": wilson(sum(one.correct for one in marks["after"].verdicts), len(passage.questions)),
        },
    }


def main() -> None:
    """Learns each document, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=tuple(DOCUMENTS), action="append")
    parser.add_argument("options", nargs="*", help="further options of selfedit learn, after --")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or DOCUMENTS:
            rows.append(learnt(name, DOCUMENTS[name], Path(folder), arguments.options))
            print(json.dumps(rows[-1]))
            # Also if a later document fails.
            write_json(arguments.out, {"options": arguments.options, "rows": rows})


if __name__ == "__main__":
    main()
